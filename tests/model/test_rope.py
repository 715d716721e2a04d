"""Rotary positions, exact where float32 is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.model.rope import Rotation, rope_frequencies, rotate, rotate_queries, rotation


def exact_angles(positions: np.ndarray, theta: float, head_dim: int) -> np.ndarray:
    return positions[:, None].astype(np.float64) * theta ** (-np.arange(0, head_dim, 2) / head_dim)[None]


@pytest.mark.parametrize("theta", [1e4, 1e6, 5e7])
def test_angles_at_a_million_tokens_are_those_of_float64(theta):
    positions = np.array([0, 1, 257, 65_535, 1_048_575, 2**24 + 1], np.int32)
    by = jax.jit(rotation)(jnp.asarray(positions)[None], rope_frequencies(theta, 128))
    angles = exact_angles(positions, theta, 128)
    np.testing.assert_allclose(by.cosine[0], np.cos(angles), atol=1e-5)
    np.testing.assert_allclose(by.sine[0], np.sin(angles), atol=1e-5)


def test_plain_float32_would_not_do():
    angles = exact_angles(np.array([1_048_575]), 5e7, 128)
    frequencies = (5e7 ** (-np.arange(0, 128, 2) / 128)).astype(np.float32)
    wrong = (np.float32(1_048_575) * frequencies).astype(np.float64)
    assert np.abs(np.angle(np.exp(1j * (wrong - angles[0])))).max() > 1e-2


def test_a_product_depends_on_the_distance_alone():
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, 32)), jnp.float32) for _ in range(2))
    frequencies = rope_frequencies(1e4, 32)

    def product(query_position: int, key_position: int) -> float:
        turned = (
            rotate(x, rotation(jnp.full((1, 1), at, jnp.int32), frequencies))
            for x, at in ((query, query_position), (key, key_position))
        )
        return float(jnp.sum(next(turned) * next(turned)))

    assert product(9, 4) == pytest.approx(product(1_000_005, 1_000_000), abs=1e-4)


def test_pairs_are_half_split():
    quarter = Rotation(jnp.zeros((1, 1, 2)), jnp.ones((1, 1, 2)))
    np.testing.assert_array_equal(rotate(jnp.arange(4.0)[None, None, None], quarter)[0, 0, 0], [-2, -3, 0, 1])


def test_queries_grow_with_the_logarithm_of_what_they_can_look_at():
    positions = jnp.array([[0, 15, 255, 1_048_575]], jnp.int32)
    by = rotation(positions, rope_frequencies(1e4, 32), sharpened_from=16)
    np.testing.assert_allclose(by.sharpness, [[1, 1, 2, 5]], rtol=1e-6)
    query = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 2, 32)), jnp.float32)
    longer = rotate(query, by) * jnp.array([1, 1, 2, 5.0])[None, :, None, None]
    np.testing.assert_allclose(rotate_queries(query, by), longer, rtol=1e-6)
    assert rotate_queries(query.astype(jnp.bfloat16), by).dtype == jnp.bfloat16


def test_theta_below_one_is_refused():
    with pytest.raises(UserError, match=r"theta must be at least 1 \(given: 0.5\)"):
        rope_frequencies(0.5, 32)
