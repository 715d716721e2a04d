"""A few new queries against a long cache that lies sharded over the ring.

The cache does not move: the queries (kilobytes) are with every device, each reads its own slice of the cache
(gigabytes), and the partial results are joined by their log-sum-exp. New keys are dealt out to the devices in turn,
one or many at a time, so that slices stay equal however long one decodes or reads on.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from ringworld.attention import blockwise
from ringworld.attention.blockwise import MASKED, Blocks, Positions
from ringworld.attention.reference import visible
from ringworld.mesh import partition_spec

CACHE_AXES = (None, "batch", "sequence", "kv_heads", None)


def fill(
    cache: Float[Array, "L B C G K"], new: Float[Array, "B S G K"], layer: Int[Array, ""], *, mesh: Mesh
) -> Float[Array, "L B C G K"]:
    """Writes a whole prompt's keys or values of one layer to the front of every device's slice, in the order in which
    they lie there."""

    def local(cache: Array, new: Array, layer: Array) -> Array:
        return lax.dynamic_update_slice(cache, new[None].astype(cache.dtype), (layer, 0, 0, 0, 0))

    whole = partition_spec(CACHE_AXES)
    new_spec = partition_spec(CACHE_AXES[1:])
    return jax.shard_map(local, mesh=mesh, in_specs=(whole, new_spec, PartitionSpec()), out_specs=whole)(
        cache, new, layer
    )


def deal(cache: Array, new: Array, starts: tuple, filled: Array, dealt: Array, axis: int, ring: int) -> Array:
    """Inside a shard_map: writes one token's `new` into the slice of the device whose turn it is. `starts` are its
    other indices."""
    slot = filled + dealt // ring
    starts = (*starts[:axis], slot, *starts[axis:])
    old = lax.dynamic_slice(cache, starts, new.shape)
    mine = lax.axis_index("sequence") == dealt % ring
    return lax.dynamic_update_slice(cache, jnp.where(mine, new.astype(cache.dtype), old), starts)


def dealing_order(length: int, dealt: Int[Array, ""], ring: int) -> Int[Array, "S"]:
    """Which token of a piece has to lie at each place in memory, so that it is on the device whose turn it is. `length`
    is a multiple of `ring`."""
    places = jnp.arange(length)
    each = length // ring
    return (places // each - dealt) % ring + places % each * ring


def deal_many(cache: Array, new: Array, starts: tuple, filled: Array, dealt: Array, axis: int, ring: int) -> Array:
    """Inside a shard_map: writes this device's tokens of a piece, in `dealing_order`, into its slice. `starts` are the
    other indices. What would lie beyond the last slot is left out: it is padding."""
    count = new.shape[axis]
    slot = filled + (dealt + (lax.axis_index("sequence") - dealt) % ring) // ring
    first = jnp.minimum(slot, cache.shape[axis] - count)
    starts = (*starts[:axis], first, *starts[axis:])
    old = lax.dynamic_slice(cache, starts, new.shape)
    mine = jnp.expand_dims(jnp.arange(count) >= slot - first, [i for i in range(new.ndim) if i != axis])
    new = jnp.roll(new.astype(cache.dtype), slot - first, axis)
    return lax.dynamic_update_slice(cache, jnp.where(mine, new, old), starts)


def extend_attention(
    query: Float[Array, "B S H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K"],
    keys: Float[Array, "L B C G K"],
    values: Float[Array, "L B C G K"],
    layer: Int[Array, ""],
    segments: Int[Array, "B C"],
    positions: Int[Array, "B C"],
    query_segments: Int[Array, "B S"],
    query_positions: Int[Array, "B S"],
    filled: Int[Array, ""],
    dealt: Int[Array, ""],
    *,
    mesh: Mesh,
) -> tuple[Float[Array, "B S H K"], Float[Array, "L B C G K"], Float[Array, "L B C G K"]]:
    """Adds the keys and values of a piece of text to one layer of the cache, and attends to all of it: to what was
    there, and causally to the piece itself. Block by block, so no more than one block of scores is held.

    Args:
        query, key, value: in `dealing_order`, sharded along the sequence.
        segments, positions: of the cache's slots, with the new tokens' already there; 0 marks an empty slot.
        query_segments: 1, or 0 for padding.
        filled: slots of each device that a prompt has taken. dealt: tokens that came since.
    """
    ring = mesh.shape["sequence"]
    blocks = Blocks.choose(mesh.devices.flat[0].platform, keys.shape[2] // ring)

    def local(
        query, key, value, keys, values, layer, segments, positions, query_segments, query_positions, filled, dealt
    ):
        keys, values = (
            deal_many(cache, new[None], (layer, 0, 0, 0), filled, dealt, 2, ring)
            for cache, new in ((keys, key), (values, value))
        )
        held_keys, held_values = (lax.dynamic_index_in_dim(x, layer, 0, keepdims=False) for x in (keys, values))
        asked, *where = (
            lax.all_gather(x, "sequence", axis=1, tiled=True) for x in (query, query_segments, query_positions)
        )
        output, log_sum = blockwise.forward(
            asked.astype(keys.dtype), held_keys, held_values, Positions(*where), Positions(segments, positions), blocks
        )
        weights = jnp.exp(log_sum - lax.pmax(log_sum, "sequence"))
        output, total = (
            lax.psum_scatter(x, "sequence", scatter_dimension=1, tiled=True) for x in (output * weights, weights)
        )
        return (output / total).astype(query.dtype), keys, values

    new, cache = partition_spec(CACHE_AXES[1:]), partition_spec(CACHE_AXES)
    slots, scalar = partition_spec(("batch", "sequence")), PartitionSpec()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(new, new, new, cache, cache, scalar, slots, slots, slots, slots, scalar, scalar),
        out_specs=(new, cache, cache),
        check_vma=False,  # as in `ring.attention`
    )(query, key, value, keys, values, layer, segments, positions, query_segments, query_positions, filled, dealt)


def decode_attention(
    query: Float[Array, "B 1 H K"],
    key: Float[Array, "B 1 G K"],
    value: Float[Array, "B 1 G K"],
    keys: Float[Array, "L B C G K"],
    values: Float[Array, "L B C G K"],
    layer: Int[Array, ""],
    segments: Int[Array, "B C"],
    positions: Int[Array, "B C"],
    query_positions: Int[Array, "B 1"],
    filled: Int[Array, ""],
    dealt: Int[Array, ""],
    *,
    mesh: Mesh,
) -> tuple[Float[Array, "B 1 H K"], Float[Array, "L B C G K"], Float[Array, "L B C G K"]]:
    """Adds one token's key and value to one layer of the cache, and attends to all of it. The query is of segment 1.

    Args:
        segments, positions: of the cache's slots, with the new token's already there; 0 marks an empty slot.
        filled: slots of each device that a prompt has taken. dealt: tokens that were decoded since.
    """
    ring = mesh.shape["sequence"]

    def local(query, key, value, keys, values, layer, segments, positions, query_positions, filled, dealt):
        keys, values = (
            deal(cache, new[None], (layer, 0, 0, 0), filled, dealt, 2, ring)
            for cache, new in ((keys, key), (values, value))
        )
        held_keys, held_values = (lax.dynamic_index_in_dim(x, layer, 0, keepdims=False) for x in (keys, values))
        rows, count, heads, width = query.shape
        kv_heads = held_keys.shape[2]
        grouped = query.reshape(rows, count, kv_heads, heads // kv_heads, width).astype(jnp.float32) * width**-0.5
        scores = jnp.einsum("btgnk,bcgk->bgntc", grouped, held_keys, preferred_element_type=jnp.float32)
        mask = visible(jnp.ones_like(query_positions), segments, query_positions, positions)[:, None, None]
        scores = jnp.where(mask, scores, MASKED)
        largest = lax.pmax(scores.max(-1, keepdims=True), "sequence")
        weights = jnp.where(mask, jnp.exp(scores - largest), 0.0)
        total = lax.psum(weights.sum(-1, keepdims=True), "sequence")
        output = jnp.einsum("bgntc,bcgk->bgntk", weights, held_values, preferred_element_type=jnp.float32)
        output = lax.psum(output, "sequence") / total  # the query sees itself at least, so the total is positive
        return output.transpose(0, 3, 1, 2, 4).reshape(query.shape).astype(query.dtype), keys, values

    one = partition_spec(("batch", None, "kv_heads", None))
    cache, slots, scalar = partition_spec(CACHE_AXES), partition_spec(("batch", "sequence")), PartitionSpec()
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(one, one, one, cache, cache, scalar, slots, slots, partition_spec(("batch", None)), scalar, scalar),
        out_specs=(one, cache, cache),
    )(query, key, value, keys, values, layer, segments, positions, query_positions, filled, dealt)
