import numpy as np

from evaluation.inks import inks
from ringworld.evaluation.sheets import Tile, contact_sheet


def film(frames: int, size: int = 32) -> np.ndarray:
    """Frames of one colour each."""
    return np.repeat(np.arange(frames, dtype=np.uint8), size * size * 3).reshape(frames, size, size, 3)


def test_a_sheet_of_tiles_of_different_heights() -> None:
    long, short = Tile(film(1), "a very long caption " * 8, ["ground"]), Tile(film(1), "short")
    sheet = contact_sheet([("seen", [long, short]), ("held out", [])])
    assert inks(sheet) == {"right", "wrong"}
    assert sheet.shape[1] >= 2 * 128
    assert inks(contact_sheet([("seen", [short])])) == {"right"}


def test_small_frames_are_enlarged_and_long_films_thinned_out() -> None:
    sheet = contact_sheet([("films", [Tile(film(20), "grey")])])
    greys = [int(value) for value in np.unique(sheet) if (sheet == value).all(-1).sum() >= 128 * 128]
    assert greys[:8] == [0, 2, 5, 8, 10, 13, 16, 19]  # eight of twenty, evenly, from the first to the last
    assert len(greys) == 9  # and white
    assert sheet.shape[1] < 9 * 128 + 100


def test_frames_that_are_given_are_underlined() -> None:
    plain, given = (contact_sheet([("films", [Tile(film(20), "grey", given=count)])]) for count in (0, 6))
    _, columns = np.nonzero((plain != given).any(-1))
    assert {*(columns // 130)} == {0, 1, 2}  # of the eight that are shown, 0, 2 and 5 are given
    lines = (given == np.array((34, 48, 60))).all(-1).sum(1)
    assert (lines == 3 * 128).sum() == 4
