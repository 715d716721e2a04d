"""Lets a model that sees show what it can do: pictures and films drawn from words, others described, and questions
about a film of an hour that it reads once. For people to look at; how often it is right, the evaluations say.

All of it is of the shapes world, asked for in the words of training (`data.worlds`, `data.passing`).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from ringworld.data.worlds import FPS
from ringworld.errors import UserError
from ringworld.evaluation.asking import Answers, ReadsAhead, asked_to_describe, called, shown_in_minutes
from ringworld.evaluation.drawn import Draws
from ringworld.evaluation.files import require_same_settings, write_result
from ringworld.evaluation.questions import normalise
from ringworld.evaluation.scores import readable_scenes, score
from ringworld.evaluation.shown import SHOWN, About, Asked, Described, Drawn, LongFilm, Shown
from ringworld.generation.drawing import Brush
from ringworld.progress import progress_bar
from ringworld.tokens.images import to_png
from ringworld.tokens.video import write_video
from ringworld.worlds.film import Scene
from ringworld.worlds.language import caption
from ringworld.worlds.passing import KINDS_OF_PASSING, MINUTES, Kind, Minute, ask_each, passing_film
from ringworld.worlds.world import HeldOut, Part, World

_FILES = "shown"  # the folder beside shown.json
_MAX_TOKENS = 96  # of a caption or an answer
_LARGE = 256  # pixels, of a film's side at least: colours are written at half of the resolution


@dataclass(frozen=True)
class Prompt:
    """What a picture (of one frame) or a film is asked for in, and the scene that it should then show; None: nobody
    can say."""

    words: str
    frames: int = 1
    scene: Scene | None = None


@dataclass(frozen=True)
class Plan:
    """What is shown.

    Attributes:
        pictures: so many are drawn and as many described,
        films: and so many of these.
        frames: of such a film, 2 or more, one a second.
        things: in a picture or film, from so many to so many, 1 to 4.
        minutes: of the long film, 1 to 60; in each of them one thing passes.
        minute_frames: of each minute,
        every: and behind each so many of them its time; 0: only behind the last.
        kinds: of the questions about it (see `worlds.passing`), one after the other.
        guidance: see `Brush`,
        temperature: likewise.
        seed: of the world and of the drawing.
        heldout: what the world holds out, things on grounds or at places: what it held out in training.
    """

    pictures: int = 3
    films: int = 2
    frames: int = 8
    things: tuple[int, int] = (1, 1)
    minutes: int = MINUTES
    minute_frames: int = 60
    every: int = 10
    kinds: tuple[Kind, ...] = ("what", "when", "what", "way", "first")
    guidance: float = 1.0
    temperature: float = 1.0
    seed: int = 0
    heldout: HeldOut = "ground"

    def __post_init__(self) -> None:
        least = min(self.pictures, self.films, self.minute_frames, len(self.kinds))
        if least < 1 or self.frames < 2 or self.every < 0:
            raise UserError(
                "what is shown are 1 or more pictures, films of 2 or more frames, frames of each minute, with its time "
                f"behind every so many or 0, and questions; got {self.pictures}, {self.films} of {self.frames} frames, "
                f"{self.minute_frames} with the time behind every {self.every}, and {len(self.kinds)}"
            )
        if not 1 <= self.things[0] <= self.things[1] <= 4:
            raise UserError(f"there are 1 to 4 things, the smaller number first; got {self.things}")
        if not (2 if "first" in self.kinds else 1) <= self.minutes <= MINUTES:
            raise UserError(
                f"the long film has 1 to {MINUTES} minutes, 2 or more where it is asked what came first; got "
                f"{self.minutes}"
            )
        if unknown := [kind for kind in self.kinds if kind not in KINDS_OF_PASSING]:
            raise UserError(f"there is no question of the kind {unknown[0]!r}; there are {', '.join(KINDS_OF_PASSING)}")

    def settings(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def scenes(self, part: Part, frames: int) -> list[Scene]:
        """The first of a part of the world: so many pictures, or films."""
        world = World(self.seed, part, *self.things, heldout=self.heldout)
        count = self.pictures if frames == 1 else self.films
        return [scene for _, scene in islice(readable_scenes(world, frames), count)]

    def prompts(self) -> list[Prompt]:
        """Captions of pictures and films that are like those trained on."""
        scenes = ((frames, scene) for frames in (1, self.frames) for scene in self.scenes("train", frames))
        return [Prompt(caption(scene), frames, scene) for frames, scene in scenes]

    def long_film(self) -> tuple[Minute, ...]:
        return passing_film(World(self.seed, heldout=self.heldout), 0, self.minutes)

    def questions(self) -> list[tuple[str, str]]:
        """Questions about the long film with their answers, none twice."""
        random = np.random.default_rng((self.seed, *b"questions"))
        return [(question, answer) for _, question, answer in ask_each(self.long_film(), self.kinds, random)]


@dataclass(frozen=True)
class _Part:
    """A part of what is shown: it is made as a whole, and not again where it is there."""

    doing: str
    count: int
    done: Callable[[Shown], bool]
    make: Callable[[Shown], Shown]


def show(
    eyes: ReadsAhead,
    hand: Draws,
    about: About,
    out: Path,
    plan: Plan = Plan(),
    *,
    prompts: Sequence[Prompt] | None = None,
    console: Console | None = None,
) -> Shown:
    """Lets a model draw, describe and answer, and writes `shown.json` into the folder `out`; pictures (.png) and films
    (.mp4) into `out/shown`.

    The JSON is written anew after each part, atomically. Where it is there already, its parts are not made again: what
    was stopped goes on.

    Args:
        eyes, hand: of one model: how it is asked, and how it draws.
        prompts: what is drawn; by default what the plan says.
        console: where the progress is shown; standard error by default.

    Raises:
        UserError: a setting that the model does not take, or `out` holds what another model or other settings made.
    """
    asked = plan.prompts() if prompts is None else [*prompts]
    settings = plan.settings() | {
        "prompts": [[prompt.words, prompt.frames] for prompt in asked],
        "model": eyes.fingerprint,
    }
    made = Shown(settings, about)
    if (out / SHOWN).exists():
        earlier = Shown.read(out)
        require_same_settings(out / SHOWN, earlier.settings, settings)
        made = replace(earlier.there(out), about=about)
    by_frames = [[one for one in asked if one.frames == frames] for frames in sorted({one.frames for one in asked})]
    parts = [
        *(_drawing(hand, plan, some, out) for some in by_frames),
        *(_describing(eyes, plan, frames, out) for frames in (1, plan.frames)),
        _remembering(eyes, plan, out),
    ]
    with progress_bar(console) as progress:
        bar = progress.add_task("shown", total=sum(part.count for part in parts), note="")
        for part in parts:
            if not part.done(made):
                progress.update(bar, note=part.doing)
                made = part.make(made)
                made.write(out)
            progress.update(bar, advance=part.count, note="")
    return made


def _drawing(hand: Draws, plan: Plan, some: Sequence[Prompt], out: Path) -> _Part:
    """What has one number of frames, drawn together."""
    frames = some[0].frames
    files = [_file("drawn", number, frames) for number in range(len(some))]

    def done(made: Shown) -> bool:
        return {*files} <= {one.file for one in made.drawn}

    def make(made: Shown) -> Shown:
        brush = Brush(temperature=plan.temperature, guidance=plan.guidance, seed=plan.seed)
        new: list[Drawn] = []
        films = hand.draw([prompt.words for prompt in some], frames, brush)
        for file, prompt, film in zip(files, some, films, strict=True):
            _write(out / file, film)
            new.append(Drawn(file, frames, prompt.words, None if prompt.scene is None else score(film, prompt.scene)))
        kept = [one for one in made.drawn if one.frames != frames]
        return replace(made, drawn=tuple(sorted(kept + new, key=lambda one: one.frames)))

    return _Part(f"draws {called(frames)}", len(some), done, make)


def _describing(eyes: Answers, plan: Plan, frames: int, out: Path) -> _Part:
    """What has one number of frames, asked about together. It is of what training shows nothing of."""
    scenes = plan.scenes("heldout", frames)
    files = [_file("heldout", number, frames) for number in range(len(scenes))]

    def done(made: Shown) -> bool:
        return {*files} <= {one.file for one in made.described}

    def make(made: Shown) -> Shown:
        size = eyes.frame_size
        asked = [asked_to_describe(scene, frames, size) for scene in scenes]
        new: list[Described] = []
        for file, scene, answer in zip(files, scenes, eyes.answer(asked, _MAX_TOKENS), strict=True):
            _write(out / file, np.stack([scene.frame(number / FPS, size) for number in range(frames)]))
            words = caption(scene)
            new.append(Described(file, frames, words, answer.strip(), _is_right(answer, words)))
        kept = [one for one in made.described if one.frames != frames]
        return replace(made, described=tuple(sorted(kept + new, key=lambda one: one.frames)))

    return _Part(f"describes {called(frames)}", len(scenes), done, make)


def _remembering(eyes: ReadsAhead, plan: Plan, out: Path) -> _Part:
    """The long film: read once, and each question by itself."""
    questions = plan.questions()
    frames = plan.minutes * plan.minute_frames

    def make(made: Shown) -> Shown:
        film, size, file = plan.long_film(), eyes.frame_size, f"{_FILES}/long-film.png"

        middles = [minute.scene.frame(seconds, size) for minute in film for seconds in minute.moments(1)]
        write_result(out / file, to_png(np.concatenate(middles, axis=1)))
        before = shown_in_minutes(film, plan.minute_frames, size, plan.every)
        begin = time.monotonic()
        tokens = eyes.read([{"role": "user", "content": before}])
        seconds = time.monotonic() - begin
        asked: list[Asked] = []
        for question, expected in questions:
            begin = time.monotonic()
            (answer,) = eyes.answer([[{"role": "user", "content": [*before, question]}]], _MAX_TOKENS)
            took = round(time.monotonic() - begin, 2)
            asked.append(Asked(question, expected, answer.strip(), _is_right(answer, expected), took))
        long_film = LongFilm(
            file,
            tuple(minute.time for minute in film),
            tuple(minute.told() for minute in film),
            frames,
            tokens,
            round(seconds, 2),
            tuple(asked),
        )
        return replace(made, long_film=long_film)

    doing = f"reads a film of {plan.minutes} minutes, {frames:,} frames, and is asked about it"
    return _Part(doing, len(questions), lambda made: made.long_film is not None, make)


def _is_right(answer: str, expected: str) -> bool:
    return normalise(answer) == normalise(expected)


def _file(name: str, number: int, frames: int) -> str:
    """Where a picture or film lies, beside `shown.json`."""
    return f"{_FILES}/{name}-{number}.png" if frames == 1 else f"{_FILES}/{name}-{number}-of-{frames}.mp4"


def _write(path: Path, film: UInt8[np.ndarray, "F H W 3"]) -> None:
    if len(film) == 1:
        write_result(path, to_png(film[0]))
        return
    zoom = max(1, _LARGE // film.shape[1])
    write_video(path, film.repeat(zoom, axis=1).repeat(zoom, axis=2), FPS)
