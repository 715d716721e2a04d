"""Dense attention in float32: the executable specification that every other form is tested against.

It holds [S, S] scores: for tests and short sequences only.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def visible(
    query_segments: Int[Array, "*batch Q"],
    key_segments: Int[Array, "*batch S"],
    query_positions: Int[Array, "*batch Q"],
    key_positions: Int[Array, "*batch S"],
) -> Array:
    """The mask rule, once: a query sees a key of its own document at its own position or before it. bool [*batch, Q,
    S].

    Segment 0 is padding: it sees nothing and nothing sees it. The rule needs no order in memory, so it holds in any
    layout.
    """
    same_document = (query_segments[..., :, None] == key_segments[..., None, :]) & (query_segments[..., :, None] > 0)
    return same_document & (query_positions[..., :, None] >= key_positions[..., None, :])


def reference_attention(
    query: Float[Array, "B S H K"],
    key: Float[Array, "B S G K"],
    value: Float[Array, "B S G K"],
    segments: Int[Array, "B S"],
    positions: Int[Array, "B S"],
) -> Float[Array, "B S H K"]:
    """Causal attention within documents, grouped queries (query head h reads key head h // (H/G)), scaled by 1/sqrt(K).

    Rows of padding are exactly zero. (Vaswani et al., arXiv 1706.03762; grouped queries: Ainslie et al., arXiv
    2305.13245.)
    """
    group = query.shape[2] // key.shape[2]
    key, value = (jnp.repeat(x.astype(jnp.float32), group, axis=2) for x in (key, value))
    scores = jnp.einsum("bqhk,bshk->bhqs", query.astype(jnp.float32), key) / jnp.sqrt(query.shape[-1])
    mask = visible(segments, segments, positions, positions)[:, None]
    # `where` on both sides of the softmax: a row without a visible key must give 0, and 0 gradients, not NaN.
    weights = jnp.where(mask, jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1), 0.0)
    return jnp.einsum("bhqs,bshk->bqhk", weights, value).astype(query.dtype)
