"""Decoding with a cache equals reading everything anew, on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drawn import draw
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.cache import decode_step, prefill
from ringworld.model.config import ModelConfig
from ringworld.model.rope import rope_frequencies
from ringworld.model.transformer import forward, head

CONFIG = ModelConfig(vocabulary_size=101, dim=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=16, qk_norm=True)
FREQUENCIES = jnp.asarray(rope_frequencies(1e4, 16))
TOKENS = np.random.default_rng(0).integers(0, 101, (4, 40)).astype(np.int32)
LENGTHS = np.array([5, 9, 16, 12], np.int32)
STEPS = 9


def mesh_of(shape: MeshShape):
    return build_mesh(shape, jax.devices()[: int(np.prod(shape.sizes))])


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Logits at every position, from the whole sequence at once. [4, 40, V]."""
    mesh = mesh_of(MeshShape())
    weights = draw(0, CONFIG, mesh)
    positions = jnp.broadcast_to(jnp.arange(40), TOKENS.shape)
    hidden = forward(
        weights,
        jnp.asarray(TOKENS),
        jnp.ones_like(positions),
        positions,
        config=CONFIG,
        frequencies=FREQUENCIES,
        mesh=mesh,
    )
    return np.asarray(hidden @ head(weights))


@pytest.mark.parametrize(
    "shape",
    [MeshShape(), MeshShape(sequence=2), MeshShape(data=2, tensor=2, sequence=2), MeshShape(fsdp=2, sequence=4)],
    ids=str,
)
def test_prefill_and_decoding_equal_the_whole_sequence(shape, expected):
    mesh = mesh_of(shape)
    weights = draw(0, CONFIG, mesh)
    prompts = np.where(np.arange(16)[None] < LENGTHS[:, None], TOKENS[:, :16], 0)
    settings = {"config": CONFIG, "frequencies": FREQUENCIES, "mesh": mesh}
    read = jax.jit(lambda w, t, n: prefill(w, t, n, capacity=32, **settings))
    step = jax.jit(lambda w, t, c: decode_step(w, t, c, **settings))
    row = np.arange(4)
    logits, cache = read(weights, jnp.asarray(prompts), jnp.asarray(LENGTHS))
    np.testing.assert_allclose(logits, expected[row, LENGTHS - 1], atol=2e-5)
    for i in range(STEPS):
        logits, cache = step(weights, jnp.asarray(TOKENS[row, LENGTHS + i]), cache)
        np.testing.assert_allclose(logits, expected[row, LENGTHS + i], atol=2e-5)
    assert cache.lengths.tolist() == (LENGTHS + STEPS).tolist()
    assert int(cache.segments.sum()) == LENGTHS.sum() + 4 * STEPS


def test_no_device_holds_the_whole_cache():
    mesh = mesh_of(MeshShape(sequence=8))
    weights = draw(0, CONFIG, mesh)
    settings = {"config": CONFIG, "frequencies": FREQUENCIES, "mesh": mesh}
    read = jax.jit(lambda w, t, n: prefill(w, t, n, capacity=64, **settings))
    _, cache = read(weights, jnp.asarray(TOKENS[:, :32]), jnp.full(4, 32, jnp.int32))
    assert {shard.data.shape[2] for shard in cache.keys.addressable_shards} == {8}


@pytest.mark.parametrize(("length", "capacity"), [(30, 64), (32, 60), (32, 16)])
def test_sizes_that_do_not_fit_the_ring_are_refused(length, capacity):
    mesh = mesh_of(MeshShape(sequence=8))
    weights = draw(0, CONFIG, mesh)
    with pytest.raises(ValueError, match=f"prompts of {length} and a capacity of {capacity} do not fit a ring of 8"):
        prefill(
            weights, jnp.asarray(TOKENS[:, :length]), jnp.asarray(LENGTHS),
            capacity=capacity, config=CONFIG, frequencies=FREQUENCIES, mesh=mesh,
        )  # fmt: skip
