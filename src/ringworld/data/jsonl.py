"""Documents from JSON lines: texts, spans with their loss weights, conversations. docs/data.md has the format."""

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ringworld.data.conversations import conversation, messages_of, said_in
from ringworld.data.documents import Document, Malformed, Span, checked_lines
from ringworld.errors import UserError
from ringworld.tokens.chat import ChatTemplate, Part, Role
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vocabulary import Vocabulary

_MODALITIES = ("text", "vision")
_MAX_WEIGHT = float(np.finfo(np.float32).max)


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
        vocabulary = self._tokenizer.vocabulary
        value = _parse(line, vocabulary)
        if "messages" not in value:
            return Document(tuple(self._span(part, weight) for part, weight in _weighed(_spans(value))))
        said: list[tuple[Role, Part]] = []
        for role, part in said_in(value["messages"]):
            said.append((role, part["text"] if "text" in part else np.array(part["ids"], np.int32)))
        try:
            return conversation(messages_of(said), self._template, vocabulary)
        except UserError as error:
            raise UserError(f"document {index} of {self.path}: {error}") from error

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self._tokenizer)

    def _span(self, part: dict[str, Any], weight: float) -> Span:
        if "text" in part:
            return Span("text", np.array(self._tokenizer.encode(part["text"]), np.int32), weight)
        return Span(part.get("modality", "text"), np.array(part["ids"], np.int32), weight)


def read_jsonl(path: str | os.PathLike[str], tokenizer: TextTokenizer, *, bad_share: float = 0.01) -> JsonlDocuments:
    """Documents from a file of JSON objects, one a line; docs/data.md has the format. Empty lines do not count.

    A conversation is laid out by the tokenizer's chat template, and its answers alone are trained on. Malformed lines
    are skipped: the log names the first of them by file and line and says how many there are.

    Raises UserError when the file cannot be read, holds no document, or more than `bad_share` of its lines are
    malformed.
    """
    path = Path(path)
    lines, skipped = checked_lines(path, lambda line, _: _parse(line, tokenizer.vocabulary), bad_share=bad_share)
    return JsonlDocuments(path, tokenizer, lines[:, 1], lines[:, 2], skipped)


def _parse(line: bytes, vocabulary: Vocabulary) -> dict[str, Any]:
    """What the line holds, checked; not tokenised yet."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise Malformed(f"must be a JSON object, got {type(value).__name__}")
    for part in _spans(value):
        _check(part, vocabulary)
    return value


def _spans(value: dict[str, Any]) -> list[dict[str, Any]]:
    if "messages" in value:
        try:
            return [part for _, part in said_in(value["messages"])]
        except ValueError as error:
            raise Malformed(str(error)) from error
    parts = value.get("spans", [value] if "text" in value else None)
    if not isinstance(parts, list) or not parts:
        raise Malformed('must have "text", "messages" or a list "spans" that is not empty')
    if not all(isinstance(part, dict) for part in parts):
        raise Malformed("every span must be a JSON object")
    return parts


def _weighed(parts: list[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    default = not any("trained" in part for part in parts)
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
