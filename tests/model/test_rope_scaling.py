"""Scaled rotary frequencies, against those that transformers computes (see tests/golden/make_hugging_face.py)."""

import json
from pathlib import Path

import numpy as np
import pytest

from ringworld.model.rope import Frequencies, RopeScaling, rope_frequencies

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rope_scaling.json").read_text())


def radians(frequencies: Frequencies) -> np.ndarray:
    """Radians a position."""
    high, low = frequencies.turns.astype(np.float64)
    return (high + low / 2**32) * (2 * np.pi / 2**32)


@pytest.mark.parametrize("case", GOLDEN)
def test_scaled_frequencies_are_those_of_transformers(case):
    golden = GOLDEN[case]
    plain = rope_frequencies(golden["theta"], golden["head_dim"])
    ours = rope_frequencies(
        golden["theta"], golden["head_dim"], RopeScaling(**golden["scaling"]), length=golden["length"]
    )
    theirs = np.array(golden["frequencies"])
    # transformers computes powers in float32
    np.testing.assert_allclose(radians(ours), theirs, rtol=2e-6)
    assert float(ours.magnitude) == pytest.approx(golden["magnitude"], rel=1e-6)
    if case != "dynamic within":
        assert np.abs(radians(plain) / theirs - 1).max() > 0.1  # so that the scaling is seen


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_what_does_not_depend_on_the_length_of_the_text_does_not(kind):
    scaling = RopeScaling(kind, 4.0, 1024)
    short, long = (rope_frequencies(1e4, 64, scaling, length=length) for length in (10, 10_000))
    np.testing.assert_array_equal(short.turns, long.turns)


def test_dynamic_scaling_begins_beyond_the_original_length():
    scaling = RopeScaling("dynamic", 4.0, 1024)
    plain = rope_frequencies(1e4, 64)
    for length in (None, 1, 1024):
        np.testing.assert_array_equal(rope_frequencies(1e4, 64, scaling, length).turns, plain.turns)
    lowest = [radians(rope_frequencies(1e4, 64, scaling, length))[-1] for length in (1025, 2048, 4096)]
    assert sorted(lowest, reverse=True) == lowest


def test_yarn_leaves_fast_pairs_and_stretches_slow_ones():
    plain, scaled = radians(rope_frequencies(1e4, 64)), rope_frequencies(1e4, 64, RopeScaling("yarn", 4.0, 2048))
    ratios = plain / radians(scaled)
    assert ratios[0] == pytest.approx(1)
    assert ratios[-1] == pytest.approx(4)
    assert (np.diff(ratios) > -1e-9).all()
    assert float(scaled.magnitude) == pytest.approx(0.1 * np.log(4) + 1)
