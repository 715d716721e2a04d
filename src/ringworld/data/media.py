"""What there is to look at: files, folders and .jsonl files of pictures and films, as raw documents."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ringworld.data.conversations import said_in
from ringworld.errors import UserError

# A folder may hold anything else, too; a file that is named itself may be called as it likes.
_MEDIA = re.compile(
    r"[^.].*\.(png|jpe?g|webp|gif|mp4|m4v|mov|avi|mkv|webm|mpe?g|ts|ogv|wmv|flv|jsonl)", re.IGNORECASE | re.DOTALL
)


@dataclass(frozen=True)
class RawDocument:
    """A document to be: its source, and its spans as in `docs/data.md`, with paths resolved; or why it is none."""

    source: str
    spans: tuple[dict[str, Any], ...] = ()
    wrong: str | None = None


def raw_documents(path: Path, fps: float | None) -> list[RawDocument]:
    """The documents of an input: a picture or film, a .jsonl of raw documents, or a folder with any of these in it.

    Args:
        fps: of films that do not say their own; None: all their frames.

    Raises:
        UserError: there is nothing there to tokenise.
    """
    if not path.exists():
        raise UserError(
            f"there is no {path}: name a picture, a film, a .jsonl file, or a folder with any of them in it"
        )
    if path.is_file():
        return _of_file(path, path.name, fps)
    files = sorted(found for found in path.rglob("*") if found.is_file() and _MEDIA.fullmatch(found.name))
    if not files:
        raise UserError(f"the folder {path} holds no picture, film or .jsonl file, in it or below")
    return [document for file in files for document in _of_file(file, str(file.relative_to(path)), fps)]


def _of_file(path: Path, name: str, fps: float | None) -> list[RawDocument]:
    if path.suffix.lower() != ".jsonl":
        return [RawDocument(name, ({"media": str(path), "fps": fps},))]
    documents = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                documents.append(_of_line(line, path, f"{name}:{number}", fps))
    return documents


def _of_line(line: bytes, path: Path, source: str, fps: float | None) -> RawDocument:
    try:
        value = json.loads(line)
        if "messages" in value:
            said = said_in(value["messages"])
            spans = tuple({**_raw_span(part, path.parent, fps), "role": role} for role, part in said)
        else:
            spans = tuple(_raw_span(part, path.parent, fps) for part in value.get("spans", [value]))
    except (ValueError, AttributeError, TypeError) as error:
        return RawDocument(source, wrong=f"not a raw document ({error})")
    return RawDocument(source, spans) if spans else RawDocument(source, wrong="no spans in it")


def _raw_span(part: dict[str, Any], folder: Path, fps: float | None) -> dict[str, Any]:
    said = {name: part[name] for name in ("trained",) if name in part}
    known = [name for name in ("text", "image", "video") if name in part]
    if len(known) != 1 or not isinstance(part[known[0]], str):
        raise ValueError('a span must have one of "text", "image" and "video", a string')
    if known == ["text"]:
        return {"text": part["text"], **said}
    media = str(folder / part[known[0]])
    return {"media": media, "fps": part.get("fps", fps), "still": known == ["image"], **said}


def media_files(path: Path) -> list[Path]:
    """The pictures and films of an input, each once, sorted. Raises UserError as `raw_documents`."""
    spans = (span for document in raw_documents(path, None) for span in document.spans)
    return sorted({Path(span["media"]) for span in spans if "media" in span})
