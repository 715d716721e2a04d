"""Documents: what a model reads as one connected thing; texts of them, and files with one a line.

A source is a random-access sequence of documents: `source[i]` depends on i alone, so that a stream can be continued
anywhere.
"""

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32, Int64

from ringworld.data.corpora import Part
from ringworld.errors import UserError
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.text import TextTokenizer

# The length that a generator states which never runs out of documents; each of its documents is drawn anew anyway.
ENDLESS = 1 << 48

Item = TypeVar("Item", covariant=True)
_SHOWN = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Span:
    """Ids of one modality, in the one id space. `weight` is the loss weight of each as a target; 0: not trained."""

    modality: str
    ids: Int32[np.ndarray, "tokens"]
    weight: float = 1.0


@dataclass(frozen=True)
class Document:
    """Spans in the order in which they happened.

    Attributes:
        positions: where each token stands, rising from 0; None: side by side.
    """

    spans: tuple[Span, ...]
    positions: Int32[np.ndarray, "tokens"] | None = None

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


@dataclass(frozen=True)
class Given:
    """What a source is built from beside its configuration, by the `build` of each (see `sources`).

    Attributes:
        sequence_length: tokens of the stage's rows.
        part: of its material: what is trained on, or what is held out.
        frames: the tokenizer of frames, where there is one.
    """

    tokenizer: TextTokenizer
    sequence_length: int
    seed: int
    part: Part = "train"
    frames: FrameTokenizer | None = None


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
