"""Orders of a sequence on the ring."""

import numpy as np
import pytest

from ringworld.attention.layout import inverse, order


def test_zigzag_gives_each_device_an_early_and_a_late_chunk():
    assert order(8, 2, "zigzag").tolist() == [0, 1, 6, 7, 2, 3, 4, 5]


def test_contiguous_changes_nothing():
    assert order(8, 4, "contiguous").tolist() == list(range(8))


@pytest.mark.parametrize("ring", [1, 2, 4, 8])
@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_inverse_undoes_the_order(ring, layout):
    length = 48
    assert order(length, ring, layout)[inverse(length, ring, layout)].tolist() == list(range(length))


@pytest.mark.parametrize("ring", [2, 4, 8])
def test_zigzag_gives_every_device_the_same_number_of_visible_keys(ring):
    visible_keys = (order(16 * ring, ring, "zigzag") + 1).reshape(ring, -1).sum(1)
    assert len(set(visible_keys.tolist())) == 1


def test_one_device_takes_any_length():
    assert order(7, 1, "zigzag").tolist() == list(range(7))


def test_a_length_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="a sequence of 12 does not divide into 8 chunks"):
        order(12, 4, "zigzag")
    assert order(12, 4, "contiguous").dtype == np.int32
