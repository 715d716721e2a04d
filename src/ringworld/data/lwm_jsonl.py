"""The data files of the released LWM, read as documents and converted to shards or to ringworld's own JSON lines.

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from ringworld.data.documents import Document, Malformed, checked_lines, first_of
from ringworld.data.multimodal import model_spans
from ringworld.data.tokenized import (
    BAD,
    SHARD,
    MarkSpan,
    TextSpan,
    TokenizedDocument,
    TokenizedSpan,
    VisionSpan,
    shard_name,
    write_shard,
)
from ringworld.errors import UserError
from ringworld.files import appearing_folder, is_free, replacing, write_atomically
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vocabulary import LWM, Vocabulary

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


class LwmLines:
    """The documents of a data file of LWM's, with codes as they are there and texts as texts. Lines are checked once,
    and read when they are asked for.

    A vision's codes come without terminators, as LWM has them, or with all of them: eof (the number after the codes)
    behind each frame, eov (the one after that) behind the last. A bos or eos that the spec itself has at an end of the
    document stands there once; LWM's reader writes two, so the log warns. Malformed lines are skipped: the log names
    the first of them by file and line and says how many there are. Empty lines do not count.

    Args:
        fields: the spec of all lines, or where in each line it stands.
        vocabulary: of the frames and codes that there may be.

    Attributes:
        skipped: of every malformed line "file:line: reason",
        warnings: and the same of what LWM's reader takes otherwise; of a spec for all lines, the first one.

    Raises:
        UserError: the spec is wrong, the file cannot be read, holds no document, or more than `bad_share` of its lines
            are malformed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fields: str | InLine,
        vocabulary: Vocabulary,
        *,
        bad_share: float = 0.01,
    ) -> None:
        self.path = path = Path(path)
        self._fields = fields
        self._vocabulary = vocabulary
        if isinstance(fields, str):
            parse_fields(fields)
        warnings: list[str] = []

        def check(line: bytes, number: int) -> None:
            try:
                values, parts = _parse(line, number, fields)
                _check(values, parts, vocabulary)
            except UserError as error:
                raise Malformed(str(error)) from error
            if (twice := _twice(parts)) and not (warnings and isinstance(fields, str)):
                warnings.append(f"{path}:{number}: {twice}")

        self._lines, self.skipped = checked_lines(path, check, bad_share=bad_share)
        self.warnings = tuple(warnings)
        if warnings:
            _log.warning("read otherwise than by LWM: %s", first_of(warnings))

    @property
    def sizes(self) -> Int64[np.ndarray, " documents"]:
        """Bytes of each line."""
        return self._lines[:, 2]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> TokenizedDocument:
        number, offset, size = self._lines[index].tolist()
        with self.path.open("rb") as file:
            file.seek(offset)
            values, fields = _parse(file.read(size), number, self._fields)
        return TokenizedDocument(f"{self.path.name}:{number}", tuple(_spans(values, fields, self._vocabulary)))


class LwmDocuments:
    """A source of LWM's lines: what `read_lwm_jsonl` returns. `lines` says what was skipped."""

    def __init__(self, lines: LwmLines, tokenizer: TextTokenizer) -> None:
        self.lines = lines
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Document:
        spans = (model_spans(span, float(span.trained or 0), self._tokenizer) for span in self.lines[index].spans)
        return Document(tuple(chain.from_iterable(spans)))


def read_lwm_jsonl(
    path: str | os.PathLike[str], fields: str | InLine, tokenizer: TextTokenizer, *, bad_share: float = 0.01
) -> LwmDocuments:
    """Documents from a data file of LWM's, in the ids of `tokenizer.vocabulary`.

    Args:
        tokenizer: of the model (`TextTokenizer.of` gives a vocabulary with vision).

    Raises:
        UserError: as `LwmLines`.
    """
    return LwmDocuments(LwmLines(path, fields, tokenizer.vocabulary, bad_share=bad_share), tokenizer)


def convert_lwm_jsonl(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    fields: str | InLine,
    tokenizer: TextTokenizer,
    *,
    bad_share: float = 0.01,
) -> LwmLines:
    """Writes a data file of LWM's as ringworld's tokenised JSON lines, which `read_jsonl` reads: whole or not at all.

    Returns:
        What was written.

    Raises:
        UserError: as `LwmLines`; and when `out` is there already or cannot be written.
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
    return documents.lines


def shards_of_lwm_jsonl(
    path: Path,
    out: Path,
    fields: str | InLine,
    vocabulary: Vocabulary = LWM,
    *,
    bad_share: float = 0.01,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> LwmLines:
    """Writes a data file of LWM's as a folder of shards, such as `tokenize` writes: whole or not at all.

    Text stays text, so they serve any language model whose frames are the vocabulary's. `bad.jsonl` in the folder lists
    the lines that were left out.

    Args:
        progress: told of documents done, of all.

    Returns:
        What was written.

    Raises:
        UserError: as `LwmLines`; and when there is something in `out`, or it cannot be written.
    """
    if not is_free(out):
        raise UserError(f"{out} is there already, and is not an empty folder: remove it, or give another name")
    lines = LwmLines(path, fields, vocabulary, bad_share=bad_share)
    bad = (text.removeprefix(f"{path}:").partition(": ") for text in lines.skipped)
    try:
        with appearing_folder(out) as folder:
            for first in range(0, len(lines), SHARD):
                some = range(first, min(first + SHARD, len(lines)))
                write_shard(folder / shard_name(first // SHARD), [lines[index] for index in some])
                progress(some.stop, len(lines))
            listed = (json.dumps({"source": f"{path.name}:{n}", "reason": reason}) + "\n" for n, _, reason in bad)
            write_atomically(folder / BAD, "".join(listed))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; give another name") from error
    return lines


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


def _spans(values: dict[str, Any], fields: tuple[Field, ...], vocabulary: Vocabulary) -> Iterator[TokenizedSpan]:
    """A checked line's spans. Whoever packs a document adds a bos at its beginning, and at its end an eos that weighs
    what comes before it; where LWM's weighs otherwise, it is a span."""
    begins, ends = fields[0].names == (BOS,), fields[-1].names == (EOS,)
    ending = fields[-1].trained if ends else True
    weighs = False
    for field in fields[begins : len(fields) - ends]:
        name, trained = field.names[0], field.trained
        if name in (BOS, EOS):
            span: TokenizedSpan = MarkSpan("bos" if name == BOS else "eos", trained)
        elif field.is_vision:
            span = VisionSpan(_frames(values, name, vocabulary).astype(np.int32), None, trained)
        else:
            span = TextSpan(" ".join(values[name] for name in field.names), trained)
        weighs = weighs if isinstance(span, TextSpan) and not span.text else trained
        yield span
    if ending != weighs:
        yield MarkSpan("eos", ending)
