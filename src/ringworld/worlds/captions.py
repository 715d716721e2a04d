"""Captions read again: what one says of a scene, part by part. The inverse of `worlds.language.caption`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ringworld.worlds.film import VELOCITIES
from ringworld.worlds.shapes import COLOURS, GROUNDS, KINDS, PLACES, SIZES


@dataclass(frozen=True)
class Said:
    """What is said of one thing; None: nothing, or two things at once.

    Attributes:
        motion: "stays", "moves left", "passes up".
        place: where it is, or where it moves from.
    """

    size: str | None = None
    colour: str | None = None
    kind: str | None = None
    motion: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Told:
    """What a caption says of a scene: its ground, None where it names none or several, and its things in order."""

    ground: str | None
    things: tuple[Said, ...]


def read_caption(words: str) -> Told:
    """What words say that may be a caption. Of those that are none, such as a model's answer, what can be read."""
    words = " ".join(words.lower().split())
    sayings = (
        Said(*(_only(pattern, saying) for pattern in (_SIZE, _COLOUR, _KIND, _MOTION, _PLACE)))
        for saying in re.split(r",| and ", words)
    )
    return Told(_only(_GROUND, words), tuple(said for said in sayings if said != Said()))


def _only(pattern: re.Pattern[str], words: str) -> str | None:
    """The one thing of its sort that is said."""
    found = {*pattern.findall(words)}
    return found.pop() if len(found) == 1 else None


def _one_of(words: Iterable[str]) -> str:
    """As an expression, the longest first: "top left" is not "top"."""
    return "|".join(sorted(words, key=len, reverse=True))


_SIZE, _COLOUR, _KIND, _MOTION, _PLACE, _GROUND = (
    re.compile(rf"\b{expression}\b")
    for expression in (
        f"({_one_of(SIZES)})",
        f"({_one_of(COLOURS)})",
        f"({_one_of(KINDS)})",
        f"(stays|(?:moves|passes) (?:{_one_of(VELOCITIES)}))",
        f"(?:at|from) the ({_one_of(PLACES)})",
        f"on an? ({_one_of(GROUNDS)}) ground",
    )
)
