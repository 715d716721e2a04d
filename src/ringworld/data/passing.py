"""Conversations about films in which one thing passes each minute (`worlds.passing`), shown in frames or told in words.

What a film shows is asked about more easily once what it tells has been: to find a minute's words by its time is the
same as to find its frames, and can be learned in a fraction of the tokens.
"""

from dataclasses import dataclass

import numpy as np

from ringworld.data.corpora import Part
from ringworld.data.documents import Source
from ringworld.data.worlds import Frames, SeenDocuments, Turn
from ringworld.errors import UserError
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.text import TextTokenizer
from ringworld.worlds.film import HeldOut, World
from ringworld.worlds.passing import KINDS_OF_PASSING, MINUTES, Kind, Minute, ask, passing_film


@dataclass(frozen=True)
class PassingConfig:
    """Questions about such films. Before each minute stands its time, such as " 23:00 ".

    Attributes:
        minutes: of a film, from so many to so many, 1 to 60.
        frames: of each minute.
        asked: questions about a film, none of them twice.
        kinds: of the questions, see `worlds.passing`; one that stands here twice comes twice as often.
        told: the share of the minutes that are told in words, from 0 to 1; the others are shown.
        scattered: the minutes are any of the hour, as in a film that is cut, and not one after the other.
        heldout: what the world holds out, things on grounds or at places.
        documents: so many there are.
    """

    minutes: tuple[int, int] = (2, 4)
    frames: int = 1
    asked: int = 4
    kinds: tuple[Kind, ...] = KINDS_OF_PASSING
    told: float = 0.0
    scattered: bool = False
    heldout: HeldOut = "ground"
    documents: int = 20_000

    def __post_init__(self) -> None:
        least, most = self.minutes
        if not (2 if "first" in self.kinds else 1) <= least <= most <= MINUTES or min(self.frames, self.asked) < 1:
            raise UserError(
                f"films have 1 to {MINUTES} minutes, the smaller number first, 2 or more where it is asked what came "
                f"first, with 1 frame or more each, and 1 question or more; got {least} to {most} minutes, "
                f"{self.frames} frames and {self.asked} questions"
            )
        if unknown := [kind for kind in self.kinds if kind not in KINDS_OF_PASSING]:
            raise UserError(f"there is no question of the kind {unknown[0]!r}; there are {', '.join(KINDS_OF_PASSING)}")
        if not 0 <= self.told <= 1:
            raise UserError(f"a share of 0 to 1 of the minutes is told in words, got {self.told}")

    def build(
        self,
        tokenizer: TextTokenizer,
        sequence_length: int,
        seed: int,
        part: Part = "train",
        frames: FrameTokenizer | None = None,
    ) -> Source:
        """Raises UserError when there is no tokenizer of frames."""
        if frames is None:
            raise UserError("films in frames need a tokenizer of frames: give the recipe one")
        return PassingDocuments(self, tokenizer, frames, seed, part)


class PassingDocuments(SeenDocuments):
    """What `PassingConfig.build` returns. Document i depends on (seed, part, i) alone."""

    def __init__(
        self, config: PassingConfig, tokenizer: TextTokenizer, frames: FrameTokenizer, seed: int, part: Part
    ) -> None:
        super().__init__(config.documents, config.minutes[1] * config.frames, tokenizer, frames)
        self._config, self._seed = config, seed
        self._world = World(seed, part, heldout=config.heldout)

    def turns(self, index: int) -> list[Turn]:
        config, random = self._config, np.random.default_rng((self._seed, index, 3))
        minutes = int(random.integers(config.minutes[0], config.minutes[1] + 1))
        film = passing_film(self._world, index, minutes, scattered=config.scattered)
        before: list[str | Frames] = [part for minute in film for part in self._shown(minute, random)]
        asked: dict[str, str] = {}
        for _ in range(_TRIES * config.asked):
            if len(asked) < config.asked:
                question, answer = ask(film, config.kinds[int(random.integers(len(config.kinds)))], random)
                asked.setdefault(question, answer)
        turns: list[Turn] = []
        for question, answer in asked.items():
            opening = [] if turns else [*before, " "]
            turns += [("user", [*opening, question]), ("assistant", [answer])]
        return turns

    def _shown(self, minute: Minute, random: np.random.Generator) -> list[str | Frames]:
        """A minute's time, and what happens then."""
        if random.random() < self._config.told:
            return [f" {minute.time} {minute.told()}."]
        size = self._frames.config.frame_size
        frames = [minute.scene.frame(seconds, size) for seconds in minute.moments(self._config.frames)]
        return [f" {minute.time} ", np.stack(frames)]


_TRIES = 4  # for each question, since a film may not have so many
