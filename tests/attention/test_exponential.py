"""The polynomial power of two, compiled: the trap is that the compiler simplifies its rounding away."""

import jax
import numpy as np

from ringworld.attention.exponential import polynomial_exp2


def test_it_is_right_when_compiled():
    x = np.concatenate([np.linspace(-125, 0, 100_001), np.linspace(-1, 126, 1001)]).astype(np.float32)
    expected = np.exp2(x.astype(np.float64))
    assert np.max(np.abs(np.asarray(jax.jit(polynomial_exp2)(x)) - expected) / expected) < 4e-7


def test_whole_numbers_and_the_far_end():
    powers = np.asarray(jax.jit(polynomial_exp2)(np.array([0.0, -1.0, -10.0, -1e30], np.float32)))
    np.testing.assert_allclose(powers[:3], [1, 0.5, 2**-10], rtol=3e-7)
    assert powers[3] < 1e-37
