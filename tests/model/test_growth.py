from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drawn import draw
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.config import ModelConfig
from ringworld.model.growth import grow_vocabulary, resemble
from ringworld.model.rope import rope_frequencies
from ringworld.model.transformer import declare, forward, head
from ringworld.parameters import shardings

TEXT, WIDTH = 40, 640
SMALL = ModelConfig(vocabulary_size=48, dim=16, ffn=24, layers=2, heads=2, kv_heads=2, head_dim=8)  # padded by 8
TOKENS = np.random.default_rng(0).integers(0, TEXT, (2, 16)).astype(np.int32)


@pytest.mark.parametrize(("tied", "shape"), [(False, MeshShape(tensor=2, sequence=2)), (True, MeshShape())], ids=str)
def test_what_is_read_and_written_of_text_stays_as_it_was(tied: bool, shape: MeshShape) -> None:
    mesh = build_mesh(shape, jax.devices()[: int(np.prod(shape.sizes))])
    config = replace(SMALL, tied=tied)
    larger = replace(config, vocabulary_size=WIDTH)
    given = draw(0, config, mesh)
    grown = grow_vocabulary(given, larger, TEXT, jax.random.key(1), mesh)
    positions = jnp.tile(jnp.arange(16, dtype=jnp.int32), (2, 1))

    def logits(weights, config) -> np.ndarray:
        through = partial(forward, config=config, frequencies=rope_frequencies(1e4, 8), mesh=mesh)
        hidden = jax.jit(through)(weights, jnp.asarray(TOKENS), jnp.ones_like(positions), positions)
        return np.asarray(jax.nn.log_softmax((hidden @ head(weights))[..., :TEXT]))

    np.testing.assert_allclose(logits(grown, larger), logits(given, config), atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, grown.layers, given.layers)
    places = shardings(declare(larger), mesh)
    assert grown.embedding.sharding == places.embedding
    assert tied or grown.head.sharding == places.head


def test_new_rows_are_like_the_old_ones_and_unlike_each_other() -> None:
    mesh = build_mesh(MeshShape(), jax.devices()[:1])
    larger = replace(SMALL, vocabulary_size=WIDTH)
    given = draw(0, SMALL, mesh)
    given = replace(given, embedding=given.embedding * 3 + jnp.arange(16.0)[None])
    grown = grow_vocabulary(given, larger, TEXT, jax.random.key(1), mesh)
    for before, after in ((given.embedding, grown.embedding), (given.head.T, grown.head.T)):
        old, new = np.asarray(before)[:TEXT], np.asarray(after)[TEXT:]
        np.testing.assert_array_equal(after[:TEXT], old)
        assert new.shape == (WIDTH - TEXT, 16)
        np.testing.assert_allclose(new.mean(0), old.mean(0), atol=5 * old.std() / np.sqrt(len(new)))
        np.testing.assert_allclose(new.std(0), old.std(0), rtol=0.2)
        assert len(np.unique(new, axis=0)) == len(new)
    other = build_mesh(MeshShape(data=4, tensor=2))
    spread = jax.device_put(given, shardings(declare(SMALL), other))
    again = grow_vocabulary(spread, larger, TEXT, jax.random.key(1), other)
    np.testing.assert_allclose(again.embedding, grown.embedding, atol=1e-5)


@pytest.mark.parametrize("shape", [MeshShape(tensor=2, sequence=2), MeshShape()], ids=str)
def test_ids_of_like_vectors_begin_alike(shape: MeshShape) -> None:
    mesh = build_mesh(shape, jax.devices()[: int(np.prod(shape.sizes))])
    config = replace(SMALL, vocabulary_size=WIDTH, dim=64)
    given = draw(0, config, mesh)
    vectors = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32) + 3
    made = resemble(given, config, TEXT, jnp.asarray(vectors), 0.8, jax.random.key(1), mesh)
    before, after = np.asarray(given.embedding), np.asarray(made.embedding)
    np.testing.assert_array_equal(before[:TEXT], after[:TEXT])
    np.testing.assert_array_equal(before[TEXT + 500 :], after[TEXT + 500 :])
    old, new = before[TEXT : TEXT + 500], after[TEXT : TEXT + 500]
    np.testing.assert_allclose(new.mean(), old.mean(), atol=0.02 * old.std())
    np.testing.assert_allclose((new - old.mean(0)).std(), (old - old.mean(0)).std(), rtol=0.2)
    alike = np.corrcoef(new - new.mean(0))[np.triu_indices(500, 1)]
    meant = np.corrcoef(vectors - vectors.mean(0))[np.triu_indices(500, 1)]
    assert np.corrcoef(alike, meant)[0, 1] > 0.6
    assert made.embedding.sharding == shardings(declare(config), mesh).embedding
    jax.tree.map(np.testing.assert_array_equal, made.layers, given.layers)
