from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.tokens.quantizers import (
    QuantizerConfig,
    bounded,
    directions,
    drawn_codebook,
    look_up,
    nearest,
    quantize,
    straight_through,
)

LEVELS = (8, 5, 4)
FSQ = QuantizerConfig("fsq", codes=prod(LEVELS), dim=3, levels=LEVELS)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("count", [(5,), (2, 3, 4), (5000,)])
def test_the_nearest_code_is_nearest(count):
    vectors, codebook = drawn(*count, 6), drawn(37, 6, seed=1)
    distances = ((vectors[..., None, :] - codebook) ** 2).sum(-1)
    np.testing.assert_array_equal(nearest(jnp.array(vectors), jnp.array(codebook)), distances.argmin(-1))


def test_normalised_codes_are_compared_by_direction():
    config = QuantizerConfig("ema", codes=3, dim=2, normalized=True)
    codebook = jnp.array([[10.0, 0.0], [0.0, 0.1], [-1.0, -1.0]])
    codes = quantize(jnp.array([[0.2, 0.1], [0.3, 9.0], [-5.0, -4.0]]), codebook, config)
    np.testing.assert_array_equal(codes, [0, 1, 2])
    np.testing.assert_allclose(look_up(codes, codebook, config)[:2], [[1.0, 0.0], [0.0, 1.0]], atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(directions(codebook), axis=-1), 1.0, rtol=1e-6)


def test_fsq_has_a_code_for_every_combination_of_levels_and_finds_it_again():
    codes = jnp.arange(FSQ.codes)
    points = look_up(codes, None, FSQ)
    assert len({tuple(point) for point in np.asarray(points).tolist()}) == FSQ.codes
    assert np.abs(points).max() == 1.0
    # From a code's point, back through the squeeze: what an encoder would have to give.
    half = (np.array(LEVELS) - 1) * (1 - 1e-3) / 2
    offset = np.where(np.array(LEVELS) % 2, 0.0, 0.5)
    digits = np.asarray(points) * (np.array(LEVELS) // 2)
    vectors = np.arctanh(np.clip((digits + offset) / half, -0.9999, 0.9999)) - np.tan(offset / half)
    np.testing.assert_array_equal(quantize(jnp.array(vectors, jnp.float32), None, FSQ), codes)


def test_fsq_reaches_every_code_and_none_beyond():
    codes = np.asarray(quantize(jnp.array(3 * drawn(20000, 3)), None, FSQ))
    assert set(codes.tolist()) == set(range(FSQ.codes))


@pytest.mark.parametrize(
    "config", [FSQ, QuantizerConfig("ema", codes=7, dim=3), QuantizerConfig("gradient", 7, 3, True)]
)
def test_what_gradients_flow_through_is_near_what_is_looked_up(config):
    vectors, codebook = jnp.array(drawn(50, 3)), jnp.array(drawn(7, 3, seed=2))
    chosen = look_up(quantize(vectors, codebook, config), codebook, config)
    there = bounded(vectors, config)
    np.testing.assert_allclose(straight_through(there, chosen), chosen, atol=1e-6)
    gradient = jax.grad(lambda v: (straight_through(bounded(v, config), chosen) ** 2).sum())(vectors)
    expected = jax.vjp(lambda v: bounded(v, config), vectors)[1](2 * chosen)[0]
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    if config.kind == "fsq":
        step = 1 / (np.array(LEVELS) // 2)
        assert (np.abs(there - chosen) <= step / 2 + 1e-5).all()


def test_a_codebook_begins_at_vectors_that_there_are():
    vectors = jnp.array(drawn(40, 4) + 100)
    codebook = drawn_codebook(vectors, 16, jax.random.key(0))
    distance = jnp.linalg.norm(codebook[:, None] - vectors[None], axis=-1).min(1)
    assert distance.max() < 0.2
    assert len(np.unique(np.asarray(codebook), axis=0)) == 16


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "ema", "codes": 1, "dim": 2}, "2 or more codes of 1 or more dimensions; got 1 of 2"),
        ({"kind": "fsq", "codes": 16, "dim": 2, "levels": (4, 5)}, "their product is the number of codes"),
        ({"kind": "fsq", "codes": 16, "dim": 3, "levels": (4, 4)}, "for each of its 3 dimensions"),
        ({"kind": "ema", "codes": 16, "dim": 2, "levels": (4, 4)}, "levels are for the quantiser fsq"),
    ],
)
def test_impossible_quantisers_are_refused(values, says):
    with pytest.raises(UserError, match=says):
        QuantizerConfig(**values)
