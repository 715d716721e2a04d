"""The data files of the released LWM, read as documents and converted to ringworld's own JSON lines.

An object a line, and a spec of the fields that make a document: names with commas between them.

    [caption],vision      no loss on `caption`, loss on `vision`
    [title+body],<|eos|>  two texts joined by a space; the id of bos or eos
    vision                a field with "vision" in its name: the codes of frames, one after the other, row by row

A document begins with bos, without loss, and ends with eos, with loss. (LargeWorldModel/LWM, `lwm/data.py`.)

What LWM's own reader passes over in silence makes a line malformed here: codes that there are not, a last frame that is
not whole, a field named after vision that holds text. Its two ways to batch are not copied: chopped rows in which
documents see each other, and padded ones whose mask is off by one where they are cut.
"""

import json
import logging
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from ringworld.data.documents import Document, Malformed, Span, checked_lines, first_of
from ringworld.data.multimodal import vision_spans
from ringworld.errors import UserError
from ringworld.files import replacing
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vocabulary import Vocabulary

BOS, EOS = "<|bos|>", "<|eos|>"
_NO_SPACE = "names stand between commas, without spaces around them"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InLine:
    """The spec stands in each line, under `key`: one, or a list of several.

    `index` says which of a list; None: one drawn by the number of the line, the same that LWM's reader draws.
    """

    key: str = "fields"
    index: int | None = None


@dataclass(frozen=True)
class Field:
    """A part of a spec: names of texts to be joined, the name of a vision, or `BOS` or `EOS`."""

    names: tuple[str, ...]
    trained: bool

    @property
    def is_vision(self) -> bool:
        return "vision" in self.names[0]


def parse_fields(spec: str) -> tuple[Field, ...]:
    """The parts of a spec. Raises UserError when it is none that LWM's reader takes, or one that it reads wrongly."""
    return tuple(_field(part, spec) for part in spec.split(","))


def _field(part: str, spec: str) -> Field:
    trained = not (part.startswith("[") and part.endswith("]"))
    name = part if trained else part[1:-1]
    names = tuple(name.split("+"))

    def wrong(reason: str) -> UserError:
        return UserError(f"the fields {spec!r} have {part!r}: {reason}")

    if any(one != one.strip() for one in (part, *names)):
        raise wrong(_NO_SPACE)
    if "" in names:
        raise wrong("there must be a name")
    if any(bracket in name for bracket in "[]"):
        raise wrong("[ and ] stand around a whole part, such as [caption+title]")
    if name.startswith("<|") and name not in (BOS, EOS):
        raise wrong(f"of such tokens there are {BOS} and {EOS}")
    if len(names) > 1 and any("vision" in one or one in (BOS, EOS) for one in names):
        raise wrong("only texts can be joined by +")
    return Field(names, trained)


class LwmDocuments:
    """A source of LWM's lines: what `read_lwm_jsonl` returns. Lines are checked once, and read when they are asked for.

    `skipped` says of every malformed line "file:line: reason", `warnings` the same of what LWM's reader takes
    otherwise; of a spec for all lines, the first one.
    """

    def __init__(
        self,
        path: Path,
        fields: str | InLine,
        tokenizer: TextTokenizer,
        lines: Int64[np.ndarray, "documents 3"],
        skipped: tuple[str, ...],
        warnings: tuple[str, ...],
    ) -> None:
        """`lines`: number (from 1), offset and size in bytes of each."""
        self.path = path
        self.skipped = skipped
        self.warnings = warnings
        self._fields = fields
        self._tokenizer = tokenizer
        self._lines = lines

    @property
    def sizes(self) -> Int64[np.ndarray, " documents"]:
        """Bytes of each line."""
        return self._lines[:, 2]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Document:
        number, offset, size = self._lines[index].tolist()
        with self.path.open("rb") as file:
            file.seek(offset)
            values, fields = _parse(file.read(size), number, self._fields)
        return Document(tuple(_spans(values, fields, self._tokenizer)))


def read_lwm_jsonl(
    path: str | os.PathLike[str], fields: str | InLine, tokenizer: TextTokenizer, *, bad_share: float = 0.01
) -> LwmDocuments:
    """Documents from a data file of LWM's, in the ids of `tokenizer.vocabulary`. Empty lines do not count.

    A vision's codes come without terminators, as LWM has them, or with all of them: eof (the number after the codes)
    behind each frame, eov (the one after that) behind the last. A bos or eos that the spec itself has at an end of the
    document stands there once; LWM's reader writes two, so the log warns. Malformed lines are skipped: the log names
    the first of them by file and line and says how many there are.

    Args:
        fields: the spec of all lines, or where in each line it stands.
        tokenizer: of the model (`TextTokenizer.of` gives a vocabulary with vision).

    Raises:
        UserError: the spec is wrong, the file cannot be read, holds no document, or more than `bad_share` of its lines
            are malformed.
    """
    path = Path(path)
    if isinstance(fields, str):
        parse_fields(fields)
    warnings: list[str] = []

    def check(line: bytes, number: int) -> None:
        try:
            values, parts = _parse(line, number, fields)
            _check(values, parts, tokenizer.vocabulary)
        except UserError as error:
            raise Malformed(str(error)) from error
        if (twice := _twice(parts)) and not (warnings and isinstance(fields, str)):
            warnings.append(f"{path}:{number}: {twice}")

    lines, skipped = checked_lines(path, check, bad_share=bad_share)
    if warnings:
        _log.warning("read otherwise than by LWM: %s", first_of(warnings))
    return LwmDocuments(path, fields, tokenizer, lines, skipped, tuple(warnings))


def convert_lwm_jsonl(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    fields: str | InLine,
    tokenizer: TextTokenizer,
    *,
    bad_share: float = 0.01,
) -> LwmDocuments:
    """Writes a data file of LWM's as ringworld's tokenised JSON lines, which `read_jsonl` reads: whole or not at all.

    Returns:
        What was written, as a source.

    Raises:
        UserError: as `read_lwm_jsonl`; and when `out` is there already or cannot be written.
    """
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} is there already: remove it, or give another name")
    documents = read_lwm_jsonl(path, fields, tokenizer, bad_share=bad_share)
    try:
        with replacing(out) as temporary, temporary.open("w", encoding="utf-8") as file:
            for index in range(len(documents)):
                file.write(_line(documents[index]))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; give another name") from error
    return documents


def _line(document: Document) -> str:
    spans = [
        {"modality": span.modality, "ids": span.ids.tolist(), "trained": span.weight > 0} for span in document.spans
    ]
    return json.dumps({"spans": spans}) + "\n"


def _parse(line: bytes, number: int, fields: str | InLine) -> tuple[dict[str, Any], tuple[Field, ...]]:
    """What the line holds, and the parts of its document."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"must be a JSON object, got {type(values).__name__}")
    if isinstance(fields, str):
        return values, parse_fields(fields)
    spec = values.get(fields.key)
    if isinstance(spec, list) and spec:
        if fields.index is None:
            spec = random.Random(number - 1).choice(spec)
        elif 0 <= fields.index < len(spec):
            spec = spec[fields.index]
        else:
            raise UserError(f"{fields.key!r} has {len(spec)} specs, 0 to {len(spec) - 1}, so none {fields.index}")
    if not isinstance(spec, str):
        raise UserError(f"{fields.key!r} must be a spec of fields or a list of them, got {_kind(values, fields.key)}")
    return values, parse_fields(spec)


def _kind(values: dict[str, Any], name: str) -> str:
    return type(values[name]).__name__ if name in values else "none"


def _check(values: dict[str, Any], fields: tuple[Field, ...], vocabulary: Vocabulary) -> None:
    for field in fields:
        for name in field.names:
            if name in (BOS, EOS):
                if name == BOS and vocabulary.bos is None:
                    raise UserError(f"the fields have {BOS}, and the vocabulary has no bos")
            elif name not in values:
                raise UserError(f"has no field {name!r}, which the fields name; it has {', '.join(sorted(values))}")
            elif field.is_vision:
                _frames(values, name, vocabulary)
            else:
                _check_text(values, name)


def _check_text(values: dict[str, Any], name: str) -> None:
    if not isinstance(values[name], str):
        raise UserError(
            f'{name!r} must be a text, got {_kind(values, name)}; codes stand in a field with "vision" in its name'
        )
    try:
        values[name].encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{name!r} is not Unicode: half a surrogate pair at {error.start}") from error


def _frames(values: dict[str, Any], name: str, vocabulary: Vocabulary) -> np.ndarray:
    """The frames [F, h, w] of a field of codes."""
    if not vocabulary.vision_size:
        raise UserError(f"{name!r} is vision, and the vocabulary has none: give it one with vision")
    codes = values[name]
    if isinstance(codes, str):
        raise UserError(f'{name!r} is a text: a field with "vision" in its name holds codes, so call it otherwise')
    try:
        array = np.array(codes)
    except ValueError:
        array = np.empty(())
    if not isinstance(codes, list) or not codes or array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(f"{name!r} must be a list of codes, numbers from 0 to {vocabulary.codes - 1}, at least a frame")
    eof, eov = vocabulary.codes, vocabulary.codes + 1
    if outside := np.flatnonzero((array < 0) | (array > eov)).tolist():
        raise UserError(
            f"{name!r} has {array[outside[0]]} at {outside[0]}: codes are 0 to {vocabulary.codes - 1}, with {eof} and "
            f"{eov} for eof and eov"
        )
    ended = bool((array >= vocabulary.codes).any())
    size = vocabulary.codes_per_frame + ended
    if len(array) % size:
        raise UserError(
            f"{name!r} has {len(array)} numbers, and a frame {'with eof or eov' if ended else 'of codes'} has {size}: "
            f"{len(array) % size} are left over"
        )
    frames = array.reshape(-1, size)
    if ended:
        ends = np.full(len(frames), eof)
        ends[-1] = eov
        is_end = np.zeros(frames.shape, bool)
        is_end[:, -1] = True
        wrong = np.where(is_end, frames != ends[:, None], frames >= vocabulary.codes)
        if wrong.any():
            frame, place = (int(x) for x in np.argwhere(wrong)[0])
            wanted = f"{'eov' if ends[frame] == eov else 'eof'} ({ends[frame]})" if is_end[frame, place] else "a code"
            raise UserError(
                f"{name!r} has {frames[frame, place]} at {frame * size + place}, where {wanted} must stand: frames end "
                f"with eof ({eof}), and the last one with eov ({eov})"
            )
        frames = frames[:, :-1]
    return frames.reshape(-1, vocabulary.frame_height, vocabulary.frame_width)


def _twice(fields: tuple[Field, ...]) -> str:
    """What LWM's reader writes twice, and this one once."""
    edges = (("begin", BOS, fields[0]), ("end", EOS, fields[-1]))
    return "; ".join(
        f"its fields {verb} with {token}, which LWM writes twice"
        for verb, token, field in edges
        if token in field.names
    )


def _spans(values: dict[str, Any], fields: tuple[Field, ...], tokenizer: TextTokenizer) -> Iterator[Span]:
    """A checked line's spans, but for a bos at its beginning, which whoever packs it adds."""
    vocabulary = tokenizer.vocabulary
    ends = {BOS: vocabulary.opening, EOS: (vocabulary.eos,)}
    for field in fields:
        name = field.names[0]
        weight = float(field.trained)
        if name in ends:
            yield Span("text", np.array(ends[name], np.int32), weight)
        elif field.is_vision:
            yield from vision_spans(_frames(values, name, vocabulary), weight, vocabulary)
        else:
            text = " ".join(values[name] for name in field.names)
            yield Span("text", np.array(tokenizer.encode(text), np.int32), weight)
    if fields[-1].names != (EOS,):
        yield Span("text", np.array(ends[EOS], np.int32), 1.0)
