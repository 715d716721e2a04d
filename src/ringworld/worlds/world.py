"""Pictures, scenes and films of moving shapes, made up by number, and what training never sees of them.

`World(seed).film(7, 3600)` is the same hour wherever it is made. Held-out combinations, of things with grounds or of
things with places, are in no picture, scene or film of the training part, so what is asked about them was never seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count as count_from
from typing import Literal, TypeVar, get_args

import numpy as np
from jaxtyping import Bool

from ringworld.worlds.film import VELOCITIES, Act, Film, Scene, ninths_alone
from ringworld.worlds.shapes import COLOURS, GROUNDS, KINDS, PLACES, SIZES, Thing, place

Part = Literal["train", "heldout"]
HeldOut = Literal["ground", "place"]
Option = TypeVar("Option")

GRID = 8  # steps of a frame's side, on which things stand
PLACES_GRID = 4  # and where places are held out: on it each ninth is one place, and a thing shows the same in each
SPEEDS = (0.125, 0.25)  # in sides of the frame a second: whole steps of `GRID`
PASSING = (0.25, 0.75)  # from which share of a scene to which a thing crosses it that passes
_GAP = 0.02  # between things that are put into a frame
_RUN = 0.45  # what moves towards an edge has at least so far to go
_TRIES = 30
_REDRAWN = 60  # times that a thing is put into a scene in which it might come to a place that is held out
_AROUND = tuple(word for word in PLACES if word != "centre")


def is_new(thing: Thing, ground: str) -> bool:
    """Whether a thing on a ground is held out: a colour, a kind and a ground that training never shows together.

    Of each kind on each ground that is one colour. Any two of the three are seen together, so whoever takes a picture
    apart has learned all that it takes.
    """
    return (_number(thing) + list(GROUNDS).index(ground)) % len(COLOURS) == 0


def is_new_at(thing: Thing, ninth: str) -> bool:
    """Whether a thing at a place is held out: a colour, a kind and a ninth of the frame that training never shows
    together.

    Of each colour and kind this is one of the eight ninths around the centre, so that two rows and two columns are left
    in which it may go to and fro: of fewer ways, training could do with guessing from the thing which one it goes. Any
    two of the three are seen together; and what a patch of the frame shows of a thing in one ninth it shows in others,
    too (on `PLACES_GRID` in all of them). So whoever has learned what each code shows has only to put them together in
    another place.
    """
    return ninth in _AROUND and (_number(thing) + _AROUND.index(ninth)) % len(_AROUND) == 0


def _number(thing: Thing) -> int:
    return list(COLOURS).index(thing.colour) + KINDS.index(thing.kind)


def _new_ninths(thing: Thing) -> Bool[np.ndarray, "3 3"]:
    return np.reshape([is_new_at(thing, word) for word in PLACES], (3, 3))


@dataclass(frozen=True)
class World:
    """Endless pictures, scenes and films; number `index` depends on the world and `index` alone.

    Attributes:
        part: "train" has no combination that is held out; in "heldout" the first thing of every picture and scene is
            one, and no other.
        least: things in a picture or scene, at least,
        most: and at most. No two have the same kind or the same colour, so that either names a thing.
        grid: things stand at steps of so many parts of the frame's side, 2 or more; None: anywhere, which takes many
            more codes to tell. 0: `GRID`, or `PLACES_GRID` where places are held out.
        heldout: which combinations are held out. "ground": of things with grounds (`is_new`). "place": of things with
            ninths of the frame (`is_new_at`): in "train" the centre of none is ever there, at no time of a scene; in
            "heldout" the first thing begins there.

    Raises:
        ValueError: an unknown `heldout`, or a grid that is too coarse, or on which a thing cannot stand in each third
            of a side, where places are held out.
    """

    seed: int = 0
    part: Part = "train"
    least: int = 1
    most: int = 3
    grid: int | None = 0
    heldout: HeldOut = "ground"

    def __post_init__(self) -> None:
        if self.heldout not in get_args(HeldOut):
            raise ValueError(f"a world holds out {' or '.join(get_args(HeldOut))}, got {self.heldout!r}")
        if self.steps is not None and self.steps < 2:
            raise ValueError(f"a world's grid has 2 or more steps a side, or is None; got {self.grid}")
        if self.heldout == "place" and self.steps is not None:
            places = [_steps(Thing(size, "red", "ring").radius, self.steps) for size in SIZES]
            if any({int(3 * (step / self.steps)) for step in some} != {0, 1, 2} for some in places):
                raise ValueError(
                    "a world that holds out places needs a grid on which things of every size can stand in each third "
                    f"of a side, such as {PLACES_GRID}; got {self.grid}"
                )

    @property
    def steps(self) -> int | None:
        """Of a frame's side, on which things stand; None: anywhere."""
        usual = PLACES_GRID if self.heldout == "place" else GRID
        return usual if self.grid == 0 else self.grid

    def admits(self, scene: Scene) -> bool:
        """Whether a scene is of this world's part: whether what it shows of what is held out is what it should."""
        for number, act in enumerate(scene.acts):
            new = self._is_new(number)
            if self.heldout == "ground":
                right = is_new(act.thing, scene.ground) == new
            else:
                right = is_new_at(act.thing, place(act.x, act.y)) if new else not _strays(act, scene.ninths(number))
            if not right:
                return False
        return True

    def picture(self, index: int) -> Scene:
        """A scene that is over at once: things that stay where they are, whole, and apart from each other."""
        random = self._random("picture", index)
        ground, things = self._cast(random)
        acts: list[Act] = []
        for thing in things:
            if (spot := self._free_spot(random, thing, acts)) is not None:
                acts.append(Act(thing, *spot, 0.0, 0.0, 0.0, np.inf))
        return Scene(ground, tuple(acts), 0.0, self.steps)

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
            if self.heldout == "place" or is_new(thing, ground) == self._is_new(len(things)):
                things.append(thing)
        return ground, things

    def _is_new(self, number: int) -> bool:
        """Whether thing `number` of a picture or scene is the one that shows what is held out."""
        return self.part == "heldout" and number == 0

    def _scene(self, random: np.random.Generator, seconds: float | int) -> Scene:
        ground, things = self._cast(random)
        scene = Scene(ground, (), seconds, self.steps)
        for thing in things:
            scene = self._joined(random, scene, thing) or scene
        return scene

    def _joined(self, random: np.random.Generator, scene: Scene, thing: Thing) -> Scene | None:
        """The scene with one thing more; None when there is hardly any room for it.

        Drawn again until nothing that is held out is shown where it must not be. Whether the thing stays, moves or
        passes is as it was first drawn, so that such scenes are as lively as others.
        """
        first: Act | None = None
        number = len(scene.acts)
        for _ in range(_REDRAWN) if number else count_from():
            act = self._act(random, thing, scene)
            if act is None:
                return None
            first = first or act
            if (act.passes, act.direction is None) != (first.passes, first.direction is None):
                continue
            # By itself first: whether it meets others takes longer to work out.
            if self.heldout == "ground" or self._is_new(number) or not self._strays_alone(act, scene.seconds):
                joined = replace(scene, acts=(*scene.acts, act))
                if self.admits(joined):
                    return joined
        return None

    def _act(self, random: np.random.Generator, thing: Thing, scene: Scene) -> Act | None:
        """What a thing does in a scene, others being there; None when there is hardly any room for it."""
        acts, seconds = scene.acts, scene.seconds
        speed = _choice(random, SPEEDS)
        x, y = _choice(random, tuple(VELOCITIES.values()))
        if acts and random.random() < 0.2 and not any(act.passes for act in acts):
            return self._passing(random, thing, x, y, seconds)
        spot = self._free_spot(random, thing, acts)
        if spot is None:
            return None
        if not 0 < spot[0] + x * _RUN < 1 or not 0 < spot[1] + y * _RUN < 1:
            x, y = -x, -y  # towards the farther edge, so that it goes the way it is said to go for a while
        moves = random.random() < 0.6
        enters, leaves = 0.0, seconds
        if acts and random.random() < 0.3:
            enters = float(round(seconds * random.uniform(0.2, 0.5)))
        elif acts and random.random() < 0.3:
            leaves = float(round(seconds * random.uniform(0.5, 0.8)))
        return Act(thing, *spot, speed * x * moves, speed * y * moves, enters, leaves)

    def _free_spot(self, random: np.random.Generator, thing: Thing, acts: Sequence[Act]) -> tuple[float, float] | None:
        """A place for a thing, whole and apart from where the others start; None when there is hardly any."""
        new = self._is_new(len(acts))
        for _ in range(_TRIES) if acts else count_from():
            x, y = self.inside(random, thing), self.inside(random, thing)
            apart = all(
                act.passes or np.hypot(act.x - x, act.y - y) > act.thing.radius + thing.radius + _GAP for act in acts
            )
            if apart and (self.heldout == "ground" or is_new_at(thing, place(x, y)) == new):
                return x, y
        return None

    def _passing(self, random: np.random.Generator, thing: Thing, x: int, y: int, seconds: float | int) -> Act:
        """From outside of one edge to outside of the other, in the middle half of the scene."""
        across = 1 + 2 * thing.radius
        enters, leaves = (seconds * share for share in PASSING)
        speed = across / (leaves - enters)
        edge = -thing.radius if x + y > 0 else 1 + thing.radius
        while True:
            lane = self.inside(random, thing)
            spot = (edge, lane) if x else (lane, edge)
            act = Act(thing, *spot, speed * x, speed * y, enters, leaves, passes=True)
            if self.heldout == "ground" or not self._strays_alone(act, seconds):
                return act

    def _strays_alone(self, act: Act, seconds: float | int) -> bool:
        return _strays(act, ninths_alone(act, seconds, self.steps))

    def inside(self, random: np.random.Generator, thing: Thing) -> float:
        """A coordinate of a centre, on the grid, with the whole thing inside of the frame."""
        if self.steps is None:
            return float(random.uniform(thing.radius, 1 - thing.radius))
        whole = _steps(thing.radius, self.steps)
        return int(random.integers(whole.start, whole.stop)) / self.steps


def _strays(act: Act, ninths: Bool[np.ndarray, "3 3"]) -> bool:
    """Whether one of the ninths in which a thing is, is held out for it."""
    return bool((ninths & _new_ninths(act.thing)).any())


def _steps(radius: float, grid: int) -> range:
    """At which steps of a grid the centre of a thing that is wholly in the frame can be."""
    return range(int(np.ceil(radius * grid)), int(np.floor((1 - radius) * grid)) + 1)


def _choice(random: np.random.Generator, options: tuple[Option, ...]) -> Option:
    return options[int(random.integers(len(options)))]
