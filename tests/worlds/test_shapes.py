import numpy as np
import pytest

from ringworld.worlds.shapes import COLOURS, GROUNDS, KINDS, PLACES, SIZES, Placed, Thing, coverage, draw, place


def test_places_are_the_ninths_of_the_frame():
    assert PLACES == (
        "top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right",
    )  # fmt: skip
    assert [place(x, 0.5) for x in (-0.2, 0.0, 0.33, 0.34, 0.66, 0.67, 1.0, 1.2)] == [
        *["left"] * 3, *["centre"] * 2, *["right"] * 3,
    ]  # fmt: skip
    assert (place(0.5, 0.1), place(0.5, 0.9)) == ("top", "bottom")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_shape_has_its_colour_inside_the_ground_outside_and_its_size(kind, size):
    frame = draw("sand", [Placed(Thing(size, "blue", kind), 0.5, 0.5)], 128).astype(int)
    blue = (frame == COLOURS["blue"]).all(-1)
    ground = (frame == GROUNDS["sand"]).all(-1)
    # What is neither is the antialiased edge, thin and on the way from the one to the other.
    edge = ~blue & ~ground
    low = np.minimum(COLOURS["blue"], GROUNDS["sand"])
    high = np.maximum(COLOURS["blue"], GROUNDS["sand"])
    assert ((frame[edge] >= low) & (frame[edge] <= high)).all()
    assert 0 < edge.sum() < 0.5 * blue.sum()
    across = SIZES[size] * 128
    rows, columns = np.nonzero(~ground)
    assert columns.max() - columns.min() + 1 == pytest.approx(across, rel=0.16)
    assert rows.max() - rows.min() + 1 == pytest.approx(across, rel=0.16)


def test_shapes_are_told_apart_by_many_pixels():
    grid = np.arange(-10.0, 11.0)[None]
    drawn = [coverage(kind, 8.0, grid, grid.T) for kind in KINDS]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert abs(one - other).sum() > 20


def test_a_pixel_is_covered_by_the_share_that_lies_inside():
    inside = coverage("square", 10 / 0.86, np.arange(8.0, 13.0)[None], np.zeros((1, 1)))
    np.testing.assert_allclose(inside[0], [1.0, 1.0, 0.5, 0.0, 0.0], atol=1e-12)


def test_the_last_thing_is_in_front_and_the_frame_cuts_things_off():
    below, above = Thing("large", "red", "square"), Thing("small", "black", "circle")
    frame = draw("grey", [Placed(below, 0.5, 0.5), Placed(above, 0.5, 0.5)], 64)
    assert tuple(frame[32, 32]) == COLOURS["black"]
    assert tuple(frame[32, 40]) == COLOURS["red"]
    cut = draw("grey", [Placed(below, 0.0, 1.0)], 64)
    assert tuple(cut[-1, 0]) == COLOURS["red"]
    np.testing.assert_array_equal(draw("grey", [Placed(below, -0.5, 0.5)], 64), draw("grey", [], 64))


def test_a_frame_of_another_size_shows_the_same():
    things = [Placed(Thing("large", "red", "cross"), 0.3, 0.6), Placed(Thing("small", "white", "ring"), 0.8, 0.2)]
    large = draw("slate", things, 256).reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert abs(large - draw("slate", things, 64)).mean() < 1.0
