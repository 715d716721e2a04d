"""Films in which one thing passes each minute, and what is asked about them: what passed at a minute, when, where and
which way something did, and which of two things came first.

An answer says again what it was asked for before it says what is new: "At 23:00 a large red ring passed." Whoever has
read the film can go on as it did.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import numpy as np

from ringworld.tokens.vision import clock
from ringworld.worlds.film import VELOCITIES, Act, Scene, World
from ringworld.worlds.shapes import GROUNDS, THINGS, Thing, place

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
        scene = Scene(list(GROUNDS)[int(random.integers(len(GROUNDS)))], (act,), MINUTE, world.grid)
        if world.admits(scene):
            return scene
    return None


def ask(film: tuple[Minute, ...], kind: Kind, random: np.random.Generator) -> tuple[str, str]:
    """A question about a film and its one answer. To ask what came first, it must have two minutes."""
    one = film[int(random.integers(len(film)))]
    return _ASKING[kind](film, one, random)


def ask_each(
    film: tuple[Minute, ...], kinds: Iterable[Kind], random: np.random.Generator
) -> list[tuple[Kind, str, str]]:
    """A question of each of these kinds, with its kind and its answer. None is asked twice: where a film has no more of
    a kind there are fewer."""
    found: dict[str, tuple[Kind, str, str]] = {}
    for kind in kinds:
        tries = (ask(film, kind, random) for _ in range(_ASKED_FOR))
        if new := next((one for one in tries if one[0] not in found), None):
            found[new[0]] = (kind, *new)
    return [*found.values()]


def _what(film: tuple[Minute, ...], one: Minute, _: np.random.Generator) -> tuple[str, str]:
    return f"What passed at {one.time}?", f"At {one.time} a {one.thing} passed."


def _when(film: tuple[Minute, ...], one: Minute, _: np.random.Generator) -> tuple[str, str]:
    return f"When did the {one.thing} pass?", f"The {one.thing} passed at {one.time}."


def _where(film: tuple[Minute, ...], one: Minute, _: np.random.Generator) -> tuple[str, str]:
    return f"Where did the {one.thing} pass?", f"The {one.thing} passed at the {one.lane}."


def _way(film: tuple[Minute, ...], one: Minute, _: np.random.Generator) -> tuple[str, str]:
    return f"Which way did the {one.thing} pass?", f"The {one.thing} passed {one.act.direction}."


def _first(film: tuple[Minute, ...], one: Minute, random: np.random.Generator) -> tuple[str, str]:
    others = [minute for minute in film if minute is not one]
    other = others[int(random.integers(len(others)))]
    first = min(one, other, key=lambda minute: minute.number)
    return f"Which came first, the {one.thing} or the {other.thing}?", f"The {first.thing} came first."


_ASKING: dict[Kind, Callable[[tuple[Minute, ...], Minute, np.random.Generator], tuple[str, str]]] = {
    "what": _what,
    "when": _when,
    "where": _where,
    "way": _way,
    "first": _first,
}
KINDS_OF_PASSING: tuple[Kind, ...] = get_args(Kind)
