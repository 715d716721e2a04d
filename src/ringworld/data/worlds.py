"""Conversations about the shapes world: pictures and films described, drawn and asked about.

Document i depends on (seed, part, i) alone. Frames are made and encoded some documents at a time, and what was made is
kept: another pass over a source costs nothing.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from jaxtyping import Int32, UInt8

from ringworld.data.conversations import LongReading, vision_alone
from ringworld.data.corpora import Part
from ringworld.data.documents import Document, Given, Source
from ringworld.errors import UserError
from ringworld.tokens.chat import IMAGE_OF, VIDEO_OF, ChatTemplate, Role
from ringworld.tokens.chat import Part as Said
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vision import timed, vision_ids
from ringworld.worlds.film import Film
from ringworld.worlds.language import Question, caption, questions
from ringworld.worlds.passing import KINDS_OF_PASSING, ask, passing_film
from ringworld.worlds.world import HeldOut, World

Task = Literal["describe", "draw", "ask"]
Frames = UInt8[np.ndarray, "_ H W 3"]
Codes = Int32[np.ndarray, "_ h w"]
Turn = tuple[Role, Sequence[str | Frames]]

WHAT_IS_SEEN = "What is in the picture?"
WHAT_HAPPENS = "What happens in the video?"
FPS = 1.0  # of the films, so that the seconds of a clock are frames
TOGETHER = 512  # frames that are encoded at once: of most a frame alike was encoded before
_KEPT_FRAMES = 200_000  # whose codes are kept
FILMS = 100  # that are looked at for one of which something can be asked


@dataclass(frozen=True)
class WorldSourceConfig:
    """Conversations about things of the shapes world.

    Attributes:
        task: "describe" what is seen, "draw" it, or "ask" about it.
        frames: of each, from so many to so many; 1 is a picture, more a film at one frame a second.
        things: in a picture or a scene, from so many to so many.
        scene: seconds of a film's scenes. None: a film is one scene.
        every: the time stands behind every so many frames of a film; 0: nowhere.
        asked: questions about a film,
        kinds: of these kinds, in equal shares: see `worlds.language.FilmQuestions`; none: all.
        without_words: the share of what is drawn that is not asked for in words: what guidance draws away from,
        briefly: and that is asked for with some of what is to be seen left out.
        documents: so many there are.
        heldout: what the world holds out, things on grounds or at places.
    """

    task: Task
    frames: tuple[int, int] = (1, 1)
    things: tuple[int, int] = (1, 1)
    scene: int | None = None
    every: int = 0
    asked: int = 1
    kinds: tuple[str, ...] = ()
    without_words: float = 0.0
    briefly: float = 0.0
    documents: int = 20_000
    heldout: HeldOut = "ground"

    def build(self, given: Given) -> Source:
        """Raises UserError when there is no tokenizer of frames."""
        if given.frames is None:
            raise UserError("conversations about pictures and films need a tokenizer of frames: give the recipe one")
        return WorldDocuments(self, given.tokenizer, given.frames, given.seed, given.part)


class SeenDocuments(ABC):
    """A source of conversations with frames; document i depends on its `turns` alone. Documents are made some at a
    time, their frames encoded together, and kept."""

    def __init__(self, documents: int, longest: int, tokenizer: TextTokenizer, frames: FrameTokenizer) -> None:
        """
        Args:
            documents: so many there are,
            longest: with at most so many frames each.
        """
        self._documents, self._together = documents, max(1, TOGETHER // longest)
        self._vocabulary, self._frames = tokenizer.vocabulary, frames
        self._reading = LongReading(ChatTemplate(tokenizer), tokenizer.vocabulary)
        self._made: dict[int, Document] = {}
        self._codes: dict[bytes, Codes] = {}  # of frames, by their digests: in a simple world most come again

    @abstractmethod
    def turns(self, index: int) -> list[Turn]:
        """The conversation of a document, with frames that are not encoded yet; an answer alone is what nobody asked
        for."""

    def __len__(self) -> int:
        return self._documents

    def __getitem__(self, index: int) -> Document:
        if index not in self._made:
            first = index - index % self._together
            some = range(first, min(first + self._together, len(self)))
            self._made.update(zip(some, self._encoded([self.turns(i) for i in some]), strict=True))
        return self._made[index]

    def _encoded(self, conversations: Sequence[Sequence[Turn]]) -> list[Document]:
        shown = [part for turns in conversations for _, said in turns for part in said if not isinstance(part, str)]
        codes = iter(self._codes_of(shown))

        def encoded(part: str | Frames) -> Said:
            return part if isinstance(part, str) else vision_ids(next(codes), self._vocabulary)

        return [
            self._document([(role, [encoded(part) for part in said]) for role, said in turns])
            for turns in conversations
        ]

    def _codes_of(self, shown: Sequence[Frames]) -> list[Codes]:
        """Encodes all of it together, but for what was seen before."""
        if len(self._codes) > _KEPT_FRAMES:
            self._codes.clear()
        keys = [[hashlib.blake2b(frame, digest_size=16).digest() for frame in frames] for frames in shown]
        seen = dict(zip(chain(*keys), chain(*shown), strict=True))
        if new := [key for key in seen if key not in self._codes]:
            self._codes.update(zip(new, self._frames.encode(np.stack([seen[key] for key in new])), strict=True))
        return [np.stack([self._codes[key] for key in some]) for some in keys]

    def _document(self, turns: Sequence[tuple[Role, list[Said]]]) -> Document:
        (role, (first, *_)), *_ = turns
        if role == "assistant" and not isinstance(first, str):
            return vision_alone(first, self._vocabulary)
        said = [parts for _, parts in turns]
        (asked, answer), *others = zip(said[::2], said[1::2], strict=True)
        opening = self._reading.opening(asked, answer)
        return self._reading.document([opening, *(self._reading.following(*pair) for pair in others)])


class WorldDocuments(SeenDocuments):
    """What `WorldSourceConfig.build` returns."""

    def __init__(
        self, config: WorldSourceConfig, tokenizer: TextTokenizer, frames: FrameTokenizer, seed: int, part: Part
    ) -> None:
        super().__init__(config.documents, config.frames[1], tokenizer, frames)
        self._config, self._seed = config, seed
        self._world = World(seed, part, *config.things, heldout=config.heldout)

    def turns(self, index: int) -> list[Turn]:
        config, random = self._config, np.random.default_rng((self._seed, index, 1))
        count = int(random.integers(config.frames[0], config.frames[1] + 1))
        film, asked_about = self._asked(index, count) if config.task == "ask" else (self._film(index, count), ())
        moments = (film.scene_at(number / FPS) for number in range(count))
        frames = np.stack([scene.frame(seconds, self._frames.config.frame_size) for scene, seconds in moments])
        words = caption(film.scenes[0])
        if config.task == "draw":
            if random.random() < config.briefly:
                words = caption(film.scenes[0], random)
            asked = (IMAGE_OF if count == 1 else VIDEO_OF).format(prompt=words)
            turns: list[Turn] = [("user", [asked]), ("assistant", [frames])]
            return turns[random.random() < config.without_words :]
        shown = with_times(frames, config.every)
        if config.task == "describe":
            question = WHAT_IS_SEEN if count == 1 else WHAT_HAPPENS
            return [("user", [*shown, f" {question}"]), ("assistant", [words])]
        turns = []
        for question in asked_about:
            before = [] if turns else [*shown, " "]
            turns += [("user", [*before, question.text]), ("assistant", [question.answer])]
        return turns

    def _asked(self, index: int, count: int) -> tuple[Film, tuple[Question, ...]]:
        """A film and questions about it: the first of which there are any."""
        config = self._config
        for number in range(index, index + FILMS * len(self), len(self)):
            film = self._film(number, count)
            if found := questions(film, number, config.asked, config.kinds, config.every or 1):
                return film, found
        raise UserError(
            f"in {FILMS} films of {count} frames nothing can be asked of the kinds {', '.join(config.kinds)}: take "
            "longer films of several scenes (scene) with more things and the time in them (every), or other kinds"
        )

    def _film(self, index: int, count: int) -> Film:
        if count == 1:
            return Film((self._world.picture(index),))
        if self._config.scene is None:
            return Film((self._world.scene(index, count / FPS),))
        return self._world.film(index, count / FPS, (self._config.scene, self._config.scene))


def with_times(frames: Frames, every: int) -> list[str | Frames]:
    """A film of one frame a second, with the time behind each `every` of them; 0: without."""
    if not every:
        return [frames]
    return [part for some, time in timed(len(frames), FPS, every) for part in (frames[some], time)]


def world_sentences(count: int) -> Iterator[str]:
    """So many captions, and questions with their answers, as they are said of the world that is trained on."""
    world = World()
    random = np.random.default_rng(0)
    for index in range(count // 5):
        film, minutes = world.film(index, 60), passing_film(world, index, 2)
        yield f" {caption(world.picture(index))}"
        yield f" {caption(film.scenes[0])}"
        yield from (f" {question.text} {question.answer}" for question in questions(film, index, 1))
        yield f" {minutes[0].told()}."
        yield " " + " ".join(ask(minutes, KINDS_OF_PASSING[index % len(KINDS_OF_PASSING)], random))
