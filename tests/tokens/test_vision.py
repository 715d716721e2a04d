import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringworld.tokens.vision import frame_ids, timed, vision_ids, visions
from ringworld.tokens.vocabulary import LWM, Vocabulary

SMALL = Vocabulary(
    8, 0, 1, 2, codes=5, vision_size=9, vision_start=(3, 4), vision_end=(5,), frame_height=1, frame_width=3
)


def test_eof_ends_every_frame_but_the_last_which_ends_with_eov() -> None:
    codes = np.array([[[0, 1, 2]], [[4, 4, 0]]])
    assert frame_ids(codes, SMALL).tolist() == [8, 9, 10, SMALL.eof, 12, 12, 8, SMALL.eov]
    assert frame_ids(codes, SMALL, last=False)[-1] == SMALL.eof
    assert vision_ids(codes[:1], SMALL).tolist() == [3, 4, 8, 9, 10, SMALL.eov, 5]


def test_an_hour_at_a_frame_a_second_is_925_200_tokens() -> None:
    assert len(frame_ids(np.zeros((3600, 16, 16), np.int32), LWM)) == 925_200


def test_the_time_stands_behind_the_frames_of_every_so_many_seconds() -> None:
    assert [*timed(5, 0.5, 4)] == [(slice(0, 2), " 0:00"), (slice(2, 4), " 0:04"), (slice(4, 5), " 0:08")]
    minutes = [time for _, time in timed(180, 1, 20, resolution=60)]
    assert minutes == [" 0:00"] * 3 + [" 1:00"] * 3 + [" 2:00"] * 3


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=5), st.integers(0, 2**31))
def test_what_is_put_in_is_found(parts: list[tuple[int, int]], seed: int) -> None:
    """Films with text between them (or none) come back, wherever they stand."""
    random = np.random.default_rng(seed)
    films = [random.integers(0, 5, (count, 1, 3)) for count, _ in parts]
    ids: list[int] = []
    spans = []
    for film, (_, words) in zip(films, parts, strict=True):
        ids += [6] * words
        spans.append((len(ids), len(ids) + len(vision_ids(film, SMALL))))
        ids += vision_ids(film, SMALL).tolist()
    found = list(visions(np.array(ids), SMALL))
    assert [(vision.start, vision.stop) for vision in found] == spans
    for vision, film in zip(found, films, strict=True):
        np.testing.assert_array_equal(vision.codes, film)


def test_of_a_film_that_is_cut_off_the_whole_frames_are_found() -> None:
    ids = vision_ids(np.array([[[0, 1, 2]], [[4, 4, 0]]]), SMALL)
    (vision,) = visions(ids[:8], SMALL)
    assert vision.codes.tolist() == [[[0, 1, 2]]]
    assert (vision.start, vision.stop) == (0, 8)
    assert not list(visions(ids[:4], SMALL))
    (vision,) = visions(ids[2:], SMALL)  # without its beginning
    assert (len(vision.codes), vision.start) == (2, 0)


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        (np.zeros((0, 1, 3), int), "one or more of 1x3"),
        (np.zeros((1, 3, 1), int), "one or more of 1x3"),
        (np.full((1, 1, 3), 5), "0 to 4, got 5"),
        (np.full((1, 1, 3), -1), "0 to 4, got -1"),
    ],
)
def test_mistakes(codes: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        frame_ids(codes, SMALL)
