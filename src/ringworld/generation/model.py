"""`Model`: what `ringworld.load(folder)` gives. It writes, answers, draws and films."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Array, UInt8

from ringworld.errors import UserError
from ringworld.generation import decode
from ringworld.generation.chat import Chat
from ringworld.generation.drawing import Brush, Drawing
from ringworld.generation.engine import Engine
from ringworld.generation.sampling import Sampler
from ringworld.model.rope import Frequencies
from ringworld.tokens.chat import TemplateName
from ringworld.tokens.video import read_video


@dataclass(frozen=True, eq=False)
class Model(Engine):
    """A trained model, ready to be asked. What it is made of: see `Engine`."""

    def generate(
        self,
        prompt: str,
        max_tokens: int = 128,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """The text that follows `prompt`: at most `max_tokens` tokens, to the end-of-sequence token.

        Temperature 0 is greedy. The same settings and seed give the same text, `stream`'s too.

        Raises:
            UserError: an empty prompt, no room for an answer, or a sampling setting outside its range.
        """
        ids = self.encode(prompt)
        self.note_length(len(ids) + max_tokens)
        (answer,) = self.generate_batch([ids], max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        pieces = self.tokenizer.stream()
        return "".join(pieces.push(int(token)) for token in answer)

    def stream(
        self,
        prompt: str,
        max_tokens: int = 128,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The text of `generate` in pieces, as it comes; no piece ends inside a UTF-8 character.

        Raises:
            UserError: as `generate`, and at once, not when the first piece is asked for.
        """
        ids = self.encode(prompt)
        sampler, stop = self.sampler(temperature, top_k, top_p, seed)
        frequencies = self.frequencies(len(ids) + max_tokens)
        state = self.start([ids], max_tokens, sampler, stop, frequencies)
        self.note_length(len(ids) + max_tokens)
        return self._pieces(state, max_tokens, sampler, stop, frequencies)

    def chat(self, system: str | None = None, template: TemplateName = "own") -> Chat:
        """A conversation.

        Args:
            system: what the model is told before the first turn; None: what its template says by itself, if anything.
            template: the model's own, or LWM's, in which what is shown comes after the question (see `ChatTemplate`).

        Raises:
            UserError: the model's tokenizer has no way to chat.
        """
        return Chat(self, system, template)

    def ask(
        self,
        shown: str | os.PathLike[str] | Iterable[UInt8[np.ndarray, "H W 3"]],
        question: str,
        *,
        fps: float = 1.0,
        every: int = 0,
        resolution: int = 1,
        max_tokens: int = 128,
    ) -> str:
        """The greedy answer to a question about a picture or a film. To ask more than one question about the same, show
        it to a `chat`, which reads it once.

        Args:
            shown: a file, or frames of the model's size.
            fps: frames of a film a second.
            every: the time stands behind every so many seconds of a film; 0: nowhere.
            resolution: seconds to which it is told; with 60, in whole minutes.

        Raises:
            UserError: the file cannot be read, or as `Chat.show` and `Chat.say`.
        """
        chat = self.chat()
        frames = read_video(Path(shown), fps, chat.frame_size) if isinstance(shown, str | os.PathLike) else shown
        chat.show(frames, fps, every, resolution)
        return "".join(piece for piece in chat.say(question, max_tokens=max_tokens) if isinstance(piece, str)).strip()

    def draw(self, prompt: str, brush: Brush = Brush()) -> UInt8[np.ndarray, "H W 3"]:
        """A picture of what the prompt says. Raises UserError as `Drawing`."""
        return Drawing(self).draw([prompt], 1, brush)[0][0]

    def film(
        self,
        prompt: str,
        frames: int = 8,
        brush: Brush = Brush(),
        like: UInt8[np.ndarray, "F H W 3"] | None = None,
    ) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """A film of what the prompt says, frame by frame as it is written.

        Args:
            like: frames that it begins with, which count.

        Raises:
            UserError: as `Drawing`, and at once, not when the first frame is asked for.
        """
        return Drawing(self).film(prompt, frames, brush, like)

    def generate_batch(
        self,
        prompts: Sequence[np.ndarray],
        max_tokens: int = 128,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[np.ndarray]:
        """The ids that follow each prompt, int32 [at most max_tokens], without the end-of-sequence token.

        Prompts are rows of ids of any lengths, padded to the longest: rows of about one length waste nothing. bos is
        put first where it is not there. Every row of a batch draws its own random numbers.

        Raises:
            UserError: as `generate`.
        """
        return self.complete(prompts, max_tokens, *self.sampler(temperature, top_k, top_p, seed))

    def encode(self, prompt: str) -> np.ndarray:
        """bos, where the model has one, and the prompt's ids, int32. Raises UserError when the prompt is empty."""
        if not prompt:
            raise UserError("the prompt is empty: give the model some text to go on from")
        return np.array([*self.tokenizer.vocabulary.opening, *self.tokenizer.encode(prompt)], np.int32)

    def _pieces(
        self, state: decode.Decoding, max_tokens: int, sampler: Sampler, stop: Array, frequencies: Frequencies
    ) -> Iterator[str]:
        decoder = self.tokenizer.stream()
        for made in range(1, max_tokens + 1):
            token = int(state.token[0])
            if token == self.tokenizer.vocabulary.eos:
                return
            if made < max_tokens:  # the device makes the next token while the reader has this one
                state = decode.step(self.weights, state, sampler, stop, frequencies, config=self.config, mesh=self.mesh)
            if piece := decoder.push(token):
                yield piece
