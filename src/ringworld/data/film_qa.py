"""Long films of the shapes world, in words or in frames, and after them a question about each of their scenes.

They are to films what `data.book_qa` is to books: a scene is a chunk, and everything in it is known.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np

from ringworld.data.book_qa import Asks, QuestionAnswer, Questions
from ringworld.data.conversations import Exchange
from ringworld.data.corpora import Part
from ringworld.data.documents import Document, Given, Source
from ringworld.data.worlds import FILMS, FPS, TOGETHER
from ringworld.errors import UserError
from ringworld.tokens.chat import Part as Shown
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vision import timed, vision_ids
from ringworld.worlds.film import Film
from ringworld.worlds.language import KINDS_OF_QUESTIONS, FilmQuestions, told
from ringworld.worlds.world import HeldOut, World


@dataclass(frozen=True)
class FilmQuestionsConfig:
    """Films of as many scenes as a document has room for, and a question about each of which one can be asked.

    Attributes:
        told: in "words", what happens in the scenes and when; in "frames", one a second, with the time behind each
            scene.
        scene: seconds of a scene.
        things: in a scene, from so many to so many.
        kinds: of the questions, in shares as equal as the scenes allow: see `worlds.language.FilmQuestions`; none:
            all.
        heldout: what the world holds out, things on grounds or at places.
        length: at most so many tokens in a document, bos to eos; None: as long as the stage's rows.
        documents: so many there are.
    """

    told: Literal["words", "frames"] = "words"
    scene: int = 10
    things: tuple[int, int] = (1, 3)
    kinds: tuple[str, ...] = ()
    heldout: HeldOut = "ground"
    length: int | None = None
    documents: int = 2_000

    def build(self, given: Given) -> Source:
        """Raises UserError when there is no tokenizer of frames for films in frames, or no room for a scene."""
        if self.told == "frames" and given.frames is None:
            raise UserError("films in frames need a tokenizer of frames: give the recipe one, or tell them in words")
        return FilmDocuments(
            self, given.tokenizer, self.length or given.sequence_length, given.seed, given.part, given.frames
        )


@dataclass(frozen=True)
class SceneChunk:
    """Scene `number` of the film that is asked about."""

    film: FilmQuestions
    number: int


@dataclass(frozen=True)
class AskAboutScene:
    """An `Asks` of scenes, for questions of one kind."""

    kind: str

    def __call__(self, chunk: SceneChunk, random: np.random.Generator) -> QuestionAnswer | None:
        found = chunk.film.ask(int(random.integers(2**31)), 1, (self.kind,), chunk.number)
        return QuestionAnswer(found[0].text, found[0].answer) if found else None


class FilmDocuments:
    """A source of such documents: what `FilmQuestionsConfig.build` returns. Document i depends on (seed, part, i)
    alone.

    The codes of frames are kept: another pass over a source costs no encoding.
    """

    def __init__(
        self,
        config: FilmQuestionsConfig,
        tokenizer: TextTokenizer,
        length: int,
        seed: int,
        part: Part,
        frames: FrameTokenizer | None,
    ) -> None:
        self._config, self._tokenizer, self._length, self._seed = config, tokenizer, length, seed
        self._world = World(seed, part, *config.things, heldout=config.heldout)
        self._frames = frames
        self._questions = Questions(tokenizer)
        self._ask: dict[str, Asks[SceneChunk]] = {
            kind: AskAboutScene(kind) for kind in config.kinds or KINDS_OF_QUESTIONS
        }
        self._codes: dict[int, np.ndarray] = {}
        # About how many scenes there is room for, and what a question costs: of the first document, so that films are
        # not made much too long at first.
        self._scenes, self._asked_cost = 8, 0
        film, asked = self.plan(0)  # says at once whether there is room
        self._scenes = len(film.scenes) * 5 // 4 + 1
        self._asked_cost = sum(len(one.ids) for one in self._exchanges(asked)) // len(film.scenes)

    def __len__(self) -> int:
        return self._config.documents

    def __getitem__(self, index: int) -> Document:
        film, asked = self.plan(index)
        return self._questions.document(self._shown(index, film), asked)

    def plan(self, index: int) -> tuple[Film, list[QuestionAnswer]]:
        """A document's film, and what is asked about it, in order."""
        film = Film(())
        for number in range(index, index + FILMS * len(self), len(self)):
            film, asked = self._fitting(number)
            if asked:
                return film, asked
        raise UserError(
            f"in {FILMS} films of {len(film.scenes)} scenes nothing can be asked of the kinds "
            f"{', '.join(self._config.kinds)}: take longer rows, more things in a scene, or other kinds"
        )

    def _fitting(self, number: int) -> tuple[Film, list[QuestionAnswer]]:
        """Of film `number` as many scenes as there is room for, with the questions about them."""
        room = self._questions.room(self._length)
        film, costs = self._film(number, room)
        count = max(1, bisect_right(np.cumsum(np.add(costs, self._asked_cost)).tolist(), room))
        while True:
            film = Film(film.scenes[:count])
            asked = self._asked(film, number)
            spent = sum(costs[:count]) + sum(len(exchange.ids) for exchange in self._exchanges(asked))
            if spent <= room:
                return film, asked
            if count == 1:
                raise UserError(
                    f"a row of {self._length} tokens has no room for a scene of {self._config.scene} seconds and a "
                    f"question about it, which take {spent + self._length - room}: take longer rows or shorter scenes"
                )
            count -= min(count - 1, max(1, (spent - room) * count // spent))

    def _film(self, number: int, room: int) -> tuple[Film, list[int]]:
        """Film `number`, longer than there is room for, and how many tokens each of its scenes takes."""
        scene, count = self._config.scene, self._scenes
        while True:
            film = self._world.film(number, count * scene, (scene, scene))
            costs = self._costs(film)
            if sum(costs) + count * self._asked_cost > room:
                return film, costs
            count *= 2  # a longer film begins with the same scenes

    def _costs(self, film: Film) -> list[int]:
        """Tokens of each scene."""
        if self._config.told == "words":
            scenes = [f" {told(film, number)}" for number in range(len(film.scenes))]
            return [len(ids) for ids in self._tokenizer.encode_batch(scenes)]
        vocabulary = self._tokenizer.vocabulary
        around = len(vocabulary.vision_start) + len(vocabulary.vision_end)
        frames = self._config.scene * (vocabulary.codes_per_frame + 1)
        clocks = self._tokenizer.encode_batch([time for _, time in self._parts(film)])
        return [len(time) + around + frames for time in clocks]

    def _parts(self, film: Film) -> Iterator[tuple[slice, str]]:
        """The frames of each scene, and the time behind them."""
        return timed(round(film.seconds * FPS), FPS, self._config.scene)

    def _asked(self, film: Film, number: int) -> list[QuestionAnswer]:
        """A question about each scene, of the kind that was asked for least before, where one can be asked; in another
        order."""
        known, random = FilmQuestions(film, self._config.scene), np.random.default_rng((self._seed, number))
        counts = dict.fromkeys(self._ask, 0)
        found: dict[QuestionAnswer, None] = {}  # each once: it is asked of the film as a whole
        for scene in range(len(film.scenes)):
            for kind in sorted(random.permutation([*counts]).tolist(), key=counts.__getitem__):
                asked = self._ask[kind](SceneChunk(known, scene), random)
                if asked is not None and asked not in found:
                    found[asked] = None
                    counts[kind] += 1
                    break
        return [[*found][place] for place in random.permutation(len(found)).tolist()]

    def _exchanges(self, asked: list[QuestionAnswer]) -> list[Exchange]:
        """Without what is shown before the first question."""
        return [
            (self._questions.following if place else self._questions.opening)(one) for place, one in enumerate(asked)
        ]

    def _shown(self, index: int, film: Film) -> list[Shown]:
        if self._frames is None or self._config.told == "words":
            return [" ".join(told(film, number) for number in range(len(film.scenes)))]
        if index not in self._codes:
            frames = film.frames(self._frames.config.frame_size, FPS)
            together = iter(lambda: [*islice(frames, TOGETHER)], [])
            self._codes[index] = np.concatenate([self._frames.encode(np.stack(some)) for some in together])
        vocabulary, codes = self._tokenizer.vocabulary, self._codes[index]
        return [part for some, time in self._parts(film) for part in (vision_ids(codes[some], vocabulary), time)]
