import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.data.documents import Document, Span
from ringworld.data.packing import Batch, Framed, Normalization, frame, pack_row
from ringworld.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=100, bos=1, eos=2, pad=0)


def document(*spans: tuple[list[int], float]) -> Document:
    return Document(tuple(Span("text", np.array(ids, np.int32), weight) for ids, weight in spans))


def lists(arrays: tuple[np.ndarray, ...]) -> list[list]:
    return [array.tolist() for array in arrays]


def test_exact_arrays_of_two_documents_and_padding() -> None:
    first = frame(document(([11, 12], 0.0), ([13], 1.0)), VOCABULARY)
    second = frame(document(([21], 0.5)), VOCABULARY)
    row = pack_row([(first, 0), (second, 0)], 10, VOCABULARY, "token")
    assert lists(row) == [
        [1, 11, 12, 13, 2, 1, 21, 2, 0, 0],
        [11, 12, 13, 2, 0, 21, 2, 0, 0, 0],
        [1, 1, 1, 1, 1, 2, 2, 2, 0, 0],
        [0, 1, 2, 3, 4, 0, 1, 2, 0, 0],
        [0, 0, 1, 1, 0, 0.5, 0.5, 0, 0, 0],
    ]
    assert [array.dtype for array in row] == [np.int32] * 4 + [np.float32]


def test_normalization_by_example_gives_every_document_the_weight_one() -> None:
    framed = [frame(document(([11, 12], 0.0), ([13], 3.0)), VOCABULARY), frame(document(([5] * 3, 0.0)), VOCABULARY)]
    weights = pack_row([(framed[0], 0), (framed[1], 0)], 12, VOCABULARY, "example")[4]
    assert weights.tolist() == [0, 0, 0.5, 0.5] + [0] * 8


def test_a_document_cut_at_the_rows_end_keeps_every_target() -> None:
    framed = frame(document(([11, 12, 13, 14], 1.0)), VOCABULARY)
    head = lists(pack_row([(framed, 0)], 3, VOCABULARY, "token"))
    tail = lists(pack_row([(framed, 3)], 4, VOCABULARY, "token"))
    assert head == [[1, 11, 12], [11, 12, 13], [1, 1, 1], [0, 1, 2], [1, 1, 1]]
    assert tail == [[13, 14, 2, 0], [14, 2, 0, 0], [1, 1, 1, 0], [0, 1, 2, 0], [1, 1, 0, 0]]


def test_bos_and_eos_are_added_once() -> None:
    framed = frame(document(([1, 11, 2], 0.5)), VOCABULARY)
    assert framed.tokens.tolist() == [1, 11, 2]
    assert frame(document(([1], 1.0)), VOCABULARY).tokens.tolist() == [1, 2]
    assert frame(document(([2], 1.0)), VOCABULARY).tokens.tolist() == [1, 2]
    empty = frame(document(), VOCABULARY)
    assert (empty.tokens.tolist(), empty.weights.tolist()) == ([1, 2], [0, 0])


def test_a_vocabulary_without_bos_adds_none() -> None:
    vocabulary = Vocabulary(text_size=100, bos=None, eos=2, pad=2)
    assert frame(document(([11, 12], 0.5)), vocabulary).tokens.tolist() == [11, 12, 2]
    assert frame(document(([2], 0.5)), vocabulary).tokens.tolist() == [2]
    assert frame(document(), vocabulary).tokens.tolist() == [2]


def test_an_added_eos_weighs_what_the_last_span_weighs() -> None:
    assert frame(document(([11], 0.0), ([12], 0.25)), VOCABULARY).weights[1:].tolist() == [0, 0.25, 0.25]
    assert frame(document(([11], 1.0), ([12], 0.0)), VOCABULARY).weights[1:].tolist() == [1, 0, 0]


def test_a_piece_without_room_is_refused() -> None:
    framed = frame(document(([11], 1.0)), VOCABULARY)
    with pytest.raises(ValueError, match="piece 2 has 3 tokens, the row room for 0"):
        pack_row([(framed, 0), (framed, 0)], 3, VOCABULARY, "token")


def nll(targets: np.ndarray, positions: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """A loss of each target out of what a model may depend on: the token and the position within the document."""
    return 1 + np.sin(targets * 1.3 + tokens * 0.7 + positions * 0.1)


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.lists(st.integers(3, 99), max_size=4), st.sampled_from([0.0, 0.5, 1.0])), max_size=3),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(["token", "example"]),
)
def test_packed_equals_each_document_alone(documents: list, normalization: Normalization) -> None:
    framed = [frame(document(*spans), VOCABULARY) for spans in documents]
    length = sum(map(len, framed)) + 3
    tokens, targets, segments, positions, weights = pack_row(
        [(f, 0) for f in framed], length, VOCABULARY, normalization
    )
    total = 0.0
    for number, one in enumerate(framed, start=1):
        alone = pack_row([(one, 0)], len(one), VOCABULARY, normalization)
        here = segments == number
        assert tokens[here].tolist() == one.tokens.tolist() == alone[0].tolist()
        for packed, single in zip((targets, positions, weights), (alone[1], alone[3], alone[4]), strict=True):
            assert packed[here].tolist() == single.tolist()
        # No target crosses the document's end: its last token has none.
        assert targets[here][:-1].tolist() == one.tokens[1:].tolist()
        assert (targets[here][-1], weights[here][-1]) == (VOCABULARY.pad, 0)
        total += float(np.sum(alone[4] * nll(alone[1], alone[3], alone[0])))
    np.testing.assert_allclose(np.sum(weights * nll(targets, positions, tokens)), total, rtol=1e-5)
    padding = segments == 0
    assert padding.sum() == 3
    assert not weights[padding].any()
    assert set(tokens[padding]) == {VOCABULARY.pad}
    assert 1 not in targets[weights > 0]


def test_a_batch_is_a_pytree() -> None:
    zero, one, two, three = (np.full((2, 3), i, np.int32) for i in range(4))
    batch = Batch(zero, one, two, three, np.zeros((2, 3), np.float32))
    doubled = jax.tree.map(lambda array: array * 2, batch)
    assert isinstance(doubled, Batch)
    assert doubled.positions.tolist() == [[6] * 3] * 2


def test_framed_knows_its_length() -> None:
    assert len(Framed(np.zeros(3, np.int32), np.zeros(3, np.float32))) == 3
