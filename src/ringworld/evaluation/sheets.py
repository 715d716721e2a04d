"""Contact sheets: pictures and films with words below, to be looked through at a glance."""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

# All in pixels.
_TILE, _GAP, _EDGE, _LINE, _TEXT, _UNDERLINE = 128, 2, 8, 15, 12, 4
_ACROSS = 8  # frames in a row
_RIGHT, _WRONG, _INK = (24, 120, 52), (190, 32, 38), (34, 48, 60)


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture or film, its caption, and what in it is wrong. The first `given` frames are underlined."""

    frames: UInt8[np.ndarray, "F H W 3"]
    caption: str
    wrong: Sequence[str] = ()
    given: int = 0


def contact_sheet(sections: Iterable[tuple[str, Sequence[Tile]]]) -> UInt8[np.ndarray, "h w 3"]:
    """Sections of a heading and tiles; captions are green, or red with what is wrong.

    Small frames are enlarged in whole pixels; of a film at most eight frames are shown, evenly.
    """
    large = ImageFont.load_default(_TEXT + 4)
    bands = []
    for heading, tiles in sections:
        drawn = [_drawn(tile) for tile in tiles]
        across = max(1, _ACROSS // min(_ACROSS, max((len(tile.frames) for tile in tiles), default=1)))
        bands.append(_text_band([heading], large, _INK, 200 + 10 * len(heading)))
        bands += [_row(drawn[first : first + across]) for first in range(0, len(drawn), across)]
    width = max(band.shape[1] for band in bands)
    return np.concatenate([_padded(band, len(band), width) for band in bands])


def _drawn(tile: Tile) -> np.ndarray:
    """The frames side by side, and the caption below."""
    frames = tile.frames
    shown = np.linspace(0, len(frames) - 1, min(_ACROSS, len(frames))).astype(int)
    zoom = max(1, _TILE // frames.shape[1])
    enlarged = frames[shown].repeat(zoom, axis=1).repeat(zoom, axis=2)
    enlarged[shown < tile.given, -_UNDERLINE:] = _INK
    gaps = ((0, 0), (0, 0), (0, _GAP), (0, 0))
    strip = np.concatenate([*np.pad(enlarged, gaps, constant_values=255)], axis=1)
    columns = max(16, strip.shape[1] // 6)
    lines = textwrap.wrap(tile.caption, columns)
    lines += textwrap.wrap(f"wrong: {', '.join(tile.wrong)}", columns) if tile.wrong else []
    text = _text_band(lines, ImageFont.load_default(_TEXT), _WRONG if tile.wrong else _RIGHT, strip.shape[1])
    return np.pad(np.concatenate([strip, text]), ((0, _EDGE), (0, _EDGE), (0, 0)), constant_values=255)


def _text_band(lines: Sequence[str], font: Any, colour: tuple[int, int, int], width: int) -> np.ndarray:
    height = round(getattr(font, "size", _TEXT) * _LINE / _TEXT)
    image = Image.new("RGB", (width, height * len(lines) + 4), "white")
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((2, 2 + number * height), line, colour, font)
    return np.asarray(image)


def _row(tiles: Sequence[np.ndarray]) -> np.ndarray:
    height = max(map(len, tiles))
    return np.concatenate([_padded(tile, height, tile.shape[1]) for tile in tiles], axis=1)


def _padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    room = ((0, height - len(picture)), (0, width - picture.shape[1]), (0, 0))
    return np.pad(picture, room, constant_values=255)
