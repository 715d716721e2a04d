"""Prefill and decoding: the keys and values of what was read, sharded along the sequence like everything else.

A prompt is read by the same forward pass as in training, on the ring; its keys and values stay where they were
computed, in whatever order the sequence lies there. Segments and positions of the slots say what they hold.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt32

from ringworld.attention import attention
from ringworld.attention.decode import CACHE_AXES, deal, decode_attention, fill
from ringworld.attention.layout import chunk_count, inverse, order
from ringworld.mesh import constrain, partition_spec
from ringworld.model.config import ModelConfig
from ringworld.model.rope import rotation
from ringworld.model.transformer import Weights, head, run_layers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """C slots a row, of which each device of the ring holds C / ring."""

    keys: Array  # [L, B, C, G, K]
    values: Array  # [L, B, C, G, K]
    segments: Array  # [B, C]: 1 where a token is, 0 where none is
    positions: Array  # [B, C]
    lengths: Array  # [B]: tokens of each row so far
    filled: Array  # slots of each device that the prompt took
    dealt: Array  # tokens decoded since


def prefill(
    weights: Weights,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, "B"],
    *,
    capacity: int,
    config: ModelConfig,
    frequencies: UInt32[Array | np.ndarray, "2 half"],
    mesh: Mesh,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads prompts (padded on the right) and returns float32 logits after each one's last token, and the cache.

    Args:
        lengths: tokens of each prompt, from 1 to S.
        capacity: slots a row, at least S and the tokens to be decoded.

    Raises:
        ValueError: S or the capacity does not divide over the ring (see `prompt_multiple`), or is too small.
    """
    rows, length = tokens.shape
    ring = mesh.shape["sequence"]
    if length % prompt_multiple(mesh) or capacity % ring or capacity < length:
        raise ValueError(f"prompts of {length} and a capacity of {capacity} do not fit a ring of {ring}")
    places = jnp.asarray(order(length, ring, "zigzag"))
    tokens = constrain(tokens[:, places], mesh, "batch", "sequence")
    positions = jnp.broadcast_to(places, tokens.shape)
    segments = (positions < lengths[:, None]).astype(jnp.int32)
    empty = jnp.zeros((config.layers, rows, capacity, config.kv_heads, config.head_dim), dtype)
    empty = constrain(empty, mesh, *CACHE_AXES)

    def attend(layer: Array, query: Array, key: Array, value: Array, caches: Any) -> tuple[Array, Any]:
        caches = tuple(fill(cache, new, layer, mesh=mesh) for cache, new in zip(caches, (key, value), strict=True))
        return attention(query, key, value, segments, positions, mesh=mesh), caches

    by = rotation(positions, frequencies)
    hidden, (keys, values) = run_layers(
        weights, tokens, by, attend, (empty, empty), config=config, mesh=mesh, dtype=dtype
    )
    last = hidden[jnp.arange(rows), jnp.asarray(inverse(length, ring, "zigzag"))[lengths - 1]]
    logits = jnp.matmul(last, head(weights).astype(dtype), preferred_element_type=jnp.float32)

    def lengthen(slots: Array) -> Array:
        return jnp.pad(slots, [(0, 0), (0, capacity // ring - slots.shape[1])])

    by_slot = partition_spec(("batch", "sequence"))
    lengthen = jax.shard_map(lengthen, mesh=mesh, in_specs=by_slot, out_specs=by_slot)
    cache = Cache(
        keys, values, lengthen(segments), lengthen(positions), lengths, jnp.int32(length // ring), jnp.int32(0)
    )
    return logits, cache


def prompt_multiple(mesh: Mesh) -> int:
    """Padded prompts must be a multiple of this long."""
    return chunk_count(mesh.shape["sequence"], "zigzag")


def decode_step(
    weights: Weights,
    token: Int[Array, "B"],
    cache: Cache,
    *,
    config: ModelConfig,
    frequencies: UInt32[Array | np.ndarray, "2 half"],
    mesh: Mesh,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "B V"], Cache]:
    """Adds one token to every row; float32 logits of the next one. The caller sees to it that the capacity is
    enough."""
    ring = mesh.shape["sequence"]
    position = cache.lengths[:, None]
    by_slot, by_row = partition_spec(("batch", "sequence")), partition_spec(("batch", None))

    def note(slots: Array, new: Array) -> Array:
        write = partial(deal, axis=1, ring=ring)
        scalar = jax.sharding.PartitionSpec()
        return jax.shard_map(
            lambda slots, new, filled, dealt: write(slots, new, (0,), filled, dealt),
            mesh=mesh,
            in_specs=(by_slot, by_row, scalar, scalar),
            out_specs=by_slot,
        )(slots, new, cache.filled, cache.dealt)

    segments, positions = note(cache.segments, jnp.ones_like(position)), note(cache.positions, position)

    def attend(layer: Array, query: Array, key: Array, value: Array, caches: Any) -> tuple[Array, Any]:
        keys, values = caches
        output, keys, values = decode_attention(
            query, key, value, keys, values, layer, segments, positions, position, cache.filled, cache.dealt, mesh=mesh
        )
        return output, (keys, values)

    by = rotation(position, frequencies)
    hidden, (keys, values) = run_layers(
        weights,
        token[:, None],
        by,
        attend,
        (cache.keys, cache.values),
        config=config,
        mesh=mesh,
        dtype=dtype,
        along=None,
    )
    logits = jnp.matmul(hidden[:, 0], head(weights).astype(dtype), preferred_element_type=jnp.float32)
    return logits, Cache(keys, values, segments, positions, cache.lengths + 1, cache.filled, cache.dealt + 1)
