"""What a model draws of the shapes world: captions go in, or a film's first frames, and a reader that has no part in it
says what is right.

`worlds.reader` reads every frame by rules. A picture is right or wrong in its ground and count, and in its things'
colours, kinds, sizes and places; a film also in its objects, things of the right colour and kind in most of its frames,
and in their motion. Films that go on from given frames are held against how the scene itself goes on. What is "held
out" has combinations that training never shows.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as count_from
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from scipy.optimize import linear_sum_assignment

from ringworld.data.worlds import FPS
from ringworld.errors import UserError
from ringworld.evaluation.files import earlier_cases, write_cases, write_result
from ringworld.evaluation.parts import NAMES, side_by_side
from ringworld.evaluation.sheets import Tile, contact_sheet
from ringworld.generation.drawing import Brush
from ringworld.progress import progress_bar
from ringworld.tokens.images import read_image, to_png
from ringworld.worlds.film import VELOCITIES, Act, HeldOut, Part, Scene, World
from ringworld.worlds.language import caption
from ringworld.worlds.reader import Reading, read
from ringworld.worlds.shapes import Placed, place

Wanted = TypeVar("Wanted")
Found = TypeVar("Found")
What = Literal["ground", "count", "colour", "kind", "size", "place", "object", "motion"]
Score = dict[What, bool]
_WHATS: tuple[What, ...] = ("ground", "count", "colour", "kind", "size", "place", "object", "motion")
_READ_SIZE = 64  # pixels a side, of the frames by which a scene is judged to be readable
_SLACK = 1 / 32  # sides of the frame, by which a thing may be beyond the border of its ninth
_BEYOND = 1 / 64  # of a thing that lies wholly in the frame, so much may seem to be outside
_MOVED = 1 / 16  # a thing that is farther than this from where it was has moved
_SHEET = 32  # drawings of a part on a contact sheet, a film's frames counted


@runtime_checkable
class Draws(Protocol):
    """Who can be asked for pictures and films. `fingerprint` tells this model from others, and `frame_size` is the side
    of its frames, in pixels."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def frame_size(self) -> int: ...

    def draw(self, prompts: Sequence[str], frames: int, brush: Brush) -> list[UInt8[np.ndarray, "F H W 3"]]:
        """So many frames of each thing asked for: a picture, or a film at one frame a second.

        Args:
            prompts: what is to be seen, in the words of captions alone: how a model is asked is its own matter.
        """
        ...

    def go_on(
        self, films: UInt8[np.ndarray, "B given H W 3"], frames: int, brush: Brush
    ) -> list[UInt8[np.ndarray, "F H W 3"]]:
        """Whole films of so many frames, one a second, of which the first are given, and no words."""
        ...


def score_picture(frame: UInt8[np.ndarray, "size size 3"], scene: Scene) -> Score:
    """What of a frame is as the caption of a picture says.

    A thing's place is the ninth of the frame that the caption names. What holds for a picture holds for all of its
    things; `count` is right when there is no other.
    """
    reading = read(frame)
    pairs = paired(scene.acts, reading.things, _likeness)
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
    acts, readings = scene.acts, [read(frame) for frame in frames]
    tracks = [_whole([seen for seen in row if seen]) for row in _followed(acts, readings)]
    right = [[seen for seen in track if _alike(act, seen) == 2] for act, track in zip(acts, tracks, strict=True)]
    places = [seen or track for seen, track in zip(right, tracks, strict=True)]
    always = [not act.passes and act.enters == 0 and act.leaves >= scene.seconds for act in acts]
    moving = moving_as_said(scene, len(frames))
    standing = [number for number, act in enumerate(acts) if not act.passes]
    score: Score = {
        **_look(scene.ground, acts, readings, tracks),
        "place": all(bool(places[number]) and _is_at(acts[number], places[number][0]) for number in standing),
        "object": all(
            len(seen) > len(frames) / 2 if through else bool(seen) for seen, through in zip(right, always, strict=True)
        ),
    }
    if moving:
        score["motion"] = all(_is_as_said(acts[number], places[number]) for number in moving)
    return score


def score_continuation(frames: UInt8[np.ndarray, "F size size 3"], scene: Scene, given: int) -> Score:
    """What of frames, one a second, goes on as the scene does of which the first are given. It is looked for in the
    others, and of the things that are there in the last given one.

    - `ground`, `count`, `colour`, `kind` and `size`: as in `score_film`.
    - `object`: a thing of this colour and kind is in most of the frames.
    - `motion`: in most of the frames it is where it is in the scene itself, also once an edge has turned it.
    """
    last, *true = [{one.thing: one for one in scene.at(number / FPS)} for number in range(given - 1, len(frames))]
    acts, readings = [act for act in scene.acts if act.thing in last], [read(frame) for frame in frames[given:]]
    rows = [*zip(acts, _followed(acts, readings), strict=True)]
    return {
        **_look(scene.ground, acts, readings, [[seen for seen in row if seen] for _, row in rows]),
        "object": all(_most(seen is not None and _alike(act, seen) == 2 for seen in row) for act, row in rows),
        "motion": all(
            _most(_is_near(seen, there.get(act.thing)) for seen, there in zip(row, true, strict=True))
            for act, row in rows
        ),
    }


def score(film: UInt8[np.ndarray, "F size size 3"], scene: Scene, given: int = 0) -> Score:
    """`score_picture` or `score_film`, whichever the scene is; `score_continuation` where frames are given."""
    if given:
        return score_continuation(film, scene, given)
    return score_picture(film[0], scene) if scene.seconds == 0 else score_film(film, scene)


def readable_scenes(world: World, frames: int, given: int = 0) -> Iterator[tuple[int, Scene]]:
    """The pictures or scenes of a world by number, without those few whose own frames are not all read rightly, as
    things hide each other: whoever draws as asked is right in everything.

    Args:
        given: of a film so many frames are given. Then only scenes come of which these tell how they go on: what is
            there in the last two stays there, nothing is hit by another thing, and something moves, so that whoever
            repeats the last one is wrong.
    """
    for index in count_from(0):
        scene = world.picture(index) if frames == 1 else world.scene(index, frames / FPS)
        if given and not _is_told(scene, frames, given):
            continue
        if all(score(_own_frames(scene, frames, _READ_SIZE), scene, given).values()):
            yield index, scene


def _is_told(scene: Scene, frames: int, given: int) -> bool:
    """Whether the given frames tell how a scene goes on, and it does not stay as it is.

    Two frames of a thing tell its way: in its first second none comes to an edge that would turn it.
    """
    moments = [scene.at(number / FPS) for number in range(given - 2, frames)]
    if len({tuple(seen.thing for seen in there) for there in moments}) > 1:
        return False
    if any(event.happening == "collides" for event in scene.events):
        return False
    return any(not _most(_is_near(last, seen) for seen in later) for last, *later in zip(*moments[1:], strict=True))


def _own_frames(scene: Scene, frames: int, size: int) -> UInt8[np.ndarray, "F size size 3"]:
    """So many of a scene's frames, one a second."""
    return np.stack([scene.frame(number / FPS, size) for number in range(frames)])


def _look(ground: str, acts: Sequence[Act], readings: Sequence[Reading], tracks: Sequence[Sequence[Placed]]) -> Score:
    """What is right of what a film shows, whatever goes on in it: `tracks` are what is likest to each thing."""

    def mostly(word: str) -> bool:
        """Whether the things have the right colour, kind or size in most of the frames in which they are seen."""
        wanted = [getattr(act.thing, word) for act in acts]
        return all(_most(getattr(s.thing, word) == w for s in seen) for w, seen in zip(wanted, tracks, strict=True))

    return {
        "ground": _most(reading.ground == ground for reading in readings),
        "count": _most(len(reading.things) <= len(acts) for reading in readings),
        "colour": mostly("colour"),
        "kind": mostly("kind"),
        "size": mostly("size"),
    }


def _followed(acts: Sequence[Act], readings: Sequence[Reading]) -> list[list[Placed | None]]:
    """Of each act what is likest to it, frame by frame; None where nothing is like it."""
    pairs = [paired(acts, reading.things, _likeness) for reading in readings]
    return [[seen if seen and _alike(act, seen) else None for act, seen in row] for row in zip(*pairs, strict=True)]


def moving_as_said(scene: Scene, frames: int) -> list[int]:
    """The numbers of those acts of which so many frames of the scene, one a second, show the way that the caption says,
    or that they stay: not of one that others hit at once.
    """
    return [number for number, act in enumerate(scene.acts) if _is_as_said(act, _true_track(scene, act, frames))]


def paired(
    wanted: Sequence[Wanted], found: Sequence[Found], likeness: Callable[[Wanted, Found], int]
) -> list[tuple[Wanted, Found | None]]:
    """Each that is wanted with the one that is likest to it, so that all together are most like; None where there is
    none.
    """
    table = np.array([[likeness(one, other) for other in found] for one in wanted]).reshape(len(wanted), len(found))
    chosen = dict(zip(*linear_sum_assignment(table, maximize=True), strict=True))
    return [(one, found[chosen[number]] if number in chosen else None) for number, one in enumerate(wanted)]


def _likeness(act: Act, seen: Placed) -> int:
    return 4 * _alike(act, seen) + (act.thing.size == seen.thing.size)


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


def _is_near(one: Placed | None, other: Placed | None) -> bool:
    """Whether both are there, and at about the same place."""
    return one is not None and other is not None and max(abs(one.x - other.x), abs(one.y - other.y)) <= _MOVED


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
        for seen in scene.at(number / FPS)
        if seen.thing == act.thing and all(inside[0] <= v <= inside[1] for v in (seen.x, seen.y))
    ]


def _most(marks: Iterable[bool]) -> bool:
    """More than half; of nothing, no."""
    counts = Counter(marks)
    return counts[True] > counts[False]


@dataclass(frozen=True)
class Drawing:
    """A drawing's caption and score, with the guidance that it was made with. `part` and `index` are those of the
    world's picture or scene.
    """

    guidance: float
    part: Part
    index: int
    caption: str
    score: Score

    @property
    def right(self) -> bool:
        return all(self.score.values())

    @property
    def file(self) -> str:
        """Where it lies in the evaluation's folder."""
        return f"guidance-{_short(self.guidance)}/{NAMES[self.part].replace(' ', '-')}-{self.index:04}.png"

    def to_dict(self) -> dict[str, Any]:
        """A record of the result's file."""
        about = {"guidance": self.guidance, "part": self.part, "index": self.index, "caption": self.caption}
        return about | self.score

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Drawing":
        score: Score = {what: record[what] for what in _WHATS if what in record}
        return cls(record["guidance"], record["part"], record["index"], record["caption"], score)


@dataclass(frozen=True)
class DrawnResult:
    """The scores of drawings, and under which settings they were made."""

    settings: dict[str, Any]
    drawings: tuple[Drawing, ...]

    @property
    def guidances(self) -> list[float]:
        return sorted({drawing.guidance for drawing in self.drawings})

    @property
    def best(self) -> float:
        """The guidance with which most of the seen drawings are right in everything, the smaller of two. The share of
        the held-out ones with it is then of drawings that did not choose it.
        """
        return max(self.guidances, key=lambda guidance: (self.share(guidance, "train", "all") or 0.0, -guidance))

    def of(self, guidance: float, part: Part) -> list[Drawing]:
        """The drawings of a guidance and a part."""
        return [drawing for drawing in self.drawings if (drawing.guidance, drawing.part) == (guidance, part)]

    def share(self, guidance: float, part: Part, what: What | Literal["all"]) -> float | None:
        """How many drawings are right in something, 0 to 1; None: none could be. "all": in everything."""
        drawn = self.of(guidance, part)
        marks = [d.right for d in drawn] if what == "all" else [d.score[what] for d in drawn if what in d.score]
        return float(np.mean(marks)) if marks else None

    def summary(self) -> dict[str, Any]:
        """The best guidance; and by guidance and part how many drawings there are, and the shares that are right in
        everything, and by what.
        """
        by_guidance: dict[str, dict[str, Any]] = {}
        for guidance, name, shares in self._columns():
            by_guidance.setdefault(_short(guidance), {})[name] = shares
        return {"best_guidance": self.best, "by_guidance": by_guidance}

    def __str__(self) -> str:
        """A table: what is right, in % of the drawings, seen beside held out, one guidance beside the other."""
        return side_by_side({f"guidance {_short(g)}\n{name}": shares for g, name, shares in self._columns()})

    def _columns(self) -> Iterator[tuple[float, str, dict[str, float | int]]]:
        for guidance, (part, name) in product(self.guidances, NAMES.items()):
            if drawn := self.of(guidance, part):
                shares = {what: self.share(guidance, part, what) for what in ("all", *_WHATS)}
                known = {what: share for what, share in shares.items() if share is not None}
                yield guidance, name, {"drawings": len(drawn), **known}


def results_name(frames: int, given: int = 0) -> str:
    """What the names of an evaluation's files begin with: "generation", "generation-film", "generation-film-given3"."""
    return ("generation" if frames == 1 else "generation-film") + (f"-given{given}" if given else "")


def evaluate_drawn(
    model: Draws,
    out: Path,
    *,
    count: int = 64,
    frames: int = 1,
    given: int = 0,
    things: tuple[int, int] = (1, 1),
    guidance: Sequence[float] = (1.0,),
    temperature: float = 1.0,
    seed: int = 0,
    heldout: HeldOut = "ground",
    batch: int = 16,
    console: Console | None = None,
) -> DrawnResult:
    """Lets a model draw captions, or go on with films, and writes `generation.json` into the folder `out`; for each
    guidance a contact sheet `generation-<guidance>.png`; and the drawings themselves, a film's frames side by side,
    into `out/generation`. Of films the names begin as `results_name` says.

    The JSON is written anew after each batch, atomically. Where it is there already, its captions are not drawn again:
    an evaluation that was stopped goes on, and can be extended, by more captions or another guidance.

    Args:
        count: captions that are like those trained on, and as many that are held out.
        frames: 1 is a picture, more a film at one frame a second.
        given: so many frames of the scene itself begin the film, 2 or more, and no words are said: how it goes on must
            be seen from them (see `score_continuation` and `readable_scenes`). 0: the film is drawn from its caption.
        things: in each, from so many to so many, 1 to 4.
        guidance: of which each draws the same captions,
        temperature: see `Brush`.
        seed: of the world and of the drawing.
        heldout: what the world holds out, things on grounds or at places: what it held out in training.
        batch: captions that are drawn at once.
        console: where the progress is shown; standard error by default.

    Returns:
        All drawings in the file, of earlier runs too.

    Raises:
        UserError: an impossible setting, or results of another model or of other settings in `out`.
    """
    if min(count, frames, batch, len(guidance)) < 1 or not 1 <= things[0] <= things[1] <= 4:
        raise UserError(
            "count, frames and batch must be 1 or more, guidance at least one number, and things from 1 to 4, got "
            f"{count}, {frames}, {batch}, {[*guidance]} and {things[0]} to {things[1]}"
        )
    if given and not 2 <= given < frames:
        raise UserError(
            f"given must be 0, or at least 2, as one frame shows no motion, and smaller than frames, got {given} of "
            f"{frames}"
        )
    if given and {*guidance} != {1}:
        raise UserError(f"guidance follows words, and where frames are given none are said: take 1, got {[*guidance]}")
    name = results_name(frames, given)
    settings = {
        "frames": frames,
        "things": list(things),
        "temperature": temperature,
        "seed": seed,
        "heldout": heldout,
        "model": model.fingerprint,
    } | ({"given": given} if given else {})  # without it, as there was none: results from before go on
    path = out / f"{name}.json"
    drawings = [*earlier_cases(path, settings, Drawing.from_dict, "drawings")]
    done = {(drawing.guidance, drawing.part, drawing.index) for drawing in drawings}
    wanted = {
        part: [*islice(readable_scenes(World(seed, part, *things, heldout=heldout), frames, given), count)]
        for part in NAMES
    }
    scales = sorted(set(map(float, guidance)))
    with progress_bar(console) as progress:
        bar = progress.add_task(name, total=2 * count * len(scales), note="")
        for scale, part in product(scales, NAMES):
            waiting = [(index, scene) for index, scene in wanted[part] if (scale, part, index) not in done]
            progress.advance(bar, count - len(waiting))
            for some in (waiting[first : first + batch] for first in range(0, len(waiting), batch)):
                brush = Brush(temperature=temperature, guidance=scale, seed=seed + some[0][0])
                films = _drawn(model, [scene for _, scene in some], frames, given, brush)
                for (index, scene), film in zip(some, films, strict=True):
                    marks = score(film, scene, given)
                    drawings.append(drawing := Drawing(scale, part, index, caption(scene), marks))
                    write_result(out / name / drawing.file, to_png(np.concatenate([*film], axis=1)))
                drawings.sort(key=lambda d: (d.guidance, [*NAMES].index(d.part), d.index))
                result = DrawnResult(settings, tuple(drawings))
                write_cases(path, settings, result.summary(), [drawing.to_dict() for drawing in drawings])
                note = f"guidance {_short(scale)}, {NAMES[part]}: {result.share(scale, part, 'all'):.0%} right"
                progress.update(bar, advance=len(some), note=note)
    result = DrawnResult(settings, tuple(drawings))
    for scale in scales:
        sheet = contact_sheet(_sections(result, scale, out / name))
        write_result(out / f"{name}-{_short(scale)}.png", to_png(sheet))
    return result


def _drawn(
    model: Draws, scenes: Sequence[Scene], frames: int, given: int, brush: Brush
) -> list[UInt8[np.ndarray, "F H W 3"]]:
    """What a model draws of scenes, from their captions or from so many of their frames."""
    if not given:
        return model.draw([caption(scene) for scene in scenes], frames, brush)
    return model.go_on(np.stack([_own_frames(scene, given, model.frame_size) for scene in scenes]), frames, brush)


def _short(guidance: float) -> str:
    """2.0 -> "2"."""
    return str(guidance).removesuffix(".0")


def _sections(result: DrawnResult, guidance: float, folder: Path) -> Iterator[tuple[str, list[Tile]]]:
    """For the contact sheet: a heading and the first drawings of each part, as they are on the disk."""
    frames, given = result.settings["frames"], result.settings.get("given", 0)
    how = f"the {given} underlined frames given" if given else f"guidance {_short(guidance)}"
    for part, name in NAMES.items():
        chosen = result.of(guidance, part)
        right = sum(drawing.right for drawing in chosen)
        tiles = []
        for drawing in chosen[: max(1, _SHEET // frames)]:
            film = np.stack(np.split(read_image(folder / drawing.file), frames, axis=1))
            wrong = [what for what, mark in drawing.score.items() if not mark]
            tiles.append(Tile(film, drawing.caption, wrong, given))
        yield f"{how}, {name}: {right} of {len(chosen)} right", tiles
