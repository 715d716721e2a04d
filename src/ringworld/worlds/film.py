"""Scenes and films of moving shapes, made up by number, with everything that happens in them.

`World(seed).film(7, 3600)` is the same hour wherever it is made. Held-out combinations are in no picture, scene or
film of the training part, so what is asked about them was never seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import UInt8

from ringworld.worlds.shapes import COLOURS, GROUNDS, KINDS, SIZES, Placed, Thing, draw

Part = Literal["train", "heldout"]
Happening = Literal["appears", "leaves", "passes", "collides"]
Direction = Literal["left", "right", "up", "down"]
Option = TypeVar("Option")

VELOCITIES: dict[Direction, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TICKS = 8  # moments a second at which motion is worked out; between them things move evenly
GRID = 8  # steps of a frame's side, on which things stand unless a world says otherwise
SPEEDS = (0.125, 0.25)  # in sides of the frame a second: whole steps of that grid
_GAP = 0.02  # between things that are put into a frame
_RUN = 0.45  # what moves towards an edge has at least so far to go
_TRIES = 30


@dataclass(frozen=True)
class Act:
    """What one thing does in a scene: it is there from `enters` to `leaves`, in seconds of the scene.

    It starts at (x, y) with a velocity in sides of the frame per second. One that `passes` crosses the frame from edge
    to edge, in front of the others; all others turn back at the frame's edges and where they meet.
    """

    thing: Thing
    x: float
    y: float
    dx: float
    dy: float
    enters: float
    leaves: float
    passes: bool = False

    @property
    def direction(self) -> Direction | None:
        """Where it goes at first; None for a thing that stays."""
        return next((word for word, (x, y) in VELOCITIES.items() if self.dx * x + self.dy * y > 0), None)


@dataclass(frozen=True)
class Event:
    """Something that happens, at a time in seconds: to a thing and, when it collides, to another."""

    seconds: float
    happening: Happening
    thing: Thing
    other: Thing | None = None


@dataclass(frozen=True)
class Scene:
    """Some seconds on one ground. Things are seen at the nearest of `grid` steps of a frame's side; None: anywhere."""

    ground: str
    acts: tuple[Act, ...]
    seconds: float
    grid: int | None = None

    def at(self, seconds: float | int) -> tuple[Placed, ...]:
        """The things that are there at a time of the scene, those that pass last."""
        tracks, _ = self._motion
        tick = min(max(0.0, seconds), self.seconds) * TICKS
        before = int(tick)
        after = min(before + 1, len(tracks) - 1)
        now = tracks[before] + (tick - before) * (tracks[after] - tracks[before])
        if self.grid is not None:
            now = np.floor(now * self.grid + 0.5) / self.grid
        there = [i for i, act in enumerate(self.acts) if act.enters <= seconds < act.leaves]
        there.sort(key=lambda i: self.acts[i].passes)
        return tuple(Placed(self.acts[i].thing, float(now[i, 0]), float(now[i, 1])) for i in there)

    def frame(self, seconds: float | int, size: int) -> UInt8[np.ndarray, "size size 3"]:
        return draw(self.ground, self.at(seconds), size)

    @property
    def events(self) -> tuple[Event, ...]:
        """All that happens, in order. What is there at the start does not appear, nor does it leave at the end."""
        found = list(self._motion[1])
        for act in self.acts:
            if act.passes:
                found.append(Event((act.enters + act.leaves) / 2, "passes", act.thing))
                continue
            if act.enters > 0:
                found.append(Event(act.enters, "appears", act.thing))
            if act.leaves < self.seconds:
                found.append(Event(act.leaves, "leaves", act.thing))
        return tuple(sorted(found, key=lambda event: event.seconds))

    @cached_property
    def _motion(self) -> tuple[np.ndarray, list[Event]]:
        """Centres [tick, act, 2], and the collisions."""
        acts, events = self.acts, list[Event]()
        where = [[act.x, act.y] for act in acts]
        velocity = [[act.dx, act.dy] for act in acts]
        tracks = np.empty((int(np.ceil(self.seconds * TICKS)) + 1, len(acts), 2))
        for tick, row in enumerate(tracks):
            row[:] = np.reshape(where, row.shape)
            now, until = tick / TICKS, (tick + 1) / TICKS
            for act, place, speed in zip(acts, where, velocity, strict=True):
                share = max(0.0, min(until, act.leaves) - max(now, act.enters))
                for axis in (0, 1):
                    place[axis] += speed[axis] * share
                    low, high = act.thing.radius, 1 - act.thing.radius
                    if not act.passes and not low <= place[axis] <= high:
                        place[axis] = 2 * min(max(place[axis], low), high) - place[axis]
                        speed[axis] = -speed[axis]
            solid = [i for i, act in enumerate(acts) if not act.passes and act.enters <= until < act.leaves]
            for one, other in combinations(solid, 2):
                if _collide(acts[one], acts[other], where[one], where[other], velocity[one], velocity[other]):
                    events.append(Event(until, "collides", acts[one].thing, acts[other].thing))
        return tracks, events


def _collide(one: Act, other: Act, at: list[float], there: list[float], speed: list[float], its: list[float]) -> bool:
    """Lets two discs of equal mass that touch and approach exchange their velocities along the line between them."""
    x, y = there[0] - at[0], there[1] - at[1]
    distance = (x * x + y * y) ** 0.5
    if distance >= one.thing.radius + other.thing.radius or distance == 0:
        return False
    x, y = x / distance, y / distance
    approach = (speed[0] - its[0]) * x + (speed[1] - its[1]) * y
    if approach <= 0:
        return False
    for axis, share in enumerate((x, y)):
        speed[axis] -= approach * share
        its[axis] += approach * share
    return True


@dataclass(frozen=True)
class Film:
    """Scenes, one after the other."""

    scenes: tuple[Scene, ...]

    @cached_property
    def starts(self) -> tuple[float, ...]:
        """When each scene begins, in seconds of the film."""
        return tuple(np.cumsum([0.0, *(scene.seconds for scene in self.scenes[:-1])]).tolist())

    @property
    def seconds(self) -> float:
        return self.starts[-1] + self.scenes[-1].seconds

    def scene_at(self, seconds: float | int) -> tuple[Scene, float]:
        """The scene at a time of the film, and the time in it."""
        index = max(0, int(np.searchsorted(self.starts, seconds, side="right")) - 1)
        return self.scenes[index], seconds - self.starts[index]

    def frames(self, size: int, fps: float | int = 1.0) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        """The frames at 0, 1/fps, 2/fps, ... seconds, up to the film's end."""
        for index in range(int(np.ceil(self.seconds * fps))):
            scene, within = self.scene_at(index / fps)
            yield scene.frame(within, size)

    @property
    def events(self) -> tuple[Event, ...]:
        """All that happens, in order, in seconds of the film."""
        return tuple(
            Event(start + event.seconds, event.happening, event.thing, event.other)
            for start, scene in zip(self.starts, self.scenes, strict=True)
            for event in scene.events
        )


def is_new(thing: Thing, ground: str) -> bool:
    """Whether a thing on a ground is held out: a colour, a kind and a ground that training never shows together.

    Of each kind on each ground that is one colour. Any two of the three are seen together, so whoever takes a picture
    apart has learned all that it takes.
    """
    colour = list(COLOURS).index(thing.colour)
    kind, below = KINDS.index(thing.kind), list(GROUNDS).index(ground)
    return (colour + kind + below) % len(COLOURS) == 0


@dataclass(frozen=True)
class World:
    """Endless pictures, scenes and films; number `index` depends on `seed`, `part` and `index` alone.

    Attributes:
        part: "train" has no combination that `is_new`; in "heldout" the first thing of every picture and scene is one.
        least: things in a picture or scene, at least,
        most: and at most. No two have the same kind or the same colour, so that either names a thing.
        grid: things stand at steps of so many parts of the frame's side, 2 or more; None: anywhere, which takes many
            more codes to tell.
    """

    seed: int = 0
    part: Part = "train"
    least: int = 1
    most: int = 3
    grid: int | None = GRID

    def __post_init__(self) -> None:
        if self.grid is not None and self.grid < 2:
            raise ValueError(f"a world's grid has 2 or more steps a side, or is None; got {self.grid}")

    def picture(self, index: int) -> Scene:
        """A scene that is over at once: things that stay where they are, whole, and apart from each other."""
        random = self._random("picture", index)
        ground, things = self._cast(random)
        acts: list[Act] = []
        for thing in things:
            if (spot := self._free_spot(random, thing, acts)) is not None:
                acts.append(Act(thing, *spot, 0.0, 0.0, 0.0, np.inf))
        return Scene(ground, tuple(acts), 0.0, self.grid)

    def scene(self, index: int, seconds: float | int = 8.0) -> Scene:
        """Things that stay, move, appear, leave and pass, for so many seconds."""
        return self._scene(self._random("scene", index), seconds)

    def film(self, index: int, seconds: float | int, scene_seconds: tuple[int, int] = (5, 15)) -> Film:
        """Scenes of so many whole seconds (least, most), to the length asked for."""
        random = self._random("film", index)
        scenes: list[Scene] = []
        left = seconds
        while left > 0:
            length = min(left, float(random.integers(scene_seconds[0], scene_seconds[1] + 1)))
            scenes.append(self._scene(random, length))
            left -= length
        return Film(tuple(scenes))

    def _random(self, what: str, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, index, *what.encode(), self.part == "heldout"))

    def _cast(self, random: np.random.Generator) -> tuple[str, list[Thing]]:
        """A ground, and things of the world's part to put on it."""
        ground = str(random.choice(list(GROUNDS)))
        count = int(random.integers(self.least, self.most + 1))
        things: list[Thing] = []
        while len(things) < count:
            thing = Thing(*(_choice(random, words) for words in (tuple(SIZES), tuple(COLOURS), KINDS)))
            if any(thing.colour == other.colour or thing.kind == other.kind for other in things):
                continue
            if is_new(thing, ground) == (self.part == "heldout" and not things):
                things.append(thing)
        return ground, things

    def _scene(self, random: np.random.Generator, seconds: float | int) -> Scene:
        ground, things = self._cast(random)
        acts: list[Act] = []
        for number, thing in enumerate(things):
            speed = _choice(random, SPEEDS)
            x, y = _choice(random, tuple(VELOCITIES.values()))
            if number and random.random() < 0.2 and not any(act.passes for act in acts):
                acts.append(self._passing(random, thing, x, y, seconds))
                continue
            spot = self._free_spot(random, thing, acts)
            if spot is None:
                continue
            if not 0 < spot[0] + x * _RUN < 1 or not 0 < spot[1] + y * _RUN < 1:
                x, y = -x, -y  # towards the farther edge, so that it goes the way it is said to go for a while
            moves = random.random() < 0.6
            enters, leaves = 0.0, seconds
            if number and random.random() < 0.3:
                enters = float(round(seconds * random.uniform(0.2, 0.5)))
            elif number and random.random() < 0.3:
                leaves = float(round(seconds * random.uniform(0.5, 0.8)))
            acts.append(Act(thing, *spot, speed * x * moves, speed * y * moves, enters, leaves))
        return Scene(ground, tuple(acts), seconds, self.grid)

    def _free_spot(self, random: np.random.Generator, thing: Thing, acts: list[Act]) -> tuple[float, float] | None:
        """A place for a thing, whole and apart from where the others start; None when there is hardly any."""
        for _ in range(_TRIES):
            x, y = self._inside(random, thing), self._inside(random, thing)
            if all(
                act.passes or np.hypot(act.x - x, act.y - y) > act.thing.radius + thing.radius + _GAP for act in acts
            ):
                return x, y
        return None

    def _passing(self, random: np.random.Generator, thing: Thing, x: int, y: int, seconds: float | int) -> Act:
        """From outside of one edge to outside of the other, in the middle half of the scene."""
        across = 1 + 2 * thing.radius
        enters, leaves = seconds / 4, seconds * 3 / 4
        speed = across / (leaves - enters)
        lane = self._inside(random, thing)
        edge = -thing.radius if x + y > 0 else 1 + thing.radius
        return Act(thing, edge if x else lane, edge if y else lane, speed * x, speed * y, enters, leaves, passes=True)

    def _inside(self, random: np.random.Generator, thing: Thing) -> float:
        """A coordinate of a centre, on the grid, with the whole thing inside of the frame."""
        low, high = thing.radius, 1 - thing.radius
        if self.grid is None:
            return float(random.uniform(low, high))
        return int(random.integers(np.ceil(low * self.grid), np.floor(high * self.grid) + 1)) / self.grid


def _choice(random: np.random.Generator, options: tuple[Option, ...]) -> Option:
    return options[int(random.integers(len(options)))]
