"""A few new queries against a long cache that lies sharded over the ring.

The cache does not move: the queries (kilobytes) are with every device, each reads its own slice of the cache
(gigabytes), and the partial results are joined by their log-sum-exp. New keys are dealt out to the devices in turn,
so that slices stay equal however long one decodes.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from ringworld.attention.blockwise import MASKED
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
