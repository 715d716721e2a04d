"""RingAttention: each device holds one slice of the sequence, and keys and values travel from neighbour to neighbour.

Liu, Zaharia and Abbeel, arXiv 2310.01889. At every hop a device computes blockwise attention of its own queries over
the keys that it holds at the moment, while the next ones are on their way; after a full circle every query has met
every key. The backward pass goes round once more with the gradients of keys and values in tow. They are sent on one
hop late: what hop t has computed travels while hop t+1 computes, so that no transfer but the last one home waits for
a product. Keys travel in their own type, accumulators are float32.

A ring of one device is plain blockwise attention.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ringworld.attention import blockwise
from ringworld.attention.blockwise import Blocks, Positions
from ringworld.mesh import axis_size, partition_spec

AXIS = "sequence"
# What a rematerialised layer should keep of its attention, for to compute it again is what costs at a million tokens.
SAVED = "attention_output"


@jax.named_scope("attention")
def attention(
    query: Float[Array, "B S H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K"],
    segments: Int[Array, "B S"],
    positions: Int[Array, "B S"],
    *,
    mesh: Mesh,
    blocks: Blocks | None = None,
) -> Float[Array, "B S H K"]:
    """Causal attention within documents, exact for any order of the sequence in memory (see `reference.visible`).

    Query head h reads key head h // (H/G). Work is balanced over the ring if rows are in zigzag order (`layout`).

    Args:
        mesh: rows lie on its data and fsdp axes, heads on tensor, the sequence on sequence.
        blocks: sizes of the blocks; chosen for the back end and the length if not given.

    Raises:
        ValueError: shapes that do not fit each other or the mesh.
    """
    for name, size, axis in (
        ("rows", query.shape[0], "batch"),
        ("positions", query.shape[1], "sequence"),
        ("key heads", key.shape[2], "kv_heads"),
    ):
        if size % axis_size(mesh, axis):
            raise ValueError(
                f"{size} {name} do not divide over the {axis_size(mesh, axis)} devices of the mesh's {axis!r} axis"
            )
    if query.shape[2] % key.shape[2]:
        raise ValueError(f"{query.shape[2]} query heads do not divide among {key.shape[2]} key heads")
    if key.shape != value.shape or query.shape[:2] != key.shape[:2]:
        raise ValueError(f"queries {query.shape}, keys {key.shape} and values {value.shape} do not fit each other")
    ring = mesh.shape[AXIS]
    if blocks is None:
        blocks = Blocks.choose(mesh, query.shape[1] // ring)
    heads = partition_spec(("batch", "sequence", "heads", None))
    tokens = partition_spec(("batch", "sequence"))
    local = jax.shard_map(
        partial(_local_attention, ring=ring, blocks=blocks),
        mesh=mesh,
        in_specs=(heads, heads, heads, tokens, tokens),
        out_specs=heads,
        check_vma=False,  # loops with traced bounds carry plain arrays: the specs alone say what varies
    )
    return local(query, key, value, segments, positions)


def _send_on(tree, ring: int):
    """Every device hands its arrays to the next one in the ring."""
    return lax.ppermute(tree, AXIS, [(device, (device + 1) % ring) for device in range(ring)])


@partial(jax.custom_vjp, nondiff_argnames=("ring", "blocks"))
def _local_attention(query, key, value, segments, positions, ring: int, blocks: Blocks):
    return _forward(query, key, value, segments, positions, ring, blocks)[0]


def _forward(query, key, value, segments, positions, ring: int, blocks: Blocks):
    here = Positions(segments, positions)

    def over(held):
        key, value, where = held
        return blockwise.forward(query, key, value, here, where, blocks)

    def hop(state, _):
        held, so_far = state
        coming = _send_on(held, ring)  # does not wait for the products below, nor they for it
        return (coming, blockwise.merge(so_far, over(held))), None

    held = (key, value, here)
    if ring == 1:
        output, log_sum = over(held)
    else:
        (held, so_far), _ = lax.scan(hop, (_send_on(held, ring), over(held)), length=ring - 2)
        output, log_sum = blockwise.merge(so_far, over(held))
    output = checkpoint_name(output.astype(query.dtype), SAVED)
    log_sum = checkpoint_name(log_sum, SAVED)
    return output, (query, key, value, here, output, log_sum)


def _backward(ring: int, blocks: Blocks, saved, gradient):
    query, key, value, here, output, log_sum = saved
    delta = jnp.sum(gradient.astype(jnp.float32) * output.astype(jnp.float32), axis=-1, keepdims=True)

    def gradients(held):
        key, value, where = held
        return blockwise.backward(query, key, value, here, where, log_sum, delta, gradient.astype(query.dtype), blocks)

    def hop(state, _):
        held, query_gradient, towed = state
        coming, arriving = _send_on(held, ring), _send_on(towed, ring)  # while this hop computes
        more, *parts = gradients(held)
        return (coming, query_gradient + more, [a + b for a, b in zip(arriving, parts, strict=True)]), None

    held = (key, value, here)
    if ring == 1:
        query_gradient, *towed = gradients(held)
    else:
        coming = _send_on(held, ring)
        query_gradient, *towed = gradients(held)
        (held, query_gradient, towed), _ = lax.scan(hop, (coming, query_gradient, towed), length=ring - 2)
        arriving = _send_on(towed, ring)
        more, *parts = gradients(held)
        query_gradient += more
        towed = _send_on([a + b for a, b in zip(arriving, parts, strict=True)], ring)  # and home
    key_gradient, value_gradient = towed
    return (
        query_gradient.astype(query.dtype),
        key_gradient.astype(key.dtype),
        value_gradient.astype(value.dtype),
        None,
        None,
    )


_local_attention.defvjp(_forward, _backward)
