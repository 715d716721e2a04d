"""`Chat`: a conversation whose cache lives from turn to turn, so that of each turn only the new tokens are read.

What the cache holds is always a beginning of the conversation as the model's own template writes it. Where the past
is written differently with the next turn (a template that leaves out old thoughts, an answer whose words make other
tokens than those it came in), what is still the same is kept and the rest is read anew.
"""

import json
import logging
import os
from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ringworld.errors import UserError
from ringworld.files import write_atomically
from ringworld.generation import decode
from ringworld.generation.drawing import Frame, frame_tokenizer_of, pixels
from ringworld.generation.grammar import Grammar, Place, Reader
from ringworld.generation.sampling import Sampler
from ringworld.mesh import axis_size
from ringworld.model.cache import Cache, empty_cache, grow, keep
from ringworld.tokens.chat import ChatTemplate, Message, Part, Role, parts_of
from ringworld.tokens.vision import timed, vision_ids

if TYPE_CHECKING:
    from ringworld.generation.model import Model

_log = logging.getLogger(__name__)
_keep = jax.jit(keep, static_argnames="mesh", donate_argnames="cache")
_grow = jax.jit(grow, static_argnames=("capacity", "mesh"))


class Chat:
    """A conversation with a model. What `Model.chat()` gives."""

    def __init__(self, model: "Model", system: str | None = None) -> None:
        """
        Args:
            system: what the model is told before the first turn; None: what its template says by itself, if anything.

        Raises:
            UserError: the model's tokenizer has no way to chat (see `ChatTemplate`).
        """
        self._model = model
        self._template = ChatTemplate(model.tokenizer)
        self._opening: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._answer: Generator[str | Frame, None, None] | None = None
        self._begin_anew(self._opening)

    @property
    def messages(self) -> list[Message]:
        """The conversation so far; the last answer as far as it has come."""
        return [message.copy() for message in self._messages]

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of frames that can be shown, in pixels. Raises UserError when the model does not see."""
        side = frame_tokenizer_of(self._model).config.frame_size
        return side, side

    @property
    def tokens(self) -> list[int]:
        """The ids in the cache."""
        return self._tokens[: self._held]

    def show(self, frames: Iterable[Frame], fps: float | int | None = None, every: int = 0) -> int:
        """Shows a picture or a film, which what is said next is about. It is encoded here, once.

        Args:
            frames: one after the other; no more than some of them are held.
            fps: of a film. None: a picture, or a film without times.
            every: the time stands before every so many seconds of a film; 0: nowhere.

        Returns:
            how many frames there were.

        Raises:
            UserError: the model does not see, there is no frame, frames are of another size, or there is no rate for
                times.
        """
        eyes, vocabulary = frame_tokenizer_of(self._model), self._model.tokenizer.vocabulary
        if every and fps is None:
            raise UserError(f"the time is to stand every {every} seconds in a film of no known rate: give its fps")
        found = list(eyes.encode_all(frames))
        if not found:
            raise UserError("there is no frame to be shown: give one or more")
        codes = np.stack(found)
        if not every or fps is None:
            self._shown.append(vision_ids(codes, vocabulary))
        else:
            for time, part in timed(len(codes), fps, every):
                self._shown += [time, vision_ids(codes[part], vocabulary)]
        return len(codes)

    def say(
        self,
        text: str,
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str | Frame]:
        """The model's answer to `text` in pieces, as it comes: words, of which no piece ends inside a UTF-8 character,
        and the frames that it draws.

        The answer is part of the conversation as far as it has come: whoever closes the iterator, interrupts it or
        leaves it alone, can go on with the next turn.

        Args:
            max_tokens: the answer ends there, whether the model has come to an end or not.

        Raises:
            UserError: an empty message, no room for an answer, a sampling setting outside its range, a template that
                refuses the conversation, or one that is longer than the memory; at once, not when the first piece is
                asked for. The conversation is then what it was before.
        """
        self._stop()
        if max_tokens < 1:
            raise UserError(f"{max_tokens} tokens leave no room for an answer: ask for 1 or more")
        said = _checked(text)
        content: str | list[Part] = [*self._shown, f" {said}"] if self._shown else said
        messages: list[Message] = [*self._messages, {"role": "user", "content": content}]
        sampler = self._sampler(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
        tokens = self._template.encode(messages, add_generation_prompt=True)
        if not tokens:
            raise UserError("the model's chat template writes nothing for this conversation: it cannot be asked so")
        logits = self._read(tokens)
        self._shown = []
        self._messages = [*messages, {"role": "assistant", "content": ""}]
        self._answer = self._pieces(logits, max_tokens, sampler)
        return self._answer

    def reset(self) -> None:
        """Begins anew, with the system message as it was given."""
        self._stop()
        self._begin_anew(self._opening)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the conversation as JSON, whole or not at all. Raises UserError when it cannot be written."""
        try:
            messages = [_to_json(message) for message in self._messages]
            write_atomically(Path(path), json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot save the conversation as {path}: {error}") from error

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on with a conversation that `save` wrote; the one before is forgotten.

        Raises:
            UserError: there is no such file, or it holds something else; the conversation is then what it was before.
        """
        try:
            messages = json.loads(Path(path).read_text(encoding="utf-8"))["messages"]
            read = [_message(message) for message in messages]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path} holds no conversation ({type(error).__name__}: {error}): give a file that was saved from one"
            ) from error
        self._stop()
        self._begin_anew(read)

    def _begin_anew(self, messages: list[Message]) -> None:
        self._messages = [message.copy() for message in messages]
        self._shown: list[Part] = []  # since something was said
        self._warned = False
        self._drop()

    def _drop(self) -> None:
        self._cache: Cache | None = None
        self._tokens: list[int] = []  # as many as the cache holds, or more where reading was interrupted

    def _stop(self) -> None:
        """Ends the answer that is under way."""
        if self._answer is not None:
            self._answer.close()

    @property
    def _held(self) -> int:
        """How many of `_tokens` are in the cache for certain."""
        # An interruption may fall between a compiled function, which uses the old cache up, and the new one's name.
        if self._cache is None or self._cache.keys.is_deleted():
            return 0
        return min(len(self._tokens), int(self._cache.lengths[0]))

    @property
    def _rows(self) -> int:
        """Rows of the batch: one and, on a mesh that spreads batches, copies of it."""
        return axis_size(self._model.mesh, "batch")

    def _read(self, tokens: list[int]) -> Float[Array, "B V"]:
        """Brings the cache to these ids; logits after the last. What it holds of them is not read again."""
        held = min(self._held, len(tokens) - 1)  # the last is read in any case, for its logits
        same = next((i for i in range(held) if tokens[i] != self._tokens[i]), held)
        if same == 0:
            self._drop()
        else:
            assert self._cache is not None
            self._cache = _keep(self._cache, jnp.full(self._rows, same, jnp.int32), mesh=self._model.mesh)
        self._tokens = tokens[:same]
        self._make_room(len(tokens))
        return self._extend(tokens[same:])

    def _extend(self, tokens: list[int]) -> Float[Array, "B V"]:
        assert self._cache is not None
        self._tokens = [*self._tokens, *tokens]
        rows = np.tile(np.array(tokens, np.int32), (self._rows, 1))
        lengths = np.full(self._rows, len(tokens), np.int32)
        model, logits = self._model, jnp.zeros((self._rows, 0))
        pieces = decode.read(
            model.weights, rows, lengths, self._cache, self._frequencies, config=model.config, mesh=model.mesh
        )
        for after, cache in pieces:
            logits, self._cache = after, cache
        return logits

    def _make_room(self, length: int) -> None:
        """Sees to it that the cache takes a conversation of so many tokens: doubled until it does."""
        model = self._model
        if length > model.context_length and not self._warned:
            self._warned = True
            _log.warning(
                "the conversation has come to %d tokens, %d beyond the %d that the model was trained on: expect less",
                length,
                length - model.context_length,
                model.context_length,
            )
        capacity = 0 if self._cache is None else self._cache.segments.shape[1]
        if length <= capacity:
            return
        capacity = max(capacity, decode.bucket(_LEAST_CAPACITY, multiple=model.mesh.shape["sequence"]))
        while capacity < length:
            capacity *= 2
        try:
            model.require_room(self._rows, capacity, length, 0)
        except UserError as error:
            raise UserError(f"the conversation has no room to go on: {error}; or begin a new conversation") from error
        frequencies = model.frequencies(capacity)
        if self._cache is not None and np.array_equal(frequencies.turns, self._frequencies.turns):
            self._cache = _grow(self._cache, capacity=capacity, mesh=model.mesh)
            return
        # The first cache; or keys turned by frequencies that depend on the length, and have to be made anew.
        tokens = self._tokens
        self._drop()
        self._frequencies = frequencies
        self._cache = empty_cache(self._rows, capacity, config=model.config, mesh=model.mesh)
        if tokens:
            self._extend(tokens)

    def _pieces(
        self, logits: Float[Array, "B V"], max_tokens: int, sampler: Sampler
    ) -> Generator[str | Frame, None, None]:
        model, answer = self._model, _Answer(self._model, self._messages[-1], sampler.grammar)
        assert self._cache is not None
        stop = jnp.int32(self._template.end)
        state, frames = sampler.grammar.after(np.array(self._tokens))
        rows = jnp.zeros(self._rows, jnp.int32)
        state = decode.begin(logits, self._cache, Place(rows + state, rows + frames), sampler, stop)
        for made in range(1, max_tokens + 1):
            token = int(state.token[0])
            if token in self._template.special:
                break
            if made < max_tokens:  # the device makes the next token while the reader has this one
                self._make_room(len(self._tokens) + 1)
                self._tokens.append(token)
                state = replace(state, cache=self._cache)
                state = decode.step(
                    model.weights, state, sampler, stop, self._frequencies, config=model.config, mesh=model.mesh
                )
                self._cache = state.cache
            yield from answer.push(token)
        yield from answer.end()

    def _sampler(self, **settings: Any) -> Sampler:
        sampler, _ = self._model.sampler(**settings)
        grammar = sampler.grammar
        return replace(sampler, grammar=replace(grammar, text=grammar.text.at[self._template.end].set(True)))


class _Answer:
    """Puts an answer together of its tokens, in its message, and gives what of it is new."""

    def __init__(self, model: "Model", message: Message, grammar: Grammar) -> None:
        self._model, self._message = model, message
        self._reader = Reader(grammar)
        self._words = model.tokenizer.stream()
        self._held: list[int] = []  # the last words, which may turn out to be `<vision>`
        self._vision: list[int] = []  # what is open, delimiters and all

    def push(self, token: int) -> Iterator[str | Frame]:
        reader, vocabulary = self._reader, self._model.tokenizer.vocabulary
        was_text, frames = reader.in_text, reader.frames
        reader.read(token)
        if was_text:
            self._held.append(token)
            kept = reader.opening if reader.in_text else len(vocabulary.vision_start)
            yield from self._let_go(len(self._held) - kept)
            if not reader.in_text:
                self._vision, self._held = self._held, []
            return
        self._vision.append(token)
        if reader.frames > frames:
            newest = np.array(self._vision[-vocabulary.codes_per_frame - 1 :], np.int32)
            yield pixels(newest, frame_tokenizer_of(self._model), vocabulary)[0]
        if reader.in_text:
            self._add(np.array(self._vision, np.int32))

    def end(self) -> Iterator[str]:
        """Nothing more comes: what looked like the beginning of `<vision>` was text."""
        yield from self._let_go(len(self._held))

    def _let_go(self, count: int) -> Iterator[str]:
        for token in self._held[:count]:
            if piece := self._words.push(token):
                self._add(piece)
                yield piece
        del self._held[:count]

    def _add(self, part: Part) -> None:
        *before, last = parts_of(self._message["content"])
        parts = [*before, last + part] if isinstance(part, str) and isinstance(last, str) else [*before, last, part]
        self._message["content"] = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts


def _checked(text: str) -> str:
    if not text.strip():
        raise UserError("the message is empty: say something for the model to answer")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the message holds what is no Unicode text ({error}): write it in UTF-8") from error
    return text


def _to_json(message: Message) -> dict[str, Any]:
    """Words stay words; what is shown becomes {"vision": ids}."""
    content = message["content"]
    if not isinstance(content, str):
        content = [part if isinstance(part, str) else {"vision": part.tolist()} for part in content]
    return {"role": message["role"], "content": content}


def _message(value: Any) -> Message:
    """Raises ValueError, TypeError or KeyError when the value is no message."""
    role, content = value["role"], value["content"]
    if role not in get_args(Role):
        raise ValueError(f"a message has a role of {', '.join(get_args(Role))}, not {role!r}")
    return {"role": role, "content": content if isinstance(content, str) else [_part(part) for part in content]}


def _part(value: Any) -> Part:
    if isinstance(value, str):
        return value
    ids = value["vision"]
    if not all(type(index) is int for index in ids):
        raise ValueError("what a message shows must be ids")
    return np.array(ids, np.int32)


# Tokens that a conversation's first cache takes.
_LEAST_CAPACITY = 1024
