"""`Memory`: what a model has read, as ids and as the cache of their keys and values.

Of a text that begins like the last one only the rest is read: the next turn of a conversation, another question about
the same film. The text may be longer than what is computed at once, and outgrow the cache that it began with.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ringworld.errors import UserError
from ringworld.generation import decode
from ringworld.generation.engine import Engine
from ringworld.generation.grammar import Place
from ringworld.generation.sampling import Sampler
from ringworld.generation.saved_cache import open_cache, save_cache
from ringworld.mesh import axis_size
from ringworld.model.cache import Cache, empty_cache, grow, keep

_log = logging.getLogger(__name__)
_keep = jax.jit(keep, static_argnames="mesh", donate_argnames="cache")
_grow = jax.jit(grow, static_argnames=("capacity", "mesh"))


class Memory:
    """One text that a model reads and goes on with."""

    def __init__(self, model: Engine) -> None:
        self._model = model
        self._warned = False
        self.forget()

    def forget(self) -> None:
        """Begins anew."""
        self._cache: Cache | None = None
        self._tokens: list[int] = []  # as many as the cache holds, or more where reading was interrupted

    @property
    def tokens(self) -> list[int]:
        """The ids in the cache."""
        return self._tokens[: self._held]

    def read(self, tokens: Sequence[int]) -> Float[Array, "B V"]:
        """Brings the cache to these ids, one or more; logits after the last. What it holds of them is not read again.

        Raises:
            UserError: they need more memory than there is.
        """
        held = min(self._held, len(tokens) - 1)  # the last is read in any case, for its logits
        same = next((i for i in range(held) if tokens[i] != self._tokens[i]), held)
        if same == 0:
            self.forget()
        else:
            assert self._cache is not None
            self._cache = _keep(self._cache, jnp.full(self._rows, same, jnp.int32), mesh=self._model.mesh)
        self._tokens = list(tokens[:same])
        self._make_room(len(tokens))
        return self._extend(list(tokens[same:]))

    def begin(self, logits: Float[Array, "B V"], sampler: Sampler, stop: Array) -> decode.Decoding:
        """Chooses the first token after what was read."""
        assert self._cache is not None
        state, frames = sampler.grammar.after(np.array(self._tokens))
        rows = jnp.zeros(self._rows, jnp.int32)
        return decode.begin(logits, self._cache, Place(rows + state, rows + frames), sampler, stop)

    def step(self, state: decode.Decoding, sampler: Sampler, stop: Array) -> decode.Decoding:
        """Reads the token that was chosen last, and chooses the next. Raises UserError as `read`."""
        model = self._model
        token = int(state.token[0])
        self._make_room(len(self._tokens) + 1)
        self._tokens.append(token)
        assert self._cache is not None
        state = decode.step(
            model.weights,
            replace(state, cache=self._cache),
            sampler,
            stop,
            self._frequencies,
            config=model.config,
            mesh=model.mesh,
        )
        self._cache = state.cache
        return state

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes what was read into a file, whole or not at all.

        Raises:
            UserError: nothing was read, the file cannot be written, or the model turns keys by frequencies that depend
                on how much is read, so that what was read once is of no use later.
        """
        tokens = self.tokens
        if not tokens or self._cache is None:
            raise UserError("nothing was read yet that could be kept: let the model read something first")
        longer = self._model.frequencies(2 * self._cache.segments.shape[1])
        if not np.array_equal(longer.turns, self._frequencies.turns):
            raise UserError(
                "this model's positions depend on the length of the text (dynamic NTK), so what it has read is of no "
                "use in a longer one: save the conversation alone"
            )
        rows = np.tile(np.array(tokens, np.int32), (self._rows, 1))
        cache = _keep(self._cache, jnp.full(self._rows, len(tokens), jnp.int32), mesh=self._model.mesh)
        self._cache = cache
        save_cache(Path(path), cache, rows, fingerprint=self._model.fingerprint)

    def open(self, path: str | os.PathLike[str]) -> None:
        """Goes on from what `save` wrote.

        Raises:
            UserError: as `open_cache`, or it was read on a mesh of other rows; nothing has changed then.
        """
        model = self._model
        cache, rows = open_cache(Path(path), config=model.config, mesh=model.mesh, fingerprint=model.fingerprint)
        if len(rows) != self._rows:
            raise UserError(
                f"{path} was read in {len(rows)} rows side by side, and this mesh reads {self._rows}: open it on a "
                "mesh with as many devices along data and fsdp"
            )
        self._cache, self._tokens = cache, rows[0].tolist()
        self._frequencies = model.frequencies(cache.segments.shape[1])

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
        """Sees to it that the cache takes a text of so many tokens: doubled until it does."""
        model = self._model
        if length > model.context_length and not self._warned:
            self._warned = True
            _log.warning(
                "the text has come to %d tokens, %d beyond the %d that the model was trained on: expect less",
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
        model.require_room(self._rows, capacity, length, 0)
        frequencies = model.frequencies(capacity)
        if self._cache is not None and np.array_equal(frequencies.turns, self._frequencies.turns):
            self._cache = _grow(self._cache, capacity=capacity, mesh=model.mesh)
            return
        # The first cache; or keys turned by frequencies that depend on the length, and have to be made anew.
        tokens = self._tokens
        self.forget()
        self._frequencies = frequencies
        self._cache = empty_cache(
            self._rows, capacity, config=model.config, mesh=model.mesh, cache_type=model.cache_type
        )
        if tokens:
            self._extend(tokens)


# Tokens that the first cache takes.
_LEAST_CAPACITY = 1024
