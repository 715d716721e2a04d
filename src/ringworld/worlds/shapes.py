"""Coloured shapes on coloured grounds: what there is, where it is, and how it is drawn.

Lengths are in shares of the frame's side: x from the left, y from the top, so a scene is the same at any frame size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt8

RGB = tuple[int, int, int]
Coordinates = Float64[np.ndarray, "#H #W"]

COLOURS: dict[str, RGB] = {
    "red": (214, 32, 38),
    "orange": (250, 140, 20),
    "yellow": (252, 224, 40),
    "green": (24, 140, 52),
    "blue": (28, 84, 214),
    "purple": (134, 44, 156),
    "white": (252, 252, 252),
    "black": (16, 16, 20),
}
GROUNDS: dict[str, RGB] = {
    "grey": (138, 140, 144),
    "sand": (222, 202, 158),
    "sky": (160, 206, 240),
    "mint": (172, 232, 196),
    "rose": (240, 184, 196),
    "slate": (72, 88, 106),
}
SIZES = {"small": 0.25, "large": 0.375}  # diameters
# Distances from the edge, negative inside, of a shape that reaches from -1 to 1. Where two edges meet the true distance
# is a little larger: what is drawn are sharp corners.
_DISTANCES: dict[str, Callable[[Coordinates, Coordinates], Coordinates]] = {
    "circle": lambda x, y: np.hypot(x, y) - 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) - 0.86,
    "triangle": lambda x, y: np.maximum(y - 0.8, abs(x) * 0.8742 - y * 0.4856 - 0.4856),
    "diamond": lambda x, y: (abs(x) + abs(y) - 1) * 0.7071,
    "cross": lambda x, y: np.minimum(np.maximum(abs(x) - 1, abs(y) - 0.33), np.maximum(abs(x) - 0.33, abs(y) - 1)),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.76) - 0.24,
}
KINDS = tuple(_DISTANCES)
_COLUMNS, _ROWS = ("left", "", "right"), ("top", "", "bottom")


@dataclass(frozen=True)
class Thing:
    """A shape by its words: a key of `SIZES`, one of `COLOURS` and one of `KINDS`."""

    size: str
    colour: str
    kind: str

    @property
    def radius(self) -> float:
        return SIZES[self.size] / 2

    def __str__(self) -> str:
        return f"{self.size} {self.colour} {self.kind}"


THINGS = tuple(Thing(size, colour, kind) for size in SIZES for colour in COLOURS for kind in KINDS)


@dataclass(frozen=True)
class Placed:
    """A thing, and where its centre is."""

    thing: Thing
    x: float
    y: float

    @property
    def place(self) -> str:
        return place(self.x, self.y)


def place(x: float | int, y: float | int) -> str:
    """The word for a point: which ninth of the frame it lies in, such as "top left", "right" or "centre"."""
    row, column = (min(2, max(0, int(3 * v))) for v in (y, x))
    return " ".join(filter(None, (_ROWS[row], _COLUMNS[column]))) or "centre"


PLACES = tuple(place((column + 0.5) / 3, (row + 0.5) / 3) for row in range(3) for column in range(3))


def coverage(kind: str, radius: float, x: Coordinates, y: Coordinates) -> Float64[np.ndarray, "H W"]:
    """How much of each pixel a shape covers, 0 to 1; radius and the offsets from its centre in pixels."""
    return np.clip(0.5 - radius * _DISTANCES[kind](x / radius, y / radius), 0, 1)


def draw(ground: str, things: Sequence[Placed], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The frame of these things on a ground, the last in front, with antialiased edges."""
    frame = np.empty((size, size, 3), np.uint8)
    frame[:] = GROUNDS[ground]
    for placed in things:
        radius = placed.thing.radius * size
        x, y = placed.x * size - 0.5, placed.y * size - 0.5  # of pixels, counted from the centre of the first
        left, top = (max(0, int(np.floor(v - radius))) for v in (x, y))
        right, bottom = (min(size, int(np.ceil(v + radius)) + 1) for v in (x, y))
        if left >= right or top >= bottom:
            continue
        part = frame[top:bottom, left:right]
        columns, rows = np.arange(left, right)[None] - x, np.arange(top, bottom)[:, None] - y
        alpha = coverage(placed.thing.kind, radius, columns, rows)[..., None]
        part[:] = part + alpha * (np.array(COLOURS[placed.thing.colour], np.float64) - part) + 0.5
    return frame
