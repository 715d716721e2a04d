"""What the scripts of benchmarks/claims compare differs in what they say, and in nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest

from chat import chat, mixed
from packing import text
from ringworld import recipes
from ringworld.data.documents import Document, Span
from ringworld.data.packing import Batch, frame, pack_row
from ringworld.data.sources import JsonlConfig
from ringworld.mesh import build_mesh
from ringworld.tokens.vocabulary import Vocabulary
from ringworld.training.curriculum import Course, differences, to_json
from ringworld.training.language import LanguageLearner
from ringworld.training.loop import METRICS
from trials import SHORT, ChangedRecipe, Curve, first_answer, learning, nano, table, together, tokens_until, unweighted

VOCABULARY = Vocabulary(text_size=100, bos=1, eos=2, pad=0)


def document(*spans: tuple[list[int], float]) -> Document:
    return Document(tuple(Span("text", np.array(ids, np.int32), weight) for ids, weight in spans))


@pytest.fixture
def batch() -> Batch:
    """Two documents in a row, and padding."""
    pieces = [
        (frame(document(([11, 12], 0.02), ([13], 1.0)), VOCABULARY), 0),
        (frame(document(([21], 0.5)), VOCABULARY), 0),
    ]
    return Batch(*(array[None] for array in pack_row(pieces, 10, VOCABULARY, "token")))


def test_together_joins_the_documents_of_a_row_and_leaves_padding_out(batch):
    joined = together(batch)
    assert joined.segments.tolist() == [[1, 1, 1, 1, 1, 1, 1, 1, 0, 0]]
    assert joined.positions.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 0, 0]]
    assert {joined.segments.dtype, joined.positions.dtype} == {np.dtype(np.int32)}
    assert all(getattr(joined, name) is getattr(batch, name) for name in ("tokens", "targets", "weights"))


def test_unweighted_takes_the_same_targets(batch):
    alike = unweighted(batch)
    assert alike.weights.tolist() == [[1, 1, 1, 1, 0, 1, 1, 0, 0, 0]]
    assert alike.weights.dtype == np.float32
    assert alike.segments is batch.segments


def test_a_changed_recipe_changes_what_a_step_gets(batch, monkeypatch, tmp_path):
    stepped: list[Batch] = []

    def usual(self, index, mesh):
        return Course(lambda state, batch, rate: stepped.append(batch), None, None, None)

    monkeypatch.setattr(LanguageLearner, "course", usual)
    recipe = ChangedRecipe.of(recipes.build("debug"), "together", "unweighted")
    recipe.learner(tmp_path).course(0, build_mesh(recipe.mesh)).step(None, batch, 0.1)
    assert stepped[0].positions.max() == 7
    assert set(np.unique(stepped[0].weights)) == {0, 1}


def test_recipes_that_are_compared_differ_in_their_changes_alone():
    apart, joined = (ChangedRecipe.of(text(0, 1.0), *changes) for changes in ((), ("together",)))
    assert [*differences(to_json(apart), to_json(joined))] == ["changes: 0 of them before, 1 now"]


def test_a_row_of_several_documents_takes_no_more_tokens():
    usual, packed = nano(SHORT, 0, 1.0).stages, text(0, 1.0).stages
    assert [stage.units_per_step for stage in packed] == [stage.units_per_step for stage in usual]
    assert [stage.sources for stage in packed] == [stage.sources for stage in usual]
    assert all(stage.until is None for stage in packed)


def test_the_first_answer_is_what_is_trained_on_first():
    asked = frame(document(([11, 12], 0.0), ([13, 14], 0.5), ([15], 0.0), ([16], 1.0)), VOCABULARY)
    prompt, answer = first_answer(asked)
    assert (prompt.tolist(), answer.tolist()) == ([1, 11, 12], [13, 14])
    _, last = first_answer(frame(document(([11], 0.0), ([13], 1.0)), VOCABULARY))
    assert last.tolist() == [13, 2]


def test_a_chat_asks_untrained_and_answers_trained():
    spans = chat(0)["spans"]
    assert [span["trained"] for span in spans] == [False, True] * (len(spans) // 2)
    assert spans[0]["text"].startswith("USER: ")
    assert all(span["text"].endswith(" ASSISTANT: ") for span in spans[::2])
    assert all(span["text"].startswith(" USER: ") for span in spans[2::2])


@pytest.mark.parametrize("share", [0.0, 0.7, 1.0])
def test_chats_have_their_share_of_the_rows(share):
    asked = JsonlConfig("chats.jsonl")
    (stage,) = mixed(nano({64: 10, 128: 10}, 0, 1.0), Path("base"), share, asked, 1.0).stages
    assert sum(weight for _, weight in stage.sources) == pytest.approx(1)
    assert sum(weight for source, weight in stage.sources if source == asked) == share
    assert stage.mixing == "rows"


def test_a_table_shows_shares_counts_and_what_is_missing():
    rows = [{"seed": 0, "arm": "a", "tokens": 3_400_000, "found": 0.98}, {"seed": 1, "arm": "b", "tokens": 800}]
    assert table(rows).splitlines() == [
        "| seed | arm | tokens | found |",
        "|---|---|---|---|",
        "| 0 | a | 3.4M | 98% |",
        "| 1 | b | 800 | - |",
    ]


def test_a_learning_curve_is_smooth_and_says_when_a_share_was_reached(tmp_path):
    steps = [{"kind": "step", "tokens": 1000 * i, "accuracy": float(i > 30)} for i in range(1, 61)]
    (tmp_path / METRICS).write_text("".join(json.dumps(step) + "\n" for step in steps))
    curve = learning("apart", 3, tmp_path)
    assert (curve.arm, curve.seed, curve.x[0], curve.x[-1]) == ("apart", 3, 0.001, 0.06)
    assert (curve.y[29], curve.y[40], curve.y[-1]) == (0, pytest.approx(11 / 21), 1)
    assert tokens_until(0.5, curve) == 41_000
    assert tokens_until(0.9, Curve("apart", 3, curve.x[:40], curve.y[:40])) == "never"
