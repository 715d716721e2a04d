"""Needles in a film: can the model find what it saw for a moment, hours ago?

The film is of the shapes world, one frame a second. Hidden in it is something on a ground that no other frame has:

    picture   one frame: what was on that ground?
    clip      four frames of a moving thing: which way did it move?
    order     two frames: which of the things came first?
    when      one frame: at which minute was it?

The grid of lengths, depths and rounds is that of `needle`; lengths are frames here.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count as count_from
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from ringworld.data.worlds import FPS
from ringworld.errors import UserError
from ringworld.evaluation import plots
from ringworld.evaluation.asking import Answers, Turn, shown
from ringworld.evaluation.files import earlier_cases, write_cases, write_result
from ringworld.evaluation.needle import Answer, Case, NeedleResult, case_batches, case_grid, depth_grid
from ringworld.progress import progress_bar
from ringworld.worlds.film import VELOCITIES, Act, Film, Scene
from ringworld.worlds.shapes import COLOURS, KINDS, SIZES, Thing
from ringworld.worlds.world import GRID, HeldOut, Part, World

Form = Literal["picture", "clip", "order", "when"]

_CLIP = 4  # frames of a moving thing
_SPEED = 0.125  # sides of the frame a second, so that a clip ends before the wall
_MINUTE = 60
_HAY_SECONDS = 600  # of hay that is made at once
_MAX_TOKENS = 24  # of an answer: a short sentence
_TITLES: dict[Form, str] = {
    "picture": "What was in a frame of a film",
    "clip": "Which way a thing moved in a film (by chance 25)",
    "order": "Which of two frames of a film came first (by chance 50)",
    "when": "At which minute of a film a frame was",
}


@dataclass(frozen=True)
class Task:
    """What is asked, the same in every case.

    Attributes:
        seed: decides films, what is hidden, and where else.
        part: of the shapes world: films and hidden things like those trained on, or with what training never shows.
        every: the time stands behind every so many frames (" 1:15"); 0: never.
        heldout: what the world holds out, things on grounds or at places.
    """

    form: Form = "picture"
    seed: int = 0
    part: Part = "train"
    every: int = 0
    heldout: HeldOut = "ground"

    def __post_init__(self) -> None:
        if self.every < 0:
            raise UserError(f"every must be a number of frames, or 0 for a film without a clock, got {self.every}")


@dataclass(frozen=True)
class Hidden:
    """A scene that is hidden in a film, from frame `start` on."""

    scene: Scene
    start: int

    @property
    def frames(self) -> int:
        return max(1, round(self.scene.seconds * FPS))

    @property
    def name(self) -> str:
        """What the hidden thing is called: "red ring on the rose ground"."""
        thing = self.scene.acts[0].thing
        return f"{thing.colour} {thing.kind} on the {self.scene.ground} ground"


@dataclass(frozen=True)
class Example:
    """A film with something hidden in it, and what is asked.

    Attributes:
        hay: the film's other scenes, one after the other.
        hidden: in order.
        frames: how long the film is.
        mark: whether an answer is right.
    """

    hay: Film
    hidden: tuple[Hidden, ...]
    frames: int
    question: str
    expected: str
    mark: Callable[[str], bool]

    def frame(self, seconds: float | int, size: int) -> UInt8[np.ndarray, "size size 3"]:
        """What is seen at a time, in whole seconds."""
        number, passed = round(seconds * FPS), 0
        for one in self.hidden:
            if one.start <= number < one.start + one.frames:
                return one.scene.frame((number - one.start) / FPS, size)
            passed += one.frames * (one.start < number)
        scene, within = self.hay.scene_at((number - passed) / FPS)
        return scene.frame(within, size)

    def conversation(self, size: int, every: int = 0) -> list[Turn]:
        """The film as `asking.shown` has it, and the question."""
        return [{"role": "user", "content": [*shown(self, self.frames, size, every), f" {self.question}"]}]


def build_example(task: Task, case: Case) -> Example:
    """The film of a case, of `case.length` frames; it depends on the task and the case alone.

    What is hidden stands at the case's depth: the one thing, or with "order" one of the two, whichever comes first.

    Raises:
        UserError: the film is too short for what is to be hidden in it.
    """
    least = 2 * _MINUTE if task.form == "when" else 2 * _CLIP
    if case.length < least:
        raise UserError(f"a film of {case.length} frames is too short for {task.form!r}: take {least} or more")
    random = np.random.default_rng([task.seed, case.length, round(case.depth * 1e6), case.round, *task.form.encode()])
    scenes = _hidden_scenes(task, random)
    count = case.length - sum(Hidden(scene, 0).frames for scene in scenes)
    # Places in the hay, before which they are put.
    places = [round(case.depth * count)]
    if len(scenes) == 2:
        places.append(int(random.integers(count + 1)))
    hidden: list[Hidden] = []
    for place, scene in sorted(zip(places, scenes, strict=True), key=lambda found: found[0]):
        hidden.append(Hidden(scene, place + sum(one.frames for one in hidden)))
    hay = _hay(task, random, count / FPS, {scene.ground for scene in scenes})
    question, expected, mark = _ASKING[task.form](hidden, random)
    return Example(hay, tuple(hidden), case.length, question, expected, mark)


def _hidden_scenes(task: Task, random: np.random.Generator) -> list[Scene]:
    """One scene of one thing; for "order" two, that differ in ground, colour and kind."""
    world = World(int(random.integers(2**31)), task.part, 1, 1, heldout=task.heldout)
    if task.form == "clip":
        clips = (_moving(world.picture(index), random) for index in count_from(0))
        return [next(clip for clip in clips if world.admits(clip))]
    scenes = [world.picture(0)]
    index = 0
    while task.form == "order" and len(scenes) < 2:
        index += 1
        other, (first, second) = world.picture(index), (scenes[0].acts[0].thing, world.picture(index).acts[0].thing)
        if other.ground != scenes[0].ground and first.colour != second.colour and first.kind != second.kind:
            scenes.append(other)
    return scenes


def _moving(scene: Scene, random: np.random.Generator) -> Scene:
    """The scene's thing on its way, as long as a clip is, all of it within the frame."""
    act = scene.acts[0]
    way = VELOCITIES[list(VELOCITIES)[int(random.integers(len(VELOCITIES)))]]
    run = _SPEED * (_CLIP - 1) / FPS
    # Of the steps of the grid where it may begin, the nearest to where it stood.
    low = math.ceil(act.thing.radius * GRID) / GRID
    high = 1 - low
    x, y = (
        min(max(v, low - min(0, d) * run), high - max(0, d) * run) for v, d in zip((act.x, act.y), way, strict=True)
    )
    seconds = _CLIP / FPS
    return replace(scene, acts=(Act(act.thing, x, y, _SPEED * way[0], _SPEED * way[1], 0.0, seconds),), seconds=seconds)


def _hay(task: Task, random: np.random.Generator, seconds: float, grounds: set[str]) -> Film:
    """So many seconds of film or a little more, without these grounds."""
    world = World(int(random.integers(2**31)), task.part, heldout=task.heldout)
    scenes: list[Scene] = []
    length, index = 0.0, 0
    while length < seconds:
        found = [scene for scene in world.film(index, _HAY_SECONDS).scenes if scene.ground not in grounds]
        scenes += found
        length += sum(scene.seconds for scene in found)
        index += 1
    return Film(tuple(scenes))


Asking = tuple[str, str, Callable[[str], bool]]


def _what(hidden: Sequence[Hidden], random: np.random.Generator) -> Asking:
    (one,) = hidden
    thing = one.scene.acts[0].thing

    def mark(text: str) -> bool:
        """Its size, colour and kind are said, and no others are."""
        return all(
            set(_said(text, words)) == {right}
            for words, right in ((SIZES, thing.size), (COLOURS, thing.colour), (KINDS, thing.kind))
        )

    return f"What was on the {one.scene.ground} ground?", f"a {thing}", mark


def _which_way(hidden: Sequence[Hidden], random: np.random.Generator) -> Asking:
    (one,) = hidden
    way = str(one.scene.acts[0].direction)
    return f"Which way did the {one.name} move?", way, lambda text: set(_said(text, VELOCITIES)) == {way}


def _which_first(hidden: Sequence[Hidden], random: np.random.Generator) -> Asking:
    names = [one.name for one in hidden]
    first, second = (one.scene.acts[0].thing for one in hidden)
    one, other = names if random.integers(2) else names[::-1]

    def mark(text: str) -> bool:
        """What is named first is the thing that came first."""
        said = _said(text, (first.colour, first.kind, second.colour, second.kind))
        return bool(said) and said[0] in (first.colour, first.kind)

    return f"Which came first, the {one} or the {other}?", f"the {_short(first)}", mark


def _when(hidden: Sequence[Hidden], random: np.random.Generator) -> Asking:
    (one,) = hidden
    minute = int(one.start / FPS // _MINUTE)

    def mark(text: str) -> bool:
        """The first number is the minute: "12", "at minute 12", "12:40"."""
        found = re.search(r"\d+", text)
        return found is not None and int(found[0]) == minute

    return f"At which minute was there the {one.name}?", str(minute), mark


_ASKING: dict[Form, Callable[[Sequence[Hidden], np.random.Generator], Asking]] = {
    "picture": _what,
    "clip": _which_way,
    "order": _which_first,
    "when": _when,
}


def _short(thing: Thing) -> str:
    return f"{thing.colour} {thing.kind}"


def _said(text: str, words: Iterable[str]) -> list[str]:
    """Those of the words that a text says, in its order."""
    known = set(words)
    return [word for word in re.findall(r"[a-z]+", text.lower()) if word in known]


@dataclass(frozen=True)
class Found:
    """What came of a case: at which frames the hidden things began, what was asked and expected, and what was said."""

    case: Case
    starts: tuple[int, ...]
    question: str
    expected: str
    text: str
    correct: bool

    def to_dict(self) -> dict[str, Any]:
        """A record of the result's file."""
        return {
            **asdict(self.case),
            "starts": list(self.starts),
            "question": self.question,
            "expected": self.expected,
            "answer": self.text,
            "correct": self.correct,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Found":
        return cls(
            Case(record["length"], record["depth"], record["round"]),
            tuple(record["starts"]),
            record["question"],
            record["expected"],
            record["answer"],
            record["correct"],
        )


@dataclass(frozen=True)
class VideoNeedleResult:
    """The answers to a grid of cases, and under which settings they were given."""

    settings: dict[str, Any]
    answers: tuple[Found, ...]

    @property
    def grid(self) -> NeedleResult:
        """As the needle test has it: its accuracy, matrix and summary. A length is frames."""
        return NeedleResult(
            self.settings,
            tuple(Answer(a.case, a.case.length, (), (a.expected,), a.text, (a.correct,)) for a in self.answers),
        )

    def heat_map(self) -> bytes:
        """PNG: accuracy by length, in tokens, and depth."""
        values, lengths, depths = self.grid.matrix()
        tokens = self.settings["tokens_per_frame"]
        cell = f"questions a cell: {self.grid.questions_a_cell}; tokens a frame: {tokens}"
        title = f"{_TITLES[self.settings['form']]}: right, % ({cell})"
        trained = self.settings["context_length"]
        return plots.heat_map(values, [n * tokens for n in lengths], depths, title=title, trained_length=trained)


def answer_examples(
    model: Answers, task: Task, cases: Sequence[Case], *, batch_tokens: int = 32768
) -> Iterator[list[Found]]:
    """Asks the model, in batches of `case_batches`. Raises UserError as `build_example`."""
    for batch in case_batches(cases, batch_tokens, model.tokens_per_frame):
        examples = [build_example(task, case) for case in batch]
        asked = [example.conversation(model.frame_size, task.every) for example in examples]
        yield [
            Found(
                case,
                tuple(hidden.start for hidden in example.hidden),
                example.question,
                example.expected,
                text.strip(),
                example.mark(text),
            )
            for case, example, text in zip(batch, examples, model.answer(asked, _MAX_TOKENS), strict=True)
        ]


def evaluate_video_needle(
    model: Answers,
    *,
    lengths: Sequence[int],
    depths: int,
    rounds: int,
    out: Path,
    form: Form = "picture",
    seed: int = 0,
    part: Part = "train",
    every: int = 0,
    heldout: HeldOut = "ground",
    batch_tokens: int = 32768,
    console: Console | None = None,
) -> VideoNeedleResult:
    """Runs the grid lengths x depths x rounds, and writes `video-needle-<form>.json` and `.png` into the folder `out`.

    The JSON is written anew after each batch, atomically. Where it is there already, its cases are not run again: an
    evaluation that was stopped goes on, and a grid can be extended.

    Args:
        lengths: of the films, in frames; one is a second.
        form, seed, part, every, heldout: see `Task`.
        batch_tokens: tokens that are read at once, which bounds the memory.
        console: where the progress is shown; standard error by default.

    Returns:
        All answers in the file, of earlier runs too.

    Raises:
        UserError: a grid or a task that is not possible, or results of another model or task in `out`.
    """
    task = Task(form, seed, part, every, heldout)
    if not lengths or min(lengths) < 1:
        raise UserError(f"the lengths of the films are {list(lengths)}: give one or more numbers of frames")
    cases = case_grid(lengths, depth_grid(depths), rounds)
    build_example(task, cases[0])  # a film that is too short is better known before the first case
    settings = {
        **asdict(task),
        "tokens_per_frame": model.tokens_per_frame,
        "model": model.fingerprint,
        "context_length": model.context_length,
    }
    path = out / f"video-needle-{form}.json"
    answers = [*earlier_cases(path, settings, Found.from_dict, "needles in films")]
    done = {answer.case for answer in answers}
    waiting = [case for case in cases if case not in done]
    with progress_bar(console) as progress:
        bar = progress.add_task(f"{form} in films", total=len(cases), completed=len(cases) - len(waiting), note="")
        for batch in answer_examples(model, task, waiting, batch_tokens=batch_tokens):
            answers += batch
            answers.sort(key=lambda answer: answer.case)
            result = VideoNeedleResult(settings, tuple(answers))
            summary = result.grid.summary()
            write_cases(path, settings, summary, [answer.to_dict() for answer in answers])
            length = batch[0].case.length
            share = summary["by_length"][str(length)]
            progress.update(bar, advance=len(batch), note=f"{length:,} frames: {share:.0%} right")
    result = VideoNeedleResult(settings, tuple(answers))
    write_result(path.with_suffix(".png"), result.heat_map())
    return result
