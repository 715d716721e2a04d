"""What a model draws of the shapes world: captions go in, and a reader that has no part in it says what is right.

`worlds.reader` reads every frame by rules. A picture is right or wrong in its ground and count, and in its things'
colours, kinds, sizes and places; a film also in its objects, things of the right colour and kind in most of its frames,
and in their motion. "held out" captions have combinations that training never shows.
"""

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from scipy.optimize import linear_sum_assignment

from ringworld.errors import UserError
from ringworld.evaluation.files import write_result
from ringworld.evaluation.vqa import read_cases, write_cases
from ringworld.progress import progress_bar
from ringworld.tokens.images import read_image, to_png
from ringworld.worlds.film import VELOCITIES, Act, Part, Scene, World
from ringworld.worlds.language import caption
from ringworld.worlds.reader import read
from ringworld.worlds.shapes import Placed, place

What = Literal["ground", "count", "colour", "kind", "size", "place", "object", "motion"]
Score = dict[What, bool]
_WHATS: tuple[What, ...] = ("ground", "count", "colour", "kind", "size", "place", "object", "motion")
_NAMES: dict[Part, str] = {"train": "seen", "heldout": "held out"}
_FPS = 1.0  # of the films
_READ_SIZE = 64  # pixels a side, of the frames by which a scene is judged to be readable
_SLACK = 1 / 32  # sides of the frame, by which a thing may be beyond the border of its ninth
_BEYOND = 1 / 64  # of a thing that lies wholly in the frame, so much may seem to be outside
_MOVED = 1 / 16  # a thing that is farther than this from where it was has moved

# Of the contact sheet, in pixels.
_TILE, _GAP, _EDGE, _LINE, _TEXT = 128, 2, 8, 15, 12
_ACROSS = 8  # frames in a row
_SHEET = 32  # drawings of a part
_RIGHT, _WRONG, _INK = (24, 120, 52), (190, 32, 38), (34, 48, 60)


@runtime_checkable
class Draws(Protocol):
    """Who can be asked for pictures and films. `fingerprint` tells this model from others."""

    @property
    def fingerprint(self) -> str: ...

    def draw(
        self, prompts: Sequence[str], frames: int, *, guidance: float, temperature: float, seed: int
    ) -> list[UInt8[np.ndarray, "F H W 3"]]:
        """So many frames of each thing asked for: a picture, or a film at one frame a second.

        Args:
            prompts: what is to be seen, in the words of captions alone: how a model is asked is its own matter.
            guidance: 1: the prompt as it is; more: followed more closely.
            temperature: 0 is greedy.
        """
        ...


def score_picture(frame: UInt8[np.ndarray, "size size 3"], scene: Scene) -> Score:
    """What of a frame is as the caption of a picture says.

    A thing's place is the ninth of the frame that the caption names. What holds for a picture holds for all of its
    things; `count` is right when there is no other.
    """
    reading = read(frame)
    pairs = _paired(scene.acts, reading.things)
    return {
        "ground": reading.ground == scene.ground,
        "count": len(reading.things) == len(scene.acts),
        "colour": all(seen is not None and seen.thing.colour == act.thing.colour for act, seen in pairs),
        "kind": all(seen is not None and seen.thing.kind == act.thing.kind for act, seen in pairs),
        "size": all(seen is not None and seen.thing.size == act.thing.size for act, seen in pairs),
        "place": all(seen is not None and _is_at(act, seen) for act, seen in pairs),
    }


def score_film(frames: UInt8[np.ndarray, "F size size 3"], scene: Scene) -> Score:
    """What of frames, one a second, is as the caption of a scene says.

    - `ground`: in most frames; `count`: in most frames, there are no more things than the caption names.
    - `object`: a thing of this colour and kind is in most of the frames; of a thing that comes, goes or passes, in one
      frame or more. `colour`, `kind` and `size` are right in most of those frames in which the thing is seen that is
      likest to it.
    - `place`: it is first seen where the caption says. One that passes has no such place.
    - `motion`: where it is first seen elsewhere, that is the way that the caption says; and one that stays is in most
      frames where it was. Left out for a thing of which the scene itself does not show that at one frame a second, as
      others hit it at once; and when nothing is left, there is no `motion`.
    """
    readings = [read(frame) for frame in frames]
    pairs = [_paired(scene.acts, reading.things) for reading in readings]
    acts = scene.acts
    likest = [[row[number][1] for row in pairs] for number in range(len(acts))]
    tracks = [_whole([s for s in row if s and _alike(act, s)]) for act, row in zip(acts, likest, strict=True)]
    right = [[seen for seen in track if _alike(act, seen) == 2] for act, track in zip(acts, tracks, strict=True)]
    places = [seen or track for seen, track in zip(right, tracks, strict=True)]
    always = [not act.passes and act.enters == 0 and act.leaves >= scene.seconds for act in acts]
    moving = [number for number, act in enumerate(acts) if _is_as_said(act, _true_track(scene, act, len(frames)))]
    standing = [number for number, act in enumerate(acts) if not act.passes]

    def mostly(word: str) -> bool:
        """Whether the things have the right colour, kind or size in most of the frames in which they are seen."""
        wanted = [getattr(act.thing, word) for act in acts]
        return all(_most(getattr(s.thing, word) == w for s in seen) for w, seen in zip(wanted, tracks, strict=True))

    score: Score = {
        "ground": _most(reading.ground == scene.ground for reading in readings),
        "count": _most(len(reading.things) <= len(acts) for reading in readings),
        "colour": mostly("colour"),
        "kind": mostly("kind"),
        "size": mostly("size"),
        "place": all(bool(places[number]) and _is_at(acts[number], places[number][0]) for number in standing),
        "object": all(
            len(seen) > len(frames) / 2 if through else bool(seen) for seen, through in zip(right, always, strict=True)
        ),
    }
    if moving:
        score["motion"] = all(_is_as_said(acts[number], places[number]) for number in moving)
    return score


def _paired(acts: Sequence[Act], things: Sequence[Placed]) -> list[tuple[Act, Placed | None]]:
    """Each act with the thing that is likest to it, so that all together are most like; None where there is none."""

    def likeness(act: Act, seen: Placed) -> int:
        return 4 * _alike(act, seen) + (act.thing.size == seen.thing.size)

    table = np.array([[likeness(act, seen) for seen in things] for act in acts]).reshape(len(acts), len(things))
    found = dict(zip(*linear_sum_assignment(table, maximize=True), strict=True))
    return [(act, things[found[number]] if number in found else None) for number, act in enumerate(acts)]


def _alike(act: Act, seen: Placed) -> int:
    """In how much a thing is what the caption calls it, by colour and kind: 0, 1 or 2."""
    return (act.thing.colour == seen.thing.colour) + (act.thing.kind == seen.thing.kind)


def _whole(track: list[Placed]) -> list[Placed]:
    """Those that lie wholly in the frame, where any do: a part of a thing is easily taken for another kind."""
    whole = [
        seen
        for seen in track
        if all(seen.thing.radius - _BEYOND <= v <= 1 - seen.thing.radius + _BEYOND for v in (seen.x, seen.y))
    ]
    return whole or track


def _is_at(act: Act, seen: Placed) -> bool:
    """Whether a thing is in the ninth of the frame where the act begins, or next to its border."""
    shifts = (-_SLACK, 0.0, _SLACK)
    return place(act.x, act.y) in {place(seen.x + x, seen.y + y) for x in shifts for y in shifts}


def _is_as_said(act: Act, track: Sequence[Placed]) -> bool:
    """Whether a thing that is seen at these places, a second apart, goes the way of its act, or stays."""
    ways = [np.array([seen.x - track[0].x, seen.y - track[0].y]) for seen in track[1:]]
    moved = [way for way in ways if abs(way).max() > _MOVED]
    if act.direction is None:
        return bool(ways) and len(moved) < len(ways) / 2
    if not moved:
        return False
    along, across = np.array(VELOCITIES[act.direction]), np.array(VELOCITIES[act.direction][::-1])
    return float(moved[0] @ along) > abs(float(moved[0] @ across))


def _true_track(scene: Scene, act: Act, frames: int) -> list[Placed]:
    """Where the thing is in the scene itself, in those frames that have all of it."""
    inside = (act.thing.radius, 1 - act.thing.radius)
    return [
        seen
        for number in range(frames)
        for seen in scene.at(number / _FPS)
        if seen.thing == act.thing and all(inside[0] <= v <= inside[1] for v in (seen.x, seen.y))
    ]


def _most(marks: Iterable[bool]) -> bool:
    """More than half; of nothing, no."""
    counts = Counter(marks)
    return counts[True] > counts[False]


@dataclass(frozen=True)
class Drawing:
    """A drawing's caption and score. `part` and `index` are those of the world's picture or scene."""

    part: Part
    index: int
    caption: str
    score: Score

    @property
    def right(self) -> bool:
        return all(self.score.values())


@dataclass(frozen=True)
class DrawnResult:
    """The scores of drawings, and under which settings they were made."""

    settings: dict[str, Any]
    drawings: tuple[Drawing, ...]

    def share(self, part: Part, what: What | Literal["all"]) -> float | None:
        """How many drawings of a part are right in something, 0 to 1; None: none could be. "all": in everything."""
        drawn = [d for d in self.drawings if d.part == part]
        marks = [d.right for d in drawn] if what == "all" else [d.score[what] for d in drawn if what in d.score]
        return float(np.mean(marks)) if marks else None

    def summary(self) -> dict[str, Any]:
        """By part: how many there are, and the shares that are right in everything, and by what."""
        found: dict[str, Any] = {}
        for part, name in _NAMES.items():
            if drawings := sum(drawing.part == part for drawing in self.drawings):
                shares = {what: self.share(part, what) for what in ("all", *_WHATS)}
                found[name] = {"drawings": drawings} | {w: s for w, s in shares.items() if s is not None}
        return found

    def __str__(self) -> str:
        """A table: what is right, in % of the drawings, seen beside held out."""
        summary = self.summary()
        rows = ["all", *(what for what in _WHATS if any(what in shares for shares in summary.values()))]
        lines = [" " * 10 + "".join(f"{name:>10}" for name in summary)]
        lines += [
            f"{what:10}"
            + "".join(f"{'-':>10}" if s.get(what) is None else f"{100 * s[what]:9.1f}%" for s in summary.values())
            for what in rows
        ]
        return "\n".join([*lines, f"{'drawings':10}" + "".join(f"{s['drawings']:>10}" for s in summary.values())])


def evaluate_drawn(
    model: Draws,
    out: Path,
    *,
    count: int = 64,
    frames: int = 1,
    things: tuple[int, int] = (1, 1),
    guidance: float = 1.0,
    temperature: float = 1.0,
    seed: int = 0,
    batch: int = 16,
    console: Console | None = None,
) -> DrawnResult:
    """Lets a model draw captions, and writes `drawn.json`, a contact sheet `drawn.png` and the drawings themselves, a
    film's frames side by side, into the folder `out/drawn`. Of films the names are `drawn-film`.

    The JSON is written anew after each batch, atomically. Where it is there already, its captions are not drawn again:
    an evaluation that was stopped goes on, and can be extended.

    Args:
        count: captions that are like those trained on, and as many that are held out.
        frames: 1 is a picture, more a film at one frame a second.
        things: in each, from so many to so many, 1 to 4.
        guidance, temperature: see `Draws`.
        seed: of the world and of the drawing.
        batch: captions that are drawn at once.
        console: where the progress is shown; standard error by default.

    Returns:
        All drawings in the file, of earlier runs too.

    Raises:
        UserError: an impossible setting, or results of another model or of other settings in `out`.
    """
    if min(count, frames, batch) < 1 or not 1 <= things[0] <= things[1] <= 4:
        raise UserError(
            f"count, frames and batch must be 1 or more and things from 1 to 4, got {count}, {frames}, {batch} and "
            f"{things[0]} to {things[1]}"
        )
    name = "drawn" if frames == 1 else "drawn-film"
    settings = {
        "frames": frames,
        "things": list(things),
        "guidance": guidance,
        "temperature": temperature,
        "seed": seed,
        "model": model.fingerprint,
    }
    path = out / f"{name}.json"
    drawings = [_drawing(record, path) for record in read_cases(path, settings)]
    done = {(drawing.part, drawing.index) for drawing in drawings}
    with progress_bar(console) as progress:
        bar = progress.add_task(name, total=2 * count, note="")
        for part in _NAMES:
            asked = dict(islice(_scenes(World(seed, part, *things), frames), count))
            waiting = [(index, scene) for index, scene in asked.items() if (part, index) not in done]
            progress.advance(bar, count - len(waiting))
            for some in (waiting[first : first + batch] for first in range(0, len(waiting), batch)):
                captions = [caption(scene) for _, scene in some]
                settled = {"guidance": guidance, "temperature": temperature, "seed": seed + some[0][0]}
                for (index, scene), words, film in zip(
                    some, captions, model.draw(captions, frames, **settled), strict=True
                ):
                    drawings.append(Drawing(part, index, words, _score(film, scene)))
                    write_result(_drawing_path(out / name, part, index), to_png(np.concatenate([*film], axis=1)))
                drawings.sort(key=lambda drawing: ([*_NAMES].index(drawing.part), drawing.index))
                result = DrawnResult(settings, tuple(drawings))
                write_cases(path, settings, result.summary(), [_record(drawing) for drawing in drawings])
                progress.update(bar, advance=len(some), note=f"{_NAMES[part]}: {result.share(part, 'all'):.0%} right")
    result = DrawnResult(settings, tuple(drawings))
    write_result(out / f"{name}.png", to_png(contact_sheet(_shown(result, out / name))))
    return result


def _score(film: UInt8[np.ndarray, "F size size 3"], scene: Scene) -> Score:
    return score_picture(film[0], scene) if scene.seconds == 0 else score_film(film, scene)


def _scenes(world: World, frames: int) -> Iterator[tuple[int, Scene]]:
    """The pictures or scenes of a world by number, without those few whose own frames are not all read rightly, as
    things hide each other: whoever draws as asked is right in everything.
    """
    for index in count_from(0):
        scene = world.picture(index) if frames == 1 else world.scene(index, frames / _FPS)
        film = np.stack([scene.frame(number / _FPS, _READ_SIZE) for number in range(frames)])
        if all(_score(film, scene).values()):
            yield index, scene


def _drawing_path(folder: Path, part: Part, index: int) -> Path:
    return folder / f"{_NAMES[part].replace(' ', '-')}-{index:04}.png"


def _shown(result: DrawnResult, folder: Path) -> Iterator[tuple[str, list[tuple[Drawing, np.ndarray]]]]:
    """For the contact sheet: a heading and the first drawings of each part, as they are on the disk."""
    frames = result.settings["frames"]
    for part, name in _NAMES.items():
        chosen = [drawing for drawing in result.drawings if drawing.part == part]
        right = sum(drawing.right for drawing in chosen)
        films = []
        for drawing in chosen[: max(1, _SHEET // frames)]:
            strip = read_image(_drawing_path(folder, part, drawing.index))
            films.append((drawing, np.stack(np.split(strip, frames, axis=1))))
        yield f"{name}: {right} of {len(chosen)} right", films


def contact_sheet(
    sections: Iterable[tuple[str, Sequence[tuple[Drawing, UInt8[np.ndarray, "F H W 3"]]]]],
) -> UInt8[np.ndarray, "h w 3"]:
    """Drawings with their captions below, green, or red with what is wrong: sections of a heading and drawings.

    Small frames are enlarged in whole pixels; of a film at most eight frames are shown, evenly.
    """
    large = ImageFont.load_default(_TEXT + 4)
    bands = []
    for heading, films in sections:
        tiles = [_tile(drawing, film) for drawing, film in films]
        across = max(1, _ACROSS // min(_ACROSS, max((len(film) for _, film in films), default=1)))
        rows = [tiles[first : first + across] for first in range(0, len(tiles), across)]
        bands.append(_text_band([heading], large, _INK, 200 + 10 * len(heading)))
        bands += [_row(row) for row in rows]
    width = max(band.shape[1] for band in bands)
    return np.concatenate([_padded(band, len(band), width) for band in bands])


def _tile(drawing: Drawing, film: np.ndarray) -> np.ndarray:
    """The frames side by side, and the caption below."""
    shown = film[np.linspace(0, len(film) - 1, min(_ACROSS, len(film))).astype(int)]
    zoom = max(1, _TILE // film.shape[1])
    enlarged = shown.repeat(zoom, axis=1).repeat(zoom, axis=2)
    gaps = ((0, 0), (0, 0), (0, _GAP), (0, 0))
    strip = np.concatenate([*np.pad(enlarged, gaps, constant_values=255)], axis=1)
    wrong = [what for what, right in drawing.score.items() if not right]
    lines = textwrap.wrap(drawing.caption, max(16, strip.shape[1] // 6))
    lines += textwrap.wrap(f"wrong: {', '.join(wrong)}", max(16, strip.shape[1] // 6)) if wrong else []
    text = _text_band(lines, ImageFont.load_default(_TEXT), _WRONG if wrong else _RIGHT, strip.shape[1])
    tile = np.concatenate([strip, text])
    return np.pad(tile, ((0, _EDGE), (0, _EDGE), (0, 0)), constant_values=255)


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


def _record(drawing: Drawing) -> dict[str, Any]:
    return {"part": drawing.part, "index": drawing.index, "caption": drawing.caption, **drawing.score}


def _drawing(record: Mapping[str, Any], path: Path) -> Drawing:
    try:
        score: Score = {what: record[what] for what in _WHATS if what in record}
        return Drawing(record["part"], record["index"], record["caption"], score)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} does not hold drawings ({error!r}): remove it to begin anew") from error
