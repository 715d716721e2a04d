"""Conversations about films in which one thing passes each minute (`worlds.passing`), shown in frames or told in words.

What a film shows is asked about more easily once what it tells has been: to find a minute's words by its time is the
same as to find its frames, and can be learned in a fraction of the tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from operator import attrgetter
from typing import TypeVar

import numpy as np

from ringworld.data.conversations import weighted
from ringworld.data.corpora import Part
from ringworld.data.documents import Document, Given, Source
from ringworld.data.worlds import Frames, SeenDocuments, Turn
from ringworld.errors import UserError
from ringworld.tokens.chat import Part as Said
from ringworld.tokens.chat import Role
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vision import visions
from ringworld.worlds.passing import KINDS_OF_PASSING, MINUTES, Kind, Minute, ask_each, passing_film, said
from ringworld.worlds.world import HeldOut, World

Seen = TypeVar("Seen")


@dataclass(frozen=True)
class PassingConfig:
    """Questions about such films. Behind each minute that is shown stands its time, such as " 23:00", and within it
    behind each `every` frames: a minute's 60 frames are found as easily then as one of them.

    Attributes:
        minutes: of a film, from so many to so many, 1 to 60.
        frames: of each minute,
        every: and behind each so many of them its time; 0: only behind the last.
        asked: questions about a film, none of them twice,
        together: each about so many minutes, from so many to so many.
        kinds: of the questions, see `worlds.passing`; one that stands here twice comes twice as often.
        told: the share of the minutes that are told in words, from 0 to 1, in lines like the answers that say what
            passed, or when: of these kinds those that are asked, or both. The others are shown,
        narrated: and of these so many, from 0 to 1, have behind their time the words for what passed, or where or which
            way, if that is asked: trained on, so that a minute's time soon keeps what its frames show.
        scattered: the minutes are any of the hour, as in a film that is cut, and not one after the other.
        heldout: what the world holds out, things on grounds or at places.
        documents: so many there are.
    """

    minutes: tuple[int, int] = (2, 4)
    frames: int = 1
    every: int = 0
    asked: int = 4
    together: tuple[int, int] = (1, 1)
    kinds: tuple[Kind, ...] = KINDS_OF_PASSING
    told: float = 0.0
    narrated: float = 0.0
    scattered: bool = False
    heldout: HeldOut = "ground"
    documents: int = 20_000

    def __post_init__(self) -> None:
        least, most = self.minutes
        some, more = self.together
        if (
            not (2 if "first" in self.kinds else 1) <= least <= most <= MINUTES
            or not 1 <= some <= more
            or min(self.frames, self.asked) < 1
            or self.every < 0
        ):
            raise UserError(
                f"films have 1 to {MINUTES} minutes, the smaller number first, 2 or more where it is asked what came "
                "first, with 1 frame or more each, the time behind every 1 or more of them (0: behind the last), and 1 "
                f"question or more about 1 minute or more; got {least} to {most} minutes, {self.frames} frames, the "
                f"time every {self.every} and {self.asked} questions about {some} to {more}"
            )
        if unknown := [kind for kind in self.kinds if kind not in KINDS_OF_PASSING]:
            raise UserError(f"there is no question of the kind {unknown[0]!r}; there are {', '.join(KINDS_OF_PASSING)}")
        if not (0 <= self.told <= 1 and 0 <= self.narrated <= 1):
            raise UserError(
                f"a share of 0 to 1 of the minutes is told in words or narrated, got {self.told} and {self.narrated}"
            )
        if self.told and {"where", "way"} & {*self.kinds}:
            raise UserError(
                "a minute told in words says what passed and when, not where or which way: ask of the kinds what, when "
                "and first, or tell none"
            )

    def build(self, given: Given) -> Source:
        """Raises UserError when there is no tokenizer of frames."""
        if given.frames is None:
            raise UserError("films in frames need a tokenizer of frames: give the recipe one")
        return PassingDocuments(self, given.tokenizer, given.frames, given.seed, given.part)


class PassingDocuments(SeenDocuments):
    """What `PassingConfig.build` returns. Document i depends on (seed, part, i) alone."""

    def __init__(
        self, config: PassingConfig, tokenizer: TextTokenizer, frames: FrameTokenizer, seed: int, part: Part
    ) -> None:
        super().__init__(config.documents, config.minutes[1] * config.frames, tokenizer, frames)
        self._config, self._seed, self._text = config, seed, tokenizer
        orders: tuple[Kind, ...] = ("what", "when")
        self._lines: list[Kind] = [kind for kind in orders if kind in config.kinds] or [*orders]
        self._world = World(seed, part, heldout=config.heldout)

    def turns(self, index: int) -> list[Turn]:
        config, random = self._config, np.random.default_rng((self._seed, index, 3))
        minutes = int(random.integers(config.minutes[0], config.minutes[1] + 1))
        film = passing_film(self._world, index, minutes, scattered=config.scattered)
        before = before_questions(
            film, lambda minute: self._shown(minute, random), lambda minute: self._behind(minute, random)
        )
        kinds = [config.kinds[kind] for kind in random.integers(len(config.kinds), size=config.asked)]
        turns: list[Turn] = []
        for _, question, answer in ask_each(film, kinds, random, config.together):
            opening = [] if turns else before
            turns += [("user", [*opening, question]), ("assistant", [answer])]
        return turns

    def _shown(self, minute: Minute, random: np.random.Generator) -> str | list[Frames]:
        """A minute in words or in frames."""
        if random.random() < self._config.told:
            return said(minute, self._lines[int(random.integers(len(self._lines)))])
        size = self._frames.config.frame_size
        parts = minute.parts(self._config.frames, self._config.every)
        return [np.stack([minute.scene.frame(seconds, size) for seconds in part]) for part in parts]

    def _behind(self, minute: Minute, random: np.random.Generator) -> str:
        """The words behind a minute in frames."""
        if random.random() >= self._config.narrated:
            return minute.time
        kind = self._config.kinds[int(random.integers(len(self._config.kinds)))]
        what = {"where": minute.lane, "way": minute.act.direction}.get(kind, minute.thing)
        return f"{minute.time} {what}."

    def _document(self, turns: Sequence[tuple[Role, list[Said]]]) -> Document:
        """Trained on in the answers, and in the words of each narrated minute as if they were one."""
        document = super()._document(turns)
        if not self._config.narrated:
            return document
        weights, ((_, shown), *_) = document.weights.copy(), turns
        behind = [part for before, part in pairwise(shown) if isinstance(part, str) and not isinstance(before, str)]
        for vision, words in zip(visions(document.tokens, self._vocabulary), behind, strict=True):
            time, _, narration = words.strip().partition(" ")
            start, stop = (vision.stop + len(self._text.encode(text)) for text in (f" {time}", words))
            if narration:
                weights[start:stop] = 1 / (stop - start)
        return weighted(document.tokens, weights, self._vocabulary)


def before_questions(
    film: Iterable[Minute],
    shown: Callable[[Minute], str | Sequence[Seen]],
    behind: Callable[[Minute], str] = attrgetter("time"),
) -> list[str | Seen]:
    """A film as it stands in a conversation before the first question about it: of each minute the frames with the time
    behind them, as in all films (see `tokens.vision.timed`), or the time and what happens then in words.

    Args:
        shown: gives a minute in words, its time among them, or in parts of frames, whatever these are to the caller;
            behind each part stands the minute's time.
        behind: gives the words behind the last part of a minute, its time at their beginning.
    """
    parts: list[str | Seen] = []
    for minute in film:
        what = shown(minute)
        if isinstance(what, str):
            parts.append(f" {what}")
        else:
            times = [f" {minute.time}"] * (len(what) - 1)
            parts += chain.from_iterable(zip(what, [*times, f" {behind(minute)}"], strict=True))
    return [*parts, " "]
