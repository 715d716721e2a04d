"""Questions about films of the shapes world as they are, of films like those trained on and of films with what training
never shows: what passed, when did it, which came first, and all else that `worlds.language.questions` asks; or of films
in which one thing passes each minute, what `worlds.passing.ask` asks.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from rich.console import Console

from ringworld.data.worlds import FPS
from ringworld.errors import UserError
from ringworld.evaluation.asking import QUESTION_TOKENS, Answers, Footage, Turn, shown, shown_in_minutes, together
from ringworld.evaluation.files import earlier_cases, write_cases
from ringworld.evaluation.parts import NAMES, side_by_side
from ringworld.evaluation.questions import accuracy_by_kind, normalise
from ringworld.progress import progress_bar
from ringworld.worlds.language import KINDS_OF_QUESTIONS, questions
from ringworld.worlds.passing import KINDS_OF_PASSING, MINUTES, Kind, ask_each, passing_film
from ringworld.worlds.world import HeldOut, Part, World

_MAX_TOKENS = 24  # of an answer: a short sentence


@dataclass(frozen=True)
class Answered:
    """A question about a film of a part, by its number among those about the film; and what was answered."""

    part: Part
    film: int
    number: int
    kind: str
    question: str
    expected: str
    answer: str
    correct: bool

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Answered":
        return cls(**record)


@dataclass(frozen=True)
class FilmResult:
    """The answers to questions about films, and under which settings they were given."""

    settings: dict[str, Any]
    answers: tuple[Answered, ...]

    def summary(self) -> dict[str, Any]:
        """By part: how many films and questions there are, and which share of the answers is right, in all and by
        kind of question.
        """
        found: dict[str, Any] = {}
        for part, name in NAMES.items():
            if answers := [answer for answer in self.answers if answer.part == part]:
                films = {"films": len({answer.film for answer in answers})}
                found[name] = films | accuracy_by_kind((answer.kind, answer.correct) for answer in answers)
        return found

    def __str__(self) -> str:
        """A table: the share of right answers by kind of question, seen beside held out."""
        return side_by_side({
            name: {
                "films": of_part["films"],
                "questions": of_part["questions"],
                "all": of_part["accuracy"],
                **{kind: of_kind["accuracy"] for kind, of_kind in of_part["by_kind"].items()},
            }
            for name, of_part in self.summary().items()
        })  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A question that waits for its answer: what is shown, and what is asked about it."""

    part: Part
    film: int
    number: int
    kind: str
    text: str
    expected: str
    footage: tuple[str | Footage, ...]

    def conversation(self) -> list[Turn]:
        """As in training (`data.worlds`): the film, a space, the question."""
        return [{"role": "user", "content": [*self.footage, f" {self.text}"]}]

    def answered(self, text: str) -> Answered:
        """Right is an answer that is the expected one after `normalise`."""
        right = normalise(text) == normalise(self.expected)
        return Answered(self.part, self.film, self.number, self.kind, self.text, self.expected, text.strip(), right)


@runtime_checkable
class Task(Protocol):
    """What films there are, and what is asked about them."""

    @property
    def frames(self) -> int:
        """Of a film."""
        ...

    @property
    def asks(self) -> tuple[str, ...]:
        """The kinds of questions."""
        ...

    def settings(self) -> dict[str, Any]:
        """As plain JSON values."""
        ...

    def about(self, part: Part, index: int, count: int, size: int) -> list[Asked]:
        """So many questions about film `index` of a part, or as many as it has answers to. They depend on the task and
        the film alone.

        Args:
            size: the side of the frames that are shown, in pixels.
        """
        ...


@dataclass(frozen=True)
class Scenes:
    """Films of scenes: a `Task`.

    Attributes:
        frames: of a film, one a second.
        scene: seconds of its scenes, from so many to so many.
        things: in a scene, from so many to so many, 1 to 4.
        kinds: of `KINDS_OF_QUESTIONS`; none: all of them.
        every: the time stands behind every so many frames, and moments that are asked about are such times; 0: no time
            stands anywhere.
        seed: of the world.
        heldout: what the world holds out, things on grounds or at places.
    """

    frames: int = 64
    scene: tuple[int, int] = (5, 15)
    things: tuple[int, int] = (1, 3)
    kinds: tuple[str, ...] = ()
    every: int = 0
    seed: int = 0
    heldout: HeldOut = "ground"

    def __post_init__(self) -> None:
        if self.frames < 1 or self.every < 0:
            raise UserError(
                "a film has 1 frame or more, and the time stands behind every so many of them or, with 0, nowhere; got "
                f"{self.frames} frames and the time every {self.every}"
            )
        if not 1 <= self.scene[0] <= self.scene[1] or not 1 <= self.things[0] <= self.things[1] <= 4:
            raise UserError(
                f"scenes have 1 second or more and 1 to 4 things, the smaller number first; got {self.scene[0]} to "
                f"{self.scene[1]} seconds and {self.things[0]} to {self.things[1]} things"
            )
        if unknown := [kind for kind in self.kinds if kind not in KINDS_OF_QUESTIONS]:
            raise UserError(f"there are no questions of the kind {unknown[0]!r}: take {', '.join(KINDS_OF_QUESTIONS)}")

    @property
    def asks(self) -> tuple[str, ...]:
        return self.kinds or KINDS_OF_QUESTIONS

    def settings(self) -> dict[str, Any]:
        return _settings(self)

    def about(self, part: Part, index: int, count: int, size: int) -> list[Asked]:
        film = World(self.seed, part, *self.things, heldout=self.heldout).film(index, self.frames / FPS, self.scene)
        found = questions(film, index, count, self.kinds, self.every or 1)
        footage = tuple(shown(film, self.frames, size, self.every))
        return [Asked(part, index, number, q.kind, q.text, q.answer, footage) for number, q in enumerate(found)]


@dataclass(frozen=True)
class Minutes:
    """Films in which one thing passes each minute: a `Task`.

    Attributes:
        minutes: of a film, 1 to 60.
        frames: of a film, as many in each minute.
        kinds: of `KINDS_OF_PASSING`; none: all of them.
        every: a minute's time stands behind every so many of its frames; 0: only behind the last.
        seed: of the world.
        heldout: what the world holds out, things on grounds or at places.
    """

    minutes: int = MINUTES
    frames: int = 60 * MINUTES
    kinds: tuple[str, ...] = ()
    every: int = 0
    seed: int = 0
    heldout: HeldOut = "ground"

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KINDS_OF_PASSING]:
            raise UserError(f"there are no questions of the kind {unknown[0]!r}: take {', '.join(KINDS_OF_PASSING)}")
        if not (2 if "first" in self.asks else 1) <= self.minutes <= MINUTES:
            raise UserError(
                f"a film has 1 to {MINUTES} minutes, 2 or more where it is asked what came first; got {self.minutes}"
            )
        if self.frames < 1 or self.frames % self.minutes:
            raise UserError(
                f"each of {self.minutes} minutes has as many frames, 1 or more, so the film a multiple of "
                f"{self.minutes} of them; got {self.frames}"
            )
        if self.every < 0:
            raise UserError(
                "a minute's time stands behind every so many of its frames or, with 0, only behind the last; got "
                f"{self.every}"
            )

    @property
    def asks(self) -> tuple[Kind, ...]:
        return tuple(kind for kind in KINDS_OF_PASSING if kind in self.kinds) or KINDS_OF_PASSING

    def settings(self) -> dict[str, Any]:
        return _settings(self)

    def about(self, part: Part, index: int, count: int, size: int) -> list[Asked]:
        film = passing_film(World(self.seed, part, heldout=self.heldout), index, self.minutes)
        *footage, _ = shown_in_minutes(film, self.frames // self.minutes, size, self.every)
        kinds: list[Kind] = [self.asks[number % len(self.asks)] for number in range(count)]
        found = ask_each(film, kinds, np.random.default_rng((self.seed, index, *b"asked")))
        return [
            Asked(part, index, number, kind, question, answer, tuple(footage))
            for number, (kind, question, answer) in enumerate(found)
        ]


def _settings(task: "Scenes | Minutes") -> dict[str, Any]:
    """As plain JSON values."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(task).items()}


def evaluate_film(
    model: Answers,
    out: Path,
    task: Task = Scenes(),
    *,
    films: int = 16,
    asked: int | None = None,
    batch_tokens: int = 32768,
    console: Console | None = None,
) -> FilmResult:
    """Asks about films, and writes `film.json` into the folder `out`.

    All questions about a film go to the model together, each in a conversation of its own that shows the same footage:
    it need be read once only. The JSON is written anew after each batch, atomically; where it is there already, its
    questions are not asked again: an evaluation that was stopped goes on, and can be extended.

    Args:
        films: so many like those trained on, and as many with what is held out.
        asked: questions about a film; None: as many as there are kinds.
        batch_tokens: tokens of questions and frames that are asked together, unless one film's come to more.
        console: where the progress is shown; standard error by default.

    Returns:
        All answers in the file, of earlier runs too.

    Raises:
        UserError: no films or questions, or results of another model or task in `out`.
    """
    count = len(task.asks) if asked is None else asked
    if min(films, count) < 1:
        raise UserError(f"films and asked must be 1 or more, got {films} and {count}")
    settings = task.settings() | {"model": model.fingerprint}
    path = out / "film.json"
    answers = [*earlier_cases(path, settings, Answered.from_dict, "answers about films")]
    done = {(answer.part, answer.film, answer.number) for answer in answers}
    groups = [task.about(part, index, count, model.frame_size) for part in NAMES for index in range(films)]
    total = sum(map(len, groups))
    if not total:
        raise UserError(
            f"these {films} films of {task.frames} frames have no answer to questions of the kinds "
            f"{', '.join(task.asks)}: take longer or more films, or other kinds"
        )
    waiting = [[one for one in group if (one.part, one.film, one.number) not in done] for group in groups]
    each = task.frames * model.tokens_per_frame + QUESTION_TOKENS
    with progress_bar(console) as progress:
        bar = progress.add_task("films", total=total, completed=total - sum(map(len, waiting)), note="")
        for batch in together(((group, len(group) * each) for group in waiting if group), batch_tokens):
            texts = model.answer([one.conversation() for one in batch], _MAX_TOKENS)
            answers += [one.answered(text) for one, text in zip(batch, texts, strict=True)]
            answers.sort(key=lambda answer: ([*NAMES].index(answer.part), answer.film, answer.number))
            summary = FilmResult(settings, tuple(answers)).summary()
            write_cases(path, settings, summary, [asdict(answer) for answer in answers])
            note = ", ".join(f"{name} {of_part['accuracy']:.0%}" for name, of_part in summary.items())
            progress.update(bar, advance=len(batch), note=f"{note} right")
    return FilmResult(settings, tuple(answers))
