"""Scenes and films of moving shapes: what each thing does, where it is then, and everything that happens."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from ringworld.worlds.shapes import Placed, Thing, draw

Happening = Literal["appears", "leaves", "passes", "collides"]
Direction = Literal["left", "right", "up", "down"]

VELOCITIES: dict[Direction, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
TICKS = 8  # moments a second at which motion is worked out; between them things move evenly


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
        now = _on_grid(now, self.grid)
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

    def ninths(self, number: int) -> Bool[np.ndarray, "3 3"]:
        """The ninths of the frame, by row and column, in which the centre of act `number` is at any time."""
        if self._undisturbed:
            return ninths_alone(self.acts[number], self.seconds, self.grid)
        return _ninths(self._motion[0][:, number], self.grid)

    @property
    def _undisturbed(self) -> bool:
        """Whether nothing turns what goes through the scene."""
        return bool(self.acts) and all(act.passes for act in self.acts)

    @cached_property
    def _motion(self) -> tuple[np.ndarray, list[Event]]:
        """Centres [tick, act, 2], and the collisions."""
        acts, events = self.acts, list[Event]()
        if self._undisturbed:
            return np.stack([_alone(act, self.seconds) for act in acts], axis=1), events
        where = [[act.x, act.y] for act in acts]
        velocity = [[act.dx, act.dy] for act in acts]
        tracks: list[list[list[float]]] = []
        for tick in range(_ticks(self.seconds)):
            tracks.append([[*spot] for spot in where])
            now, until = tick / TICKS, (tick + 1) / TICKS
            for act, spot, speed in zip(acts, where, velocity, strict=True):
                share = max(0.0, min(until, act.leaves) - max(now, act.enters))
                for axis in (0, 1):
                    spot[axis] += speed[axis] * share
                    low, high = act.thing.radius, 1 - act.thing.radius
                    if not act.passes and not low <= spot[axis] <= high:
                        spot[axis] = 2 * min(max(spot[axis], low), high) - spot[axis]
                        speed[axis] = -speed[axis]
            solid = [i for i, act in enumerate(acts) if not act.passes and act.enters <= until < act.leaves]
            for one, other in combinations(solid, 2):
                if _collide(acts[one], acts[other], where[one], where[other], velocity[one], velocity[other]):
                    events.append(Event(until, "collides", acts[one].thing, acts[other].thing))
        return np.reshape(tracks, (len(tracks), len(acts), 2)), events


def _ticks(seconds: float | int) -> int:
    """How many moments a scene has, its end among them."""
    return int(np.ceil(seconds * TICKS)) + 1


def _on_grid(where: np.ndarray, grid: int | None) -> np.ndarray:
    return where if grid is None else np.floor(where * grid + 0.5) / grid


def _ninths(track: Float64[np.ndarray, "ticks 2"], grid: int | None) -> Bool[np.ndarray, "3 3"]:
    """Rows and columns of the ninths in which what goes such a way is seen, at whatever time: of two moments one after
    the other all between them counts."""
    spots = np.clip((3 * _on_grid(track, grid)).astype(int), 0, 2)[:, ::-1]  # row, column
    spots = spots[np.append(True, np.any(np.diff(spots, axis=0), axis=1))]  # each but once on end
    found = np.zeros((3, 3), bool)
    for one, other in pairwise([*spots, spots[-1]]):
        (top, left), (bottom, right) = np.minimum(one, other), np.maximum(one, other)
        found[top : bottom + 1, left : right + 1] = True
    return found


@lru_cache(maxsize=1 << 16)  # on a grid there are but so many ways to go
def ninths_alone(act: Act, seconds: float | int, grid: int | None) -> Bool[np.ndarray, "3 3"]:
    """The same of a thing that nothing meets. Not to be written into."""
    found = _ninths(_alone(act, seconds), grid)
    found.flags.writeable = False
    return found


def _alone(act: Act, seconds: float | int) -> Float64[np.ndarray, "ticks 2"]:
    """Where a thing's centre is at each moment of a scene in which nothing meets it."""
    going = np.clip(np.arange(_ticks(seconds)) / TICKS, act.enters, act.leaves)[:, None] - act.enters
    way = np.array([act.x, act.y]) + going * np.array([act.dx, act.dy])
    if act.passes:
        return way
    low, span = act.thing.radius, 1 - 2 * act.thing.radius
    return low + span - abs((way - low) % (2 * span) - span)  # to and fro between the edges


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
        index = max(0, bisect_right(self.starts, seconds) - 1)
        return self.scenes[index], seconds - self.starts[index]

    def frame(self, seconds: float | int, size: int) -> UInt8[np.ndarray, "size size 3"]:
        scene, within = self.scene_at(seconds)
        return scene.frame(within, size)

    def frames(self, size: int, fps: float | int = 1.0) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        """The frames at 0, 1/fps, 2/fps, ... seconds, up to the film's end."""
        for index in range(int(np.ceil(self.seconds * fps))):
            yield self.frame(index / fps, size)

    @property
    def events(self) -> tuple[Event, ...]:
        """All that happens, in order, in seconds of the film."""
        return tuple(
            Event(start + event.seconds, event.happening, event.thing, event.other)
            for start, scene in zip(self.starts, self.scenes, strict=True)
            for event in scene.events
        )
