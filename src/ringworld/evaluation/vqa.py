"""Questions about pictures and films from files (`questions.read_questions`): how many of them does a model answer
rightly?
"""

import hashlib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from ringworld.errors import UserError
from ringworld.evaluation.asking import QUESTION_TOKENS, Answers, Footage, Turn, together
from ringworld.evaluation.files import earlier_cases, write_cases
from ringworld.evaluation.questions import Question, accuracy_by_kind, read_questions
from ringworld.progress import progress_bar
from ringworld.tokens.chat import Layout, arranged
from ringworld.tokens.video import FPS, read_video, video_info

# The words with which LLaVA-1.5 asks for answers that can be marked (arXiv 2310.03744, appendix A).
_SHORT = "Answer the question using a single word or phrase."
_LETTER = "Answer with the option's letter from the given choices directly."
_SHOWN = 3  # files that cannot be read, in one message

_log = logging.getLogger(__name__)


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
class Marked:
    """A question's line and kind, what was answered, and whether that is right."""

    line: int
    kind: str | None
    text: str
    correct: bool

    def to_dict(self) -> dict[str, Any]:
        """A record of `vqa.json`."""
        kind = {} if self.kind is None else {"kind": self.kind}
        return {"line": self.line, **kind, "answer": self.text, "correct": self.correct}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Marked":
        return cls(record["line"], record.get("kind"), record["answer"], record["correct"])


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
        return accuracy_by_kind((a.kind, a.correct) for a in self.answers) | {"unreadable": self.unreadable}


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
    return [{"role": "user", "content": arranged(words, media, layout)}]


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
    answers = [*earlier_cases(file, settings, Marked.from_dict, "answers")]
    done = {answer.line for answer in answers}
    waiting = [question for question in questions if question.line not in done]
    count = len({medium for question in questions for medium in question.media})
    library = _Library(waiting, model.frame_size, max_frames, bad_share * count)
    batches = together(_by_media(waiting, library, model.tokens_per_frame), batch_tokens)
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


def _by_media(
    questions: Sequence[Question], library: _Library, tokens_per_frame: int
) -> list[tuple[list[Question], int]]:
    """Those about the same media together, and how many tokens they come to."""
    groups: dict[tuple[tuple[Path, ...], float], list[Question]] = {}
    for question in filter(library.has, questions):
        groups.setdefault((question.media, question.fps), []).append(question)
    frames = [sum(media.frames for media in library.media(group[0])) for group in groups.values()]
    return [
        (group, len(group) * (count * tokens_per_frame + QUESTION_TOKENS))
        for group, count in zip(groups.values(), frames, strict=True)
    ]


def _write(path: Path, result: VqaResult) -> None:
    write_cases(path, result.settings, result.summary(), [answer.to_dict() for answer in result.answers])
