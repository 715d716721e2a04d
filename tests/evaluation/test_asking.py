import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ringworld.data.worlds import WHAT_HAPPENS, WHAT_IS_SEEN
from ringworld.evaluation.asking import Piece, asked_to_describe, shown, together
from ringworld.worlds.world import World

FILM = World().film(3, 12, (4, 4))


def test_a_film_is_shown_a_frame_a_second() -> None:
    (piece,) = shown(FILM, 12, 16)
    np.testing.assert_array_equal([*piece], [*FILM.frames(16)])
    np.testing.assert_array_equal([*piece], [*piece])
    assert len({piece, *shown(FILM, 12, 16)}) == 2


def test_the_time_stands_behind_each_piece() -> None:
    parts = shown(FILM, 12, 16, 5)
    assert [part if isinstance(part, str) else len([*part]) for part in parts] == [
        5,
        " 0:00",
        5,
        " 0:05",
        2,
        " 0:10",
    ]
    frames = [frame for part in parts if isinstance(part, Piece) for frame in part]
    np.testing.assert_array_equal(frames, [*FILM.frames(16)])


def test_a_description_is_asked_for_in_the_words_of_training() -> None:
    for frames, question in ((1, WHAT_IS_SEEN), (5, WHAT_HAPPENS)):
        (turn,) = asked_to_describe(FILM, frames, 16)
        piece, words = turn["content"]
        assert (turn["role"], words) == ("user", f" {question}")
        np.testing.assert_array_equal([*piece], [*FILM.frames(16)][:frames])


@given(st.lists(st.tuples(st.lists(st.integers(), min_size=1, max_size=3), st.integers(1, 50))), st.integers(1, 60))
def test_groups_stay_together_as_long_as_there_is_room(groups: list[tuple[list[int], int]], room: int) -> None:
    marked = [([(number, item) for item in items], tokens) for number, (items, tokens) in enumerate(groups)]
    batches = [*together(marked, room)]
    assert [one for batch in batches for one in batch] == [one for items, _ in marked for one in items]
    held = [sorted({number for number, _ in batch}) for batch in batches]
    assert [number for numbers in held for number in numbers] == [*range(len(groups))]  # none in two batches
    used = [sum(groups[number][1] for number in numbers) for numbers in held]
    assert all(tokens <= room or len(numbers) == 1 for numbers, tokens in zip(held, used, strict=True))
    following = [groups[numbers[0]][1] for numbers in held[1:]]
    assert all(tokens + more > room for tokens, more in zip(used, following, strict=False))
