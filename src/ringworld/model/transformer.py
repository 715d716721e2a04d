"""Weights and forward pass.

Weights are declared once, in `declare`. Layers are stacked on a leading axis and scanned, so compile time does not grow
with depth. The forward pass is plain functions; what differs between training, prefill and decoding is one of them,
`Attend`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_policies
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ringworld.attention import attention
from ringworld.attention.ring import SAVED
from ringworld.mesh import RULES, constrain, partition_spec
from ringworld.model.config import ModelConfig
from ringworld.model.rope import Frequencies, Rotation, rotate, rotate_queries, rotation
from ringworld.parameters import Parameter

# Tokens of one device that pass through a feed-forward at once: beyond it the [tokens, F] between its products is
# what fills the memory.
FEED_FORWARD_TOKENS = 16384


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layers:
    """Weights of all layers, stacked. A norm that the model does not have is None."""

    attention_norm: Any  # [L, D]
    query: Any  # [L, D, H, K]
    key: Any  # [L, D, G, K]
    value: Any  # [L, D, G, K]
    output: Any  # [L, H, K, D]
    query_norm: Any  # [L, K]
    key_norm: Any  # [L, K]
    ffn_norm: Any  # [L, D]
    gate: Any  # [L, D, F]
    up: Any  # [L, D, F]
    down: Any  # [L, F, D]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Weights:
    """All weights of a model; the same tree holds their declarations, shardings or gradients."""

    embedding: Any  # [V, D]
    layers: Layers
    final_norm: Any  # [D]
    head: Any  # [D, V]; None when tied to the embedding


def declare(config: ModelConfig) -> Weights:
    """Every weight's shape, logical axes and initialiser: a tree of `Parameter`.

    What writes to the residual stream begins at 0, and the embedding large enough to fill it (Zhang et al., arXiv
    1901.09321): a layer first reads tokens as they are. In the nano recipe 92% of the first stage's answers were right
    in less than half of the steps that GPT-2's initialisation took. The rows of the embedding begin with a vector in
    common, by which a head can look so many places back whatever token is there (docs/results.md for both).
    """
    c, depth = config, config.layers

    def norm(size: int) -> Parameter:
        return Parameter((depth, size), (None, None), None)

    layers = Layers(
        attention_norm=norm(c.dim),
        query=Parameter((depth, c.dim, c.heads, c.head_dim), (None, "embed", "heads", None), c.dim**-0.5, inputs=(1,)),
        key=Parameter(
            (depth, c.dim, c.kv_heads, c.head_dim), (None, "embed", "kv_heads", None), c.dim**-0.5, inputs=(1,)
        ),
        value=Parameter(
            (depth, c.dim, c.kv_heads, c.head_dim), (None, "embed", "kv_heads", None), c.dim**-0.5, inputs=(1,)
        ),
        output=Parameter(
            (depth, c.heads, c.head_dim, c.dim),
            (None, "heads", None, "embed"),
            0.0,
            inputs=(1, 2),
        ),
        query_norm=norm(c.head_dim) if c.qk_norm else None,
        key_norm=norm(c.head_dim) if c.qk_norm else None,
        ffn_norm=norm(c.dim),
        gate=Parameter((depth, c.dim, c.ffn), (None, "embed", "ffn"), c.dim**-0.5, inputs=(1,)),
        up=Parameter((depth, c.dim, c.ffn), (None, "embed", "ffn"), c.dim**-0.5, inputs=(1,)),
        down=Parameter((depth, c.ffn, c.dim), (None, "ffn", "embed"), 0.0, inputs=(1,)),
    )
    return Weights(
        embedding=Parameter((c.vocabulary_size, c.dim), ("vocabulary", "embed"), c.dim**-0.5, common=True),
        layers=layers,
        final_norm=Parameter((c.dim,), (None,), None),
        head=None if c.tied else Parameter((c.dim, c.vocabulary_size), ("embed", "vocabulary"), c.dim**-0.5),
    )


def _along_last(vector: Float[Array, "N"], like: Array) -> Array:
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def rms_norm(x: Float[Array, "*batch N"], gain: Float[Array, "N"], eps: float) -> Float[Array, "*batch N"]:
    """Root-mean-square norm, in float32. (Zhang and Sennrich, arXiv 1910.07467.)"""
    wide = x.astype(jnp.float32)
    return (wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps) * _along_last(gain, x)).astype(
        x.dtype
    )


@jax.custom_vjp
def dense(x: Array, weight: Array) -> Array:
    """x [B, S, *in] times weight [*in, *out], a linear layer: [B, S, *out].

    Its backward pass is written out for the sake of one order of operands: left to itself, XLA makes transposed copies
    of activations for the weight's gradient, and on a CPU spends about as much time on these as on the product.
    """
    inputs = tuple(range(x.ndim - 2))
    return lax.dot_general(x, weight, ((tuple(2 + i for i in inputs), inputs), ((), ())))


def _dense_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return dense(x, weight), (x, weight)


def _dense_backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weight = saved
    outputs = tuple(range(2, gradient.ndim))
    x_gradient = lax.dot_general(gradient, weight, ((outputs, tuple(range(x.ndim - 2, weight.ndim))), ((), ())))
    return x_gradient, lax.dot_general(x, gradient, (((0, 1), (0, 1)), ((), ())))


dense.defvjp(_dense_forward, _dense_backward)


def feed_forward(
    x: Float[Array, "B S D"],
    layer: Layers,
    mesh: Mesh,
    along: str | None = "sequence",
    tokens: int = FEED_FORWARD_TOKENS,
) -> Float[Array, "B S D"]:
    """SwiGLU, blockwise: each device passes its slice of the sequence through in pieces of at most `tokens`,
    recomputed in the backward pass.

    (Shazeer, arXiv 2002.05202; blockwise: Liu and Abbeel, arXiv 2305.19370.) The gradients of the weights are summed
    over the pieces on each device first, and over devices once.
    """

    def piece(x: Array, gate: Array, up: Array, down: Array) -> Array:
        return dense(jax.nn.silu(dense(x, gate)) * dense(x, up), down)

    def local(x: Array, gate: Array, up: Array, down: Array) -> Array:
        rows, length, width = x.shape
        # Said here, so that gradients are summed over the pieces before they are summed over the devices.
        x = lax.pcast(x, RULES["ffn"], to="varying")
        gate, up, down = (lax.pcast(weight, token_axes, to="varying") for weight in (gate, up, down))
        pieces = -(-rows * length // tokens)
        while length % pieces:
            pieces += 1
        if pieces == 1:
            summed = piece(x, gate, up, down)
        else:
            parts = x.reshape(rows, pieces, length // pieces, width).swapaxes(0, 1)
            summed = lax.map(jax.checkpoint(lambda part: piece(part, gate, up, down)), parts)
            summed = summed.swapaxes(0, 1).reshape(rows, length, width)
        return lax.psum(summed, "tensor")

    token_axes = RULES["batch"] + (RULES[along] if along else ())
    by_token = partition_spec(("batch", along, None))
    by_ffn = partition_spec((None, "ffn"))
    return jax.shard_map(
        local, mesh=mesh, in_specs=(by_token, by_ffn, by_ffn, partition_spec(("ffn", None))), out_specs=by_token
    )(x, layer.gate, layer.up, layer.down)  # fmt: skip


def embed(
    table: Float[Array, "V D"], tokens: Int[Array, "B S"], mesh: Mesh, along: str | None = "sequence"
) -> Float[Array, "B S D"]:
    """Rows of the table, each device looking up its own tokens in the part of the vocabulary that it holds."""
    vocabulary = "vocabulary" if table.shape[0] % mesh.shape["tensor"] == 0 else None

    def local(table: Array, tokens: Array) -> Array:
        if vocabulary is None:
            return table[tokens]
        tokens = tokens - lax.axis_index("tensor") * table.shape[0]
        here = (tokens >= 0) & (tokens < table.shape[0])
        return lax.psum(jnp.where(here[..., None], table[jnp.where(here, tokens, 0)], 0.0), "tensor")

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(partition_spec((vocabulary, None)), partition_spec(("batch", along))),
        out_specs=partition_spec(("batch", along, None)),
    )(table, tokens)


# attend(layer index, query, key, value, state) -> (attended, state). The state is carried from layer to layer: a
# cache, or nothing.
Attend = Callable[[Array, Array, Array, Array, Any], tuple[Array, Any]]
Remat = Literal["none", "layer"]


def run_layers(
    weights: Weights,
    tokens: Int[Array, "B S"],
    by: Rotation,
    attend: Attend,
    state: Any,
    *,
    config: ModelConfig,
    mesh: Mesh,
    dtype: DTypeLike = jnp.float32,
    remat: Remat = "none",
    along: str | None = "sequence",
) -> tuple[Float[Array, "B S D"], Any]:
    """Embedding, all layers, final norm; what the queries attend to is the caller's.

    Args:
        along: the logical axis on which the tokens lie; None if every device of the ring holds them all, as in
            decoding.
    """
    x = embed(weights.embedding.astype(dtype), tokens, mesh, along)

    def layer(carry: tuple[Array, Any], scanned: tuple[Array, Layers]) -> tuple[tuple[Array, Any], None]:
        x, state = carry
        index, layer = scanned
        layer = jax.tree.map(lambda weight: weight.astype(dtype), layer)
        h = rms_norm(x, layer.attention_norm, config.norm_eps)
        query, key, value = (dense(h, weight) for weight in (layer.query, layer.key, layer.value))
        if config.qk_norm:  # (Henry et al., arXiv 2010.04245)
            query, key = (
                rms_norm(query, layer.query_norm, config.norm_eps),
                rms_norm(key, layer.key_norm, config.norm_eps),
            )
        attended, state = attend(index, rotate_queries(query, by), rotate(key, by), value, state)
        x = x + dense(attended, layer.output)
        x = x + feed_forward(rms_norm(x, layer.ffn_norm, config.norm_eps), layer, mesh, along)
        return (constrain(x, mesh, "batch", along, None), state), None

    if remat == "layer":
        layer = jax.checkpoint(layer, policy=checkpoint_policies.save_only_these_names(SAVED))
    (x, state), _ = lax.scan(layer, (x, state), (jnp.arange(config.layers), weights.layers))
    return rms_norm(x, weights.final_norm, config.norm_eps), state


def forward(
    weights: Weights,
    tokens: Int[Array, "B S"],
    segments: Int[Array, "B S"],
    positions: Int[Array, "B S"],
    *,
    config: ModelConfig,
    frequencies: Frequencies,
    mesh: Mesh,
    dtype: DTypeLike = jnp.float32,
    remat: Remat = "none",
) -> Float[Array, "B S D"]:
    """Final hidden states of packed rows, in any order along the sequence (see `attention.layout`).

    Args:
        frequencies: of `rope_frequencies`.
        dtype: of the products; norms, softmax and accumulators are float32.
        remat: "layer" recomputes each layer in the backward pass, all but its attention.
    """

    def attend(_: Array, query: Array, key: Array, value: Array, state: None) -> tuple[Array, None]:
        return attention(query, key, value, segments, positions, mesh=mesh), state

    by = rotation(positions, frequencies, config.sharpened_from)
    return run_layers(weights, tokens, by, attend, None, config=config, mesh=mesh, dtype=dtype, remat=remat)[0]


def head(weights: Weights) -> Float[Array, "D V"]:
    """The matrix from hidden states to logits."""
    return weights.embedding.T if weights.head is None else weights.head
