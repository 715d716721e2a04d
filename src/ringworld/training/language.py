"""What a recipe for a language model is, and how the loop trains it."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ringworld.data.documents import Given
from ringworld.data.loading import PackedLoader, local_rows, mix, place
from ringworld.data.packing import Batch, Normalization, Policy
from ringworld.data.sources import SourceConfig, TokenizerConfig, draws_unasked
from ringworld.errors import UserError
from ringworld.generation.model import Model
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.config import ModelConfig
from ringworld.model.growth import grow_vocabulary, resemble
from ringworld.model.rope import RopeScaling, rope_frequencies
from ringworld.model.transformer import Weights, declare
from ringworld.parameters import init
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vision import VISION_END, VISION_START
from ringworld.tokens.vqgan import VqganConfig
from ringworld.training.curriculum import Course, Metrics, Purpose, Recipe, Stage, at_least, choose, differences
from ringworld.training.loop import train
from ringworld.training.step import (
    Precision,
    TrainState,
    abstract_state,
    init_state,
    make_evaluation,
    make_step,
    reset_optimizer,
)
from ringworld.training.vqgan import VqganRecipe
from ringworld.weights.checkpoint import FRAMES, TOKENIZER, Description, complete_checkpoints
from ringworld.weights.models import load, open_model
from ringworld.weights.tokenizer import load_tokenizer, save_tokenizer

Softmax = Literal["modality", "joint"]
Mixing = Literal["documents", "rows"]
FRAMES_RUN = "frames"  # the folder in a run where its tokenizer of frames is trained
LAYOUT = "zigzag"  # even work on every device of a ring; the same as none where there is no ring


@dataclass(frozen=True, kw_only=True)
class LanguageStage(Stage):
    """One context length: its data, its RoPE theta, its learning rate, and when it is over.

    A criterion is measured on the answers alone: the targets that weigh most in their row.

    Attributes:
        sequence_length: tokens in a row.
        rope_theta: the base of RoPE's angles, which grows with the length.
        packing: what becomes of a document that does not fit the row: "split" over two, "whole" in the next one, or
            "split long", which splits only one that is longer than a row.
        normalization: weights count per "token", or sum to one for each "example", or for each "modality" of a row, as
            LWM's.
        mixing: what the shares of the sources count: "documents", which lie side by side in rows, or "rows", each of
            which has documents of one source alone.
    """

    UNIT: ClassVar[str] = "tokens"

    sequence_length: int
    rope_theta: float
    sources: tuple[tuple[SourceConfig, float], ...]
    packing: Policy = "split"
    normalization: Normalization = "token"
    mixing: Mixing = "documents"

    def __post_init__(self) -> None:
        super().__post_init__()
        stage = f"stage {self.name!r}: "
        at_least(stage + "sequence_length", self.sequence_length, 1)
        at_least(stage + "rope_theta", self.rope_theta, 1)
        choose(stage + "packing", self.packing, Policy)
        choose(stage + "normalization", self.normalization, Normalization)
        choose(stage + "mixing", self.mixing, Mixing)

    @property
    def units_per_step(self) -> int:
        """Places in a batch, padding included: what a step costs."""
        return self.batch_size * self.sequence_length

    def __str__(self) -> str:
        return f"rows of {self.sequence_length} tokens, {self.batch_size} a batch, theta {self.rope_theta:.3g}"


@dataclass(frozen=True, kw_only=True)
class LanguageRecipe(Recipe):
    """A language model, from its tokenizer to its longest context.

    A model to begin with that reads text alone gets the ids of the vision, where the recipe has a tokenizer of frames
    (see `model.growth`).

    Attributes:
        model: its ids beyond those of the text are the vision's share of them.
        tokenizer: None: that of the model to begin with.
        rope_scaling: how RoPE's frequencies are stretched, in every stage, as the model to begin with has it.
        precision: how a step computes.
        frames: the tokenizer of frames of a model that sees: a run's folder, a .safetensors file, LWM's `vqgan`, or a
            shipped one's name; or the recipe of one, which is trained first, in a folder of the run. None: that of the
            model to begin with, if it has one.
        codebook_share: of the variance of the codes' first embeddings, so much (0 to 1) comes from what they stand for
            in the tokenizer of frames, so that what is learned of one code is soon known of those like it. Of a model
            that begins with random weights.
        softmax: a target's probability is of all ids ("joint"), or of those of its modality, as LWM's.
        z_loss: weight of the square of the softmax's logarithm, which keeps it near 0 (arXiv 2204.02311).
    """

    model: ModelConfig
    tokenizer: TokenizerConfig | None
    stages: tuple[LanguageStage, ...]
    precision: Precision = field(default_factory=Precision)
    rope_scaling: RopeScaling | None = None
    frames: str | VqganRecipe | None = None
    codebook_share: float = 0.0
    softmax: Softmax = "modality"
    z_loss: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("softmax", self.softmax, Softmax)
        at_least("z_loss", self.z_loss, 0)
        if not 0 <= self.codebook_share <= 1:
            raise UserError(f"codebook_share must be 0 to 1, got {self.codebook_share}")
        if self.codebook_share and (self.frames is None or self.init is not None):
            raise UserError(
                "codebook_share is of random weights and a tokenizer of frames: leave init out, give frames"
            )

    def learner(self, run: Path) -> "LanguageLearner":
        frames = _frame_tokenizer(self, run)
        return LanguageLearner(self, _tokenizer(self, run, frames), frames)


def _frame_tokenizer(recipe: LanguageRecipe, run: Path) -> FrameTokenizer | None:
    """The run's own copy of the tokenizer of frames, on one device."""
    path, mesh = run / FRAMES, build_mesh(MeshShape(), jax.local_devices()[:1])
    if not path.is_file():
        given = recipe.frames or (None if recipe.init is None else open_model(recipe.init).frames)
        if given is None:
            return None
        if isinstance(given, VqganRecipe):
            given = train(given, run / FRAMES_RUN)
        tokenizer = load_tokenizer(Path(given), mesh)
        save_tokenizer(path, tokenizer.config, tokenizer.weights)
    return load_tokenizer(path, mesh)


def _tokenizer(recipe: LanguageRecipe, run: Path, frames: FrameTokenizer | None) -> TextTokenizer:
    """The run's own tokenizer, made at its beginning; with vision where there are frames."""
    path = run / TOKENIZER
    if path.is_file():
        return TextTokenizer.load(path)
    if complete_checkpoints(run):
        raise UserError(f"{run} holds checkpoints but no {TOKENIZER} that says of what tokens: give another --out")
    if recipe.tokenizer is not None:
        tokenizer = recipe.tokenizer.build()
    elif recipe.init is not None:
        tokenizer = open_model(recipe.init).tokenizer
    else:
        raise UserError(f"recipe {recipe.name!r} has no tokenizer: give it one, or a model to begin with (init)")
    if frames is not None and not tokenizer.vocabulary.vision_size:
        tokenizer = _seeing(tokenizer, frames.config, recipe.model.vocabulary_size - tokenizer.vocabulary.text_size)
    tokenizer.save(path)
    return tokenizer


def _seeing(tokenizer: TextTokenizer, frames: VqganConfig, share: int) -> TextTokenizer:
    """The same text with the codes of frames behind it, between what `<vision>` and `</vision>` are as text."""
    start, end = (tuple(tokenizer.encode(mark)) for mark in (VISION_START, VISION_END))
    codes, grid = frames.quantizer.codes, frames.grid
    return tokenizer.of(tokenizer.vocabulary.seeing(codes, grid, grid, start, end, share))


class LanguageLearner:
    """Trains a `LanguageRecipe`: a `Learner`."""

    def __init__(self, recipe: LanguageRecipe, tokenizer: TextTokenizer, frames: FrameTokenizer | None = None) -> None:
        if recipe.model.vocabulary_size < tokenizer.vocabulary.size:
            raise UserError(
                f"recipe {recipe.name!r} has a model for {recipe.model.vocabulary_size} ids and a tokenizer of "
                f"{tokenizer.vocabulary.size}: make the model's vocabulary_size at least that"
            )
        if frames is not None:
            frames.require_fit(tokenizer.vocabulary)
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.frames = frames

    def abstract(self, mesh: Mesh) -> TrainState:
        return abstract_state(self.recipe.model, self.recipe.optimizer, mesh)

    def init(self, key: Array, mesh: Mesh) -> TrainState:
        recipe = self.recipe
        weights = None if recipe.init is None else self._given(recipe.init, key, mesh)
        if recipe.codebook_share and self.frames is not None:
            first, second = jax.random.split(key)
            weights = resemble(
                init(first, declare(recipe.model), mesh),
                recipe.model,
                self.tokenizer.vocabulary.text_size,
                jnp.asarray(self.frames.vectors()),
                recipe.codebook_share,
                second,
                mesh,
            )
        return init_state(key, recipe.model, recipe.optimizer, mesh, weights)

    def _given(self, model: str, key: Array, mesh: Mesh) -> Weights:
        """The weights of the model to begin with, which learns to see if it does not."""
        given = load(model, mesh)
        config, own = self.recipe.model, self.tokenizer.vocabulary
        there, known = given.description.config, given.description.vocabulary
        grows = own.vision_size > 0 and not known.vision_size
        if grows:
            there, own = replace(there, vocabulary_size=config.vocabulary_size), own.blind
        if known != own or given.tokenizer.inner.get_vocab() != self.tokenizer.inner.get_vocab():
            raise UserError(
                f"{self.recipe.name} cannot begin with {model}, whose ids mean something else: leave the recipe "
                "without a tokenizer of its own (None), so that it has the model's"
            )
        if unlike := list(differences(there.to_dict(), config.to_dict())):
            raise UserError(
                f"{self.recipe.name} cannot begin with the weights of {model}, of another shape: {'; '.join(unlike)}"
            )
        return grow_vocabulary(given.weights, config, own.text_size, key, mesh) if grows else given.weights

    def reset_optimizer(self, state: TrainState, mesh: Mesh) -> TrainState:
        return reset_optimizer(state, self.recipe.model, self.recipe.optimizer, mesh)

    def course(self, index: int, mesh: Mesh) -> Course:
        recipe, stage = self.recipe, self.recipe.stages[index]
        vocabulary = self.tokenizer.vocabulary
        slices = vocabulary.modalities if recipe.softmax == "modality" else (slice(0, vocabulary.size),)
        frequencies = rope_frequencies(
            stage.rope_theta, recipe.model.head_dim, recipe.rope_scaling, stage.sequence_length
        )
        update = make_step(recipe.model, recipe.optimizer, mesh, slices, recipe.precision, recipe.z_loss)
        evaluate = make_evaluation(recipe.model, mesh, slices, recipe.precision)

        def step(state: TrainState, batch: Batch, learning_rate: float) -> tuple[TrainState, Metrics]:
            return update(state, place(batch, mesh, LAYOUT), frequencies, jnp.float32(learning_rate))

        def measure(state: TrainState, batch: Batch) -> Metrics:
            return evaluate(state.weights, place(answers_only(batch), mesh, LAYOUT), frequencies)

        def loader(purpose: Purpose) -> PackedLoader:
            return self._loader(index, mesh, purpose)

        return Course(step, measure, loader("training"), None if stage.until is None else loader("validation"))

    def files(self, index: int) -> dict[str, Any]:
        return {
            "model": self._description(index).to_dict(),
            "tokenizer": json.loads(self.tokenizer.to_json()),
        }

    def model(self, state: TrainState, index: int, mesh: Mesh) -> Model:
        about = self._description(index)
        return Model(
            state.weights,
            about.config,
            self.tokenizer,
            about.rope_theta,
            mesh,
            about.context_length,
            about.rope_scaling,
            self.frames,
            draws_unasked=about.draws_unasked,
        )

    def _description(self, index: int) -> Description:
        # The longest so far: a later stage of the same or a shorter length does not shrink the context.
        lengths = [stage.sequence_length for stage in self.recipe.stages[: index + 1]]
        return Description(
            self.recipe.model,
            self.tokenizer.vocabulary,
            max(lengths),
            self.recipe.stages[index].rope_theta,
            self.recipe.rope_scaling,
            self._draws_unasked(index),
        )

    def _draws_unasked(self, index: int) -> bool | None:
        """See `Description`; of the stages up to this one."""
        known = {draws_unasked(source) for stage in self.recipe.stages[: index + 1] for source, _ in stage.sources}
        if True in known:
            return True
        return None if None in known or self.recipe.init is not None else False

    def _loader(self, index: int, mesh: Mesh, purpose: Purpose) -> PackedLoader:
        """A stage's rows for one purpose."""
        stage = self.recipe.stages[index]
        *seeds, order = self.recipe.data_seeds(index, purpose)
        data = stage.data(purpose)
        sources = [
            source.build(Given(self.tokenizer, stage.sequence_length, seed, "train", self.frames))
            for (source, _), seed in zip(data, seeds, strict=True)
        ]
        shares = [weight for _, weight in data]
        if stage.mixing == "rows":
            datasets = [mix([source], [1.0], seed=seed) for source, seed in zip(sources, seeds, strict=True)]
        else:
            datasets, shares = [mix(sources, shares, seed=order)], [1.0]
        return PackedLoader(
            *datasets,
            shares=shares,
            seed=order,
            batch_size=stage.batch_size,
            sequence_length=stage.sequence_length,
            vocabulary=self.tokenizer.vocabulary,
            policy=stage.packing,
            normalization=stage.normalization,
            rows=local_rows(mesh, stage.batch_size),
        )


def answers_only(batch: Batch) -> Batch:
    """The batch with its answers alone as targets: those that weigh most in their row.

    Those are they with at least half of the row's largest weight, since answers of different lengths may share a row. A
    row in which all targets weigh the same stays as it is.
    """
    weights = np.asarray(batch.weights)
    return replace(batch, weights=np.where(weights >= weights.max(axis=1, keepdims=True) / 2, weights, np.float32(0)))
