"""Reads a frame of the shapes world by rules: which ground, which things, where.

It looks for what it knows can be there, and has no part in how frames are made, encoded or learned, so it can judge a
picture that a model decoded or drew.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float64, UInt8
from scipy import ndimage

from ringworld.worlds.shapes import COLOURS, GROUNDS, KINDS, SIZES, Placed, Thing, coverage

_GROUND, _COLOUR = (np.array(list(palette.values()), np.float64) for palette in (GROUNDS, COLOURS))
_LEAST = 0.004  # of the frame's pixels: what is smaller is no thing


@dataclass(frozen=True)
class Reading:
    """What a frame shows, as far as it can be read; `things` from the largest to the smallest."""

    ground: str
    things: tuple[Placed, ...]

    def agrees(self, ground: str, things: tuple[Placed, ...], slack: float = 1 / 32) -> bool:
        """Whether ground and things (size, colour, kind and place) are those given.

        A thing whose centre is within `slack` sides of the frame of where it should be is in its place, too: near the
        border of two ninths of the frame, a pixel decides on the word.
        """
        if ground != self.ground or len(things) != len(self.things):
            return False
        seen = {placed.thing: placed for placed in self.things}
        return all(
            one.thing in seen
            and (
                one.place == seen[one.thing].place
                or max(abs(one.x - seen[one.thing].x), abs(one.y - seen[one.thing].y)) <= slack
            )
            for one in things
        )


def read(frame: UInt8[np.ndarray, "size size 3"]) -> Reading:
    """Reads a frame; things that overlap or leave the frame may be read wrongly, or not at all."""
    size = len(frame)
    pixels = frame.astype(np.float64)
    names = _nearest(pixels, np.concatenate([_COLOUR, _GROUND]))
    counts = np.bincount(names[names >= len(_COLOUR)], minlength=len(_COLOUR) + len(_GROUND))
    ground = int(counts.argmax()) - len(_COLOUR)
    things: list[tuple[int, Placed]] = []
    colours = _nearest(pixels, np.concatenate([_COLOUR, _GROUND[ground : ground + 1]]))
    for colour, name in enumerate(COLOURS):
        # An opened mask loses the thin rims where the edge of one colour passes through another.
        mask = ndimage.binary_opening(colours == colour)
        labels, _ = ndimage.label(mask, np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
        for label, part in enumerate(ndimage.find_objects(labels), start=1):
            area = int((labels[part] == label).sum())
            if area >= _LEAST * size * size:
                alpha = _alpha(pixels, _GROUND[ground], _COLOUR[colour])
                things.append((area, _fit(alpha, part, size, name)))
    things.sort(key=lambda found: -found[0])
    return Reading(list(GROUNDS)[ground], tuple(placed for _, placed in things))


def _nearest(pixels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    return ((pixels[..., None, :] - palette) ** 2).sum(-1).argmin(-1)


def _alpha(pixels: np.ndarray, ground: np.ndarray, colour: np.ndarray) -> Float64[np.ndarray, "size size"]:
    """How far each pixel is on the way from the ground to the colour."""
    way = colour - ground
    return np.clip((pixels - ground) @ way / (way @ way), 0, 1)


def _fit(alpha: np.ndarray, part: tuple[slice, slice], size: int, colour: str) -> Placed:
    """The kind, size and place whose drawing is nearest to what is seen around a patch of one colour."""
    reach = int(np.ceil(max(SIZES.values()) * size / 2)) + 3
    row, column = ((p.start + p.stop - 1) / 2 for p in part)
    top, left = round(row) - reach, round(column) - reach
    window = np.zeros((2 * reach + 1, 2 * reach + 1))
    inside = np.s_[max(0, top) : top + len(window), max(0, left) : left + len(window)]
    seen = alpha[inside]
    window[max(0, -top) :, max(0, -left) :][: seen.shape[0], : seen.shape[1]] = seen
    # The patch alone: its neighbours, of whatever colour, lie partly on the way to this colour too.
    box = np.zeros(window.shape, bool)
    box[
        max(0, part[0].start - 2 - top) : part[0].stop + 2 - top,
        max(0, part[1].start - 2 - left) : part[1].stop + 2 - left,
    ] = True
    window *= box
    best, found = np.inf, None
    for kind in KINDS:
        for name in SIZES:
            drawn, offsets = _drawings(kind, name, size, reach)
            wrong = ((drawn - window) ** 2).sum((1, 2))
            index = int(wrong.argmin())
            if wrong[index] < best:
                best, found = wrong[index], (kind, name, offsets[index])
    assert found is not None
    kind, name, (down, right) = found
    y, x = ((top + reach + down + 0.5) / size, (left + reach + right + 0.5) / size)
    return Placed(Thing(name, colour, kind), float(x), float(y))


@lru_cache(maxsize=64)
def _drawings(kind: str, name: str, size: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """A shape at offsets of half pixels from a window's middle: [n, W, W], and the offsets [n, 2] (down, right)."""
    radius = SIZES[name] / 2 * size
    steps = np.arange(-3, 3.5, 0.5)
    offsets = np.array([(down, right) for down in steps for right in steps])
    grid = np.arange(-reach, reach + 1.0)[None]
    drawn = np.stack([coverage(kind, radius, grid - right, grid.T - down) for down, right in offsets])
    return drawn, offsets
