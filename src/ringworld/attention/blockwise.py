"""Attention of the queries and keys that one device holds, block by block: exact, and linear in memory.

Forward is the online softmax; backward recomputes each block's weights from the log-sum-exp, so neither holds more
than one block of scores. (Rabe and Staats, arXiv 2112.05682; Dao et al., arXiv 2205.14135; Liu and Abbeel, arXiv
2305.19370.)

Which blocks are visited follows from the segments and positions alone (`_Reach`), never from the layout: a pair of
blocks in which no query sees a key is skipped, one in which every query sees every key is computed without a mask. So
the same code serves whole sequences, packed documents, and a hop of the ring in any order. The loops have traced
bounds, which only a hand-written backward pass allows; `ring.py` joins the two halves into one differentiable
function.

Arrays are brought into blocks once per call: queries [N, g, blocks, R, K] where N counts groups of g key heads and
the R rows of a block are its positions times the query heads that share a key head, so that grouped queries never
repeat K or V.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from ringworld.attention.exponential import LOG2_E, polynomial_exp2
from ringworld.mesh import usable_cores

State = TypeVar("State")

# Stands for minus infinity: finite, so that a difference of two of them is 0 and not NaN.
MASKED = -1e30


@dataclass(frozen=True)
class Blocks:
    """How the work is cut: positions in a block of queries and of keys, key heads computed together, and what
    computes powers of two."""

    query: int = 512
    key: int = 512
    heads: int | None = None  # None: all of them
    exp2: Callable[[Array], Array] = jnp.exp2

    @classmethod
    def choose(cls, mesh: Mesh, length: int) -> "Blocks":
        """Good sizes for the back end of these devices and a number of positions on each.

        A CPU works on one head at a time, in blocks whose scores stay near its cores: 256 x 256 are a quarter of a MB.
        Where a device has several cores, 512 x 512 are large enough that they share a product. Short rows want smaller
        blocks, as the diagonal ones are half wasted.
        """
        if mesh.devices.flat[0].platform == "cpu":
            shared = usable_cores() > len(mesh.local_devices)
            side = 128 if length <= 512 else 256 if length <= (1024 if shared else 4096) else 512
            return cls(side, side, 1, polynomial_exp2)
        return cls()


class Positions(NamedTuple):
    """Where tokens stand: the document that each belongs to (0 is padding), and its place in it. Int [B, S] each."""

    segments: Array
    positions: Array


def _dot(a: Array, b: Array) -> Array:
    """[g, m, k] @ [g, k, n] accumulated in float32."""
    return lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32)


def _pad(array: Array, block: int, fill: int = 0) -> Array:
    """Pads axis 1 to a multiple of `block`."""
    extra = -array.shape[1] % block
    return jnp.pad(array, [(0, 0), (0, extra)] + [(0, 0)] * (array.ndim - 2), constant_values=fill) if extra else array


class _Split(NamedTuple):
    """How [B, S, heads, K] is cut into [N, g, blocks, R, K] and joined again."""

    batch: int
    length: int
    kv_heads: int
    heads: int  # g, key heads computed together
    group: int  # query heads a key head
    block: int

    def cut(self, array: Array) -> Array:
        array = _pad(array, self.block)
        width = array.shape[-1]
        array = array.reshape(self.batch, -1, self.block, self.kv_heads // self.heads, self.heads, self.group, width)
        array = array.transpose(0, 3, 4, 1, 5, 2, 6)
        return array.reshape(-1, self.heads, array.shape[3], self.group * self.block, width)

    def join(self, blocks: Array) -> Array:
        width = blocks.shape[-1]
        array = blocks.reshape(self.batch, self.kv_heads // self.heads, self.heads, -1, self.group, self.block, width)
        array = array.transpose(0, 3, 5, 1, 2, 4, 6)
        return array.reshape(self.batch, -1, self.kv_heads * self.group, width)[:, : self.length]

    def cut_positions(self, where: Positions, padding: int) -> Positions:
        """[B, S] -> [N, blocks, block]; padding gets a segment that equals no other's."""
        segments = jnp.where(where.segments > 0, where.segments, padding)
        cut = (_pad(segments, self.block, padding), _pad(where.positions, self.block))
        copies = self.kv_heads // self.heads
        return Positions(*(jnp.repeat(x.reshape(self.batch, -1, self.block), copies, axis=0) for x in cut))


def _splits(query: Array, key: Array, blocks: Blocks) -> tuple[_Split, _Split]:
    batch, query_length, heads, _ = query.shape
    _, key_length, kv_heads, _ = key.shape
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads do not divide among {kv_heads} key heads")
    together = min(blocks.heads or kv_heads, kv_heads)
    if kv_heads % together:
        raise ValueError(f"{kv_heads} key heads cannot be computed {together} at a time")

    def size(block: int, length: int) -> int:
        return min(block, -(-length // 8) * 8)

    return (
        _Split(batch, query_length, kv_heads, together, heads // kv_heads, size(blocks.query, query_length)),
        _Split(batch, key_length, kv_heads, together, 1, size(blocks.key, key_length)),
    )


class _Reach(NamedTuple):
    """What a block of queries or keys spans, from which visits are decided. Int [..., blocks] each."""

    first_segment: Array
    first_position: Array  # the lowest in the first segment
    last_segment: Array
    last_position: Array  # the highest in the last segment
    lowest: Array
    highest: Array

    @classmethod
    def of(cls, where: Positions) -> "_Reach":
        segments, positions = where
        first, last = segments.min(-1), segments.max(-1)
        limit = jnp.iinfo(positions.dtype)
        return cls(
            first,
            jnp.where(segments == first[..., None], positions, limit.max).min(-1),
            last,
            jnp.where(segments == last[..., None], positions, limit.min).max(-1),
            positions.min(-1),
            positions.max(-1),
        )


class _Visits(NamedTuple):
    """The blocks on the other side that one block has to visit: [start, stop), unmasked in [full_start, full_stop)."""

    start: Array
    full_start: Array
    full_stop: Array
    stop: Array

    @classmethod
    def of(cls, queries: _Reach, keys: _Reach) -> "_Visits":
        """One side is a single block, the other all blocks.

        In (segment, position) order a pair is dark if the last query comes before the first key, or if the keys' last
        segment is before the queries' first one. Both are sufficient in any layout, and exact for packed rows up to
        the block at a border.
        """
        query_is_late = (queries.last_segment > keys.first_segment) | (
            (queries.last_segment == keys.first_segment) & (queries.last_position >= keys.first_position)
        )
        lit = query_is_late & (keys.last_segment >= queries.first_segment)
        full = (
            (queries.first_segment == keys.last_segment)
            & (queries.last_segment == keys.first_segment)
            & (queries.lowest >= keys.highest)
        )
        start, stop = _span(lit)
        full_start, full_stop = _first_run(full)
        return cls(start, jnp.clip(full_start, start, stop), jnp.clip(full_stop, start, stop), stop)

    def loop(
        self, full: Callable[[Array, State], State], masked: Callable[[Array, State], State], state: State
    ) -> State:
        """Visits the blocks: first those without a mask, then those on either side of them."""
        state = lax.fori_loop(self.full_start, self.full_stop, full, state)
        before = self.full_start - self.start

        def visit(i: Array, state: State) -> State:
            return masked(jnp.where(i < before, self.start + i, self.full_stop + i - before), state)

        return lax.fori_loop(0, before + self.stop - self.full_stop, visit, state)


def _span(flags: Array) -> tuple[Array, Array]:
    """[start, stop) from the first true flag to the last; (0, 0) if none is."""
    places = jnp.arange(flags.shape[0], dtype=jnp.int32)
    stop = jnp.where(flags, places + 1, 0).max()
    return jnp.minimum(jnp.where(flags, places, flags.shape[0]).min(), stop), stop


def _first_run(flags: Array) -> tuple[Array, Array]:
    """[start, stop) of the first unbroken run of true flags; empty if there is none."""
    places = jnp.arange(flags.shape[0], dtype=jnp.int32)
    start, _ = _span(flags)
    return start, jnp.where(~flags & (places >= start), places, flags.shape[0]).min()


def _mask(query: Positions, key: Positions, group: int) -> Array:
    """bool [R, key block]; the padding segments of queries and of keys differ, so equality says it all."""
    segments, positions = (jnp.tile(x, group)[:, None] for x in query)
    return (segments == key.segments[None]) & (positions >= key.positions[None])


def forward(
    query: Float[Array, "B Q H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K"],
    query_where: Positions,
    key_where: Positions,
    blocks: Blocks,
) -> tuple[Float[Array, "B Q H K"], Float[Array, "B Q H 1"]]:
    """Attention of these queries over these keys, and the log-sum-exp (base e) of its scores, both float32.

    A query that sees no key gives 0, and `MASKED` for its log-sum-exp: the neutral element of `merge`.
    """
    rows, columns = _splits(query, key, blocks)
    scale = query.shape[-1] ** -0.5

    def one(operands: tuple[Array, Array, Array, Positions, Positions]) -> tuple[Array, Array]:
        query, key_transposed, value, query_where, key_where = operands
        key_reach = _Reach.of(key_where)

        def query_block(_: None, block: tuple[Array, Positions]) -> tuple[None, tuple[Array, Array]]:
            query, where = block
            reach = _Reach.of(where)

            def update(j: Array, state: tuple[Array, Array, Array], masked: bool) -> tuple[Array, Array, Array]:
                output, largest, total = state
                scores = _dot(query, lax.dynamic_index_in_dim(key_transposed, j, 1, keepdims=False))
                mask = None
                if masked:
                    here = Positions(*(lax.dynamic_index_in_dim(x, j, 0, keepdims=False) for x in key_where))
                    mask = _mask(where, here, rows.group)[None]
                    scores = jnp.where(mask, scores, MASKED)
                new_largest = jnp.maximum(largest, scores.max(-1, keepdims=True))
                weights = blocks.exp2(scores - new_largest)
                if mask is not None:
                    weights = jnp.where(mask, weights, 0.0)
                shrink = blocks.exp2(largest - new_largest)
                values = lax.dynamic_index_in_dim(value, j, 1, keepdims=False)
                output = output * shrink + _dot(weights.astype(values.dtype), values)
                return output, new_largest, total * shrink + weights.sum(-1, keepdims=True)

            edge = (*query.shape[:-1], 1)
            state = (
                jnp.zeros(query.shape, jnp.float32),
                jnp.full(edge, MASKED, jnp.float32),
                jnp.zeros(edge, jnp.float32),
            )
            output, largest, total = _Visits.of(reach, key_reach).loop(
                lambda j, s: update(j, s, False), lambda j, s: update(j, s, True), state
            )
            seen = total > 0
            safe = jnp.where(seen, total, 1.0)
            return None, (output / safe, jnp.where(seen, largest / LOG2_E + jnp.log(safe), MASKED))

        _, (output, log_sum) = lax.scan(query_block, None, (query.swapaxes(0, 1), query_where))
        return output.swapaxes(0, 1), log_sum.swapaxes(0, 1)

    output, log_sum = lax.map(
        one,
        (
            rows.cut(query * (scale * LOG2_E)),
            columns.cut(key).swapaxes(-1, -2),
            columns.cut(value),
            rows.cut_positions(query_where, -1),
            columns.cut_positions(key_where, -2),
        ),
    )
    return rows.join(output), rows.join(log_sum)


def merge(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Joins attention over two sets of keys, each an (output, log-sum-exp), into attention over both."""
    (output_a, log_a), (output_b, log_b) = a, b
    largest = jnp.maximum(log_a, log_b)  # the form with the maximum: exp never sees a positive number
    weight_a, weight_b = jnp.exp(log_a - largest), jnp.exp(log_b - largest)
    total = weight_a + weight_b
    return (output_a * weight_a + output_b * weight_b) / total, largest + jnp.log(total)


def backward(
    query: Float[Array, "B Q H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K"],
    query_where: Positions,
    key_where: Positions,
    log_sum: Float[Array, "B Q H 1"],
    delta: Float[Array, "B Q H 1"],
    gradient: Float[Array, "B Q H K"],
    blocks: Blocks,
) -> tuple[Float[Array, "B Q H K"], Float[Array, "B S G K"], Float[Array, "B S G K"]]:
    """Gradients in float32 of query, key and value, of the part of the attention that goes over these keys.

    `log_sum` is that over *all* keys, `gradient` that of the output, `delta` = sum(gradient * output). One pass: for
    each block of keys over the queries that see it. Operands are transposed once, so that every product is a plain
    [m, k] @ [k, n].
    """
    rows, columns = _splits(query, key, blocks)
    scale = query.shape[-1] ** -0.5

    def one(operands: tuple[Any, ...]) -> tuple[Array, Array, Array]:
        query, gradient, log_sum, delta, key, value, query_where, key_where = operands
        query_transposed, gradient_transposed = query.swapaxes(-1, -2), gradient.swapaxes(-1, -2)
        query_reach = _Reach.of(query_where)

        def key_block(
            query_gradient: Array, block: tuple[Array, Array, Positions]
        ) -> tuple[Array, tuple[Array, Array]]:
            key, value, where = block
            key_transposed, value_transposed = key.swapaxes(-1, -2), value.swapaxes(-1, -2)
            reach = _Reach.of(where)

            def update(i: Array, state: tuple[Array, Array, Array], masked: bool) -> tuple[Array, Array, Array]:
                query_gradient, key_gradient, value_gradient = state

                def at(array: Array) -> Array:
                    return lax.dynamic_index_in_dim(array, i, 1, keepdims=False)

                weights = blocks.exp2(_dot(at(query), key_transposed) - at(log_sum))
                if masked:
                    here = Positions(*(lax.dynamic_index_in_dim(x, i, 0, keepdims=False) for x in query_where))
                    weights = jnp.where(_mask(here, where, rows.group)[None], weights, 0.0)
                score_gradient = weights * (_dot(at(gradient), value_transposed) - at(delta))
                score_gradient = score_gradient.astype(key.dtype)
                value_gradient += _dot(at(gradient_transposed), weights.astype(key.dtype))
                key_gradient += _dot(at(query_transposed), score_gradient)
                block_gradient = at(query_gradient) + _dot(score_gradient, key)
                return (
                    lax.dynamic_update_index_in_dim(query_gradient, block_gradient, i, 1),
                    key_gradient,
                    value_gradient,
                )

            zeros = jnp.zeros(key_transposed.shape, jnp.float32)
            query_gradient, key_gradient, value_gradient = _Visits.of(query_reach, reach).loop(
                lambda i, s: update(i, s, False), lambda i, s: update(i, s, True), (query_gradient, zeros, zeros)
            )
            return query_gradient, (key_gradient, value_gradient)

        by_block = (key.swapaxes(0, 1), value.swapaxes(0, 1), key_where)
        query_gradient, transposed = lax.scan(key_block, jnp.zeros(query.shape, jnp.float32), by_block)
        key_gradient, value_gradient = (x.swapaxes(0, 1).swapaxes(-1, -2) for x in transposed)
        return query_gradient, key_gradient, value_gradient

    query_gradient, key_gradient, value_gradient = lax.map(
        one,
        (
            rows.cut(query * (scale * LOG2_E)),
            rows.cut(gradient),
            rows.cut(log_sum * LOG2_E),
            rows.cut(delta),
            columns.cut(key),
            columns.cut(value),
            rows.cut_positions(query_where, -1),
            columns.cut_positions(key_where, -2),
        ),
    )
    return rows.join(query_gradient) * scale, columns.join(key_gradient) / LOG2_E, columns.join(value_gradient)
