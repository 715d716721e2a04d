"""Decoding: the prompt once, then token after token against the cache.

Three compiled functions. `start` reads the prompts and chooses the first token; `step` makes one token more; `finish`
makes all the others inside one loop on the device. Text streamed by `step` and text made by `finish` is the same.
Where a cache is there already, `read` and `begin` take the place of `start`.

What a compiled function depends on is the *shape* of its arguments, so shapes come from few sizes (`bucket`): prompts
of 1,000 and 1,020 tokens run the same program.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32

from ringworld.attention.decode import CacheType
from ringworld.errors import UserError
from ringworld.generation.grammar import Place
from ringworld.generation.sampling import Sampler
from ringworld.mesh import named_sharding
from ringworld.model.cache import Cache, decode_step, extend, prefill, room
from ringworld.model.config import ModelConfig
from ringworld.model.rope import Frequencies
from ringworld.model.transformer import Weights


def bucket(size: int, *, least: int = 64, multiple: int = 1) -> int:
    """The smallest of `least` x (1, 1.25, 1.5, 1.75, 2, 2.5, 3, ...) that holds `size`, rounded up to `multiple`.

    Four sizes to each doubling: at most a fifth of a row is padding, and 16 programs cover a factor of 16 in length.
    """
    octave = least
    while size > 2 * octave:
        octave *= 2
    quarters = max(0, -(-4 * (size - octave) // octave))
    chosen = octave + -(-octave * quarters // 4)
    return -(-chosen // multiple) * multiple


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoding:
    """Rows on their way: the cache, each row's newest token, its place in the grammar and whether the row is finished,
    and tokens made so far."""

    cache: Cache
    token: Int32[Array, " B"]
    place: Place
    finished: Bool[Array, " B"]
    made: Int32[Array, ""]


def _advance(
    weights: Weights,
    state: Decoding,
    sampler: Sampler,
    stop: Int32[Array, ""],
    frequencies: Frequencies,
    *,
    config: ModelConfig,
    mesh: Mesh,
) -> Decoding:
    """One token more in every row; a finished row repeats `stop`."""
    logits, cache = decode_step(weights, state.token, state.cache, config=config, frequencies=frequencies, mesh=mesh)
    token = jnp.where(state.finished, stop, sampler.choose(logits, state.place, state.made))
    return Decoding(
        cache=cache,
        token=token,
        place=sampler.grammar.advance(state.place, token),
        finished=state.finished | (token == stop),
        made=state.made + 1,
    )


@partial(jax.jit, static_argnames=("capacity", "config", "mesh", "cache_type"))
def start(
    weights: Weights,
    tokens: Int32[Array, "B S"],
    lengths: Int32[Array, " B"],
    place: Place,
    sampler: Sampler,
    stop: Int32[Array, ""],
    frequencies: Frequencies,
    *,
    capacity: int,
    config: ModelConfig,
    mesh: Mesh,
    cache_type: CacheType = "float32",
) -> Decoding:
    """Reads the prompts, padded on the right to S tokens, and chooses the first token of every row.

    `place` is that of each row at the end of its prompt. `capacity` is the number of tokens, prompt and answer,
    that the cache has room for. A row of length 0 does not exist: it is there to fill the batch, and counts as
    finished.
    """
    # An empty row still needs one position to attend to.
    logits, cache = prefill(
        weights,
        tokens,
        jnp.maximum(lengths, 1),
        capacity=capacity,
        config=config,
        frequencies=frequencies,
        mesh=mesh,
        cache_type=cache_type,
    )
    made = jnp.zeros((), jnp.int32)
    token = jnp.where(lengths == 0, stop, sampler.choose(logits, place, made))
    place = sampler.grammar.advance(place, token)
    return Decoding(cache=cache, token=token, place=place, finished=token == stop, made=made + 1)


def read(
    weights: Weights,
    tokens: Int32[np.ndarray, "B S"],
    lengths: Int32[np.ndarray, " B"],
    cache: Cache,
    frequencies: Frequencies,
    *,
    config: ModelConfig,
    mesh: Mesh,
) -> Iterator[tuple[Float[Array, "B V"], Cache]]:
    """Reads more tokens into a cache, piece by piece: however long the text, one piece's activations are in memory.

    Args:
        tokens: padded on the right. lengths: of each row, from 1 to S.
        cache: used up. So is each one that comes back, as soon as the next is asked for.

    Returns:
        after each piece the logits after each row's last token so far, and the cache.

    Raises:
        UserError: the cache has no room for them; at once, not when the first piece is asked for.
    """
    there, longest, capacity = room(cache, mesh=mesh), int(lengths.max()), cache.segments.shape[1]
    if longest > there:
        raise UserError(
            f"{longest} tokens more do not fit a cache for {capacity}: it has room for {there}; make a larger one, or "
            "read less"
        )
    return _pieces_read(weights, tokens, lengths, cache, frequencies, config, mesh)


def _pieces_read(
    weights: Weights,
    tokens: Int32[np.ndarray, "B S"],
    lengths: Int32[np.ndarray, " B"],
    cache: Cache,
    frequencies: Frequencies,
    config: ModelConfig,
    mesh: Mesh,
) -> Iterator[tuple[Float[Array, "B V"], Cache]]:
    at, logits = 0, None
    while (left := int(lengths.max()) - at) > 0:
        size = min(next((size for size in _PIECES if 4 * left >= 3 * size), _PIECES[-1]), cache.segments.shape[1])
        piece = np.zeros((len(tokens), size), np.int32)
        piece[:, : tokens.shape[1] - at] = tokens[:, at : at + size]
        here = np.clip(lengths - at, 0, size).astype(np.int32)
        sharding = named_sharding(mesh, ("batch",))
        new, cache = _extend(
            weights,
            jax.device_put(piece, sharding),
            jax.device_put(here, sharding),
            cache,
            frequencies,
            config=config,
            mesh=mesh,
        )
        logits = new if logits is None else jnp.where((here > 0)[:, None], new, logits)
        at += size
        yield logits, cache


@partial(jax.jit, static_argnames=("config", "mesh"), donate_argnames="cache")
def _extend(
    weights: Weights,
    tokens: Int32[Array, "B S"],
    lengths: Int32[Array, " B"],
    cache: Cache,
    frequencies: Frequencies,
    *,
    config: ModelConfig,
    mesh: Mesh,
) -> tuple[Float[Array, "B V"], Cache]:
    return extend(weights, tokens, lengths, cache, config=config, frequencies=frequencies, mesh=mesh)


def begin(
    logits: Float[Array, "B V"], cache: Cache, place: Place, sampler: Sampler, stop: Int32[Array, ""]
) -> Decoding:
    """Chooses the first token of every row after what was read into a cache."""
    token, place = _choose_first(logits, place, sampler)
    return Decoding(cache=cache, token=token, place=place, finished=token == stop, made=jnp.ones((), jnp.int32))


@jax.jit
def _choose_first(logits: Float[Array, "B V"], place: Place, sampler: Sampler) -> tuple[Int32[Array, " B"], Place]:
    token = sampler.choose(logits, place, jnp.zeros((), jnp.int32))
    return token, sampler.grammar.advance(place, token)


@partial(jax.jit, static_argnames=("config", "mesh"), donate_argnames="state")
def step(
    weights: Weights,
    state: Decoding,
    sampler: Sampler,
    stop: Int32[Array, ""],
    frequencies: Frequencies,
    *,
    config: ModelConfig,
    mesh: Mesh,
) -> Decoding:
    """One token more in every row. The state that is passed in is used up: its cache becomes the new one."""
    return _advance(weights, state, sampler, stop, frequencies, config=config, mesh=mesh)


@partial(jax.jit, static_argnames=("room", "config", "mesh"), donate_argnames="state")
def finish(
    weights: Weights,
    state: Decoding,
    limit: Int32[Array, ""],
    sampler: Sampler,
    stop: Int32[Array, ""],
    frequencies: Frequencies,
    *,
    room: int,
    config: ModelConfig,
    mesh: Mesh,
) -> tuple[Int32[Array, "B room"], Decoding]:
    """All tokens of every row, the first one (chosen by `start`) included, until each row has come to `stop` or there
    are `limit` of them; the rest of the `room` holds `stop`. The state that is passed in is used up.
    """
    answers = jnp.full((state.token.shape[0], room), stop, jnp.int32).at[:, 0].set(state.token)

    def unfinished(carry: tuple[Array, Decoding]) -> Array:
        return (carry[1].made < limit) & ~jnp.all(carry[1].finished)

    def body(carry: tuple[Array, Decoding]) -> tuple[Array, Decoding]:
        answers, state = carry
        state = _advance(weights, state, sampler, stop, frequencies, config=config, mesh=mesh)
        return answers.at[:, state.made - 1].set(state.token), state

    return jax.lax.while_loop(unfinished, body, (answers, state))


# Tokens that are read at once: few sizes are few programs, and of none more than a quarter is padding, but of the last.
_PIECES = (2048, 512, 128, 32)
