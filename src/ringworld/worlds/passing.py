"""Films in which one thing passes each minute, and what is asked about them: what passed at a minute, when, where and
which way something did, and which of two things came first.

An answer is short, and what it was asked for stands right before what is new: "23:00 large red ring." So it is learned
soon: whoever looks for what stands beside 23:00 in the film need only go on. And which of two things came first is said
after when each did. Several minutes may be asked about at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import numpy as np

from ringworld.tokens.vision import clock
from ringworld.worlds.film import VELOCITIES, Act, Scene
from ringworld.worlds.shapes import GROUNDS, THINGS, Thing, place
from ringworld.worlds.world import World

Kind = Literal["what", "when", "where", "way", "first"]

MINUTE = 60.0
MINUTES = 60  # of an hour
_CROSSES = (3.0, 57.0)  # seconds of the minute: from when to when a thing is in the frame
_TRIES = 60  # at a scene of the world's part
_ASKED_FOR = 20  # tries at a question that was not asked yet


@dataclass(frozen=True)
class Minute:
    """A minute by the film's clock, and the one thing that passes in it."""

    number: int
    scene: Scene

    @property
    def act(self) -> Act:
        return self.scene.acts[0]

    @property
    def thing(self) -> Thing:
        return self.act.thing

    @property
    def time(self) -> str:
        return clock(self.number * MINUTE)

    @property
    def lane(self) -> str:
        """Along which third of the frame the thing goes: "top", "left", "centre"."""
        return place(0.5 if self.act.dx else self.act.x, 0.5 if self.act.dy else self.act.y)

    def moments(self, frames: int) -> list[float]:
        """The seconds of so many frames, spread evenly over the minute."""
        return [(number + 0.5) * MINUTE / frames for number in range(frames)]

    def parts(self, frames: int, every: int = 0) -> list[list[float]]:
        """The same in parts of so many (`every`) frames, the last one of what is left; 0: in one part."""
        moments = self.moments(frames)
        return [moments[start : start + (every or frames)] for start in range(0, frames, every or frames)]

    def told(self) -> str:
        """What happens in words: "a large red ring passes left"."""
        return f"a {self.thing} passes {self.act.direction}"


def passing_film(world: World, index: int, minutes: int, *, scattered: bool = False) -> tuple[Minute, ...]:
    """Film `index` of a world: so many minutes, 1 to 60, one after the other somewhere in the hour. No thing passes
    twice.

    Args:
        world: what it holds out holds here, too; how many things it has in a scene does not matter.
        scattered: any minutes of the hour, in order, as in a film that is cut.
    """
    if not 1 <= minutes <= MINUTES:
        raise ValueError(f"a film has 1 to {MINUTES} minutes, got {minutes}")
    random = np.random.default_rng((world.seed, index, *b"passing", world.part == "heldout"))
    if scattered:
        numbers = np.sort(random.permutation(MINUTES)[:minutes])
    else:
        numbers = random.integers(MINUTES - minutes + 1) + np.arange(minutes)
    # Of some things the world may hold out nothing, and then none of them passes where it should be.
    drawn = (_scene(world, random, THINGS[thing]) for thing in random.permutation(len(THINGS)))
    scenes = islice((scene for scene in drawn if scene is not None), minutes)
    return tuple(Minute(number, scene) for number, scene in zip(numbers.tolist(), scenes, strict=True))


def _scene(world: World, random: np.random.Generator, thing: Thing) -> Scene | None:
    """The thing goes straight through the frame, on a ground and a way of the world's part; None: there are hardly any
    such."""
    enters, leaves = _CROSSES
    for _ in range(_TRIES):
        x, y = list(VELOCITIES.values())[int(random.integers(len(VELOCITIES)))]
        edge = -thing.radius if x + y > 0 else 1 + thing.radius
        speed = (1 + 2 * thing.radius) / (leaves - enters)
        lane = world.inside(random, thing)
        act = Act(thing, edge if x else lane, edge if y else lane, speed * x, speed * y, enters, leaves, passes=True)
        scene = Scene(list(GROUNDS)[int(random.integers(len(GROUNDS)))], (act,), MINUTE, world.steps)
        if world.admits(scene):
            return scene
    return None


def ask(film: tuple[Minute, ...], kind: Kind, random: np.random.Generator, together: int = 1) -> tuple[str, str]:
    """A question about a film and its one answer. To ask what came first, it must have two minutes.

    Args:
        together: minutes that are asked about in one question, where the film has as many; not of what came first.
    """
    if kind == "first":
        one, other = (film[number] for number in random.permutation(len(film))[:2])
        first = min(one, other, key=lambda minute: minute.number)
        times = f"{said(one, 'when')} {said(other, 'when')}"
        return f"Which came first, the {one.thing} or the {other.thing}?", f"{times} {first.thing} first."
    some = [film[number] for number in random.permutation(len(film))[:together]]
    named = (minute.time if kind == "what" else f"the {minute.thing}" for minute in some)
    return _ASKED[kind].format(", ".join(named)), " ".join(said(minute, kind) for minute in some)


def said(minute: Minute, kind: Kind) -> str:
    """Of one minute, what answers a question of that kind: "23:00 large red ring."."""
    known, new = {
        "what": (minute.time, minute.thing),
        "when": (minute.thing, minute.time),
        "where": (minute.thing, minute.lane),
        "way": (minute.thing, minute.act.direction),
    }[kind]
    return f"{known} {new}."


def ask_each(
    film: tuple[Minute, ...], kinds: Iterable[Kind], random: np.random.Generator, together: tuple[int, int] = (1, 1)
) -> list[tuple[Kind, str, str]]:
    """A question of each of these kinds (see `ask`) about so many minutes, from so many to so many, with its kind and
    its answer. None is asked twice: where a film has no more of a kind there are fewer."""
    found: dict[str, tuple[Kind, str, str]] = {}
    for kind in kinds:
        tries = (ask(film, kind, random, int(random.integers(together[0], together[1] + 1))) for _ in range(_ASKED_FOR))
        if new := next((one for one in tries if one[0] not in found), None):
            found[new[0]] = (kind, *new)
    return [*found.values()]


_ASKED: dict[Kind, str] = {
    "what": "What passed at {}?",
    "when": "When did {} pass?",
    "where": "Where did {} pass?",
    "way": "Which way did {} pass?",
}
KINDS_OF_PASSING: tuple[Kind, ...] = get_args(Kind)
