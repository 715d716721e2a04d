"""Answers to many conversations about pictures and films, as an evaluation asks for them.

Short conversations are answered side by side. A long one is read piece by piece into a memory, which is kept: of the
next question about the same film only the words are read.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32

from ringworld.errors import UserError
from ringworld.generation.chat import chat_sampler
from ringworld.generation.drawing import Frame
from ringworld.generation.engine import Engine
from ringworld.generation.memory import Memory
from ringworld.tokens.chat import ChatTemplate, Message, Part
from ringworld.tokens.vision import vision_ids

Codes = Int32[np.ndarray, "F h w"]


class Answering:
    """A model that is asked about pictures and films, greedily.

    Attributes:
        fingerprint, context_length: the model's.
        frame_size: the side of its frames, in pixels.
        tokens_per_frame: codes and terminator.
    """

    def __init__(self, model: Engine) -> None:
        """Raises UserError when the model does not see, or cannot chat."""
        self._model, self._frames = model, model.eyes()
        self._template = ChatTemplate(model.tokenizer)
        self._memory = Memory(model)
        self._codes: dict[Hashable, Codes] = {}  # of what was shown lately
        self.fingerprint, self.context_length = model.fingerprint, model.context_length
        self.frame_size = self._frames.config.frame_size
        self.tokens_per_frame = model.tokenizer.vocabulary.codes_per_frame + 1

    def answer(self, conversations: Sequence[Sequence[Mapping[str, Any]]], max_tokens: int) -> list[str]:
        """The answer to each conversation, of at most so many tokens.

        Args:
            conversations: turns {"role": ..., "content": [...]}, of strings and of pictures and films: hashable
                iterables of frames, of which those that are equal are encoded once.

        Raises:
            UserError: there is no frame in what is shown; what its iteration raises passes through.
        """
        self._look([part for turns in conversations for turn in turns for part in turn["content"]])
        prompts = [self._prompt(turns) for turns in conversations]
        answers = dict[int, Sequence[int]]()
        short = [number for number, prompt in enumerate(prompts) if len(prompt) <= _SIDE_BY_SIDE]
        sampler, stop = chat_sampler(self._model, self._template)
        if short:
            rows = [np.array(prompts[number], np.int32) for number in short]
            done = self._model.complete(rows, max_tokens, sampler, stop)
            answers.update(zip(short, (row.tolist() for row in done), strict=True))
        for number in sorted(set(range(len(prompts))) - set(short)):
            answers[number] = list(self._read_on(prompts[number], max_tokens))
        return [self._words(answers[number]) for number in range(len(prompts))]

    def read(self, turns: Sequence[Mapping[str, Any]]) -> int:
        """Reads what is shown ahead of the questions about it, so that the first need not wait for it longer than the
        others; of what is so short that questions are answered side by side, only the frames are encoded.

        Args:
            turns: a conversation that ends with what is shown (see `answer`).

        Returns:
            how many tokens it comes to.

        Raises:
            UserError: as `answer`.
        """
        self._look([part for turn in turns for part in turn["content"]])
        prompt = self._prompt(turns)
        if len(prompt) > _SIDE_BY_SIDE:
            jax.block_until_ready(self._memory.read(prompt))
        return len(prompt)

    def _read_on(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        sampler, stop = chat_sampler(self._model, self._template)
        state = self._memory.begin(self._memory.read(prompt), sampler, stop)
        for made in range(1, max_tokens + 1):
            token = int(state.token[0])
            if token in self._template.special:
                return
            yield token
            if made < max_tokens:
                state = self._memory.step(state, sampler, stop)

    def _prompt(self, turns: Sequence[Mapping[str, Any]]) -> list[int]:
        vocabulary = self._model.tokenizer.vocabulary

        def encoded(part: Any) -> Part:
            return part if isinstance(part, str) else vision_ids(self._codes[part], vocabulary)

        messages = [Message(role=turn["role"], content=list(map(encoded, turn["content"]))) for turn in turns]
        return self._template.encode(messages, add_generation_prompt=True)

    def _look(self, parts: Sequence[Any]) -> None:
        """Encodes what is not known yet, all of it together, and forgets what is not shown now if there is much."""
        shown = dict.fromkeys(part for part in parts if not isinstance(part, str))
        if sum(map(len, self._codes.values())) > _KEPT_FRAMES:
            self._codes = {part: codes for part, codes in self._codes.items() if part in shown}
        new = [part for part in shown if part not in self._codes]
        counts: list[int] = []
        codes = list(self._frames.encode_all(chain.from_iterable(_counted(part, counts) for part in new)))
        ends = np.cumsum([0, *counts])
        for part, first, end in zip(new, ends[:-1], ends[1:], strict=True):
            if first == end:
                raise UserError("there is no frame in a picture or film that is to be shown: give one or more")
            self._codes[part] = np.stack(codes[first:end])

    def _words(self, tokens: Sequence[int]) -> str:
        """What of an answer is text."""
        words = self._model.tokenizer.stream()
        known = range(self._model.tokenizer.vocabulary.text_size)
        return "".join(words.push(token) for token in tokens if token in known and token not in self._template.special)


def _counted(frames: Iterable[Frame], counts: list[int]) -> Iterator[Frame]:
    """The frames; how many there were is put behind the counts."""
    count = 0
    for frame in frames:
        count += 1
        yield frame
    counts.append(count)


_SIDE_BY_SIDE = 4096  # tokens; of longer ones the film is worth to be read once for all questions
_KEPT_FRAMES = 100_000
