"""What one can say about scenes and films of shapes: captions, what happens when, and questions with their answers.

Every sentence follows from the film itself, and a question is asked only where it has one answer. At which minute it
was or which came first is known by chance alone to who has not seen the film: minutes are drawn before it is looked at
what happens in them, and of two things that are named either may be the first.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ringworld.errors import UserError
from ringworld.tokens.vision import clock
from ringworld.worlds.film import Act, Film, Scene
from ringworld.worlds.shapes import Placed, Thing
from ringworld.worlds.world import PASSING

_CLEAR = 0.04  # a thing so near to the border of its ninth of the frame is not asked for its place
# At a question of one kind: of scenes drawn few have something that passes alone in its minute; in one scene there is
# not much to choose from.
_TRIES, _TRIES_OF_ONE = 200, 20
_MINUTE = 60


@dataclass(frozen=True)
class Question:
    """A question about a film, and its one answer. `seconds`: the time that it is about, in seconds of the film."""

    kind: str
    text: str
    answer: str
    seconds: float


def caption(scene: Scene, random: np.random.Generator | None = None) -> str:
    """All that is and moves in a scene: "a small red ring at the top left and a large blue cross on a sand ground".

    A thing is called by its place where it begins, and by the direction in which it begins to move.

    Args:
        random: leaves out sizes, places and the ground, all or some of them, as people do who ask for a picture: "a red
            ring".
    """
    # All of them at once half of the time: by chance alone a caption of colour and kind would be rare.
    share = 0.0 if random is None or random.random() < 0.5 else 0.5

    def said() -> bool:
        return random is None or random.random() < share

    moving = scene.seconds > 0
    *most, last = [_saying(act, moving, sized=said(), placed=said()) for act in scene.acts] or ["nothing"]
    things = f"{', '.join(most)}{' and ' if most else ''}{last}"
    return f"{things} on a {scene.ground} ground" if said() else things


def _saying(act: Act, moving: bool, *, sized: bool = True, placed: bool = True) -> str:
    place = Placed(act.thing, act.x, act.y).place
    name = str(act.thing) if sized else f"{act.thing.colour} {act.thing.kind}"
    saying = f"a {name}" if sized or act.thing.colour != "orange" else f"an {name}"
    if moving and act.passes:
        return f"{saying} passes {act.direction}"
    if moving and act.direction is not None:
        return f"{saying} moves {act.direction}" + (f" from the {place}" if placed else "")
    return saying + (" stays" if moving else "") + (f" at the {place}" if placed else "")


def told(film: Film, number: int) -> str:
    """Scene `number` of a film in words, with the film's times: what is there at first, and then what else comes,
    passes and leaves.

        0:20: a small red ring moves right from the top left on a sand ground. 0:23: a large blue cross appears at the
        right. 0:26: the small red ring leaves.
    """
    scene, start = film.scenes[number], film.starts[number]
    acts = [act for act in scene.acts if act.enters < act.leaves]
    later: list[tuple[float, str]] = []
    for act in acts:
        place = Placed(act.thing, act.x, act.y).place
        if act.passes:
            later.append(((act.enters + act.leaves) / 2, _saying(act, moving=True)))
            continue
        if act.enters > 0:
            going = "" if act.direction is None else f" and moves {act.direction}"
            later.append((act.enters, f"a {act.thing} appears at the {place}{going}"))
        if act.leaves < scene.seconds:
            later.append((act.leaves, f"the {act.thing} leaves"))
    at_first = replace(scene, acts=tuple(act for act in acts if act.enters == 0))
    said = [(0.0, caption(at_first)), *sorted(later)]
    return " ".join(f"{clock(start + seconds)}: {words}." for seconds, words in said)


def questions(film: Film, seed: int, count: int, kinds: Sequence[str] = (), step: int = 1) -> tuple[Question, ...]:
    """Questions about a film: see `FilmQuestions`."""
    return FilmQuestions(film, step).ask(seed, count, kinds)


@dataclass(frozen=True)
class FilmQuestions:
    """Who asks about a film.

    what       what is at a place at a moment?       when       at which time does a thing appear?
    colour     which colour has a kind of thing?     motion     which way does it move?
    count      how many things are there?            passed     what passed at a minute?
    where      in which ninth is a thing?            minute     at which minute did a thing pass?
    ground     on which ground?                      first      which of two things came first?

    In a film that has not two whole minutes, it is not minutes that are asked about, but the time from one multiple of
    `step` to the next. What passes does so within it, from edge to edge. Things of which it is asked when they came are
    called by as many words as it takes to tell them from all others in the film.

    Attributes:
        step: a moment that is asked about is a whole multiple of so many seconds.
    """

    film: Film
    step: int = 1

    def ask(self, seed: int, count: int, kinds: Sequence[str] = (), scene: int | None = None) -> tuple[Question, ...]:
        """So many questions of the kinds in turn, in an order by the seed, or as many as were found.

        Args:
            kinds: of `KINDS_OF_QUESTIONS`; none: all of them.
            scene: the number of the one scene that is asked about; None: all.

        Raises:
            UserError: an unknown kind.
        """
        if unknown := [kind for kind in kinds if kind not in _ASKING]:
            raise UserError(f"there is no question of the kind {unknown[0]!r}; there are {', '.join(_ASKING)}")
        random = np.random.default_rng((seed, 2))
        about = _About(self, range(len(self.film.scenes)) if scene is None else range(scene, scene + 1))
        waiting: list[str] = random.permutation(kinds or KINDS_OF_QUESTIONS).tolist()
        found: dict[str, Question] = {}
        while waiting and len(found) < count:
            kind = waiting.pop(0)
            asked = (_ASKING[kind](about, random) for _ in range(_TRIES if scene is None else _TRIES_OF_ONE))
            question = next((one for one in asked if one is not None and one.text not in found), None)
            if question is not None:
                found[question.text] = question
                waiting.append(kind)
        return tuple(found.values())

    @cached_property
    def passing(self) -> tuple[tuple[float, float], ...]:
        """From when to when things pass in the film, each by itself."""
        return tuple(_times(self.film, number, act) for number, act in self._acts() if act.passes)

    @cached_property
    def names(self) -> Counter[str]:
        """How many things in the film a name fits,"""
        return Counter(name for number, act in self._acts() for name in self._names(number, act))

    @cached_property
    def names_of_passing(self) -> Counter[str]:
        """and how many of those that pass."""
        return Counter(name for number, act in self._acts() if act.passes for name in self._names(number, act))

    def name(self, number: int, act: Act, names: Counter[str]) -> str | None:
        """The shortest name of a thing in a scene that fits no other; None: there is none."""
        return next((name for name in self._names(number, act) if names[name] == 1), None)

    def _names(self, number: int, act: Act) -> Iterator[str]:
        ground = self.film.scenes[number].ground
        called = _called(act.thing)
        yield from (called, f"{called} on the {ground} ground", f"{act.thing} on the {ground} ground")

    def _acts(self) -> Iterator[tuple[int, Act]]:
        return ((number, act) for number, scene in enumerate(self.film.scenes) for act in scene.acts)


def _times(film: Film, number: int, act: Act) -> tuple[float, float]:
    """From when to when a thing of a scene is there, in seconds of the film."""
    return film.starts[number] + act.enters, film.starts[number] + act.leaves


@dataclass(frozen=True)
class _Stretch:
    """A time that is asked about.

    Attributes:
        at: "at minute 3"; which: "At which minute"; answer: "3".
        scenes: those in which something can pass within it, and be seen at a whole second.
    """

    start: float
    stop: float
    at: str
    which: str
    answer: str
    scenes: tuple[int, ...]


@dataclass(frozen=True)
class _About:
    """Some of the scenes of a film, which are asked about."""

    known: FilmQuestions
    scenes: range

    @property
    def film(self) -> Film:
        return self.known.film

    @property
    def step(self) -> int:
        return self.known.step

    def moment(self, random: np.random.Generator) -> tuple[float, Scene, tuple[Placed, ...]] | None:
        """A moment, its scene, and what is there then; None: these scenes have none."""
        first, last = self.scenes[0], self.scenes[-1]
        start, stop = self.film.starts[first], self.film.starts[last] + self.film.scenes[last].seconds
        # The first moment of a film is there in a picture too, which is over at once.
        moments = range(int(np.ceil(start / self.step)), max(int(np.ceil(stop / self.step)), int(start == 0)))
        if not moments:
            return None
        seconds = float(self.step * random.integers(moments.start, moments.stop))
        scene, within = self.film.scene_at(seconds)
        return seconds, scene, scene.at(within)

    def scene(self, random: np.random.Generator) -> int:
        return self.scenes[int(random.integers(len(self.scenes)))]

    @cached_property
    def stretches(self) -> tuple[_Stretch, ...]:
        """The film's whole minutes in which one of these scenes' things can pass; where there are not two, the times
        between multiples of `step`."""
        minutes = self.film.seconds >= 2 * _MINUTE
        length = _MINUTE if minutes else self.step
        whole = int(self.film.seconds // length)
        scenes: dict[int, list[int]] = {}
        for number in self.scenes:
            begin, end = (self.film.starts[number] + share * self.film.scenes[number].seconds for share in PASSING)
            index = int(begin // length)
            if whole > 1 and index < whole and end <= (index + 1) * length and np.ceil(begin) < end:
                scenes.setdefault(index, []).append(number)
        # As many of each minute, so that none is likelier than another to have something that passes in it.
        fewest = min(map(len, scenes.values()), default=0)
        found: list[_Stretch] = []
        for index, numbers in sorted(scenes.items()):
            start, stop = index * length, (index + 1) * length
            between = f"{clock(start)} and {clock(stop)}"
            words = (
                (f"at minute {index}", "At which minute", str(index))
                if minutes
                else (f"between {between}", "Between which times", between)
            )
            found.append(_Stretch(start, stop, *words, tuple(numbers[:fewest])))
        return tuple(found)

    def passage(self, random: np.random.Generator) -> tuple[_Stretch, int, Act] | None:
        """What passes in a scene, and when. The minute is drawn first and then one of its scenes, whatever happens in
        them; None: nothing does, or more than one thing."""
        if not self.stretches:
            return None
        stretch = self.stretches[int(random.integers(len(self.stretches)))]
        number = stretch.scenes[int(random.integers(len(stretch.scenes)))]
        passing = [act for act in self.film.scenes[number].acts if act.passes]
        if len(passing) != 1:
            return None
        begin, end = _times(self.film, number, passing[0])
        return (stretch, number, passing[0]) if stretch.start <= begin and end <= stretch.stop else None


def _one(things: Sequence[Placed], random: np.random.Generator) -> Placed | None:
    """One of the things that lie wholly in the frame and clearly in one of its ninths."""

    def clear(thing: Placed) -> bool:
        whole = all(thing.thing.radius <= v <= 1 - thing.thing.radius for v in (thing.x, thing.y))
        return whole and all(abs(v - border) > _CLEAR for v in (thing.x, thing.y) for border in (1 / 3, 2 / 3))

    chosen = [thing for thing in things if clear(thing)]
    return chosen[int(random.integers(len(chosen)))] if chosen else None


def _clear_one(about: _About, random: np.random.Generator) -> tuple[float, tuple[Placed, ...], Placed] | None:
    """A moment, what is there then, and one of it that can be asked about."""
    if (moment := about.moment(random)) is None:
        return None
    seconds, _, things = moment
    one = _one(things, random)
    return None if one is None else (seconds, things, one)


def _what(about: _About, random: np.random.Generator) -> Question | None:
    if (found := _clear_one(about, random)) is None:
        return None
    seconds, things, one = found
    if sum(thing.place == one.place for thing in things) > 1:
        return None
    return Question("what", f"What is at the {one.place} at {clock(seconds)}?", f"a {one.thing}", seconds)


def _colour(about: _About, random: np.random.Generator) -> Question | None:
    if (found := _clear_one(about, random)) is None:
        return None
    seconds, _, one = found
    return Question("colour", f"Which colour is the {one.thing.kind} at {clock(seconds)}?", one.thing.colour, seconds)


def _where(about: _About, random: np.random.Generator) -> Question | None:
    if (found := _clear_one(about, random)) is None:
        return None
    seconds, _, one = found
    return Question("where", f"Where is the {_called(one.thing)} at {clock(seconds)}?", one.place, seconds)


def _count(about: _About, random: np.random.Generator) -> Question | None:
    if (moment := about.moment(random)) is None:
        return None
    seconds, _, things = moment
    if any(not 0 < v < 1 for thing in things for v in (thing.x, thing.y)):
        return None
    return Question("count", f"How many things are there at {clock(seconds)}?", str(len(things)), seconds)


def _ground(about: _About, random: np.random.Generator) -> Question | None:
    if (moment := about.moment(random)) is None:
        return None
    seconds, scene, _ = moment
    return Question("ground", f"Which ground is there at {clock(seconds)}?", scene.ground, seconds)


def _when(about: _About, random: np.random.Generator) -> Question | None:
    number = about.scene(random)
    coming = [act for act in about.film.scenes[number].acts if act.enters > 0 and not act.passes]
    if not coming:
        return None
    act = coming[int(random.integers(len(coming)))]
    name, seconds = about.known.name(number, act, about.known.names), about.film.starts[number] + act.enters
    return None if name is None else Question("when", f"When does the {name} appear?", clock(seconds), seconds)


def _motion(about: _About, random: np.random.Generator) -> Question | None:
    number = about.scene(random)
    scene, start = about.film.scenes[number], about.film.starts[number]
    moving = [act for act in scene.acts if act.direction and not act.passes and act.enters == 0]
    if not moving:
        return None
    act = moving[int(random.integers(len(moving)))]
    # Asked at its beginning, where no wall and no other thing has turned it yet.
    text = f"Which way does the {_called(act.thing)} move at {clock(np.ceil(start))}?"
    return Question("motion", text, str(act.direction), start)


def _passed(about: _About, random: np.random.Generator) -> Question | None:
    if (found := about.passage(random)) is None:
        return None
    stretch, number, act = found
    if sum(begin < stretch.stop and end > stretch.start for begin, end in about.known.passing) > 1:
        return None
    return Question("passed", f"What passed {stretch.at}?", f"a {act.thing}", _middle(about.film, number, act))


def _minute(about: _About, random: np.random.Generator) -> Question | None:
    if (found := about.passage(random)) is None:
        return None
    stretch, number, act = found
    if (name := about.known.name(number, act, about.known.names_of_passing)) is None:
        return None
    return Question("minute", f"{stretch.which} did the {name} pass?", stretch.answer, _middle(about.film, number, act))


def _first(about: _About, random: np.random.Generator) -> Question | None:
    film = about.film
    numbers = about.scene(random), int(random.integers(len(film.scenes)))
    if numbers[0] == numbers[1]:
        return None
    named: list[tuple[int, str]] = []
    for number in numbers:
        there = [(act, *_times(film, number, act)) for act in film.scenes[number].acts]
        seen = [act for act, begin, end in there if np.ceil(begin) < end]
        name = about.known.name(number, seen[int(random.integers(len(seen)))], about.known.names) if seen else None
        if name is None:
            return None
        named.append((number, name))
    one, other = (name for _, name in (named if random.integers(2) else named[::-1]))
    number, first = min(named)
    return Question("first", f"Which came first, the {one} or the {other}?", f"the {first}", film.starts[number])


def _middle(film: Film, number: int, act: Act) -> float:
    return sum(_times(film, number, act)) / 2


def _called(thing: Thing) -> str:
    return f"{thing.colour} {thing.kind}"


_ASKING: dict[str, Callable[[_About, np.random.Generator], Question | None]] = {
    "what": _what,
    "colour": _colour,
    "count": _count,
    "where": _where,
    "ground": _ground,
    "when": _when,
    "motion": _motion,
    "passed": _passed,
    "minute": _minute,
    "first": _first,
}
KINDS_OF_QUESTIONS = tuple(_ASKING)
