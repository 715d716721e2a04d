import json
from pathlib import Path

import jax
import numpy as np
import pytest

from generation.models import random_model, seeing_model
from ringworld.data.documents import Document, Given, Span
from ringworld.data.packing import Batch, frame, pack_row
from ringworld.data.sources import ShardsConfig
from ringworld.data.tokenized import TextSpan, TokenizedDocument, VisionSpan, write_shard
from ringworld.errors import UserError
from ringworld.evaluation.perplexity import (
    PerplexityResult,
    PositionRange,
    document_rows,
    evaluate_perplexity,
    text_rows,
    token_losses,
)
from ringworld.generation.model import Model
from ringworld.mesh import MeshShape
from ringworld.model.transformer import forward, head

SLICES = tuple((part.start, part.stop) for part in seeing_model().tokenizer.vocabulary.modalities)


def losses_of(model: Model, batch: Batch, bounds: tuple[tuple[int, int], ...]) -> np.ndarray:
    """As the definition says, with all logits at once."""
    options = {"config": model.config, "mesh": model.mesh, "frequencies": model.frequencies(1)}
    through = jax.jit(lambda weights, *arrays: forward(weights, *arrays, **options))
    logits = np.asarray(
        through(model.weights, batch.tokens, batch.segments, batch.positions) @ head(model.weights), np.float64
    )
    targets = batch.targets[..., None]
    found = np.zeros(batch.targets.shape)
    for start, stop in bounds:
        total = np.log(np.exp(logits[..., start:stop]).sum(-1))
        inside = (batch.targets >= start) & (batch.targets < stop)
        found[inside] = (total - np.take_along_axis(logits, targets, -1)[..., 0])[inside]
    return found


def test_losses_are_those_of_a_softmax_over_a_targets_own_modality() -> None:
    model = seeing_model()
    size = model.tokenizer.vocabulary.size
    tokens, targets = np.random.default_rng(0).integers(0, size, (2, 3, 100)).astype(np.int32)
    segments = np.repeat([[1, 2], [1, 1], [1, 0]], 50, axis=1).astype(np.int32)
    positions = np.tile(np.arange(50, dtype=np.int32), (3, 2))
    positions[1, 50:] += 50
    batch = Batch(tokens, targets, segments, positions, np.ones((3, 100), np.float32))
    options = {"config": model.config, "mesh": model.mesh}
    for bounds in (SLICES, SLICES[:1]):
        losses = np.asarray(token_losses(model.weights, batch, model.frequencies(1), bounds=bounds, **options))
        expected = losses_of(model, batch, bounds)
        there = segments > 0
        np.testing.assert_allclose(losses[there], expected[there], rtol=1e-4, atol=1e-5)


def test_windows_are_spread_over_the_text_and_begin_with_bos() -> None:
    batch = text_rows(np.arange(10, 65, dtype=np.int32), 10, 3, opening=(1,))
    np.testing.assert_array_equal(batch.targets, [range(10, 20), range(30, 40), range(50, 60)])
    np.testing.assert_array_equal(batch.tokens, [[1, *range(10, 19)], [1, *range(30, 39)], [1, *range(50, 59)]])
    np.testing.assert_array_equal(batch.positions, [range(10)] * 3)
    assert len(text_rows(np.arange(55, dtype=np.int32), 10, 99, opening=(1,)).tokens) == 5


def test_windows_of_a_model_without_bos_begin_with_a_token_that_is_no_target() -> None:
    batch = text_rows(np.arange(20, dtype=np.int32), 10, 2, opening=())
    np.testing.assert_array_equal(batch.tokens, [range(9), range(10, 19)])
    np.testing.assert_array_equal(batch.targets, [range(1, 10), range(11, 20)])


def test_ranges_of_positions_and_the_files(tmp_path: Path) -> None:
    result = evaluate_perplexity(random_model(), "tiny", length=100, rows=3, out=tmp_path)
    assert [(r.start, r.end, r.tokens) for r in result.ranges] == [
        (0, 16, 48),
        (16, 32, 48),
        (32, 64, 96),
        (64, 100, 108),
    ]
    content = json.loads((tmp_path / "perplexity.json").read_text())
    assert content["perplexity"] == pytest.approx(result.perplexity)
    assert content["settings"]["rows"] == 3
    assert PerplexityResult.read(tmp_path / "perplexity.json") == result
    assert (tmp_path / "perplexity.png").read_bytes().startswith(b"\x89PNG")


def test_neither_batches_nor_the_mesh_change_the_result(tmp_path: Path) -> None:
    alone = evaluate_perplexity(random_model(), "tiny", length=100, rows=3, out=tmp_path)
    parts = evaluate_perplexity(random_model(), "tiny", length=100, rows=3, out=tmp_path, batch_tokens=200)
    spread = evaluate_perplexity(random_model(MeshShape(data=2, sequence=4)), "tiny", length=100, rows=3, out=tmp_path)
    for other in (parts, spread):
        np.testing.assert_allclose([r.loss for r in other.ranges], [r.loss for r in alone.ranges], rtol=1e-5)


def test_perplexity_is_over_tokens_not_over_ranges() -> None:
    result = PerplexityResult({}, (PositionRange(0, 1, 1, 4.0), PositionRange(1, 4, 3, 0.0)))
    assert result.perplexity == pytest.approx(np.e)


def test_a_text_shorter_than_a_window(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Too short.")
    with pytest.raises(
        UserError, match=r"windows of 100 tokens were asked for, but the held-out text .*a\.txt has \d+ tokens"
    ):
        evaluate_perplexity(random_model(), str(tmp_path / "a.txt"), length=100, out=tmp_path)
    with pytest.raises(UserError, match="0 windows of 100"):
        evaluate_perplexity(random_model(), "tiny", length=100, rows=0, out=tmp_path)


VOCABULARY = seeing_model().tokenizer.vocabulary


def documents(count: int) -> list[Document]:
    """Of 5, 6, 7, ... tokens of text, which begin at 10, 31, 52, ..."""
    return [Document((Span("text", np.arange(n + 5, dtype=np.int32) + 20 * n + 10),)) for n in range(count)]


def test_documents_stand_whole_and_side_by_side() -> None:
    batch = document_rows(documents(12), 40, 99, VOCABULARY)
    starts = batch.positions == 0
    assert (starts & (batch.segments > 0)).sum() == 12
    for document in documents(12):
        framed = frame(document, VOCABULARY)
        ((row, column),) = np.argwhere((batch.tokens == framed.tokens[1]) & (batch.positions == 1))
        here = slice(column - 1, column - 1 + len(framed))
        np.testing.assert_array_equal(batch.tokens[row, here], framed.tokens)
        np.testing.assert_array_equal(batch.targets[row, here][:-1], framed.tokens[1:])
        np.testing.assert_array_equal(batch.positions[row, here], range(len(framed)))
        assert len(set(batch.segments[row, here].tolist())) == 1


def test_so_many_rows_and_of_what_is_longer_the_beginning() -> None:
    batch = document_rows(documents(12), 40, 2, VOCABULARY)
    assert len(batch.tokens) == 2
    long = Document((Span("text", np.arange(100, dtype=np.int32)),))
    batch = document_rows([long] * 3, 40, 5, VOCABULARY)
    np.testing.assert_array_equal(batch.tokens, [[*VOCABULARY.opening, *range(40 - len(VOCABULARY.opening))]] * 3)
    assert (batch.weights == 1).all()


def shards(folder: Path, *texts: str, trained: bool | None = None, frames: int = 3) -> Path:
    """A document for each text, with a film behind it, of which alone `trained` may say that it is learned."""
    random = np.random.default_rng(0)

    def spans(text: str) -> tuple[TextSpan | VisionSpan, ...]:
        film = VisionSpan(random.integers(0, 64, (frames, 2, 2)).astype(np.int32), 1.0, trained)
        return (TextSpan(text), film) if frames else (TextSpan(text, trained),)

    made = [TokenizedDocument(f"{number}.mp4", spans(text)) for number, text in enumerate(texts)]
    write_shard(folder / "documents-00000.array_record", made)
    return folder


TEXTS = tuple("the sea " * (1 + number % 5) for number in range(40))


def measure(folder: Path, out: Path, model: Model | None = None, **options: int) -> PerplexityResult:
    return evaluate_perplexity(model or seeing_model(), str(folder), out=out, **({"length": 64, "rows": 9} | options))


def counts(result: PerplexityResult) -> tuple[int, int]:
    return sum(r.tokens for r in result.ranges), sum(r.tokens for r in result.vision)


def test_text_and_vision_are_told_apart(tmp_path: Path) -> None:
    folder = shards(tmp_path / "codes", *TEXTS)
    result = measure(folder, tmp_path)
    # Every document in a row of its own.
    source = ShardsConfig(str(folder)).build(Given(seeing_model().tokenizer, 64, 0, "heldout"))
    rows = [pack_row([(frame(source[i], VOCABULARY), 0)], 64, VOCABULARY, "token") for i in range(len(source))]
    alone = Batch(*map(np.stack, zip(*rows, strict=True)))
    losses = losses_of(seeing_model(), alone, SLICES)
    for ranges, (start, stop) in zip((result.ranges, result.vision), SLICES, strict=True):
        for one in ranges:
            here = (alone.targets >= start) & (alone.targets < stop) & (alone.weights > 0)
            here &= (alone.positions >= one.start) & (alone.positions < one.end)
            assert one.tokens == here.sum()
            assert one.loss == pytest.approx(losses[here].mean(), rel=1e-4)
    assert sum(counts(result)) == (alone.weights > 0).sum()
    assert counts(result)[1] == 15 * len(source)
    content = json.loads((tmp_path / "perplexity.json").read_text())
    assert content["perplexity"] == pytest.approx(result.perplexity)
    assert content["vision"]["perplexity"] == pytest.approx(result.vision_perplexity)
    assert content["settings"]["every"] == 0
    assert PerplexityResult.read(tmp_path / "perplexity.json") == result
    assert (tmp_path / "perplexity.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_not_trained_on_does_not_count(tmp_path: Path) -> None:
    text, vision = counts(measure(shards(tmp_path / "codes", *TEXTS, trained=True), tmp_path))
    documents = vision // 15
    assert text == documents * (len(VOCABULARY.vision_start) + len(VOCABULARY.vision_end) + 1)  # and eos


def test_the_time_stands_in_films(tmp_path: Path) -> None:
    folder = shards(tmp_path / "codes", *TEXTS)
    without, timed = measure(folder, tmp_path), measure(folder, tmp_path, every=2)
    assert timed.settings["every"] == 2
    assert counts(timed)[0] > counts(without)[0]


def test_documents_of_text_alone_are_as_texts(tmp_path: Path) -> None:
    result = measure(shards(tmp_path / "codes", *TEXTS, frames=0), tmp_path)
    assert result.vision_perplexity is None
    assert "vision" not in json.loads((tmp_path / "perplexity.json").read_text())
    assert PerplexityResult.read(tmp_path / "perplexity.json") == result


def test_documents_that_cannot_be_measured(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no tokenised documents in"):
        measure(tmp_path, tmp_path)
    few = shards(tmp_path / "few", *TEXTS[:2])
    with pytest.raises(UserError, match=r"of the 2 documents of .*few none is small enough"):
        measure(few, tmp_path)
    many = shards(tmp_path / "many", *TEXTS)
    with pytest.raises(UserError, match="has vision, but the model's vocabulary has none"):
        measure(many, tmp_path, random_model())
    untrained = shards(tmp_path / "untrained", *TEXTS, trained=False)
    with pytest.raises(UserError, match=r"in rows of 64 tokens .*untrained have no text that is trained on"):
        measure(untrained, tmp_path)
    assert not (tmp_path / "perplexity.json").exists()
