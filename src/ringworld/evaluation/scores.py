"""What of a picture or film of the shapes world is as its caption says, read from its frames by a reader that has no
part in how they came about.

`worlds.reader` reads every frame by rules. A picture is right or wrong in its ground and count, and in its things'
colours, kinds, sizes and places; a film also in its objects, things of the right colour and kind in most of its frames,
and in their motion. Films that go on from given frames are held against how the scene itself goes on.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count as count_from
from typing import Literal, TypeVar, get_args

import numpy as np
from jaxtyping import UInt8
from scipy.optimize import linear_sum_assignment

from ringworld.data.worlds import FPS
from ringworld.worlds.film import VELOCITIES, Act, Scene
from ringworld.worlds.reader import Reading, read
from ringworld.worlds.shapes import Placed, place
from ringworld.worlds.world import World

Wanted = TypeVar("Wanted")
Found = TypeVar("Found")
What = Literal["ground", "count", "colour", "kind", "size", "place", "object", "motion"]
Score = dict[What, bool]
WHATS: tuple[What, ...] = get_args(What)
_READ_SIZE = 64  # pixels a side, of the frames by which a scene is judged to be readable
_SLACK = 1 / 32  # sides of the frame, by which a thing may be beyond the border of its ninth
_BEYOND = 1 / 64  # of a thing that lies wholly in the frame, so much may seem to be outside
_MOVED = 1 / 16  # a thing that is farther than this from where it was has moved


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
        if all(score(own_frames(scene, frames, _READ_SIZE), scene, given).values()):
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


def own_frames(scene: Scene, frames: int, size: int) -> UInt8[np.ndarray, "F size size 3"]:
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
