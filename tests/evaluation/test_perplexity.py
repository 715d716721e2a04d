import json
from pathlib import Path

import jax
import numpy as np
import pytest

from generation.models import random_model
from ringworld.errors import UserError
from ringworld.evaluation.perplexity import PerplexityResult, PositionRange, evaluate_perplexity, rows_of, token_losses
from ringworld.mesh import MeshShape
from ringworld.model.transformer import forward, head


def test_losses_are_those_of_a_softmax_over_all_logits() -> None:
    model = random_model()
    tokens, targets = np.random.default_rng(0).integers(0, 400, (2, 3, 100)).astype(np.int32)
    options = {"config": model.config, "mesh": model.mesh}
    losses = token_losses(model.weights, tokens, targets, model.frequencies(1), text_size=400, **options)
    positions = np.broadcast_to(np.arange(100, dtype=np.int32), (3, 100))
    through = jax.jit(lambda w, t, s, p: forward(w, t, s, p, frequencies=model.frequencies(1), **options))
    hidden = through(model.weights, tokens, np.ones_like(tokens), positions)
    logits = jax.nn.log_softmax(hidden @ head(model.weights))
    np.testing.assert_allclose(
        losses, -np.take_along_axis(np.asarray(logits), targets[..., None], -1)[..., 0], rtol=1e-5
    )


def test_windows_are_spread_over_the_text_and_begin_with_bos() -> None:
    tokens, targets = rows_of(np.arange(10, 65, dtype=np.int32), 10, 3, opening=(1,))
    np.testing.assert_array_equal(targets, [range(10, 20), range(30, 40), range(50, 60)])
    np.testing.assert_array_equal(tokens, [[1, *range(10, 19)], [1, *range(30, 39)], [1, *range(50, 59)]])
    assert len(rows_of(np.arange(55, dtype=np.int32), 10, 99, opening=(1,))[0]) == 5


def test_windows_of_a_model_without_bos_begin_with_a_token_that_is_no_target() -> None:
    tokens, targets = rows_of(np.arange(20, dtype=np.int32), 10, 2, opening=())
    np.testing.assert_array_equal(tokens, [range(9), range(10, 19)])
    np.testing.assert_array_equal(targets, [range(1, 10), range(11, 20)])


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
