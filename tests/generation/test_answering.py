from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from generation.models import frame_tokenizer, random_model, seeing_model
from ringworld.errors import UserError
from ringworld.evaluation.asking import ReadsAhead
from ringworld.evaluation.vqa import Answers
from ringworld.generation import answering, decode
from ringworld.generation.answering import Answering
from ringworld.generation.model import Model

pytestmark = pytest.mark.usefixtures("few_programs")
SIDE = frame_tokenizer().config.frame_size
QUESTIONS = ("what?", "and who was it?", "where?")


@dataclass(frozen=True)
class Film:
    """Frames of noise, and how often they were looked at."""

    seed: int
    count: int
    looked: list[int] = field(default_factory=list, compare=False)

    def __iter__(self) -> Iterator[np.ndarray]:
        self.looked.append(self.seed)
        yield from np.random.default_rng(self.seed).integers(0, 256, (self.count, SIDE, SIDE, 3), np.uint8)


def asked(*content: Any) -> list[Any]:
    return [{"role": "user", "content": list(content)}]


def said(model: Model, film: Film, question: str) -> str:
    chat = model.chat()
    chat.show(film)
    return "".join(piece for piece in chat.say(question, max_tokens=6) if isinstance(piece, str))


@pytest.mark.parametrize("side_by_side", [4096, 0])
def test_answers_are_those_of_a_chat(side_by_side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_SIDE_BY_SIDE", side_by_side)
    model = seeing_model()
    answers = Answering(model)
    assert isinstance(answers, Answers)
    films = [Film(0, 1), Film(1, 3), Film(0, 1)]
    conversations = [asked(film, f" {question}") for film, question in zip(films, QUESTIONS, strict=True)]
    expected = [said(model, film, question) for film, question in zip(films, QUESTIONS, strict=True)]
    films[0].looked.clear()
    films[2].looked.clear()
    assert answers.answer(conversations, 6) == expected
    assert films[0].looked + films[2].looked == [0], "equal films are encoded once"


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens were read each time, where films of more than a few are long ones."""
    monkeypatch.setattr(answering, "_SIDE_BY_SIDE", 16)
    counts: list[int] = []
    reading = decode.read

    def counted(weights: Any, tokens: np.ndarray, lengths: np.ndarray, *rest: Any, **options: Any) -> Any:
        counts.append(int(lengths.max()))
        return reading(weights, tokens, lengths, *rest, **options)

    monkeypatch.setattr(decode, "read", counted)
    return counts


def test_a_long_film_is_read_once_for_all_questions(counts: list[int]) -> None:
    answers, film = Answering(seeing_model()), Film(2, 8)
    for question in QUESTIONS:
        answers.answer([asked(film, f" {question}")], 2)
    assert film.looked == [2]
    assert counts[0] > 8 * answers.tokens_per_frame
    assert max(counts[1:]) < 8 * answers.tokens_per_frame


def test_what_was_read_ahead_is_not_read_again(counts: list[int]) -> None:
    alone = Answering(seeing_model()).answer([asked(" 0:00 ", Film(2, 8), " ", QUESTIONS[0])], 6)
    answers, film = Answering(seeing_model()), Film(2, 8)
    assert isinstance(answers, ReadsAhead)
    counts.clear()
    tokens = answers.read(asked(" 0:00 ", film, " "))
    assert sum(counts) == tokens > 8 * answers.tokens_per_frame
    counts.clear()
    assert answers.answer([asked(" 0:00 ", film, " ", QUESTIONS[0])], 6) == alone
    assert film.looked == [2]
    assert sum(counts) < 8 * answers.tokens_per_frame


def test_what_cannot_be_asked() -> None:
    with pytest.raises(UserError, match="there is no frame"):
        Answering(seeing_model()).answer([asked(Film(0, 0), " what?")], 2)
    with pytest.raises(UserError, match="reads and writes text alone"):
        Answering(random_model())


def test_one_question_about_a_film() -> None:
    model, film = seeing_model(), Film(3, 2)
    assert model.ask(film, "what?", max_tokens=6) == said(model, film, "what?").strip()
