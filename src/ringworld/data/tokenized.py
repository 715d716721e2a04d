"""Tokenised documents on disk: shards of ArrayRecord, random access to records.

A record is a msgpack map, as self-contained as the raw document that it was made of:

    {"source": "films/a.mp4",
     "spans": [{"text": "..."},
               {"codes": bytes, "frames": 30, "height": 4, "width": 4, "fps": 1.0, "trained": true}]}

Codes are numbers of the tokenizer's, not yet ids of a vocabulary, as little-endian uint16 in the order of frames, rows
and columns. Text stays text: it is cheap to tokenise, and codes serve any language model. "trained" is as in raw
documents, and "fps" is there for films alone. In a conversation every span has the "role" of who says or shows it. A
span {"mark": "eos"} (or "bos") is that token, where it stands within a document.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Int32

from ringworld.errors import UserError
from ringworld.files import replacing
from ringworld.tokens.chat import Role

SUFFIX = ".array_record"
SHARD = 256  # documents of one
BAD = "bad.jsonl"  # beside shards: what was left out, and why
JOB = "tokenize.json"  # beside the shards of `tokenize`: what they were made with
_MOST_CODES = 2**16


@dataclass(frozen=True)
class TextSpan:
    """Text as it was. `trained` as in raw documents; None: not said. `role`: in a conversation, who says it."""

    text: str
    trained: bool | float | None = None
    role: Role | None = None


@dataclass(frozen=True)
class VisionSpan:
    """The codes of a picture or, with `fps`, of a film."""

    codes: Int32[np.ndarray, "frames height width"]
    fps: float | None = None
    trained: bool | float | None = None
    role: Role | None = None


@dataclass(frozen=True)
class MarkSpan:
    """A bos or an eos within a document, or an eos at its end that weighs otherwise than what comes before."""

    mark: Literal["bos", "eos"]
    trained: bool | float | None = None
    role: None = None


TokenizedSpan = TextSpan | VisionSpan | MarkSpan


@dataclass(frozen=True)
class TokenizedDocument:
    """A document whose pictures and films are codes; `source` is the file, or the file and line, it was made of."""

    source: str
    spans: tuple[TokenizedSpan, ...]


def to_record(document: TokenizedDocument) -> bytes:
    """Raises ValueError for more than 65,536 codes."""
    packed: Any = msgpack.packb({"source": document.source, "spans": [_packed(span) for span in document.spans]})
    return packed


def from_record(record: bytes) -> TokenizedDocument:
    """Raises ValueError when it is no such record."""
    try:
        values = msgpack.unpackb(record)
        return TokenizedDocument(values["source"], tuple(_span(span) for span in values["spans"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a tokenised document ({error!r})") from error


def _packed(span: TokenizedSpan) -> dict[str, Any]:
    said: dict[str, Any] = {} if span.trained is None else {"trained": span.trained}
    said |= {} if span.role is None else {"role": span.role}
    if isinstance(span, TextSpan):
        return {"text": span.text, **said}
    if isinstance(span, MarkSpan):
        return {"mark": span.mark, **said}
    if span.codes.size and not 0 <= span.codes.min() <= span.codes.max() < _MOST_CODES:
        raise ValueError(f"codes must be 0 to {_MOST_CODES - 1}, got {span.codes.min()} to {span.codes.max()}")
    frames, height, width = span.codes.shape
    said |= {} if span.fps is None else {"fps": span.fps}
    return {"codes": span.codes.astype("<u2").tobytes(), "frames": frames, "height": height, "width": width, **said}


def _span(values: dict[str, Any]) -> TokenizedSpan:
    trained, role = values.get("trained"), values.get("role")
    if "text" in values:
        return TextSpan(values["text"], trained, role)
    if "mark" in values:
        return MarkSpan(values["mark"], trained)
    codes = np.frombuffer(values["codes"], "<u2").astype(np.int32)
    codes = codes.reshape(values["frames"], values["height"], values["width"])
    return VisionSpan(codes, values.get("fps"), trained, role)


def shard_name(number: int) -> str:
    """The file of a folder's shard, counted from 0."""
    return f"documents-{number:05}{SUFFIX}"


def write_shard(path: Path, documents: Sequence[TokenizedDocument]) -> None:
    """Writes a shard, whole or not at all. Raises OSError when it cannot be written."""
    with replacing(path) as temporary:
        try:
            writer = ArrayRecordWriter(str(temporary), "group_size:1")  # a group is what one access decompresses
            for document in documents:
                writer.write(to_record(document))
            writer.close()
        except RuntimeError as error:  # the library's own, of a full disk too
            raise OSError(str(error).split(";")[0]) from error


def made_with(folder: Path) -> str | None:
    """The fingerprint of the tokenizer of frames that made a folder's shards; None: nothing there says it."""
    try:
        return json.loads((folder / JOB).read_text(encoding="utf-8")).get("tokenizer")
    except (OSError, ValueError, AttributeError):
        return None


class TokenizedDocuments:
    """Random access to the documents of a folder of shards, in the order of the shards' names."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError when there is no such folder, no shard in it, or a damaged one."""
        paths = sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []
        if not paths:
            raise UserError(f"there are no tokenised documents in {folder}: give the folder that `tokenize` wrote")
        self.paths = tuple(paths)
        self._readers = [ArrayRecordReader(str(path)) for path in paths]
        for path, reader in zip(paths, self._readers, strict=True):
            if not reader.ok():
                raise UserError(f"cannot read {path}, which is damaged: remove it, and tokenise again")
        self._ends = np.cumsum([reader.num_records() for reader in self._readers])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> TokenizedDocument:
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        try:
            (record,) = self._readers[shard].read([index - first])
            return from_record(record)
        except Exception as error:
            raise UserError(f"cannot read document {index - first} of {self.paths[shard]} ({error})") from error

    def __iter__(self) -> Iterator[TokenizedDocument]:
        return (self[index] for index in range(len(self)))
