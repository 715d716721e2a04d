"""Decoding: the prompt once, then token after token against the cache.

Three compiled functions. `start` reads the prompts and chooses the first token; `step` makes one token more; `finish`
makes all the others inside one loop on the device. Text streamed by `step` and text made by `finish` is the same.

What a compiled function depends on is the *shape* of its arguments, so shapes come from few sizes (`bucket`): prompts
of 1,000 and 1,020 tokens run the same program.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int32, UInt32

from ringworld.generation.sampling import Sampler
from ringworld.model.cache import Cache, decode_step, prefill
from ringworld.model.config import ModelConfig
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
    """Rows on their way: the cache, each row's newest token and whether the row is finished, and tokens made so far."""

    cache: Cache
    token: Int32[Array, " B"]
    finished: Bool[Array, " B"]
    made: Int32[Array, ""]


def _advance(
    weights: Weights,
    state: Decoding,
    sampler: Sampler,
    stop: Int32[Array, ""],
    frequencies: UInt32[Array | np.ndarray, "2 half"],
    *,
    config: ModelConfig,
    mesh: Mesh,
) -> Decoding:
    """One token more in every row; a finished row repeats `stop`."""
    logits, cache = decode_step(weights, state.token, state.cache, config=config, frequencies=frequencies, mesh=mesh)
    token = jnp.where(state.finished, stop, sampler.choose(logits, state.made))
    return Decoding(cache=cache, token=token, finished=state.finished | (token == stop), made=state.made + 1)


@partial(jax.jit, static_argnames=("capacity", "config", "mesh"))
def start(
    weights: Weights,
    tokens: Int32[Array, "B S"],
    lengths: Int32[Array, " B"],
    sampler: Sampler,
    stop: Int32[Array, ""],
    frequencies: UInt32[Array | np.ndarray, "2 half"],
    *,
    capacity: int,
    config: ModelConfig,
    mesh: Mesh,
) -> Decoding:
    """Reads the prompts, padded on the right to S tokens, and chooses the first token of every row.

    `capacity` is the number of tokens, prompt and answer, that the cache has room for. A row of length 0 does not
    exist: it is there to fill the batch, and counts as finished.
    """
    # An empty row still needs one position to attend to.
    logits, cache = prefill(
        weights, tokens, jnp.maximum(lengths, 1), capacity=capacity, config=config, frequencies=frequencies, mesh=mesh
    )
    made = jnp.zeros((), jnp.int32)
    token = jnp.where(lengths == 0, stop, sampler.choose(logits, made))
    return Decoding(cache=cache, token=token, finished=token == stop, made=made + 1)


@partial(jax.jit, static_argnames=("config", "mesh"), donate_argnames="state")
def step(
    weights: Weights,
    state: Decoding,
    sampler: Sampler,
    stop: Int32[Array, ""],
    frequencies: UInt32[Array | np.ndarray, "2 half"],
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
    frequencies: UInt32[Array | np.ndarray, "2 half"],
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
