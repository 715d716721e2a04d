"""Pictures and films, from words or from a beginning: the model writes codes of frames, the frame tokenizer makes
pixels of them.

A film comes frame by frame, as it is written. With guidance two rows run side by side, one that was asked for in words
and one that was not; each token is drawn once, from both (see `Sampler`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt8

from ringworld.errors import UserError
from ringworld.generation import decode
from ringworld.generation.engine import Engine
from ringworld.generation.sampling import Sampler
from ringworld.mesh import axis_size
from ringworld.model.rope import Frequencies
from ringworld.tokens.chat import IMAGE_OF, VIDEO_OF, ChatTemplate, Message
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.vision import frame_ids
from ringworld.tokens.vocabulary import Vocabulary

Frame = UInt8[np.ndarray, "H W 3"]
Film = UInt8[np.ndarray, "_ H W 3"]
Ids = Int32[np.ndarray, " _"]


@dataclass(frozen=True)
class Brush:
    """How tokens are drawn.

    Attributes:
        temperature: 0 takes the likeliest token each time; 1 draws as the model says, and with many codes a frame each
            unlikely one has many chances. Between them drawings differ, too, and more of them are right.
        top_k: draws among so many of the likeliest; 0: among all. top_p: among the likeliest that have this probability
            together.
        guidance: how closely the words are followed: 1 as the model says, more exaggerates what they change
            (classifier-free guidance).
        seed: of the draws.
    """

    temperature: float = 0.5
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    seed: int = 0


def pixels(ids: Ids, frames: FrameTokenizer, vocabulary: Vocabulary) -> Film:
    """Whole frames, each with its terminator, as pixels."""
    size = (vocabulary.frame_height, vocabulary.frame_width)
    codes = ids.reshape(-1, vocabulary.codes_per_frame + 1)[:, :-1].reshape(-1, *size)
    return frames.decode(codes - vocabulary.text_size)


class Drawing:
    """A model that draws: behind `Model.draw` and `Model.film`."""

    def __init__(self, model: Engine) -> None:
        """Raises UserError as `Engine.eyes`."""
        self._model, self._frames = model, model.eyes()
        self._template = ChatTemplate(model.tokenizer)

    @property
    def fingerprint(self) -> str:
        """The model's."""
        return self._model.fingerprint

    @property
    def frame_size(self) -> int:
        """The side of its frames, in pixels."""
        return self._frames.config.frame_size

    def draw(self, prompts: Sequence[str], frames: int = 1, brush: Brush = Brush()) -> list[Film]:
        """A picture, or a film of so many frames, for each prompt.

        Raises:
            UserError: no frames, an empty prompt, a setting outside its range, or guidance of a model that has not
                learned to draw without words.
        """
        if not prompts:
            return []
        return self._finished(self._begin([self._words(prompt, frames) for prompt in prompts], None, frames, brush))

    def go_on(
        self, films: UInt8[np.ndarray, "B given H W 3"], frames: int, brush: Brush = Brush()
    ) -> list[UInt8[np.ndarray, "F H W 3"]]:
        """Films of so many frames of which the first are given, and no words: what comes next is to be seen from them.

        A row begins as the films do that no words ask for in training (`data.conversations.vision_alone`). There are no
        words to be followed more closely, so guidance changes nothing.

        Raises:
            UserError: nothing is left to draw, frames of another size than the tokenizer's, a setting outside its
                range, or the model was never trained on a picture or film without words.
        """
        if not len(films):
            return []
        self._require_unasked("films are to go on from frames alone", "as these are: take another, or")
        begun = self._begin([self._nothing] * len(films), films, frames, brush)
        return [np.concatenate(parts) for parts in zip(films, self._finished(begun), strict=True)]

    def film(self, prompt: str, frames: int, brush: Brush = Brush(), like: Film | None = None) -> Iterator[Frame]:
        """A picture or film of so many frames, each as soon as it is written.

        Args:
            like: frames that it begins with, which count.

        Raises:
            UserError: as `draw`; or the film is at its end with the frames that are given. At once, not when the first
                frame is asked for.
        """
        begun = self._begin([self._words(prompt, frames)], None if like is None else like[None], frames, brush)
        return chain(() if like is None else like, self._written(begun))

    def _finished(self, begun: "_Begun") -> list[Film]:
        """What every row still has to draw, at once."""
        model = self._model
        ids, _ = decode.finish(
            model.weights,
            begun.state,
            jnp.int32(begun.count),
            begun.sampler,
            begun.stop,
            begun.frequencies,
            room=begun.count,
            config=model.config,
            mesh=model.mesh,
        )
        return [pixels(row, self._frames, self._vocabulary) for row in np.asarray(ids)[: begun.films]]

    def _written(self, begun: "_Begun") -> Iterator[Frame]:
        """The same of the first row, frame by frame."""
        model, state, ids = self._model, begun.state, list[int]()
        for made in range(1, begun.count + 1):
            token = int(state.token[0])
            if made < begun.count:  # the device makes the next token while this one is looked at
                state = decode.step(
                    model.weights, state, begun.sampler, begun.stop, begun.frequencies, config=model.config,
                    mesh=model.mesh,
                )  # fmt: skip
            ids.append(token)
            if len(ids) == self._each:
                yield pixels(np.array(ids, np.int32), self._frames, self._vocabulary)[0]
                ids.clear()

    def _begin(
        self, words: list[Ids], given: UInt8[np.ndarray, "B given H W 3"] | None, frames: int, brush: Brush
    ) -> "_Begun":
        """Reads the prompts: words, and after them the frames that each film begins with."""
        model, films, before = self._model, len(words), 0 if given is None else given.shape[1]
        if before and before >= frames:
            raise UserError(f"{frames} frames were asked for, and {before} are given: ask for more than these")
        guidance = None if brush.guidance == 1 else brush.guidance
        if guidance is not None:
            self._require_unasked(f"the guidance (CFG) is {guidance}", "which guidance draws away from: take 1, or")
        sampler, stop = model.sampler(
            brush.temperature, brush.top_k, brush.top_p, brush.seed, guidance=guidance, frames=frames
        )
        shown = self._shown(films, given)
        if guidance is not None:
            height = decode.bucket(films, least=1, multiple=axis_size(model.mesh, "batch"))
            words = [*words, *words[-1:] * (height - films), *[self._nothing] * height]
            shown = [*shown, *shown[-1:] * (height - films)] * 2
        rows = [np.concatenate(parts) for parts in zip(words, shown, strict=True)]
        count = (frames - before) * self._each
        length = max(map(len, rows)) + count
        model.note_length(length)
        frequencies = model.frequencies(length)
        state = model.start(rows, count, sampler, stop, frequencies)
        return _Begun(state, sampler, stop, frequencies, films, count)

    def _require_unasked(self, wanted: str, mend: str) -> None:
        """Raises UserError when the model has not learned to draw without words."""
        if self._model.draws_unasked is False:
            raise UserError(
                f"{wanted}, and this model was never trained on a picture or film without words, {mend} train it with "
                "captions left out (drop_text)"
            )

    def _words(self, prompt: str, frames: int) -> Ids:
        """The conversation up to `<vision>`."""
        if not prompt.strip():
            raise UserError("the prompt is empty: say what is to be drawn")
        words = (IMAGE_OF if frames == 1 else VIDEO_OF).format(prompt=prompt.strip())
        mark = np.array(self._vocabulary.vision_start, np.int32)
        asked: list[Message] = [{"role": "user", "content": words}]
        before = len(self._template.encode(asked, add_generation_prompt=True))
        begun = self._template.encode([*asked, {"role": "assistant", "content": [mark]}])
        return np.array(begun[: begun.index(mark[0], before)], np.int32)

    def _shown(self, films: int, given: UInt8[np.ndarray, "B given H W 3"] | None) -> list[Ids]:
        """Of so many films `<vision>`, and the frames that are given of each."""
        start = np.array(self._vocabulary.vision_start, np.int32)
        if given is None:
            return [start] * films
        codes = np.split(self._frames.encode(given.reshape(-1, *given.shape[2:])), films)
        return [np.concatenate([start, frame_ids(some, self._vocabulary, last=False)]) for some in codes]

    @property
    def _nothing(self) -> Ids:
        """The words of a film that no words ask for."""
        return np.array(self._vocabulary.opening, np.int32)

    @property
    def _each(self) -> int:
        """Tokens of a frame, with its terminator."""
        return self._vocabulary.codes_per_frame + 1

    @property
    def _vocabulary(self) -> Vocabulary:
        return self._model.tokenizer.vocabulary


@dataclass(frozen=True)
class _Begun:
    """So many films, the first rows, in each of which so many tokens are to come."""

    state: decode.Decoding
    sampler: Sampler
    stop: Array
    frequencies: Frequencies
    films: int
    count: int
