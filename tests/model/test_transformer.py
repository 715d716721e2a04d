"""The forward pass against the same model written out in plain numpy, and one answer on every mesh."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drawn import draw
from ringworld.attention.layout import inverse, order
from ringworld.errors import UserError
from ringworld.mesh import MeshShape, build_mesh, named_sharding
from ringworld.model.config import ModelConfig
from ringworld.model.rope import rope_frequencies
from ringworld.model.transformer import Weights, declare, dense, feed_forward, forward, head
from ringworld.parameters import Parameter, abstract, init

CONFIG = ModelConfig(
    vocabulary_size=50, dim=32, ffn=48, layers=3, heads=4, kv_heads=2, head_dim=16, qk_norm=True, sharpened_from=6
)
THETA = 1e4
LENGTH = 32


def mesh_of(shape: MeshShape):
    return build_mesh(shape, jax.devices()[: int(np.prod(shape.sizes))])


def rows(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two rows, each of two documents and padding."""
    tokens = np.random.default_rng(seed).integers(0, 50, (4, LENGTH)).astype(np.int32)
    segments = np.repeat(np.array([[1] * 12 + [2] * 15 + [0] * 5], np.int32), 4, axis=0)
    positions = np.repeat(np.array([[*range(12), *range(15), *range(5)]], np.int32), 4, axis=0)
    return tokens, segments, positions


def plain_forward(weights: Weights, tokens: np.ndarray) -> np.ndarray:
    """One document through the model, in float64 numpy. [S] -> [S, D]."""
    w = jax.tree.map(lambda x: np.asarray(x, np.float64), weights)
    c = CONFIG

    def norm(x, gain):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.norm_eps) * gain

    longer = np.maximum(1, np.log(1 + np.arange(len(tokens))) / np.log(6))[:, None, None]
    angles = np.arange(len(tokens))[:, None] * THETA ** (-np.arange(0, c.head_dim, 2) / c.head_dim)[None]

    def turn(x):  # [S, N, K]
        a, b = np.split(x, 2, axis=-1)
        cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
        return np.concatenate([a * cosine - b * sine, b * cosine + a * sine], axis=-1)

    x = w.embedding[tokens]
    for i in range(c.layers):
        layer = jax.tree.map(lambda a, i=i: a[i], w.layers)
        h = norm(x, layer.attention_norm)
        query, key, value = (np.einsum("sd,dnk->snk", h, m) for m in (layer.query, layer.key, layer.value))
        query, key = turn(norm(query, layer.query_norm)) * longer, turn(norm(key, layer.key_norm))
        key, value = (np.repeat(m, c.heads // c.kv_heads, axis=1) for m in (key, value))
        scores = np.einsum("qnk,snk->nqs", query, key) / np.sqrt(c.head_dim)
        scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -np.inf)
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        x = x + np.einsum("nqs,snk,nkd->qd", attention, value, layer.output)
        h = norm(x, layer.ffn_norm)
        gate = h @ layer.gate
        x = x + (gate / (1 + np.exp(-gate)) * (h @ layer.up)) @ layer.down
    return norm(x, w.final_norm)


def run(shape: MeshShape, weights: Weights | None = None, layout="zigzag", **options) -> np.ndarray:
    """Final hidden states in the sequence's own order."""
    mesh = mesh_of(shape)
    there, back = order(LENGTH, shape.sequence, layout), inverse(LENGTH, shape.sequence, layout)
    batch = [jax.device_put(x[:, there], named_sharding(mesh, ("batch", "sequence"))) for x in rows()]
    weights = draw(0, CONFIG, mesh) if weights is None else weights
    frequencies = rope_frequencies(THETA, CONFIG.head_dim)
    return np.asarray(
        jax.jit(lambda w, *b: forward(w, *b, config=CONFIG, frequencies=frequencies, mesh=mesh, **options))(
            weights, *batch
        )
    )[:, back]


def test_packed_rows_are_each_document_alone_in_plain_numpy():
    weights = draw(0, CONFIG, mesh_of(MeshShape()))
    hidden, (tokens, segments, _) = run(MeshShape(), weights), rows()
    for row in range(len(tokens)):
        for segment in (1, 2):
            here = segments[row] == segment
            np.testing.assert_allclose(hidden[row, here], plain_forward(weights, tokens[row, here]), atol=2e-5)


@pytest.mark.parametrize(
    "shape", [MeshShape(sequence=8), MeshShape(data=2, tensor=2, sequence=2), MeshShape(fsdp=4, sequence=2)], ids=str
)
def test_the_mesh_changes_nothing(shape):
    real = rows()[1] > 0
    np.testing.assert_allclose(run(shape)[real], run(MeshShape())[real], atol=2e-5)


def test_the_layout_changes_nothing():
    real = rows()[1] > 0
    ring = MeshShape(sequence=4)
    np.testing.assert_allclose(run(ring, layout="contiguous")[real], run(ring)[real], atol=1e-5)


def test_remat_changes_nothing_but_memory():
    np.testing.assert_allclose(run(MeshShape(), remat="layer"), run(MeshShape()), atol=1e-6)


@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(data=2, tensor=2, sequence=2)], ids=str)
def test_feed_forward_in_pieces_has_the_same_values_and_gradients(shape):
    mesh = mesh_of(shape)
    layer = jax.tree.map(lambda x: x[0], draw(1, CONFIG, mesh).layers)
    x = jax.random.normal(jax.random.key(2), (2, 24, CONFIG.dim))

    def of(tokens: int):
        def loss(x, layer):
            return jnp.sum(jnp.sin(feed_forward(x, layer, mesh, tokens=tokens)))

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(x, layer)

    def plain(x, layer):
        return jnp.sum(jnp.sin((jax.nn.silu(x @ layer.gate) * (x @ layer.up)) @ layer.down))

    expected = jax.value_and_grad(plain, (0, 1))(x, layer)
    for tokens in (1000, 7):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), of(tokens), expected)


def test_a_linear_layer_has_the_gradients_that_jax_finds():
    """Of one axis in and two out, as of a query, and the other way round."""
    keys = jax.random.split(jax.random.key(0), 3)
    for inputs, outputs in (((6,), (2, 3)), ((2, 3), (6,))):
        x, weight = jax.random.normal(keys[0], (4, 5, *inputs)), jax.random.normal(keys[1], (*inputs, *outputs))
        gradient = jax.random.normal(keys[2], (4, 5, *outputs))
        ours, back = jax.vjp(dense, x, weight)
        theirs, plain_back = jax.vjp(partial(jnp.tensordot, axes=len(inputs)), x, weight)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), back(gradient), plain_back(gradient))


def test_a_fresh_layer_adds_nothing():
    mesh = mesh_of(MeshShape())
    weights = init(jax.random.key(0), declare(CONFIG), mesh)
    embedded = np.asarray(weights.embedding)[rows()[0]]
    expected = embedded / np.sqrt((embedded**2).mean(-1, keepdims=True) + CONFIG.norm_eps)
    np.testing.assert_allclose(run(MeshShape(), weights), expected, atol=1e-5)


def test_rows_of_the_embedding_begin_with_a_vector_in_common():
    mesh = mesh_of(MeshShape())
    table = np.asarray(init(jax.random.key(0), declare(replace(CONFIG, vocabulary_size=4096)), mesh).embedding)
    common = table.mean(axis=0)
    assert common.std() == pytest.approx(CONFIG.dim**-0.5, rel=0.4)
    assert (table - common).std() == pytest.approx(CONFIG.dim**-0.5, rel=0.02)


def test_weights_do_not_depend_on_the_mesh():
    one, many = (
        init(jax.random.key(3), declare(CONFIG), mesh_of(s))
        for s in (MeshShape(), MeshShape(fsdp=2, tensor=2, sequence=2))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, many)


def test_weights_are_spread_as_declared():
    mesh = mesh_of(MeshShape(fsdp=2, tensor=2, sequence=2))
    weights = draw(0, CONFIG, mesh)
    assert weights.layers.gate.sharding.shard_shape(weights.layers.gate.shape) == (3, 32 // 4, 48 // 2)
    assert weights.layers.output.sharding.shard_shape(weights.layers.output.shape) == (3, 4 // 2, 16, 32 // 4)


def test_a_weight_that_does_not_divide_is_replicated_along_that_axis():
    odd = replace(CONFIG, vocabulary_size=51)
    placed = abstract(declare(odd), mesh_of(MeshShape(tensor=2)))
    assert placed.embedding.sharding.shard_shape(placed.embedding.shape) == (51, 32)


def test_tied_models_have_one_table():
    tied = replace(CONFIG, tied=True)
    weights = draw(0, tied, mesh_of(MeshShape()))
    assert weights.head is None
    np.testing.assert_array_equal(head(weights), weights.embedding.T)
    assert sum(x.size for x in jax.tree.leaves(weights)) == tied.parameters
    assert sum(x.size for x in jax.tree.leaves(abstract(declare(CONFIG)))) == CONFIG.parameters


def test_every_weight_is_declared_with_an_axis_for_each_dimension():
    declared = jax.tree.leaves(declare(CONFIG), is_leaf=lambda x: isinstance(x, Parameter))
    assert len(declared) == 14
    assert all(len(p.shape) == len(p.axes) for p in declared)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kv_heads": 3}, "4 query heads do not divide among 3 key heads"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"sharpened_from": 1}, "beyond 2 tokens or more, got sharpened_from=1"),
        ({"layers": 0}, r"layers of at least 1 \(given: 0\)"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **change)


def test_configuration_survives_json_and_refuses_strangers():
    assert ModelConfig.from_dict(CONFIG.to_dict()) == CONFIG
    with pytest.raises(UserError, match="unknown fields in the model's configuration: width"):
        ModelConfig.from_dict({**CONFIG.to_dict(), "width": 3})
    with pytest.raises(UserError, match="incomplete"):
        ModelConfig.from_dict({"dim": 3})
