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


VISION = Vocabulary(
    text_size=100, bos=1, eos=2, pad=0, codes=40, vision_size=50, vision_start=(7,), vision_end=(8,),
    frame_height=1, frame_width=2,
)  # fmt: skip
IDS = {"text": st.integers(3, 99), "vision": st.integers(100, 141)}


def rows_of(spans: list[tuple[str, list[int], float]], cut: int) -> list[tuple[np.ndarray, ...]]:
    """A document over two rows, and once more in one, behind a document of text."""
    one = frame(Document(tuple(Span(kind, np.array(ids, np.int32), weight) for kind, ids, weight in spans)), VISION)
    text = frame(document(([5, 6], 1.0)), VISION)
    cut = min(cut, len(one) - 2)
    pieces = [[(one, 0)], [(one, cut)], [(text, 0), (one, 0)]]
    lengths = (cut, len(one) + 3, len(text) + len(one))
    return [
        (*pack_row(piece, length, VISION, "modality"), pack_row(piece, length, VISION, "token")[4])
        for piece, length in zip(pieces, lengths, strict=True)
    ]


@settings(deadline=None)
@given(
    st.lists(
        st.sampled_from(["text", "vision"]).flatmap(
            lambda kind: st.tuples(
                st.just(kind), st.lists(IDS[kind], max_size=5), st.sampled_from([0.0, 0.25, 1.0, 1e30])
            )
        ),
        min_size=1,
        max_size=6,
    ).filter(lambda spans: sum(len(ids) for _, ids, _ in spans) > 1),
    st.integers(1, 12),
)
def test_normalization_by_modality_is_the_loss_of_lwm(spans: list, cut: int) -> None:
    """0.5 * (text mean + vision mean), each the mean over rows of the row's own masked mean; written plainly."""
    means: dict[str, list[float]] = {"text": [], "vision": []}
    total, weighed, rows = 0.0, 0.0, rows_of(spans, cut)
    for tokens, targets, _, positions, weights, mask in rows:
        losses = nll(targets, positions, tokens).astype(np.float64)
        for kind, of_kind in (("text", targets < 100), ("vision", targets >= 100)):
            mine = mask.astype(np.float64) * of_kind
            means[kind].append(float((mine * losses).sum() / max(mine.sum(), 1e-10)))
            assert weights[of_kind].sum() == pytest.approx(0.5 if mine.any() else 0.0)
        total += float(np.sum(weights.astype(np.float64) * losses))
        weighed += float(weights.sum(dtype=np.float64))
    lwm = 0.5 * (np.mean(means["vision"]) + np.mean(means["text"]))
    # Rows that lack a modality lower LWM's loss; where none does, the factor is 1.
    there = sum(mean != 0 for kind in means.values() for mean in kind)
    if there:
        np.testing.assert_allclose(total / weighed, lwm * 2 * len(rows) / there, rtol=1e-5)


def test_rows_of_text_and_vision_have_the_loss_of_lwm_to_the_letter() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for texts, visions in ((3, 40), (17, 5), (1, 1)):
        spans = (
            Span("text", rng.integers(3, 100, texts).astype(np.int32), 0.0),
            Span("text", rng.integers(3, 100, texts).astype(np.int32), 1.0),
            Span("vision", rng.integers(100, 142, visions).astype(np.int32), 1.0),
        )
        rows.append(pack_row([(frame(Document(spans), VISION), 0)], 80, VISION, "modality"))
    targets, weights = (np.stack([row[part] for row in rows]) for part in (1, 4))
    losses = rng.random(targets.shape)
    mask, is_vision = weights > 0, targets >= 100
    text, vision = (
        np.mean((losses * mask * kind).sum(axis=1) / (mask * kind).sum(axis=1)) for kind in (~is_vision, is_vision)
    )
    np.testing.assert_allclose((weights * losses).sum() / weights.sum(), 0.5 * (vision + text), rtol=1e-6)


def test_weights_by_modality_keep_what_the_spans_say_of_each_other() -> None:
    spans = (
        Span("text", np.array([11], np.int32), 1.0),
        Span("text", np.array([12], np.int32), 3.0),
        Span("vision", np.array([101, 102, 140, 103, 104], np.int32), 2.0),
        Span("text", np.array([8], np.int32), 0.0),
    )
    row = pack_row([(frame(Document(spans), VISION), 0)], 12, VISION, "modality")
    assert row[4].tolist() == pytest.approx([0.125, 0.375, 0.1, 0.1, 0.1, 0.1, 0.1, 0, 0, 0, 0, 0])
    assert row[4].dtype == np.float32
    alone = pack_row([(frame(document(([11, 12, 13], 1.0)), VISION), 0)], 6, VISION, "modality")
    assert alone[4].tolist() == [0.125] * 4 + [0, 0]


def test_a_batch_is_a_pytree() -> None:
    zero, one, two, three = (np.full((2, 3), i, np.int32) for i in range(4))
    batch = Batch(zero, one, two, three, np.zeros((2, 3), np.float32))
    doubled = jax.tree.map(lambda array: array * 2, batch)
    assert isinstance(doubled, Batch)
    assert doubled.positions.tolist() == [[6] * 3] * 2


def test_framed_knows_its_length() -> None:
    assert len(Framed(np.zeros(3, np.int32), np.zeros(3, np.float32))) == 3
