import struct

import numpy as np
import pytest

from ringworld.evaluation import plots


def size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG")
    return struct.unpack(">II", png[16:24])


def test_heat_map_grows_with_the_grid_and_is_the_same_every_time() -> None:
    values = np.array([[0.0, 1.0, np.nan]] * 5)
    png = plots.heat_map(values, [512, 1024, 2048], [0.0, 0.25, 0.5, 0.75, 1.0], title="t", trained_length=1024)
    assert png == plots.heat_map(values, [512, 1024, 2048], [0.0, 0.25, 0.5, 0.75, 1.0], title="t", trained_length=1024)
    wide = plots.heat_map(np.tile(values, 3), [2**i for i in range(9)], [0.0, 0.25, 0.5, 0.75, 1.0], title="t")
    assert size(wide)[0] > size(png)[0]
    assert size(wide)[1] == size(png)[1]


def test_a_long_title_fits_a_narrow_picture() -> None:
    assert size(plots.heat_map(np.ones((1, 1)), [512], [0.5], title="t" * 80))[0] > 700


def test_a_grid_all_beyond_the_trained_length() -> None:
    assert min(size(plots.heat_map(np.ones((1, 2)), [512, 1024], [0.5], title="t", trained_length=64))) > 100


def test_loss_curve_of_one_stage_of_one_step_and_of_losses_that_are_no_numbers() -> None:
    one = plots.Curve("only", np.array([2048.0]), np.array([3.0]))
    assert min(size(plots.loss_curve([one], title="t"))) > 100
    gap = plots.Curve("gap", np.arange(1.0, 30.0), np.where(np.arange(29) % 3, 1.0, np.nan))
    assert min(size(plots.loss_curve([one, gap, plots.Curve("none", np.array([]), np.array([]))], title="t"))) > 100


def test_stage_matrix_and_perplexity_curves_are_pictures() -> None:
    assert (
        min(size(plots.stage_matrix(np.array([[1.0, np.nan], [1.0, 0.5]]), ["64", "128"], [64, 128], title="t"))) > 100
    )
    steps = [(0, 16, 9.0), (16, 32, 8.0), (32, 64, 7.5)]
    one = plots.perplexity_curves({"text": steps}, title="t", trained_length=32)
    assert min(size(one)) > 100
    gap = [(16, 32, 900.0), (64, 100, 700.0)]
    both = plots.perplexity_curves({"text": steps, "vision": gap}, title="t", trained_length=32)
    assert size(both)[0] > 1.4 * size(one)[0]


def test_smoothing_is_a_mean_over_what_is_a_number() -> None:
    values = np.array([1.0, np.nan, 3.0, 5.0] + [2.0] * 40)
    smooth = plots._smooth(values)
    assert smooth[0] == 1.0
    assert np.isnan(smooth[1])
    assert smooth[8] == pytest.approx(2.0)
    assert smooth[-1] == 2.0


@pytest.mark.parametrize(("count", "said"), [(512, "512"), (1024, "1K"), (8192, "8K"), (1536, "1.5K"), (2**20, "1M")])
def test_short_counts(count: int, said: str) -> None:
    assert plots.short_count(count) == said


@pytest.mark.parametrize(("count", "said"), [(950, "950"), (20480, "20.5K"), (2.76e6, "2.76M"), (4e9, "4B")])
def test_short_decimals(count: float, said: str) -> None:
    assert plots.short_decimal(count) == said
