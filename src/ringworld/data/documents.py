"""Documents: what a model reads as one connected thing, and the files that hold them.

A source is a random-access sequence of documents: `source[i]` depends on i alone, so that a stream can be continued
anywhere.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, Int64

from ringworld.errors import UserError
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vocabulary import Vocabulary

# The length that a generator states which never runs out of documents; each of its documents is drawn anew anyway.
ENDLESS = 1 << 48

Item = TypeVar("Item", covariant=True)
_MODALITIES = ("text", "vision")
_SHOWN = 3
_MAX_WEIGHT = float(np.finfo(np.float32).max)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Span:
    """Ids of one modality, in the one id space. `weight` is the loss weight of each as a target; 0: not trained."""

    modality: str
    ids: Int32[np.ndarray, "tokens"]
    weight: float = 1.0


@dataclass(frozen=True)
class Document:
    """Spans in the order in which they happened."""

    spans: tuple[Span, ...]

    @cached_property
    def tokens(self) -> Int32[np.ndarray, "tokens"]:
        if not self.spans:
            return np.zeros(0, np.int32)
        return np.concatenate([span.ids for span in self.spans], dtype=np.int32)

    @cached_property
    def weights(self) -> Float32[np.ndarray, "tokens"]:
        """The loss weight of each token as a target."""
        weights = np.array([span.weight for span in self.spans], np.float32)
        return np.repeat(weights, [len(span.ids) for span in self.spans])

    def __len__(self) -> int:
        return sum(len(span.ids) for span in self.spans)


@runtime_checkable
class RandomAccess(Protocol[Item]):
    """Random access to items of one kind, a pure function of the index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


Source = RandomAccess[Document]


def text_document(text: str, tokenizer: TextTokenizer) -> Document:
    """A document of one trained text span."""
    return Document((Span("text", np.array(tokenizer.encode(text), np.int32)),))


class TextDocuments:
    """A source of texts held in memory."""

    def __init__(self, texts: list[str], tokenizer: TextTokenizer) -> None:
        self._documents = [Document((Span("text", np.array(ids, np.int32)),)) for ids in tokenizer.encode_batch(texts)]

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Document:
        return self._documents[index]


class TextFolder:
    """A source of text files: what `read_text_folder` returns. Each is read when it is asked for."""

    def __init__(self, paths: tuple[Path, ...], tokenizer: TextTokenizer) -> None:
        self.paths = paths
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Document:
        return text_document(self.paths[index].read_text(encoding="utf-8"), self._tokenizer)


def read_text_folder(path: str | os.PathLike[str], tokenizer: TextTokenizer) -> TextFolder:
    """Every *.txt below a folder, one document each, in the order of their paths.

    Raises UserError when the folder is missing or holds no such file, or a file is empty or not UTF-8 text.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name a folder with *.txt files in it")
    paths = tuple(sorted(found for found in folder.rglob("*.txt") if found.is_file()))
    if not paths:
        raise UserError(f"the folder {folder} holds no *.txt file, in it or below; put texts there, a document a file")
    for found in paths:
        try:
            text = found.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{found} is not UTF-8 text: byte {error.object[error.start]:#04x} at offset {error.start}; convert it "
                "or take it out"
            ) from error
        if not text.strip() or "\0" in text:
            raise UserError(f"{found} {'is not text: it has zero bytes' if text.strip() else 'is empty'}; take it out")
    return TextFolder(paths, tokenizer)


class JsonlDocuments:
    """A source of JSON lines: what `read_jsonl` returns. Lines are checked once, and read when they are asked for.

    `skipped` says of every malformed line "file:line: reason".
    """

    def __init__(
        self, path: Path, tokenizer: TextTokenizer, offsets: np.ndarray, sizes: np.ndarray, skipped: tuple[str, ...]
    ) -> None:
        self.path = path
        self.sizes = sizes
        self.skipped = skipped
        self._offsets = offsets
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Document:
        with self.path.open("rb") as file:
            file.seek(self._offsets[index])
            line = file.read(self.sizes[index])
        spans = _parse(line, self._tokenizer.vocabulary)
        return Document(tuple(_span(part, weight, self._tokenizer) for part, weight in spans))


def read_jsonl(path: str | os.PathLike[str], tokenizer: TextTokenizer, *, bad_share: float = 0.01) -> JsonlDocuments:
    """Documents from a file of JSON objects, one a line; docs/data.md has the format. Empty lines do not count.

    Malformed lines are skipped: the log names the first of them by file and line and says how many there are.
    Raises UserError when the file cannot be read, holds no document, or more than `bad_share` of its lines are
    malformed.
    """
    path = Path(path)
    lines, skipped = checked_lines(path, lambda line, _: _parse(line, tokenizer.vocabulary), bad_share=bad_share)
    return JsonlDocuments(path, tokenizer, lines[:, 1], lines[:, 2], skipped)


class Malformed(Exception):
    """Why a line is not a document."""


def checked_lines(
    path: Path, check: Callable[[bytes, int], Any], *, bad_share: float
) -> tuple[Int64[np.ndarray, "lines 3"], tuple[str, ...]]:
    """Looks at each line of a file once, but for empty ones.

    Args:
        check: takes a line and its number, from 1 on, and raises `Malformed` when it is no document.

    Returns:
        number, offset and bytes of each good line; of each malformed one "file:line: reason". The log says how many of
        these there are.

    Raises:
        UserError: the file cannot be read, holds no document, or more than `bad_share` of its lines are malformed.
    """
    good: list[tuple[int, int, int]] = []
    skipped: list[str] = []
    end = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                start, end = end, end + len(line)
                if not line.strip():
                    continue
                try:
                    check(line, number)
                except Malformed as error:
                    skipped.append(f"{path}:{number}: {error}")
                    continue
                good.append((number, start, len(line)))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name a file with one JSON object a line") from error
    total = len(good) + len(skipped)
    if not total:
        raise UserError(f'{path} holds no line; it must hold one JSON object a line, such as {{"text": "..."}}')
    if skipped:
        count = f"{len(skipped)} of {total} lines of {path} are malformed ({first_of(skipped)})"
        if len(skipped) > bad_share * total or not good:
            raise UserError(f"{count}: more than the {bad_share:.2%} allowed; mend them or allow a larger bad_share")
        _log.warning("%s: skipped", count)
    return np.array(good, np.int64), tuple(skipped)


def first_of(reasons: Sequence[str]) -> str:
    """The first few of many, for a sentence."""
    return "; ".join(reasons[:_SHOWN]) + ("; ..." if len(reasons) > _SHOWN else "")


def _parse(line: bytes, vocabulary: Vocabulary) -> list[tuple[dict[str, Any], float]]:
    """The line's spans, checked, each with its weight; not tokenised yet."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise Malformed(f"must be a JSON object, got {type(value).__name__}")
    parts = value.get("spans", [value] if "text" in value else None)
    if not isinstance(parts, list) or not parts:
        raise Malformed('must have "text" or a list "spans" that is not empty')
    if not all(isinstance(part, dict) for part in parts):
        raise Malformed("every span must be a JSON object")
    default = not any("trained" in part for part in parts)
    for part in parts:
        _check(part, vocabulary)
    return [(part, float(part.get("trained", default))) for part in parts]


def _check(part: dict[str, Any], vocabulary: Vocabulary) -> None:
    trained = part.get("trained", True)
    if not isinstance(trained, bool | int | float) or not 0 <= trained <= _MAX_WEIGHT:
        raise Malformed(f'"trained" must be true, false or a number from 0 up, got {trained!r}')
    if "text" in part:
        if not isinstance(part["text"], str):
            raise Malformed(f'"text" must be a string, got {type(part["text"]).__name__}')
        try:
            part["text"].encode()
        except UnicodeEncodeError as error:
            raise Malformed(f'"text" is not Unicode: half a surrogate pair at {error.start}') from error
        return
    if "ids" not in part:
        raise Malformed(f'a span must have "text", or "modality" and "ids", got {sorted(part)}')
    modality = part.get("modality", "text")
    known = _MODALITIES[: len(vocabulary.modalities)]
    if modality not in known:
        raise Malformed(f'"modality" must be one of {", ".join(known)}, got {modality!r}')
    ids = part["ids"]
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise Malformed('"ids" must be a list of integers')
    allowed = vocabulary.modalities[known.index(modality)]
    if outside := [i for i in ids if not allowed.start <= i < allowed.stop]:
        raise Malformed(f'"ids" of {modality} must be {allowed.start} to {allowed.stop - 1}, got {outside[0]}')


def _span(part: dict[str, Any], weight: float, tokenizer: TextTokenizer) -> Span:
    if "text" in part:
        return Span("text", np.array(tokenizer.encode(part["text"]), np.int32), weight)
    return Span(part.get("modality", "text"), np.array(part["ids"], np.int32), weight)
