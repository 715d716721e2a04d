"""How a model is asked about pictures and films: what it must be able to do, what it is shown, and what goes together.

The evaluations are written against `Answers`, and so know of no model.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from ringworld.data.passing import before_questions
from ringworld.data.worlds import FPS, WHAT_HAPPENS, WHAT_IS_SEEN
from ringworld.tokens.chat import Role
from ringworld.tokens.vision import timed
from ringworld.worlds.passing import Minute

Item = TypeVar("Item")
# A picture (one frame) or a film. It can be gone through as often as one likes, is hashable, and is equal to another
# only if both show the same: whoever is asked several questions about one film need encode it only once.
Footage = Iterable[UInt8[np.ndarray, "H W 3"]]
QUESTION_TOKENS = 64  # of a question's words, about


class Turn(TypedDict):
    """A turn of a conversation: what is said and shown, in order."""

    role: Role
    content: list[str | Footage]


@runtime_checkable
class Answers(Protocol):
    """Who can be asked about pictures and films.

    Attributes:
        fingerprint: tells this model from others.
        context_length: tokens of the longest rows that it was trained on.
        frame_size: the side of its frames, in pixels.
        tokens_per_frame: codes and terminator.
    """

    @property
    def fingerprint(self) -> str: ...

    @property
    def context_length(self) -> int: ...

    @property
    def frame_size(self) -> int: ...

    @property
    def tokens_per_frame(self) -> int: ...

    def answer(self, conversations: Sequence[Sequence[Turn]], max_tokens: int) -> list[str]:
        """The greedy answer to each conversation, of at most so many tokens. What a footage raises passes through."""
        ...


@runtime_checkable
class ReadsAhead(Answers, Protocol):
    """Who can also read something long before the first question about it."""

    def read(self, turns: Sequence[Turn]) -> int:
        """Reads a conversation that ends with what is shown; how many tokens it comes to."""
        ...


@runtime_checkable
class Filmed(Protocol):
    """What can be looked at at any time, in seconds: a film of the shapes world."""

    def frame(self, seconds: float | int, size: int) -> UInt8[np.ndarray, "size size 3"]: ...


@dataclass(frozen=True, eq=False)
class Piece:
    """Frames of a film by number, one a second, each drawn when it is asked for. Equal to itself alone: questions about
    one film are asked with the same pieces.
    """

    film: Filmed
    numbers: range
    size: int

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        return (self.film.frame(number / FPS, self.size) for number in self.numbers)


@dataclass(frozen=True, eq=False)
class MinuteFrames:
    """Frames of a minute, at these seconds of it, each drawn when it is asked for. Equal to itself alone, as a `Piece`
    is."""

    minute: Minute
    moments: Sequence[float]
    size: int

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
        return (self.minute.scene.frame(seconds, self.size) for seconds in self.moments)


def shown(film: Filmed, frames: int, size: int, every: int = 0) -> list[str | Footage]:
    """So many frames of a film, `size` pixels a side, for a turn of a conversation.

    With `every`, the film is in pieces of so many frames, and behind each stands its time (see `tokens.vision.timed`).
    """
    numbers = range(frames)
    if not every:
        return [Piece(film, numbers, size)]
    parts = timed(frames, FPS, every)
    return [part for some, time in parts for part in (Piece(film, numbers[some], size), time)]


def shown_in_minutes(film: Iterable[Minute], frames: int, size: int, every: int = 0) -> list[str | Footage]:
    """A film in which one thing passes each minute, as training shows it (`data.passing`): so many frames of each, with
    its time behind each `every` of them; 0: behind the last."""

    def parts(minute: Minute) -> list[Footage]:
        return [MinuteFrames(minute, moments, size) for moments in minute.parts(frames, every)]

    return before_questions(film, parts)


def asked_to_describe(film: Filmed, frames: int, size: int) -> list[Turn]:
    """The question what a picture (one frame) shows, or what happens in a film, as training asks it (`data.worlds`)."""
    question = WHAT_IS_SEEN if frames == 1 else WHAT_HAPPENS
    return [{"role": "user", "content": [*shown(film, frames, size), f" {question}"]}]


def called(frames: int) -> str:
    """What such of so many frames are: pictures or films."""
    return "pictures" if frames == 1 else "films"


def together(groups: Iterable[tuple[list[Item], int]], room: int) -> Iterator[list[Item]]:
    """Whole groups, each given with its tokens, in batches: as many as there is room for, and one at least."""
    batch: list[Item] = []
    left = room
    for group, tokens in groups:
        if batch and tokens > left:
            yield batch
            batch, left = [], room
        batch, left = [*batch, *group], left - tokens
    if batch:
        yield batch
