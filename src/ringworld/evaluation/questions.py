"""Questions about pictures and films: the files they come in, and which answers are right.

A file of questions is JSON lines, paths relative to it:

    {"media": "a.png", "question": "Which colour is the bus?", "answer": ["red", "dark red"], "kind": "colour"}
    {"media": "b.mp4", "fps": 2, "question": "It", "options": {"A": "rains", "B": "snows"}, "answer": "B"}

Several media in a list are shown one after the other.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ringworld.errors import UserError
from ringworld.tokens.video import FPS

_SHOWN = 3  # mistakes that one message names


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


def accuracy_by_kind(marks: Iterable[tuple[str | None, bool]]) -> dict[str, Any]:
    """Of questions' kinds, where they have one, and whether they were answered rightly: how many there are and the
    share that is right, in all and by kind.
    """
    kinds: dict[str, list[bool]] = {}
    right: list[bool] = []
    for kind, mark in marks:
        right.append(mark)
        if kind is not None:
            kinds.setdefault(kind, []).append(mark)
    found = {kind: {"questions": len(m), "accuracy": float(np.mean(m))} for kind, m in sorted(kinds.items())}
    return {"questions": len(right), "accuracy": float(np.mean(right)), "by_kind": found}
