"""`Model`: weights, tokenizer and mesh in one hand. What `ringworld.load(folder)` gives."""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8

from ringworld.attention.decode import CacheType, bytes_each
from ringworld.errors import UserError
from ringworld.generation import decode
from ringworld.generation.chat import Chat
from ringworld.generation.drawing import Brush, Drawing
from ringworld.generation.grammar import ANY, Grammar, Place
from ringworld.generation.sampling import Sampler
from ringworld.mesh import axis_size, named_sharding
from ringworld.model.cache import prompt_multiple
from ringworld.model.config import ModelConfig
from ringworld.model.rope import Frequencies, RopeScaling, rope_frequencies
from ringworld.model.transformer import Weights
from ringworld.tokens.chat import TemplateName
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.video import read_video

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Model:
    """A trained model, ready to be asked.

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

    def complete(
        self, prompts: Sequence[np.ndarray], max_tokens: int, sampler: Sampler, stop: Array
    ) -> list[np.ndarray]:
        """`generate_batch` with a sampler and an end of one's own (see `sampler`)."""
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

    def encode(self, prompt: str) -> np.ndarray:
        """bos, where the model has one, and the prompt's ids, int32. Raises UserError when the prompt is empty."""
        if not prompt:
            raise UserError("the prompt is empty: give the model some text to go on from")
        return np.array([*self.tokenizer.vocabulary.opening, *self.tokenizer.encode(prompt)], np.int32)

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
