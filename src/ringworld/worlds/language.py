"""What one can say about scenes and films of shapes: captions, and questions with their answers.

Every sentence follows from the film itself, and a question is asked only where it has one answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ringworld.tokens.vision import clock
from ringworld.worlds.film import Act, Event, Film, Scene
from ringworld.worlds.shapes import Placed, Thing

_CLEAR = 0.04  # a thing so near to the border of its ninth of the frame is not asked for its place


@dataclass(frozen=True)
class Question:
    """A question about a film, and its one answer. `seconds`: the time that it is about, in seconds of the film."""

    kind: str
    text: str
    answer: str
    seconds: float


def caption(scene: Scene) -> str:
    """All that is and moves in a scene: "a small red ring at the top left and a large blue cross on a sand ground".

    A thing is called by its place where it begins, and by the direction in which it begins to move.
    """
    parts = [_saying(act, moving=scene.seconds > 0) for act in scene.acts]
    *most, last = parts
    return f"{', '.join(most)}{' and ' if most else ''}{last} on a {scene.ground} ground"


def _saying(act: Act, moving: bool) -> str:
    place = Placed(act.thing, act.x, act.y).place
    if not moving:
        return f"a {act.thing} at the {place}"
    if act.passes:
        return f"a {act.thing} passes {act.direction}"
    doing = "stays" if act.direction is None else f"moves {act.direction} from"
    return f"a {act.thing} {doing} {'at ' if act.direction is None else ''}the {place}"


def questions(film: Film, seed: int, count: int, kinds: Sequence[str] = (), step: int = 1) -> tuple[Question, ...]:
    """So many questions about a film, of the kinds in turn, or as many as were found.

    Args:
        kinds: of `KINDS_OF_QUESTIONS`; none: all of them.
        step: a moment that is asked about is a whole multiple of so many seconds.
    """
    random = np.random.default_rng((seed, 2))
    kinds = kinds or KINDS_OF_QUESTIONS
    found: list[Question] = []
    for number in range(20 * count):
        if len(found) == count:
            break
        question = _ASKING[kinds[number % len(kinds)]](film, random, step)
        if question is not None and question.text not in {q.text for q in found}:
            found.append(question)
    return tuple(found)


def _moment(film: Film, random: np.random.Generator, step: int) -> tuple[float, Scene, tuple[Placed, ...]]:
    """A moment of the film, a whole multiple of `step` seconds, its scene, and what is there then."""
    seconds = float(step * random.integers(0, max(1, int(np.ceil(film.seconds / step)))))
    scene, within = film.scene_at(seconds)
    return seconds, scene, scene.at(within)


def _one(things: Sequence[Placed], random: np.random.Generator) -> Placed | None:
    """One of the things that lie wholly in the frame and clearly in one of its ninths."""

    def clear(thing: Placed) -> bool:
        whole = all(thing.thing.radius <= v <= 1 - thing.thing.radius for v in (thing.x, thing.y))
        return whole and all(abs(v - border) > _CLEAR for v in (thing.x, thing.y) for border in (1 / 3, 2 / 3))

    chosen = [thing for thing in things if clear(thing)]
    return chosen[int(random.integers(len(chosen)))] if chosen else None


def _what(film: Film, random: np.random.Generator, step: int) -> Question | None:
    seconds, _, things = _moment(film, random, step)
    one = _one(things, random)
    if one is None or sum(thing.place == one.place for thing in things) > 1:
        return None
    return Question("what", f"What is at the {one.place} at {clock(seconds)}?", f"a {one.thing}", seconds)


def _colour(film: Film, random: np.random.Generator, step: int) -> Question | None:
    seconds, _, things = _moment(film, random, step)
    one = _one(things, random)
    if one is None:
        return None
    return Question("colour", f"Which colour is the {one.thing.kind} at {clock(seconds)}?", one.thing.colour, seconds)


def _count(film: Film, random: np.random.Generator, step: int) -> Question | None:
    seconds, _, things = _moment(film, random, step)
    if any(not 0 < v < 1 for thing in things for v in (thing.x, thing.y)):
        return None
    return Question("count", f"How many things are there at {clock(seconds)}?", str(len(things)), seconds)


def _where(film: Film, random: np.random.Generator, step: int) -> Question | None:
    seconds, _, things = _moment(film, random, step)
    one = _one(things, random)
    if one is None:
        return None
    name = f"{one.thing.colour} {one.thing.kind}"
    return Question("where", f"Where is the {name} at {clock(seconds)}?", one.place, seconds)


def _ground(film: Film, random: np.random.Generator, step: int) -> Question | None:
    seconds, scene, _ = _moment(film, random, step)
    return Question("ground", f"Which ground is there at {clock(seconds)}?", scene.ground, seconds)


def _when(film: Film, random: np.random.Generator, _: int) -> Question | None:
    event = _any(film, random, "appears")
    called = [_called(act.thing) for scene in film.scenes for act in scene.acts]
    if event is None or called.count(_called(event.thing)) > 1:
        return None
    return Question("when", f"When does the {_called(event.thing)} appear?", clock(event.seconds), event.seconds)


def _motion(film: Film, random: np.random.Generator, _: int) -> Question | None:
    index = int(random.integers(len(film.scenes)))
    scene, start = film.scenes[index], film.starts[index]
    moving = [act for act in scene.acts if act.direction and not act.passes and act.enters == 0]
    if not moving:
        return None
    act = moving[int(random.integers(len(moving)))]
    # Asked at its beginning, where no wall and no other thing has turned it yet.
    text = f"Which way does the {_called(act.thing)} move at {clock(np.ceil(start))}?"
    return Question("motion", text, str(act.direction), start)


def _passed(film: Film, random: np.random.Generator, _: int) -> Question | None:
    event = _any(film, random, "passes")
    if event is None:
        return None
    minute = int(event.seconds // 60)
    if sum(int(other.seconds // 60) == minute for other in _of(film, "passes")) > 1:
        return None
    return Question("passed", f"What passed at minute {minute}?", f"a {event.thing}", event.seconds)


def _of(film: Film, happening: str) -> list[Event]:
    return [event for event in film.events if event.happening == happening]


def _any(film: Film, random: np.random.Generator, happening: str) -> Event | None:
    events = _of(film, happening)
    return events[int(random.integers(len(events)))] if events else None


def _called(thing: Thing) -> str:
    return f"{thing.colour} {thing.kind}"


_ASKING: dict[str, Callable[[Film, np.random.Generator, int], Question | None]] = {
    "what": _what,
    "colour": _colour,
    "count": _count,
    "where": _where,
    "ground": _ground,
    "when": _when,
    "motion": _motion,
    "passed": _passed,
}
KINDS_OF_QUESTIONS = tuple(_ASKING)
