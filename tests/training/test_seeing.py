"""A run that learns to see and to draw: all that its use needs is in its folder."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import ringworld
from ringworld.data.sources import CorpusConfig, TokenizerConfig
from ringworld.data.worlds import WorldSourceConfig
from ringworld.errors import UserError
from ringworld.generation.drawing import Brush
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.config import ModelConfig
from ringworld.training.curriculum import Recipe
from ringworld.training.language import LanguageRecipe, LanguageStage
from ringworld.training.loop import train
from ringworld.training.optimizer import OptimizerConfig
from ringworld.weights.models import open_model
from ringworld.weights.portable import write_portable
from ringworld.weights.tokenizer import SHIPPED

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
    one, other = (ringworld.load(path).weights for path in (run, folder))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_model_to_begin_with_brings_its_tokenizer_of_frames(run: Path, tmp_path: Path) -> None:
    recipe: Recipe = replace(RECIPE, init=str(run), tokenizer=None, frames=None)
    learner = recipe.learner(tmp_path)
    assert learner.frames is not None
    given = ringworld.load(run)
    assert learner.tokenizer.vocabulary == given.tokenizer.vocabulary
    state = learner.init(jax.random.key(0), build_mesh(MeshShape(), jax.devices()[:1]))
    jax.tree.map(np.testing.assert_array_equal, state.weights, given.weights)


def test_a_tokenizer_of_frames_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no tokenizer nowhere.*nano"):
        replace(RECIPE, frames="nowhere").learner(tmp_path)
    assert "nano" in SHIPPED
