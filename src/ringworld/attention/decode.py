"""A few new queries against a long cache that lies sharded over the ring.

The cache does not move: the queries (kilobytes) are with every device, each reads its own slice of the cache
(gigabytes), and the partial results are joined by their log-sum-exp. New keys are dealt out to the devices in turn,
one or many at a time, so that slices stay equal however long one decodes or reads on.

Keys and values may be kept in fewer bytes than they are computed in (`Slots`). They are unpacked where they are read,
a piece of the slice at a time, and never all of them.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from ringworld.attention import blockwise
from ringworld.attention.blockwise import MASKED, Blocks, Positions
from ringworld.attention.reference import visible
from ringworld.mesh import named_sharding, partition_spec

CACHE_AXES = (None, "batch", "sequence", "kv_heads", None)
CacheType = Literal["float32", "bfloat16", "int8"]

# bfloat16 is kept as its bits. Of an array of bfloat16 that a loop carries, XLA's CPU back end makes a float32 copy,
# all of it and for every token: decoding took 3.6 times as long as with float32.
_BITS = jnp.dtype(jnp.uint16)
_INT8 = jnp.dtype(jnp.int8)
_STORED: dict[CacheType, Any] = {"float32": jnp.dtype(jnp.float32), "bfloat16": _BITS, "int8": _INT8}


def bytes_each(cache_type: CacheType, head_dim: int) -> int:
    """Of a key or a value of one head."""
    return head_dim * _STORED[cache_type].itemsize + (4 if cache_type == "int8" else 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """Keys or values of all layers in C slots a row, or of one layer's new tokens, in the type in which they are kept.

    float32 is kept as it is, bfloat16 rounded to nearest. int8 is symmetric, with a scale for each token and key head,
    the largest magnitude in it / 127: a number is off by half the scale at most.
    """

    data: Any  # [L, B, C, G, K] float32, uint16 (the bits of bfloat16) or int8
    scales: Any  # [L, B, C, G, 1] float32, of int8; None: the others have none

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], cache_type: CacheType, mesh: Mesh) -> "Slots":
        """Zeros [L, B, C, G, K], spread over the mesh."""
        where = named_sharding(mesh, CACHE_AXES)
        data = jnp.zeros(shape, _STORED[cache_type], device=where)
        return cls(data, jnp.zeros((*shape[:-1], 1), device=where) if cache_type == "int8" else None)

    @property
    def cache_type(self) -> CacheType:
        return next(name for name in get_args(CacheType) if _STORED[name] == self.data.dtype)

    def pack(self, new: Float[Array, "*batch K"]) -> "Slots":
        """These keys or values in the type of these slots."""
        new = new.astype(jnp.float32)
        if self.data.dtype == _INT8:
            scales = jnp.abs(new).max(-1, keepdims=True) / 127
            return Slots(jnp.round(new / jnp.where(scales > 0, scales, 1)).astype(_INT8), scales)
        if self.data.dtype == _BITS:
            return Slots(lax.bitcast_convert_type(new.astype(jnp.bfloat16), _BITS), None)
        return Slots(new, None)

    def unpack(self) -> Float[Array, "*batch K"]:
        """The keys or values in float32."""
        if self.data.dtype == _INT8:
            return self.data.astype(jnp.float32) * self.scales
        if self.data.dtype == _BITS:
            return lax.bitcast_convert_type(self.data.astype(jnp.uint32) << 16, jnp.float32)
        return self.data

    def is_deleted(self) -> bool:
        """Whether a compiled function, to which they were donated, used them up."""
        return self.data.is_deleted()


def fill(cache: Slots, new: Slots, layer: Int[Array, ""], *, mesh: Mesh) -> Slots:
    """Writes keys or values of one layer, [B, S, G, K], to the front of every device's slice, in the order in which
    they lie there."""

    def local(cache: Slots, new: Slots, layer: Array) -> Slots:
        def write(old: Array, new: Array) -> Array:
            return lax.dynamic_update_slice(old, new[None], (layer, 0, 0, 0, 0))

        return jax.tree.map(write, cache, new)

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


# Slots of a device that are unpacked at once. Between 512 and 16,384 the time of a CPU hardly depends on it.
_PIECE = 2048


@dataclass(frozen=True)
class _Pieces:
    """How a device reads its slice of one layer: whole if it lies there in the type of the products, else in pieces,
    of which one at a time is unpacked. The last one begins early rather than that it ended late."""

    length: int
    size: int

    @classmethod
    def of(cls, slots: Slots, dtype: Any) -> "_Pieces":
        length = slots.data.shape[2]
        return cls(length, length if slots.data.dtype == dtype else min(length, _PIECE))

    @property
    def numbers(self) -> Int[Array, "pieces"]:
        return jnp.arange(-(-self.length // self.size))

    def _start(self, number: Array) -> Array:
        return jnp.minimum(number * self.size, self.length - self.size)

    def where(self, number: Array, segments: Array, positions: Array) -> Positions:
        """What the slots of a piece hold: nothing, where they are also in the piece before."""
        start = self._start(number)
        segments, positions = (lax.dynamic_slice_in_dim(x, start, self.size, 1) for x in (segments, positions))
        again = (start + jnp.arange(self.size) < number * self.size)[None]
        return Positions(jnp.where(again, 0, segments), positions)

    def read(self, number: Array, slots: Slots, layer: Array) -> Float[Array, "B piece G K"]:
        def cut(array: Array) -> Array:
            size = (1, array.shape[1], self.size, *array.shape[3:])
            return lax.dynamic_slice(array, (layer, 0, self._start(number), 0, 0), size)[0]

        return jax.tree.map(cut, slots).unpack()


def extend_attention(
    query: Float[Array, "B S H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K"],
    keys: Slots,
    values: Slots,
    layer: Int[Array, ""],
    segments: Int[Array, "B C"],
    positions: Int[Array, "B C"],
    query_segments: Int[Array, "B S"],
    query_positions: Int[Array, "B S"],
    filled: Int[Array, ""],
    dealt: Int[Array, ""],
    *,
    mesh: Mesh,
) -> tuple[Float[Array, "B S H K"], Slots, Slots]:
    """Adds the keys and values of a piece of text to one layer of the cache, and attends to all of it: to what was
    there, and causally to the piece itself. Block by block, so no more than one block of scores is held.

    Args:
        query, key, value: in `dealing_order`, sharded along the sequence.
        segments, positions: of the cache's slots, with the new tokens' already there; 0 marks an empty slot.
        query_segments: 1, or 0 for padding.
        filled: slots of each device that a prompt has taken. dealt: tokens that came since.
    """
    ring = mesh.shape["sequence"]
    blocks = Blocks.choose(mesh, keys.data.shape[2] // ring)

    def local(
        query, key, value, keys, values, layer, segments, positions, query_segments, query_positions, filled, dealt
    ):
        def write(old: Array, new: Array) -> Array:
            return deal_many(old, new[None], (layer, 0, 0, 0), filled, dealt, 2, ring)

        keys, values = (jax.tree.map(write, old, old.pack(new)) for old, new in ((keys, key), (values, value)))
        asked, *where = (
            lax.all_gather(x, "sequence", axis=1, tiled=True) for x in (query, query_segments, query_positions)
        )
        pieces = _Pieces.of(keys, asked.dtype)

        def over(so_far: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
            key, value = (pieces.read(number, held, layer).astype(asked.dtype) for held in (keys, values))
            here = pieces.where(number, segments, positions)
            return blockwise.merge(so_far, blockwise.forward(asked, key, value, Positions(*where), here, blocks)), None

        nothing = (jnp.zeros(asked.shape, jnp.float32), jnp.full((*asked.shape[:-1], 1), MASKED, jnp.float32))
        (output, log_sum), _ = lax.scan(over, nothing, pieces.numbers)
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
    keys: Slots,
    values: Slots,
    layer: Int[Array, ""],
    segments: Int[Array, "B C"],
    positions: Int[Array, "B C"],
    query_positions: Int[Array, "B 1"],
    filled: Int[Array, ""],
    dealt: Int[Array, ""],
    *,
    mesh: Mesh,
) -> tuple[Float[Array, "B 1 H K"], Slots, Slots]:
    """Adds one token's key and value to one layer of the cache, and attends to all of it. The query is of segment 1.

    Args:
        segments, positions: of the cache's slots, with the new token's already there; 0 marks an empty slot.
        filled: slots of each device that a prompt has taken. dealt: tokens that were decoded since.
    """
    ring = mesh.shape["sequence"]

    def local(query, key, value, keys, values, layer, segments, positions, query_positions, filled, dealt):
        def write(old: Array, new: Array) -> Array:
            return deal(old, new[None], (layer, 0, 0, 0), filled, dealt, 2, ring)

        keys, values = (jax.tree.map(write, old, old.pack(new)) for old, new in ((keys, key), (values, value)))
        rows, count, heads, width = query.shape
        kv_heads = key.shape[2]
        grouped = query.reshape(rows, count, kv_heads, heads // kv_heads, width).astype(jnp.float32) * width**-0.5
        pieces = _Pieces.of(keys, grouped.dtype)

        def scores_of(number: Array) -> tuple[Array, Array]:
            held, where = pieces.read(number, keys, layer), pieces.where(number, segments, positions)
            scores = jnp.einsum("btgnk,bcgk->bgntc", grouped, held, preferred_element_type=jnp.float32)
            mask = visible(jnp.ones_like(query_positions), where.segments, query_positions, where.positions)
            mask = mask[:, None, None]
            return jnp.where(mask, scores, MASKED), mask

        def weighted(part: tuple[Array, Array]) -> Array:
            number, weights = part
            held = pieces.read(number, values, layer)
            return jnp.einsum("bgntc,bcgk->bgntk", weights, held, preferred_element_type=jnp.float32)

        scores, mask = lax.map(scores_of, pieces.numbers)
        largest = lax.pmax(scores.max((0, -1))[..., None], "sequence")
        weights = jnp.where(mask, jnp.exp(scores - largest[None]), 0.0)
        total = lax.psum(weights.sum((0, -1))[..., None], "sequence")
        output = lax.map(weighted, (pieces.numbers, weights)).sum(0)
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
