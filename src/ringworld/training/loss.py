"""Cross-entropy over a long sequence, never holding [S, V].

The loss is one weighted sum over the whole mesh, divided once: every device adds up w * nll and w over its own
tokens, chunk by chunk, and the sums are joined at the end. Gradients are made in the same pass, while a chunk's
logits are there, since the loss is linear in what comes after: three products a chunk where recomputation would need
four. (The idea of Liger-Kernel, arXiv 2410.10989.)
"""

from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from ringworld.mesh import RULES, partition_spec

TOKENS = 1024  # of one device, whose logits are held at once


class Sums(NamedTuple):
    """Over all tokens of the batch; float32 scalars. loss = nll / weight, accuracy = correct / weight."""

    nll: Array
    weight: Array
    correct: Array


def cross_entropy(
    hidden: Float[Array, "B S D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B S"],
    weights: Float[Array, "B S"],
    *,
    slices: tuple[slice, ...],
    mesh: Mesh,
    z_loss: float = 0.0,
    tokens: int = TOKENS,
) -> Sums:
    """Weighted sums of -log p(target), and of hits; p is a softmax over the target's own slice of the vocabulary.

    Args:
        slices: the modalities' parts of the vocabulary (`Vocabulary.modalities`); one slice over all of it is the
            joint softmax.
        z_loss: so many times the square of log Z is added to each -log p, Z being what that softmax divides by, so
            that logits do not drift. (PaLM, arXiv 2204.02311, section 5, has 1e-4.) A loss that is compared with
            others goes without it.
        tokens: how many tokens' logits a device holds at once, at most.

    Raises:
        ValueError: z_loss is not a number from 0 up.
    """
    if not 0 <= z_loss < float("inf"):
        raise ValueError(f"z_loss must be a number from 0 up, got {z_loss}")
    bounds = tuple((part.start, part.stop) for part in slices)
    sums: Any = _cross_entropy(hidden, head, targets, weights, bounds, mesh, z_loss, tokens)
    return Sums(*sums)


@partial(jax.custom_vjp, nondiff_argnames=("bounds", "mesh", "z_loss", "tokens"))
def _cross_entropy(hidden, head, targets, weights, bounds, mesh, z_loss, tokens) -> Any:
    return _sums(hidden, head, targets, weights, bounds, mesh, z_loss, tokens, gradients=False)[0]


def _forward(hidden, head, targets, weights, bounds, mesh, z_loss, tokens):
    return _sums(hidden, head, targets, weights, bounds, mesh, z_loss, tokens, gradients=True)


def _backward(bounds, mesh, z_loss, tokens, saved, cotangents):
    hidden_gradient, head_gradient = saved
    scale = cotangents[0]  # of the nll: nothing else depends on the weights of the model
    return (hidden_gradient * scale).astype(hidden_gradient.dtype), head_gradient * scale, None, None


_cross_entropy.defvjp(_forward, _backward)


def _sums(hidden, head, targets, weights, bounds, mesh: Mesh, z_loss: float, tokens: int, gradients: bool) -> Any:
    """The three sums, and the gradients of the nll with respect to hidden and head."""
    columns_split = head.shape[1] % mesh.shape["tensor"] == 0
    by_token, by_column = (
        partition_spec(("batch", "sequence")),
        partition_spec((None, "vocabulary" if columns_split else None)),
    )
    everywhere = RULES["batch"] + RULES["sequence"]
    tensor = ("tensor",) if columns_split else ()

    def local(hidden, head, targets, weights):
        width, columns = head.shape
        first = lax.axis_index("tensor") * columns if columns_split else 0
        count = targets.size
        size = min(tokens, -(-count // 16))  # the last chunk of a slice is half empty: a small part of all
        rows, targets, weights = hidden.reshape(count, width), targets.reshape(count), weights.reshape(count)
        # Slice after slice, so that each token meets its own part of the vocabulary alone. What is not trained on comes
        # last, and is never looked at: of a long film, all but the answers.
        part = jnp.where(weights == 0, len(bounds), _part_of(targets, bounds))
        order = jnp.argsort(part)
        ends = jnp.searchsorted(part[order], jnp.arange(len(bounds)), side="right")
        order = jnp.pad(order, (0, size), constant_values=count)

        def chunk(number: Array, so_far: Any, begin: Array, end: Array, bound: tuple[int, int]) -> Any:
            sums, hidden_gradient, head_gradient = so_far
            # Where columns are split, which of them belong to the slice is not the same on all devices.
            low, high = (0, columns) if columns_split else bound
            places = first + jnp.arange(low, high, dtype=jnp.int32)[None]
            at = begin + number * size
            chosen = jnp.where(at + jnp.arange(size) < end, lax.dynamic_slice_in_dim(order, at, size), count)
            hidden, target, weight = (
                array.at[chosen].get(mode="fill", fill_value=fill)
                for array, fill in ((rows, 0), (targets, bound[0]), (weights, 0))
            )
            mine = head[:, low:high].astype(hidden.dtype)
            logits = lax.dot(hidden, mine, preferred_element_type=jnp.float32)
            if columns_split:
                logits = jnp.where(_part_of(places, (bound,)) == 0, logits, -jnp.inf)
            is_target = target[:, None] == places
            largest = lax.pmax(logits.max(-1), tensor)
            exponentials = jnp.exp(logits - largest[:, None])
            total = lax.psum(exponentials.sum(-1), tensor)
            at_target = lax.psum(jnp.where(is_target, logits, 0.0).sum(-1), tensor)
            log_total = largest + jnp.log(total)
            nll, slope = log_total - at_target, weight
            if z_loss:
                nll += z_loss * log_total**2
                slope *= 1 + 2 * z_loss * log_total
            trained = weight > 0
            sums += jnp.stack(
                [jnp.where(trained, weight * nll, 0.0).sum(), weight.sum(), (weight * (at_target >= largest)).sum()]
            )
            if not gradients:
                return sums, hidden_gradient, head_gradient
            logit_gradient = (
                (slope / total)[:, None] * exponentials - jnp.where(is_target, weight[:, None], 0.0)
            ).astype(hidden.dtype)
            back = lax.psum(lax.dot(logit_gradient, mine.T), tensor)
            hidden_gradient = hidden_gradient.at[chosen].set(back, mode="drop")
            head_gradient = head_gradient.at[:, low:high].add(
                lax.dot(hidden.T, logit_gradient, preferred_element_type=jnp.float32)
            )
            return sums, hidden_gradient, head_gradient

        sums_and_gradients = (
            jnp.zeros(3, jnp.float32),
            jnp.zeros_like(rows) if gradients else None,
            jnp.zeros((width, columns), jnp.float32) if gradients else None,
        )
        begin = jnp.zeros_like(ends[0])
        for bound, end in zip(bounds, ends, strict=True):
            # Devices wait for one another in a chunk, so each takes as many.
            chunks = lax.pmax(-(-(end - begin) // size), everywhere)
            each = partial(chunk, begin=begin, end=end, bound=bound)
            sums_and_gradients = lax.fori_loop(0, chunks, each, sums_and_gradients)
            begin = end
        sums, hidden_gradient, head_gradient = cast(Any, sums_and_gradients)
        sums = tuple(lax.psum(sums, everywhere))
        if not gradients:
            return sums, None
        return sums, (hidden_gradient.reshape(hidden.shape), lax.psum(head_gradient, everywhere))

    by_hidden = partition_spec(("batch", "sequence", None))
    scalars = (PartitionSpec(),) * 3
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(by_hidden, by_column, by_token, by_token),
        out_specs=(scalars, (by_hidden, by_column) if gradients else None),
        check_vma=False,
    )(hidden, head, targets, weights)


def _part_of(ids: Array, bounds: tuple[tuple[int, int], ...]) -> Array:
    """Which slice of the vocabulary each id lies in; -1 if in none."""
    part = jnp.full(ids.shape, -1, jnp.int32)
    for index, (start, stop) in enumerate(bounds):
        part = jnp.where((ids >= start) & (ids < stop), index, part)
    return part
