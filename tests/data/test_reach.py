import numpy as np
import pytest

from data.seeing import TEXT
from ringworld.data.documents import Document, Given, Span
from ringworld.data.packing import frame, pack_row
from ringworld.data.passing import PassingConfig
from ringworld.data.reach import ReachingDocuments
from ringworld.data.sources import ReachConfig
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=100, bos=1, eos=2, pad=0)
PLAIN = Document(
    (
        Span("text", np.arange(10, 20, dtype=np.int32)),
        Span("vision", np.arange(100, 110, dtype=np.int32)),
        Span("text", np.arange(20, 40, dtype=np.int32)),
    )
)


def reaching(reach: int, gaps: int, document: Document = PLAIN) -> ReachingDocuments:
    return ReachingDocuments([document] * 50, reach=reach, gaps=gaps, text_size=100, seed=3)


def test_positions_rise_and_stay_below_the_reach_and_use_it() -> None:
    documents = reaching(1000, 5)
    last = []
    for index in range(50):
        positions = documents[index].positions
        assert positions is not None
        assert positions[0] == 0
        steps = np.diff(positions)
        assert steps.min() >= 1
        assert (steps > 1).sum() <= 5
        last.append(positions[-1])
    assert 900 < max(last) < 1000
    assert min(last) < 200


def test_frames_keep_together() -> None:
    for document in (reaching(10_000, 40)[index] for index in range(50)):
        positions = np.asarray(document.positions)
        inside = np.diff(positions)[9:19]  # into the vision, and from code to code
        assert (inside == 1).all()


def test_a_document_depends_on_its_number_alone() -> None:
    np.testing.assert_array_equal(reaching(1000, 5)[7].positions, reaching(1000, 5)[7].positions)
    assert reaching(1000, 5)[7].positions.tolist() != reaching(1000, 5)[8].positions.tolist()


def test_one_without_room_or_without_words_stays_as_it_is() -> None:
    assert reaching(40, 5)[0] is PLAIN
    vision = Document((Span("vision", np.arange(100, 110, dtype=np.int32)),))
    assert reaching(1000, 5, vision)[0] is vision


@pytest.mark.parametrize(("reach", "gaps"), [(0, 1), (10, 0)])
def test_impossible_reaches_are_refused(reach: int, gaps: int) -> None:
    with pytest.raises(ValueError, match="1 position or more"):
        reaching(reach, gaps)


def test_in_a_row_the_gaps_stand_behind_the_bos_and_each_document_begins_at_0() -> None:
    span = (Span("text", np.array([11, 12, 13], np.int32)),)
    framed = frame(Document(span, np.array([0, 5, 9], np.int32)), VOCABULARY)
    assert framed.positions.tolist() == [0, 1, 6, 10, 11]
    row = pack_row([(framed, 0), (frame(Document(span), VOCABULARY), 0), (framed, 2)], 13, VOCABULARY, "token")
    assert row[3].tolist() == [0, 1, 6, 10, 11, 0, 1, 2, 3, 4, 0, 4, 5]


def test_the_documents_of_a_recipes_source_reach_as_far(nano: FrameTokenizer) -> None:
    shown = PassingConfig((2, 4), frames=2, asked=2)
    source, reaching = (
        config.build(Given(TEXT, 512, 7, "heldout", nano)) for config in (shown, ReachConfig(shown, 9000, 3))
    )
    last = []
    for index in range(20):
        plain, document = source[index], reaching[index]
        np.testing.assert_array_equal(document.tokens, plain.tokens)
        np.testing.assert_array_equal(document.weights, plain.weights)
        steps = np.diff(np.asarray(document.positions))
        assert (steps > 1).sum() <= 3
        assert (document.tokens[1:][steps > 1] < TEXT.vocabulary.text_size).all()
        last.append(steps.sum())
    assert 6000 < max(last) < 9000
