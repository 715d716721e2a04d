"""`Chat`: a conversation whose memory lives from turn to turn, so that of each turn only the new tokens are read.

What it has read is always a beginning of the conversation as the model's own template writes it. Where the past
is written differently with the next turn (a template that leaves out old thoughts, an answer whose words make other
tokens than those it came in), what is still the same is kept and the rest is read anew.
"""

import json
import logging
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ringworld.errors import UserError
from ringworld.files import write_atomically
from ringworld.generation.drawing import Frame, pixels
from ringworld.generation.engine import Engine
from ringworld.generation.grammar import Grammar, Reader
from ringworld.generation.memory import Memory
from ringworld.generation.sampling import Sampler
from ringworld.tokens.chat import ChatTemplate, Message, Part, Role, TemplateName, arranged, parts_of
from ringworld.tokens.vision import timed, vision_ids

_log = logging.getLogger(__name__)


class Chat:
    """A conversation with a model. What `Model.chat()` gives."""

    def __init__(self, model: Engine, system: str | None = None, template: TemplateName = "own") -> None:
        """
        Args:
            system: what the model is told before the first turn; None: what its template says by itself, if anything.
            template: see `ChatTemplate`.

        Raises:
            UserError: the model's tokenizer has no way to chat (see `ChatTemplate`).
        """
        self._model = model
        self._template = ChatTemplate(model.tokenizer, template)
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
        side = self._model.eyes().config.frame_size
        return side, side

    @property
    def tokens(self) -> list[int]:
        """The ids in the cache."""
        return self._memory.tokens

    def show(self, frames: Iterable[Frame], fps: float | int | None = None, every: int = 0, resolution: int = 1) -> int:
        """Shows a picture or a film, which what is said next is about. It is encoded here, once.

        Args:
            frames: one after the other; no more than some of them are held.
            fps: of a film. None: a picture, or a film without times.
            every: the time stands behind every so many seconds of a film; 0: nowhere.
            resolution: seconds to which it is told; with 60, in whole minutes.

        Returns:
            how many frames there were.

        Raises:
            UserError: the model does not see, there is no frame, frames are of another size, there is no rate for
                times, or `resolution` is less than 1.
        """
        eyes, vocabulary = self._model.eyes(), self._model.tokenizer.vocabulary
        if every and fps is None:
            raise UserError(f"the time is to stand every {every} seconds in a film of no known rate: give its fps")
        if resolution < 1:
            raise UserError(f"the time is told to 1 or more whole seconds (resolution), got {resolution}")
        found = list(eyes.encode_all(frames))
        if not found:
            raise UserError("there is no frame to be shown: give one or more")
        codes = np.stack(found)
        if not every or fps is None:
            self._shown.append(vision_ids(codes, vocabulary))
        else:
            for part, time in timed(len(codes), fps, every, resolution):
                self._shown += [vision_ids(codes[part], vocabulary), time]
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
        content = arranged(said, self._shown, self._template.layout) if self._shown else said
        messages: list[Message] = [*self._messages, {"role": "user", "content": content}]
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        sampler, stop = chat_sampler(self._model, self._template, **settings)
        tokens = self._template.encode(messages, add_generation_prompt=True)
        if not tokens:
            raise UserError("the model's chat template writes nothing for this conversation: it cannot be asked so")
        with _advised():
            logits = self._memory.read(tokens)
        self._shown = []
        self._messages = [*messages, {"role": "assistant", "content": ""}]
        self._answer = self._pieces(logits, max_tokens, sampler, stop)
        return self._answer

    def reset(self) -> None:
        """Begins anew, with the system message as it was given."""
        self._stop()
        self._begin_anew(self._opening)

    def save(self, path: str | os.PathLike[str], *, memory: bool = False) -> None:
        """Writes the conversation as JSON, whole or not at all.

        Args:
            memory: beside it, in `<path>.cache`, also what the model has read of it, which may be large: `load` need
                not read it again.

        Raises:
            UserError: it cannot be written; with memory also as `Memory.save`.
        """
        if memory:
            self._memory.save(_cache_path(path))
        try:
            messages = [_to_json(message) for message in self._messages]
            write_atomically(Path(path), json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot save the conversation as {path}: {error}") from error

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on with a conversation that `save` wrote, and with what was read of it, if that was kept; the one before
        is forgotten.

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
        if _cache_path(path).is_file():
            try:
                self._memory.open(_cache_path(path))
            except UserError as error:
                _log.warning("the conversation will be read anew: %s", error)

    def _begin_anew(self, messages: list[Message]) -> None:
        self._messages = [message.copy() for message in messages]
        self._shown: list[Part] = []  # since something was said
        self._memory = Memory(self._model)

    def _stop(self) -> None:
        """Ends the answer that is under way."""
        if self._answer is not None:
            self._answer.close()

    def _pieces(
        self, logits: Float[Array, "B V"], max_tokens: int, sampler: Sampler, stop: Array
    ) -> Generator[str | Frame, None, None]:
        memory, answer = self._memory, _Answer(self._model, self._messages[-1], sampler.grammar)
        state = memory.begin(logits, sampler, stop)
        for made in range(1, max_tokens + 1):
            token = int(state.token[0])
            if token in self._template.special:
                break
            if made < max_tokens:  # the device makes the next token while the reader has this one
                with _advised():
                    state = memory.step(state, sampler, stop)
            yield from answer.push(token)
        yield from answer.end()


def chat_sampler(
    model: Engine,
    template: ChatTemplate,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> tuple[Sampler, Array]:
    """How an answer is chosen, and the token that ends it. Raises UserError for a setting outside its range."""
    sampler, _ = model.sampler(temperature, top_k, top_p, seed)
    text = sampler.grammar.text.at[template.end].set(True)
    return replace(sampler, grammar=replace(sampler.grammar, text=text)), jnp.int32(template.end)


class _Answer:
    """Puts an answer together of its tokens, in its message, and gives what of it is new."""

    def __init__(self, model: Engine, message: Message, grammar: Grammar) -> None:
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
            yield pixels(newest, self._model.eyes(), vocabulary)[0]
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


@contextmanager
def _advised() -> Iterator[None]:
    """Says what can be done in a conversation that has become too long for the memory."""
    try:
        yield
    except UserError as error:
        raise UserError(f"the conversation has no room to go on: {error}; or begin a new conversation") from error


def _cache_path(path: str | os.PathLike[str]) -> Path:
    return Path(f"{os.fspath(path)}.cache")


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
