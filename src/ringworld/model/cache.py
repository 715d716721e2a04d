"""Prefill, reading on, and decoding: the keys and values of what was read, sharded along the sequence like everything
else.

A prompt is read by the same forward pass as in training, on the ring; its keys and values stay where they were
computed, in whatever order the sequence lies there. Segments and positions of the slots say what they hold. What comes
after it is dealt out to the devices, token by token (`decode_step`) or many at once (`extend`).
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ringworld.attention import attention
from ringworld.attention.decode import (
    CACHE_AXES,
    CacheType,
    Slots,
    deal,
    deal_many,
    dealing_order,
    decode_attention,
    extend_attention,
    fill,
)
from ringworld.attention.layout import chunk_count, inverse, order
from ringworld.mesh import constrain, named_sharding, partition_spec
from ringworld.model.config import ModelConfig
from ringworld.model.rope import Frequencies, rotation
from ringworld.model.transformer import Weights, head, run_layers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """C slots a row, of which each device of the ring holds C / ring."""

    keys: Slots  # [L, B, C, G, K], turned by their positions
    values: Slots  # [L, B, C, G, K]
    segments: Array  # [B, C]: 1 where a token is, 0 where none is
    positions: Array  # [B, C]
    lengths: Array  # [B]: tokens of each row so far
    filled: Array  # slots of each device that the prompt took
    dealt: Array  # tokens that came since


def empty_cache(
    rows: int, capacity: int, *, config: ModelConfig, mesh: Mesh, cache_type: CacheType = "float32"
) -> Cache:
    """A cache in which nothing is yet, with slots for `capacity` tokens a row.

    Args:
        cache_type: in which keys and values are kept (see `Slots`): "bfloat16" takes half of the memory of "float32",
            "int8" a little more than a quarter.

    Raises:
        ValueError: the capacity does not divide over the ring.
    """
    if capacity % mesh.shape["sequence"]:
        raise ValueError(f"a capacity of {capacity} does not divide over a ring of {mesh.shape['sequence']}")
    shape = (config.layers, rows, capacity, config.kv_heads, config.head_dim)
    keys, values = (Slots.empty(shape, cache_type, mesh) for _ in range(2))
    slots = named_sharding(mesh, ("batch", "sequence"))
    segments, positions = (jnp.zeros((rows, capacity), jnp.int32, device=slots) for _ in range(2))
    lengths = jnp.zeros(rows, jnp.int32, device=named_sharding(mesh, ("batch",)))
    filled, dealt = (jnp.zeros((), jnp.int32, device=named_sharding(mesh, ())) for _ in range(2))
    return Cache(keys, values, segments, positions, lengths, filled, dealt)


def prefill(
    weights: Weights,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, "B"],
    *,
    capacity: int,
    config: ModelConfig,
    frequencies: Frequencies,
    mesh: Mesh,
    dtype: DTypeLike = jnp.float32,
    cache_type: CacheType = "float32",
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads prompts (padded on the right) and returns float32 logits after each one's last token, and the cache.

    Args:
        lengths: tokens of each prompt, from 1 to S.
        capacity: slots a row, at least S and the tokens to be decoded.
        dtype: of the products.
        cache_type: as `empty_cache`. The prompt itself is read with keys and values as they were computed.

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
    empty = Slots.empty((config.layers, rows, capacity, config.kv_heads, config.head_dim), cache_type, mesh)

    def attend(layer: Array, query: Array, key: Array, value: Array, caches: Any) -> tuple[Array, Any]:
        caches = tuple(
            fill(old, old.pack(new), layer, mesh=mesh) for old, new in zip(caches, (key, value), strict=True)
        )
        return attention(query, key, value, segments, positions, mesh=mesh), caches

    by = rotation(positions, frequencies, config.sharpened_from)
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


def extend(
    weights: Weights,
    tokens: Int[Array, "B S"],
    lengths: Int[Array, "B"],
    cache: Cache,
    *,
    config: ModelConfig,
    frequencies: Frequencies,
    mesh: Mesh,
    dtype: DTypeLike = jnp.float32,
) -> tuple[Float[Array, "B V"], Cache]:
    """Reads more tokens (padded on the right) into a cache: what was read stays. The result is that of reading all at
    once. The caller sees to it that the capacity is enough (see `room`).

    The piece is spread over the ring; the queries, gathered on every device, go over the slice of the cache that it
    holds, in blocks. Memory is that of S tokens, so a long text is better read in pieces.

    Args:
        lengths: new tokens of each row, from 0 to S.

    Returns:
        float32 logits after each row's last new token, meaningless where there is none, and the cache.

    Raises:
        ValueError: S is more than the whole capacity.
    """
    ring = mesh.shape["sequence"]
    tokens = jnp.pad(tokens, [(0, 0), (0, -tokens.shape[1] % ring)])
    rows, length = tokens.shape
    if length > cache.segments.shape[1]:
        raise ValueError(
            f"a piece of {length} tokens is longer than a cache with a capacity of {cache.segments.shape[1]}"
        )
    order = dealing_order(length, cache.dealt, ring)[None]
    tokens = constrain(tokens[:, order[0]], mesh, "batch", "sequence")
    new_segments = constrain((order < lengths[:, None]).astype(jnp.int32), mesh, "batch", "sequence")
    new_positions = constrain(cache.lengths[:, None] + order, mesh, "batch", "sequence")
    by_slot, scalar = partition_spec(("batch", "sequence")), jax.sharding.PartitionSpec()

    def note(slots: Array, new: Array) -> Array:
        return jax.shard_map(
            lambda slots, new, filled, dealt: deal_many(slots, new, (0,), filled, dealt, 1, ring),
            mesh=mesh,
            in_specs=(by_slot, by_slot, scalar, scalar),
            out_specs=by_slot,
        )(slots, new, cache.filled, cache.dealt)

    segments, positions = note(cache.segments, new_segments), note(cache.positions, new_positions)

    def attend(layer: Array, query: Array, key: Array, value: Array, caches: Any) -> tuple[Array, Any]:
        keys, values = caches
        output, keys, values = extend_attention(
            query, key, value, keys, values, layer, segments, positions, new_segments, new_positions, cache.filled,
            cache.dealt, mesh=mesh,
        )  # fmt: skip
        return output, (keys, values)

    hidden, (keys, values) = run_layers(
        weights,
        tokens,
        rotation(new_positions, frequencies, config.sharpened_from),
        attend,
        (cache.keys, cache.values),
        config=config,
        mesh=mesh,
        dtype=dtype,
    )
    newest = jnp.maximum(lengths - 1, 0)
    place = (cache.dealt + newest) % ring * (length // ring) + newest // ring
    logits = jnp.matmul(
        hidden[jnp.arange(rows), place], head(weights).astype(dtype), preferred_element_type=jnp.float32
    )
    dealt = cache.dealt + lengths.max()
    return logits, Cache(keys, values, segments, positions, cache.lengths + lengths, cache.filled, dealt)


def room(cache: Cache, *, mesh: Mesh) -> int:
    """How many tokens more a row of the cache takes."""
    return cache.segments.shape[1] - int(cache.filled) * mesh.shape["sequence"] - int(cache.dealt)


def keep(cache: Cache, lengths: Int[Array, "B"], *, mesh: Mesh) -> Cache:
    """The cache of the first `lengths` tokens of each row (of all, where it has fewer). Slots at the end that no row
    needs any more are free again, but for a prompt's."""
    segments = jnp.where(cache.positions < lengths[:, None], cache.segments, 0)
    each = segments.shape[1] // mesh.shape["sequence"]
    places = jnp.arange(segments.shape[1])
    turns = (places % each - cache.filled) * mesh.shape["sequence"] + places // each  # below 0 in a prompt
    dealt = jnp.where(segments.any(axis=0), turns + 1, 0).max(initial=0).astype(jnp.int32)
    return replace(cache, segments=segments, lengths=jnp.minimum(cache.lengths, lengths), dealt=dealt)


def grow(cache: Cache, capacity: int, *, mesh: Mesh) -> Cache:
    """The cache with slots for more tokens.

    Raises:
        ValueError: the capacity does not divide over the ring, or is less than before.
    """
    ring = mesh.shape["sequence"]
    if capacity % ring or capacity < cache.segments.shape[1]:
        raise ValueError(f"a cache of {cache.segments.shape[1]} cannot grow to {capacity} on a ring of {ring}")

    def lengthened(array: Array, axes: tuple[str | None, ...]) -> Array:
        axis, spec = axes.index("sequence"), partition_spec(axes)

        def local(array: Array) -> Array:
            more = capacity // ring - array.shape[axis]
            return jnp.pad(array, [(0, more if i == axis else 0) for i in range(array.ndim)])

        return jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)(array)

    keys, values = jax.tree.map(lambda slots: lengthened(slots, CACHE_AXES), (cache.keys, cache.values))
    segments, positions = (lengthened(x, ("batch", "sequence")) for x in (cache.segments, cache.positions))
    return replace(cache, keys=keys, values=values, segments=segments, positions=positions)


def decode_step(
    weights: Weights,
    token: Int[Array, "B"],
    cache: Cache,
    *,
    config: ModelConfig,
    frequencies: Frequencies,
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

    by = rotation(position, frequencies, config.sharpened_from)
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
