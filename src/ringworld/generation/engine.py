"""`Engine`: a model's weights, tokenizers and mesh in one hand; it reads prompts and chooses tokens.

What people ask a model for stands on it: `memory`, `drawing`, `chat`, and `model`, which has all of them.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ringworld.attention.decode import CacheType, bytes_each
from ringworld.errors import UserError
from ringworld.generation import decode
from ringworld.generation.grammar import ANY, Grammar, Place
from ringworld.generation.sampling import Sampler
from ringworld.mesh import axis_size, named_sharding
from ringworld.model.cache import prompt_multiple
from ringworld.model.config import ModelConfig
from ringworld.model.rope import Frequencies, RopeScaling, rope_frequencies
from ringworld.model.transformer import Weights
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.text import TextTokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Engine:
    """A trained model, ready to be run.

    Attributes:
        weights: on the devices of `mesh`.
        config: the model's shape.
        tokenizer: text <-> ids, with the vocabulary.
        rope_theta: of the rotary embedding, as the last stage had it, and
        rope_scaling: how it was stretched since; None: not.
        mesh: the devices.
        context_length: tokens of the longest rows that it was trained on. Longer prompts work; how well is for
            evaluation to say.
        frames: its tokenizer of frames; None: it sees none.
        cache_type: in which it keeps keys and values (see `Slots`): "bfloat16" takes half of the memory of "float32",
            "int8" a little more than a quarter.
        draws_unasked: whether guidance has something to draw away from (see `weights.checkpoint.Description`).
    """

    weights: Weights
    config: ModelConfig
    tokenizer: TextTokenizer
    rope_theta: float
    mesh: Mesh
    context_length: int
    rope_scaling: RopeScaling | None = None
    frames: FrameTokenizer | None = None
    cache_type: CacheType = "float32"
    draws_unasked: bool | None = None

    def frequencies(self, length: int) -> Frequencies:
        """What turns queries and keys in a text of so many tokens."""
        return rope_frequencies(self.rope_theta, self.config.head_dim, self.rope_scaling, length)

    def eyes(self) -> FrameTokenizer:
        """What makes codes of frames for it, and frames of its codes.

        Raises:
            UserError: the model has no vision, or no tokenizer of frames, or one of another size.
        """
        if not self.tokenizer.vocabulary.vision_size:
            raise UserError("this model reads and writes text alone: take one that was trained on pictures, too")
        if self.frames is None:
            raise UserError(
                "this model came without its tokenizer of frames, so it can neither draw nor look: name one"
            )
        self.frames.require_fit(self.tokenizer.vocabulary)
        return self.frames

    @property
    def fingerprint(self) -> str:
        """16 hex digits that tell this model's weights, frequencies and tokenizer from others', from 64 values of each
        array.
        """
        digest = hashlib.sha256(self.tokenizer.to_json().encode())
        digest.update(repr((self.rope_theta, self.rope_scaling)).encode())
        if self.config.sharpened_from is not None:  # others keep the fingerprint that their results have
            digest.update(repr(self.config.sharpened_from).encode())
        for leaf, sample in zip(jax.tree.leaves(self.weights), _samples(self.weights), strict=True):
            digest.update(repr((leaf.shape, str(leaf.dtype))).encode())
            digest.update(np.asarray(sample).tobytes())
        return digest.hexdigest()[:16]

    def complete(
        self, prompts: Sequence[np.ndarray], max_tokens: int, sampler: Sampler, stop: Array
    ) -> list[np.ndarray]:
        """The ids that follow each prompt, int32 [at most max_tokens], without the token that ends an answer.

        Args:
            prompts: rows of ids of any lengths, padded to the longest: rows of about one length waste nothing. bos is
                put first where it is not there.
            sampler, stop: see `sampler`. Every row draws its own random numbers.

        Raises:
            UserError: as `start`.
        """
        frequencies = self.frequencies(max(map(len, prompts), default=0) + max_tokens)
        state = self.start(prompts, max_tokens, sampler, stop, frequencies)
        answers, _ = decode.finish(
            self.weights,
            state,
            jnp.int32(max_tokens),
            sampler,
            stop,
            frequencies,
            room=decode.bucket(max_tokens, least=_LEAST_ROOM),
            config=self.config,
            mesh=self.mesh,
        )
        rows = np.asarray(answers)[: len(prompts), :max_tokens]
        ends = rows == int(stop)
        return [row[: int(np.argmax(end))] if end.any() else row for row, end in zip(rows, ends, strict=True)]

    def sampler(
        self,
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int,
        *,
        guidance: float | None = None,
        frames: int | None = None,
    ) -> tuple[Sampler, Array]:
        """The sampler, and the token that ends an answer.

        Args:
            guidance: see `Sampler`.
            frames: of whatever is drawn; None: as many as the model likes.
        """
        vocabulary = self.tokenizer.vocabulary
        allowed = np.arange(self.config.vocabulary_size) < vocabulary.text_size
        allowed[[*vocabulary.opening, vocabulary.pad]] = False
        allowed[vocabulary.eos] = True  # a model without a pad of its own pads with it
        least, most = (1, ANY) if frames is None else (frames, frames)
        grammar = Grammar.build(allowed, vocabulary, least=least, most=most)
        sampler = Sampler.build(
            grammar, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, guidance=guidance
        )
        return sampler, jnp.int32(vocabulary.eos)

    def start(
        self, prompts: Sequence[np.ndarray], max_tokens: int, sampler: Sampler, stop: Array, frequencies: Frequencies
    ) -> decode.Decoding:
        """Reads prompts, padded to a batch of one of few shapes, and chooses each one's first token.

        Raises:
            UserError: an empty prompt, one that breaks the grammar, or no room for an answer.
        """
        vocabulary = self.tokenizer.vocabulary
        if max_tokens < 1:
            raise UserError(
                f"{max_tokens} tokens were asked for, which leaves no room for an answer: ask for 1 or more"
            )
        if not len(prompts) or not all(len(prompt) for prompt in prompts):
            raise UserError("a prompt is empty: give the model some text to go on from")
        opening = np.array(vocabulary.opening, np.int32)
        rows = [p if p[0] in opening else np.concatenate([opening, p]) for p in prompts]
        multiple = prompt_multiple(self.mesh)
        width = decode.bucket(max(map(len, rows)), multiple=multiple)
        capacity = width + decode.bucket(max_tokens, least=_LEAST_ROOM, multiple=multiple)
        height = decode.bucket(len(rows), least=1, multiple=axis_size(self.mesh, "batch"))
        self.require_room(height, capacity, max(map(len, rows)), max_tokens)
        tokens = np.full((height, width), vocabulary.pad, np.int32)
        for row, ids in zip(tokens, rows, strict=False):
            row[: len(ids)] = ids
        lengths = np.array([*map(len, rows)] + [0] * (height - len(rows)), np.int32)
        sharding = named_sharding(self.mesh, ("batch",))
        places = [sampler.grammar.after(row) for row in rows] + [(0, 0)] * (height - len(rows))
        state, frames = (jax.device_put(np.array(part, np.int32), sharding) for part in zip(*places, strict=True))
        return decode.start(
            self.weights,
            jax.device_put(tokens, sharding),
            jax.device_put(lengths, sharding),
            Place(state, frames),
            sampler,
            stop,
            frequencies,
            capacity=capacity,
            config=self.config,
            mesh=self.mesh,
            cache_type=self.cache_type,
        )

    def require_room(self, rows: int, capacity: int, longest: int, max_tokens: int) -> None:
        """Raises UserError where the cache alone is larger than the memory: better said than killed for."""
        config = self.config
        wanted = 2 * config.layers * rows * capacity * config.kv_heads * bytes_each(self.cache_type, config.head_dim)
        device = self.mesh.devices.flat[0]
        if device.platform == "cpu":
            there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        else:
            there = (device.memory_stats() or {}).get("bytes_limit", wanted) * self.mesh.size
        if wanted > there:
            raise UserError(
                f"{rows} rows of {longest} tokens and {max_tokens} more need {wanted / 2**30:,.1f} GiB for keys and "
                f"values, but there are {there / 2**30:,.1f} GiB, room for about "
                f"{capacity * there / wanted:,.0f} tokens a row: shorten the prompt, or ask for fewer tokens or rows"
            )

    def note_length(self, length: int) -> None:
        """Says in the log when a prompt and its answer are longer than any row of the training."""
        if length > self.context_length:
            _log.warning(
                "prompt and answer may come to %d tokens, %d beyond the %d that the model was trained on: expect less",
                length,
                length - self.context_length,
                self.context_length,
            )


@jax.jit
def _samples(weights: Weights) -> list[Array]:
    """64 values of each array, spread over it."""
    leaves = jax.tree.leaves(weights)
    return [w[np.unravel_index(np.linspace(0, w.size - 1, 64, dtype=np.int64), w.shape)] for w in leaves]


# Room for an answer, in tokens, is made in these and quarter steps up, so that 8 and 12 tokens run one program.
_LEAST_ROOM = 16
