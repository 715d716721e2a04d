"""A run that learns to see and to draw: all that its use needs is in its folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import ringworld
from ringworld.data.frames import ShapesConfig
from ringworld.data.sources import CorpusConfig, ShardsConfig, TextFolderConfig, TokenizerConfig
from ringworld.data.tokenized import TextSpan, TokenizedDocument, VisionSpan, write_shard
from ringworld.data.worlds import WorldSourceConfig
from ringworld.errors import UserError
from ringworld.generation.drawing import Brush
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.config import ModelConfig
from ringworld.tokens.quantizers import QuantizerConfig
from ringworld.tokens.vqgan import VqganConfig
from ringworld.training.curriculum import Recipe
from ringworld.training.language import LanguageRecipe, LanguageStage
from ringworld.training.loop import train
from ringworld.training.optimizer import OptimizerConfig
from ringworld.training.vqgan import VqganRecipe, VqganStage
from ringworld.weights import models
from ringworld.weights.models import open_model
from ringworld.weights.portable import write_portable
from ringworld.weights.tokenizer import SHIPPED, load_tokenizer, save_tokenizer
from tokens.small_vqgan import SMALL, draw

WORLD = WorldSourceConfig("draw", without_words=0.2, documents=64)
RECIPE = LanguageRecipe(
    name="seeing",
    summary="",
    model=ModelConfig(400 + 4098, 16, 32, 1, 2, 1, 8, tied=True, qk_norm=True),
    tokenizer=TokenizerConfig(400, ("tiny",), wording=False),
    optimizer=OptimizerConfig(kind="adamw"),
    stages=(
        LanguageStage(
            name="pictures",
            sequence_length=256,
            batch_size=2,
            steps=3,
            rope_theta=1e4,
            learning_rate=1e-3,
            sources=((WORLD, 0.5), (replace(WORLD, task="describe"), 0.3), (CorpusConfig(("tiny",)), 0.2)),
            normalization="modality",
        ),
    ),
    frames="nano",
    z_loss=1e-4,
    mesh=MeshShape(data=2, sequence=4),
)
QUIET = {"log": lambda line: None}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeing")
    train(RECIPE, folder, **QUIET)
    return folder


def test_a_model_draws_as_soon_as_it_is_loaded(run: Path, tmp_path: Path) -> None:
    model = ringworld.load(run)
    vocabulary = model.tokenizer.vocabulary
    assert (vocabulary.codes, vocabulary.codes_per_frame, vocabulary.size) == (4096, 16, 4498)
    picture = model.draw("a red circle", Brush(seed=1))
    assert picture.shape == (64, 64, 3)
    assert len(list(model.film("a red circle", 2, Brush(seed=1), picture[None]))) == 2
    # Handed on in a folder of its own, it draws the same.
    write_portable(open_model(run), tmp_path / "portable")
    other = ringworld.load(tmp_path / "portable")
    np.testing.assert_array_equal(other.draw("a red circle", Brush(seed=1)), picture)


def test_a_run_goes_on_with_the_tokenizer_of_frames_that_it_began_with(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(RECIPE, folder, steps=1, **QUIET)
    assert (folder / "frames.safetensors").is_file()
    train(RECIPE, folder, **QUIET)
    assert losses(folder) == losses(run)
    one, other = (ringworld.load(path).weights for path in (run, folder))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def losses(folder: Path) -> list[float]:
    """Of each step."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "step"]


EYES = VqganRecipe(
    name="eyes",
    summary="",
    model=VqganConfig(
        frame_size=16,
        channels=(16,),
        latent=8,
        quantizer=QuantizerConfig("ema", codes=16, dim=4),
        patch=8,
        encoder_blocks=1,
        decoder_blocks=1,
        middle_blocks=0,
        kernel=1,
        norm="position",
    ),
    optimizer=OptimizerConfig(),
    stages=(VqganStage(name="eyes", batch_size=8, steps=2, learning_rate=1e-3, sources=((ShapesConfig(), 1.0),)),),
    mesh=MeshShape(data=8),
)


def test_a_recipe_may_train_its_tokenizer_of_frames_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = replace(RECIPE, frames=EYES, model=replace(RECIPE.model, vocabulary_size=400 + 16 + 2))
    train(EYES, tmp_path / "frames", steps=1, **QUIET)  # as far as it came before it was stopped
    frames = recipe.learner(tmp_path).frames
    assert frames is not None
    assert "complete after 2 steps" in capsys.readouterr().out
    own = load_tokenizer(tmp_path / "frames", build_mesh(MeshShape(), jax.devices()[:1]))
    jax.tree.map(np.testing.assert_array_equal, own.weights, frames.weights)
    again = recipe.learner(tmp_path)
    assert again.tokenizer.vocabulary.codes_per_frame == 4
    assert capsys.readouterr().out == ""


def test_a_model_to_begin_with_brings_its_tokenizer_of_frames(run: Path, tmp_path: Path) -> None:
    recipe: Recipe = replace(RECIPE, init=str(run), tokenizer=None, frames=None)
    learner = recipe.learner(tmp_path)
    assert learner.frames is not None
    given = ringworld.load(run)
    assert learner.tokenizer.vocabulary == given.tokenizer.vocabulary
    state = learner.init(jax.random.key(0), build_mesh(MeshShape(), jax.devices()[:1]))
    jax.tree.map(np.testing.assert_array_equal, state.weights, given.weights)


def test_pictures_and_prose_have_rows_of_their_own(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 4096, (1, 4, 4)).astype(np.int32)
    pair = TokenizedDocument("a", (TextSpan("a circle"), VisionSpan(codes)))
    write_shard(tmp_path / "pairs" / "documents-00000.array_record", [pair] * 10)
    (tmp_path / "texts").mkdir()
    for number in range(10):
        (tmp_path / "texts" / f"{number}.txt").write_text("The keeper counted the lamps by the river. " * 9)
    pairs, texts = ShardsConfig(str(tmp_path / "pairs"), swap=0.5), TextFolderConfig(str(tmp_path / "texts"))
    stage = replace(
        RECIPE.stages[0], sequence_length=64, batch_size=4, sources=((pairs, 0.75), (texts, 0.25)), mixing="rows",
        packing="split long",
    )  # fmt: skip
    learner = replace(RECIPE, stages=(stage,)).learner(tmp_path / "run")
    loader = learner.course(0, build_mesh(MeshShape(), jax.devices()[:1])).loader
    batches = [next(loader) for _ in range(25)]
    loader.close()
    rows = np.concatenate([np.asarray(batch.tokens) for batch in batches])
    weights = np.concatenate([np.asarray(batch.weights) for batch in batches])
    sees = (rows >= learner.tokenizer.vocabulary.text_size).any(axis=1)
    assert 60 < sees.sum() < 90
    assert weights[sees].sum(axis=1) == pytest.approx(1)  # half of it text, half vision
    assert weights[~sees].sum(axis=1) == pytest.approx(0.5)
    assert all("keeper" not in learner.tokenizer.decode(row[row < 400]) for row in rows[sees])


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of text alone, with ids behind its text that nothing uses."""
    folder = tmp_path_factory.mktemp("reading")
    stage = replace(RECIPE.stages[0], sources=((CorpusConfig(("tiny",)), 1.0),), normalization="token")
    model = replace(RECIPE.model, vocabulary_size=410)
    train(replace(RECIPE, stages=(replace(stage, steps=1),), model=model, frames=None), folder, **QUIET)
    return folder


def growing(init: Path, **changes: Any) -> LanguageRecipe:
    return replace(RECIPE, **{"init": str(init), "tokenizer": None, **changes})


def test_a_model_of_text_learns_to_see(reading: Path, tmp_path: Path) -> None:
    learner = growing(reading).learner(tmp_path)
    given = ringworld.load(reading)
    assert given.draws_unasked is False
    vocabulary = learner.tokenizer.vocabulary
    assert (vocabulary.blind, vocabulary.codes, vocabulary.size) == (given.tokenizer.vocabulary, 4096, 400 + 4098)
    mesh = build_mesh(MeshShape(data=2, sequence=4))
    state = learner.init(jax.random.key(0), mesh)
    np.testing.assert_array_equal(state.weights.embedding[:400], given.weights.embedding[:400])
    jax.tree.map(np.testing.assert_array_equal, state.weights.layers, given.weights.layers)
    train(growing(reading), tmp_path, **QUIET)
    assert ringworld.load(tmp_path).draws_unasked is True


def test_what_cannot_learn_to_see_from_a_model(reading: Path, run: Path, tmp_path: Path) -> None:
    mesh = build_mesh(MeshShape(), jax.devices()[:1])

    def begin(name: str, recipe: LanguageRecipe) -> None:
        recipe.learner(tmp_path / name).init(jax.random.key(0), mesh)

    with pytest.raises(UserError, match=r"has a model for 4497 ids and a tokenizer of 4498: make the model's"):
        begin("small", growing(reading, model=replace(RECIPE.model, vocabulary_size=4497)))
    with pytest.raises(
        UserError, match=r"seeing cannot begin with the weights of .*, of another shape: dim: 16 before"
    ):
        begin("wide", growing(reading, model=replace(RECIPE.model, dim=32)))
    with pytest.raises(
        UserError, match=r"seeing cannot begin with .*, whose ids mean something else: leave the recipe"
    ):
        begin("other", growing(reading, tokenizer=TokenizerConfig(400, ("tiny",), wording=True)))
    save_tokenizer(tmp_path / "other.safetensors", SMALL, draw(SMALL))
    with pytest.raises(UserError, match=r"the model has frames of 4x4 of 4096 codes, the tokenizer of 8x8 of 64"):
        begin("frames", growing(run, frames=str(tmp_path / "other.safetensors")))


def test_a_tokenizer_of_frames_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no tokenizer nowhere.*nano"):
        replace(RECIPE, frames="nowhere").learner(tmp_path)
    assert "nano" in SHIPPED


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codebook_share": 1.5}, "must be 0 to 1, got 1.5"),
        ({"codebook_share": 0.5, "frames": None}, "a tokenizer of frames"),
        ({"codebook_share": 0.5, "init": "smollm2"}, "leave init out"),
    ],
)
def test_a_codebook_share_is_of_random_weights_and_frames(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        replace(RECIPE, **changes)


def test_a_shipped_model_is_opened_by_its_name(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_portable(open_model(run), tmp_path / "film-student")
    monkeypatch.setitem(models.SHIPPED, "film-student", tmp_path / "film-student")
    assert open_model("film-student").description == open_model(run).description
