"""Questions about pictures and films from files: how many of them does a model answer rightly?

A file of questions is JSON lines, paths relative to it:

    {"media": "a.png", "question": "Which colour is the bus?", "answer": ["red", "dark red"], "kind": "colour"}
    {"media": "b.mp4", "fps": 2, "question": "It", "options": {"A": "rains", "B": "snows"}, "answer": "B"}

Several media in a list are shown one after the other.
"""

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from ringworld.errors import UserError
from ringworld.evaluation.files import read_json, write_result
from ringworld.progress import progress_bar
from ringworld.tokens.chat import Role
from ringworld.tokens.video import FPS, read_video, video_info

Layout = Literal["media first", "question first"]
# A picture (one frame) or a film. It can be gone through as often as one likes, is hashable, and is equal to another
# only if both show the same: whoever is asked several questions about one film need encode it only once.
Footage = Iterable[UInt8[np.ndarray, "H W 3"]]

# The words with which LLaVA-1.5 asks for answers that can be marked (arXiv 2310.03744, appendix A).
_SHORT = "Answer the question using a single word or phrase."
_LETTER = "Answer with the option's letter from the given choices directly."
_SHOWN = 3  # mistakes that one message names
_QUESTION_TOKENS = 64  # of a question's words, about

_log = logging.getLogger(__name__)


class Turn(TypedDict):
    """A turn of a conversation: what is said and shown, in order."""

    role: Role
    content: list[str | Footage]


@runtime_checkable
class Answers(Protocol):
    """Who can be asked about pictures and films.

    Attributes:
        fingerprint: tells this model from others.
        context_length: tokens of the longest rows that it was trained on.
        frame_size: the side of its frames, in pixels.
        tokens_per_frame: codes and terminator.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def context_length(self) -> int: ...

    @property
    def frame_size(self) -> int: ...

    @property
    def tokens_per_frame(self) -> int: ...

    def answer(self, conversations: Sequence[Sequence[Turn]], max_tokens: int) -> list[str]:
        """The greedy answer to each conversation, of at most so many tokens. What a footage raises passes through."""
        ...


class UnreadableError(UserError):
    """A picture or film that cannot be read, or not to its end."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path


@dataclass(frozen=True)
class MediaFile:
    """A picture or film as it is shown to a model.

    Attributes:
        size: the side of its frames, in pixels.
        frames: about so many there are,
        most: and at most so many are shown; None: all.
    """

    path: Path
    fps: float
    size: int
    frames: int
    most: int | None = None

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        """Raises UnreadableError, if need be after the frames that can be read."""
        try:
            yield from islice(read_video(self.path, self.fps, (self.size, self.size)), self.most)
        except UserError as error:
            raise UnreadableError(self.path, str(error)) from error


@dataclass(frozen=True)
class Question:
    """A line of a file of questions.

    Attributes:
        line: its number in the file, from 1.
        media: the files that are shown, in order; fps: of the films among them.
        answers: the right ones; with options, the right letter.
        options: (letter, text); none of an open question.
    """

    line: int
    media: tuple[Path, ...]
    fps: float
    text: str
    answers: tuple[str, ...]
    options: tuple[tuple[str, str], ...] = ()
    kind: str | None = None

    def is_right(self, answer: str) -> bool:
        """Whether the answer is one of the right ones after `normalise`, or with options, chooses the right letter."""
        if self.options:
            return chosen_letter(answer, self.options) == self.answers[0]
        return normalise(answer) in {normalise(right) for right in self.answers}


# The signs that VQA's evaluation drops; "." and ":" only where they are not inside a number.
_PUNCTUATION = re.compile(r"""[;/\[\]"{}()=+\\_\-><@`,?!*]|(?<!\d)[.:]|[.:](?!\d)""")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}


def normalise(answer: str) -> str:
    """An answer as VQA's evaluation compares it (https://visualqa.org/evaluation.html): in lower case, without
    punctuation and articles, number words up to ten as digits, apostrophes and commas within numbers left out.

    Of an answer that is an article, such as the letter A, the article stays. VQA's ten answers a question, three of
    which make an answer wholly right, are not weighed here: one of them suffices.
    """
    text = re.sub(r"(?<=\d),(?=\d)|['\u2019]", "", answer.lower())
    words = [_DIGITS.get(word, word) for word in _PUNCTUATION.sub(" ", text).split()]
    return " ".join([word for word in words if word not in ("a", "an", "the")] or words)


def chosen_letter(answer: str, options: Sequence[tuple[str, str]]) -> str | None:
    """The option that an answer chooses; None: none of them.

    It is the one whose text is the answer, or whose letter the answer begins with: "B", "(B)", "B. It snows". A small
    letter counts only if it is all that there is: "a bus" does not choose A.
    """
    said = normalise(answer)
    if (named := [letter for letter, text in options if normalise(text) == said]) and said:
        return named[0]
    found = re.match(r"[\s(\[\"'*]*(?:([A-Z])(?![\w'\u2019])|([a-z])\W*$)", answer)
    letter = (found[1] or found[2]).upper() if found else None
    return letter if letter in {option for option, _ in options} else None


def read_questions(path: Path, *, fps: float = 1.0) -> tuple[Question, ...]:
    """The questions of a file; empty lines do not count.

    Args:
        fps: of films in lines that do not say theirs.

    Raises:
        UserError: the file cannot be read or has no question, or lines are malformed: the first of them are named by
            file and line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name a file with a question a line, as JSON") from error
    found: list[Question] = []
    wrong: list[str] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append(_parse(json.loads(line), number, path.parent, fps))
        except (ValueError, RecursionError) as error:
            wrong.append(f"{path}:{number}: {error}")
    if wrong:
        shown = "; ".join(wrong[:_SHOWN]) + ("; ..." if len(wrong) > _SHOWN else "")
        raise UserError(f"{len(wrong)} of {len(wrong) + len(found)} questions are malformed ({shown}): mend them")
    if not found:
        raise UserError(f'{path} holds no question; a line is such as {{"media": ..., "question": ..., "answer": ...}}')
    return tuple(found)


def _parse(value: Any, number: int, folder: Path, fps: float) -> Question:
    """Raises ValueError, which says what is wrong."""
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, got {type(value).__name__}")
    media, answers = (_texts(value, name) for name in ("media", "answer"))
    question = _texts(value, "question")[0]
    rate, kind, options = value.get("fps", fps), value.get("kind"), value.get("options", {})
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not FPS[0] <= rate <= FPS[1]:
        raise ValueError(f'"fps" must be {FPS[0]} to {FPS[1]} frames a second, got {rate!r}')
    if not isinstance(kind, str | None):
        raise ValueError(f'"kind" must be a string, got {kind!r}')
    if not isinstance(options, dict) or not all(
        re.fullmatch("[A-Z]", letter) and isinstance(text, str) for letter, text in options.items()
    ):
        raise ValueError(f'"options" must be such as {{"A": "red", "B": "blue"}}, got {options!r}')
    if options and (len(answers) != 1 or answers[0] not in options):
        raise ValueError(f'"answer" must be one of the letters {", ".join(options)}, got {value["answer"]!r}')
    paths = tuple(folder / name for name in media)
    return Question(number, paths, float(rate), question, answers, tuple(options.items()), kind)


def _texts(value: dict[str, Any], name: str) -> tuple[str, ...]:
    """A string or, but for the question, several."""
    content = value.get(name)
    parts = content if isinstance(content, list) and name != "question" else [content]
    texts = tuple(part for part in parts if isinstance(part, str) and part.strip())
    if not texts or len(texts) < len(parts):
        several = "" if name == "question" else " or a list of them"
        raise ValueError(f'"{name}" must be a string that is not empty{several}, got {content!r}')
    return texts


@dataclass(frozen=True)
class Marked:
    """A question's line and kind, what was answered, and whether that is right."""

    line: int
    kind: str | None
    text: str
    correct: bool


@dataclass(frozen=True)
class VqaResult:
    """The answers to a file of questions, under which settings they were given, and the media that cannot be read, each
    with the reason.
    """

    settings: dict[str, Any]
    answers: tuple[Marked, ...]
    unreadable: dict[str, str]

    @property
    def accuracy(self) -> float:
        """Over the questions that could be asked."""
        return float(np.mean([answer.correct for answer in self.answers]))

    def summary(self) -> dict[str, Any]:
        """Accuracy in all and by kind, with the number of questions asked, and what could not be read."""
        kinds = sorted({answer.kind for answer in self.answers if answer.kind is not None})
        marks = {kind: [a.correct for a in self.answers if a.kind == kind] for kind in kinds}
        return {
            "questions": len(self.answers),
            "accuracy": self.accuracy,
            "by_kind": {kind: {"questions": len(m), "accuracy": float(np.mean(m))} for kind, m in marks.items()},
            "unreadable": self.unreadable,
        }


def conversation(
    question: Question, media: Sequence[Footage], *, layout: Layout = "media first", instructed: bool = True
) -> list[Turn]:
    """How a question is asked: its media, then its words with the options a line each; or, as LWM's models were trained
    (arXiv 2402.08268), the other way round.

    Args:
        instructed: with LLaVA's words that ask for a short answer or a letter.
    """
    lines = [question.text, *(f"{letter}. {text}" for letter, text in question.options)]
    if instructed:
        lines.append(_LETTER if question.options else _SHORT)
    words = "\n".join(lines)
    content = [*media, f"\n{words}"] if layout == "media first" else [f"{words}\n", *media]
    return [{"role": "user", "content": content}]


def evaluate_vqa(
    model: Answers,
    path: Path,
    out: Path,
    *,
    fps: float = 1.0,
    max_frames: int | None = None,
    max_tokens: int = 16,
    layout: Layout = "media first",
    instructed: bool = True,
    batch_tokens: int = 32768,
    bad_share: float = 0.01,
    console: Console | None = None,
) -> VqaResult:
    """Asks the questions of a file, and writes `vqa.json` into the folder `out`.

    All questions about the same media go to the model together, with those about others as long as there is room, so
    that a film need be read once only. The JSON is written anew after each batch, atomically; where it is there
    already, its questions are not asked again. Media that cannot be read are named in it, and tried anew the next time.

    Args:
        fps: of films in lines that do not say theirs.
        max_frames: films that come to more are shown at a lower rate, so that they come to so many, evenly spread.
        max_tokens: of an answer.
        layout, instructed: see `conversation`.
        batch_tokens: tokens of questions and frames that are asked together, unless one film's come to more.
        bad_share: when more of the media than this cannot be read, the run stops.
        console: where the progress is shown; standard error by default.

    Raises:
        UserError: malformed questions, too many media that cannot be read, or results of another model or other
            questions in `out`.
    """
    if max_frames is not None and max_frames < 1:
        raise UserError(f"max_frames must be 1 or more, got {max_frames}")
    questions = read_questions(path, fps=fps)
    settings = {
        "questions": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "fps": fps,
        "max_frames": max_frames,
        "max_tokens": max_tokens,
        "layout": layout,
        "instructed": instructed,
        "model": model.fingerprint,
    }
    file = out / "vqa.json"
    answers = [_marked(record, file) for record in read_cases(file, settings)]
    done = {answer.line for answer in answers}
    waiting = [question for question in questions if question.line not in done]
    count = len({medium for question in questions for medium in question.media})
    library = _Library(waiting, model.frame_size, max_frames, bad_share * count)
    batches = _batches(waiting, library, model.tokens_per_frame, batch_tokens)
    with progress_bar(console) as progress:
        bar = progress.add_task("questions", total=len(questions), completed=len(done), note="")
        for batch in batches:
            while batch := [question for question in batch if library.has(question)]:
                asked = [conversation(q, library.media(q), layout=layout, instructed=instructed) for q in batch]
                try:
                    texts = model.answer(asked, max_tokens)
                except UnreadableError as error:  # found amid a film: the others are asked again without it
                    library.leave_out(error)
                    continue
                answers += [
                    Marked(question.line, question.kind, text.strip(), question.is_right(text))
                    for question, text in zip(batch, texts, strict=True)
                ]
                answers.sort(key=lambda answer: answer.line)
                _write(file, result := VqaResult(settings, tuple(answers), library.unreadable))
                progress.update(bar, advance=len(batch), note=f"{result.accuracy:.1%} right")
                break
    for reason in library.unreadable.values():
        _log.warning("left out: %s", reason)
    if not answers:
        raise UserError(f"none of the media that {path} asks about can be read: mend them")
    result = VqaResult(settings, tuple(answers), library.unreadable)
    _write(file, result)
    return result


class _Library:
    """The media of some questions: looked into once, and left out where they cannot be read."""

    def __init__(self, questions: Sequence[Question], size: int, max_frames: int | None, allowed: float) -> None:
        """Raises UserError when more than `allowed` cannot be read."""
        self.unreadable: dict[str, str] = {}
        self._allowed = allowed
        self._files: dict[tuple[Path, float], MediaFile] = {}
        for path, fps in dict.fromkeys((path, question.fps) for question in questions for path in question.media):
            try:
                self._files[path, fps] = _media_file(path, fps, size, max_frames)
            except UserError as error:
                self.unreadable[str(path)] = str(error)
        self._check()

    def has(self, question: Question) -> bool:
        return not any(str(path) in self.unreadable for path in question.media)

    def media(self, question: Question) -> list[MediaFile]:
        return [self._files[path, question.fps] for path in question.media]

    def leave_out(self, error: UnreadableError) -> None:
        """Raises UserError when too many cannot be read."""
        self.unreadable[str(error.path)] = str(error)
        self._check()

    def _check(self) -> None:
        if len(self.unreadable) > self._allowed:
            shown = "; ".join([*self.unreadable.values()][:_SHOWN])
            raise UserError(
                f"{len(self.unreadable)} of the pictures and films cannot be read ({shown}): more than the "
                f"{self._allowed:.4g} allowed; mend them or allow a larger bad_share"
            )


def _media_file(path: Path, fps: float, size: int, max_frames: int | None) -> MediaFile:
    """Raises UserError when it cannot be read, as far as that is known from its beginning."""
    info = video_info(path)
    if info.frames == 1:
        frames = 1
    elif info.seconds is None:
        frames = sum(1 for _ in read_video(path, fps, (1, 1)))
    else:
        frames = max(1, math.ceil(info.seconds * fps))
    if max_frames is not None and frames > max_frames:
        fps, frames = max(FPS[0], fps * max_frames / frames), max_frames
    return MediaFile(path, fps, size, frames, max_frames)


def _batches(
    questions: Sequence[Question], library: _Library, tokens_per_frame: int, batch_tokens: int
) -> Iterator[list[Question]]:
    """Those about the same media together, and more of them as long as there is room."""
    groups: dict[tuple[tuple[Path, ...], float], list[Question]] = {}
    for question in filter(library.has, questions):
        groups.setdefault((question.media, question.fps), []).append(question)
    batch: list[Question] = []
    room = batch_tokens
    for group in groups.values():
        frames = sum(media.frames for media in library.media(group[0]))
        tokens = len(group) * (frames * tokens_per_frame + _QUESTION_TOKENS)
        if batch and tokens > room:
            yield batch
            batch, room = [], batch_tokens
        batch, room = [*batch, *group], room - tokens
    if batch:
        yield batch


def _marked(record: dict[str, Any], path: Path) -> Marked:
    try:
        return Marked(record["line"], record.get("kind"), record["answer"], record["correct"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold answers ({error!r}): remove it to begin anew") from error


def _write(path: Path, result: VqaResult) -> None:
    records = [
        {"line": a.line, **({} if a.kind is None else {"kind": a.kind}), "answer": a.text, "correct": a.correct}
        for a in result.answers
    ]
    write_cases(path, result.settings, result.summary(), records)


def write_cases(
    path: Path, settings: dict[str, Any], summary: dict[str, Any], records: Sequence[dict[str, Any]]
) -> None:
    """A result as JSON, atomically: settings, summary, and every case in a line of its own, for `read_cases`."""
    lines = ",\n  ".join(json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records)
    head = json.dumps({"settings": settings, "summary": summary}, indent=1, ensure_ascii=False, allow_nan=False)
    write_result(path, f'{head[:-2]},\n "cases": [\n  {lines}\n ]\n}}\n')


def read_cases(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a run before this one under the same settings (plain JSON values); none where there is no file.

    Raises UserError when the file is damaged, or its settings differ.
    """
    if not path.exists():
        return []
    content = read_json(path)
    try:
        earlier, cases = content["settings"], content["cases"]
        differing = [f"{key} {earlier.get(key)} there, {value} now" for key, value in settings.items()
                     if earlier.get(key) != value]  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not hold results ({error!r}): remove it to begin anew") from error
    if differing:
        raise UserError(
            f"{path} holds another evaluation ({'; '.join(differing)}): give another --out, or remove the file"
        )
    return cases
