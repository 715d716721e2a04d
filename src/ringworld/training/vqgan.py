"""What a recipe for a tokenizer of frames is, and how the loop trains it: a VQGAN (Esser et al., arXiv 2012.09841).

One step trains encoder, codebook and decoder, and the discriminator where there is one: each loss is kept from the
weights that it is not for, so one gradient serves both sides. What is kept and used afterwards are running averages of
the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from ringworld.data.frames import FrameLoader, FrameSourceConfig, place_frames
from ringworld.data.loading import local_rows, mix
from ringworld.errors import UserError
from ringworld.mesh import axis_size
from ringworld.parameters import Parameter, abstract, init
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.quantizers import (
    QuantizerConfig,
    bounded,
    directions,
    drawn_codebook,
    look_up,
    quantize,
    straight_through,
)
from ringworld.tokens.vqgan import (
    Conv,
    VqganConfig,
    VqganWeights,
    convolve,
    declare,
    decode,
    decode_features,
    encode,
    from_bytes,
    paint,
    to_codes,
    to_patches,
)
from ringworld.training.curriculum import Course, Metrics, Purpose, Recipe, Stage, differences
from ringworld.training.guard import choose, verdict
from ringworld.training.optimizer import abstract_moments, build
from ringworld.weights.tokenizer import describe, load_tokenizer

Frames = Float[Array, "B H W 3"]
IN_USE = 100  # a code counts as used when it was chosen in so many steps
RESTART_COUNT = 1.0  # what a code that starts again weighs in its moving average, in vectors a step


@runtime_checkable
class Perceptual(Protocol):
    """A perceptual distance, such as LPIPS over a network of your own: no package brings a pretrained one.

    It is part of the recipe: a frozen dataclass of plain values.
    """

    def build(self) -> Callable[[Frames, Frames], Array]:
        """Called once. distance(frames, reconstructions), both from -1 to 1 -> a scalar to be made small."""
        ...


@dataclass(frozen=True)
class VqganLoss:
    """The weights of what is made small; frames are from -1 to 1.

    Attributes:
        l1: of the mean absolute error,
        l2: and the mean squared error.
        adversarial: of the discriminator's verdict, in units of the ratio of gradients at the last layer, which
            balances it against the other terms; 0: no discriminator.
        adversarial_start: the step from which there is one.
        discriminator: channels of its levels, each of which halves the resolution.
        perceptual: a distance of your own, and
        perceptual_weight: its weight.
    """

    l1: float = 1.0
    l2: float = 1.0
    adversarial: float = 0.0
    adversarial_start: int = 1000
    discriminator: tuple[int, ...] = (64, 128, 256)
    perceptual: Perceptual | None = None
    perceptual_weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class VqganStage(Stage):
    """Some steps of a tokenizer's training. A criterion is measured on "loss" or "psnr"."""

    UNIT: ClassVar[str] = "frames"

    sources: tuple[tuple[FrameSourceConfig, float], ...]


@dataclass(frozen=True, kw_only=True)
class VqganRecipe(Recipe):
    """A tokenizer of frames.

    Attributes:
        average: memory of the running averages of the weights, which are what is kept in the end.
    """

    model: VqganConfig
    stages: tuple[VqganStage, ...]
    loss: VqganLoss = field(default_factory=VqganLoss)
    average: float = 0.999

    def learner(self, run: Path) -> "VqganLearner":
        return VqganLearner(self)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Trained:
    """What gradients change."""

    generator: VqganWeights
    discriminator: tuple[Conv, ...]  # none where there is none


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Usage:
    """What a codebook has seen: moving averages a step, and the steps since each code was chosen."""

    counts: Any  # [codes] vectors that chose a code
    sums: Any  # [codes, dim] and their sum
    idle: Any  # [codes] int32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VqganState:
    """All that training carries from step to step; or, in the same tree, shapes or places of it."""

    weights: VqganWeights  # running averages
    trained: Trained
    optimizer_state: Any
    usage: Usage
    step: Any  # int32 scalar, steps that changed the weights
    gradient_norm: Any  # float32 scalar, its running mean


def declare_discriminator(loss: VqganLoss) -> tuple[Conv, ...]:
    """Patch discriminator (Isola et al., arXiv 1611.07004): its levels' convolutions, and the one to a verdict."""
    if not loss.adversarial:
        return ()
    widths = [3, *loss.discriminator]
    shapes = [(4 * width, out) for width, out in pairwise(widths)] + [(widths[-1], 1)]
    return tuple(
        Conv(Parameter((3, 3, width, out), (None,) * 4, (2 / (9 * width)) ** 0.5), Parameter((out,), (None,), 0.0))
        for width, out in shapes
    )


def judge(discriminator: tuple[Conv, ...], frames: Frames) -> Float[Array, "B h w 1"]:
    """How real each patch of each frame looks: above 0 is real."""
    *levels, last = discriminator
    x = frames
    for level in levels:
        x = jax.nn.leaky_relu(convolve(to_patches(x, 2), level), 0.2)
    return convolve(x, last)


def _errors(frames: Frames, painted: Frames, loss: VqganLoss, perceptual: Any) -> Array:
    difference = painted - frames
    total = loss.l1 * jnp.abs(difference).mean() + loss.l2 * (difference * difference).mean()
    return total if perceptual is None else total + loss.perceptual_weight * perceptual(frames, painted)


def psnr(frames: Frames, painted: Frames) -> Float[Array, "B"]:
    """Peak signal-to-noise ratio of each frame, in dB. Frames are from -1 to 1; identical ones have 100."""
    squared = ((jnp.clip(painted, -1, 1) - frames) ** 2).mean((1, 2, 3))
    return 10 * jnp.log10(4 / jnp.maximum(squared, 4e-10))


class VqganLearner:
    """Trains a `VqganRecipe`: a `Learner`."""

    def __init__(self, recipe: VqganRecipe) -> None:
        self.recipe = recipe
        self.declared = Trained(declare(recipe.model), declare_discriminator(recipe.loss))
        self.rule: Any = build(recipe.optimizer, self.declared)
        self.perceptual = None if recipe.loss.perceptual is None else recipe.loss.perceptual.build()

    def abstract(self, mesh: Mesh) -> VqganState:
        quantizer = self.recipe.model.quantizer
        everywhere = NamedSharding(mesh, PartitionSpec())

        def shape(dtype: Any, *sizes: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(sizes, dtype, sharding=everywhere)

        trained = abstract(self.declared, mesh)
        return VqganState(
            weights=trained.generator,
            trained=trained,
            optimizer_state=abstract_moments(self.rule, trained, mesh),
            usage=Usage(
                counts=shape(jnp.float32, quantizer.codes),
                sums=shape(jnp.float32, quantizer.codes, quantizer.dim),
                idle=shape(jnp.int32, quantizer.codes),
            ),
            step=shape(jnp.int32),
            gradient_norm=shape(jnp.float32),
        )

    def init(self, key: Array, mesh: Mesh) -> VqganState:
        trained = init(key, self.declared, mesh)
        if self.recipe.init is not None:
            trained = replace(trained, generator=self._given(Path(self.recipe.init), mesh))
        like = self.abstract(mesh)

        def zeros(tree: Any) -> Any:
            return jax.tree.map(lambda x: jax.device_put(jnp.zeros(x.shape, x.dtype), x.sharding), tree)

        return VqganState(
            weights=jax.tree.map(jnp.copy, trained.generator),
            trained=trained,
            optimizer_state=self._fresh_optimizer(trained, like),
            usage=zeros(like.usage),
            step=zeros(like.step),
            gradient_norm=zeros(like.gradient_norm),
        )

    def _given(self, path: Path, mesh: Mesh) -> VqganWeights:
        given = load_tokenizer(path, mesh)
        unlike = list(differences(given.config.to_dict(), self.recipe.model.to_dict()))
        if unlike:
            raise UserError(
                f"{self.recipe.name} cannot begin with the weights of {path}, of another shape: {'; '.join(unlike)}"
            )
        return given.weights

    def reset_optimizer(self, state: VqganState, mesh: Mesh) -> VqganState:
        return replace(state, optimizer_state=self._fresh_optimizer(state.trained, self.abstract(mesh)))

    def _fresh_optimizer(self, trained: Trained, like: VqganState) -> Any:
        places = jax.tree.map(lambda x: x.sharding, like.optimizer_state)
        return jax.jit(self.rule.init, out_shardings=places)(trained)

    def course(self, index: int, mesh: Mesh) -> Course:
        stage = self.recipe.stages[index]
        places = jax.tree.map(lambda x: x.sharding, self.abstract(mesh))
        replicated = NamedSharding(mesh, PartitionSpec())
        update = jax.jit(self._step, donate_argnums=0, out_shardings=(places, replicated))
        evaluate = jax.jit(self._measure, out_shardings=replicated)

        def step(state: VqganState, batch: np.ndarray, learning_rate: float) -> tuple[VqganState, Metrics]:
            return update(state, place_frames(batch, mesh), jnp.float32(learning_rate))

        def measure(state: VqganState, batch: np.ndarray) -> Metrics:
            return evaluate(state.weights, place_frames(batch, mesh))

        def loader(purpose: Purpose) -> FrameLoader:
            *seeds, order = self.recipe.data_seeds(index, purpose)
            data = stage.data(purpose)
            sources = [
                source.build(self.recipe.model.frame_size, seed, "train")
                for (source, _), seed in zip(data, seeds, strict=True)
            ]
            return FrameLoader(
                mix(sources, [weight for _, weight in data], seed=order),
                batch_size=stage.batch_size,
                rows=local_rows(mesh, stage.batch_size),
            )

        return Course(step, measure, loader("training"), None if stage.until is None else loader("validation"))

    def files(self, index: int) -> dict[str, Any]:
        return {"model": describe(self.recipe.model)}

    def model(self, state: VqganState, index: int, mesh: Mesh) -> FrameTokenizer:
        return FrameTokenizer(state.weights, self.recipe.model, mesh, batch=32 * axis_size(mesh, "batch"))

    def _measure(self, weights: VqganWeights, batch: Array) -> Metrics:
        frames = from_bytes(batch)
        config = self.recipe.model
        vectors = look_up(to_codes(weights, frames, config), weights.codebook, config.quantizer)
        painted = decode(weights, vectors, config)
        return {
            "loss": _errors(frames, painted, self.recipe.loss, self.perceptual),
            "psnr": psnr(frames, painted).mean(),
        }

    def _step(self, state: VqganState, batch: Array, learning_rate: Array) -> tuple[VqganState, Metrics]:
        recipe, quantizer = self.recipe, self.recipe.model.quantizer
        frames = from_bytes(batch)
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        if quantizer.has_codebook:
            state = self._begin_codebook(state, frames, key)
        gradients_of = jax.value_and_grad(self._loss, has_aux=True)
        (loss, (vectors, codes, quality)), gradients = gradients_of(state.trained, frames, state.step)
        norm = optax.tree.norm(gradients)
        good, mean = verdict(loss, norm, state.step, state.gradient_norm, recipe.optimizer.spike)
        updates, optimizer_state = self.rule.update(gradients, state.optimizer_state, state.trained)
        trained = jax.tree.map(lambda w, u: w + learning_rate * u, state.trained, updates)
        usage, codebook = _update_codebook(
            state.usage, trained.generator.codebook, vectors, codes, quantizer, jax.random.fold_in(key, 1)
        )
        trained = replace(trained, generator=replace(trained.generator, codebook=codebook))
        memory = jnp.minimum(recipe.average, (1 + state.step) / (10 + state.step))
        weights = jax.tree.map(lambda a, w: memory * a + (1 - memory) * w, state.weights, trained.generator)
        # A code that starts again jumps: its average would lie where no vector is.
        weights = replace(weights, codebook=codebook)
        after = VqganState(weights, trained, optimizer_state, usage, state.step + 1, mean)
        state = replace(choose(good, after, state), gradient_norm=mean)
        used = (state.usage.idle < jnp.minimum(IN_USE, state.step)).mean()
        metrics = {"loss": loss, "psnr": quality, "codes": used, "gradient_norm": norm, "skipped": 1.0 - good}
        return state, metrics

    def _begin_codebook(self, state: VqganState, frames: Frames, key: Array) -> VqganState:
        """At the first step the averages of a codebook, given or of the batch's vectors; later, the state as it is."""
        config, codebook, first = self.recipe.model, state.trained.generator.codebook, state.step == 0

        def drawn() -> Array:
            vectors = encode(state.trained.generator, frames, config)
            return drawn_codebook(vectors.reshape(-1, vectors.shape[-1]), config.quantizer.codes, key)

        if self.recipe.init is None:
            codebook = lax.cond(first, drawn, lambda: codebook)
        usage = replace(
            state.usage,
            counts=jnp.where(first, RESTART_COUNT, state.usage.counts),
            sums=jnp.where(first, RESTART_COUNT * codebook, state.usage.sums),
        )
        trained = replace(state.trained, generator=replace(state.trained.generator, codebook=codebook))
        return replace(state, trained=trained, usage=usage)

    def _loss(self, trained: Trained, frames: Frames, step: Array) -> tuple[Array, Any]:
        weights, config, terms = trained.generator, self.recipe.model, self.recipe.loss
        quantizer = config.quantizer
        vectors = encode(weights, frames, config)
        codes = quantize(lax.stop_gradient(vectors), lax.stop_gradient(weights.codebook), quantizer)
        chosen = look_up(codes, weights.codebook, quantizer)
        there = bounded(vectors, quantizer)
        features = decode_features(weights, straight_through(there, chosen), config)
        painted = paint(weights.decoder.last, features, config)
        total = _errors(frames, painted, terms, self.perceptual)
        if quantizer.has_codebook:
            total += quantizer.commitment * ((there - lax.stop_gradient(chosen)) ** 2).mean()
        if quantizer.kind == "gradient":
            total += ((chosen - lax.stop_gradient(there)) ** 2).mean()
        if terms.adversarial:
            total += (step >= terms.adversarial_start) * self._adversarial(trained, frames, features, painted)
        return total, (vectors, codes, psnr(frames, painted).mean())

    def _adversarial(self, trained: Trained, frames: Frames, features: Array, painted: Frames) -> Array:
        """The generator's part, which does not change the discriminator, and the other way round (hinge loss)."""
        config, terms = self.recipe.model, self.recipe.loss
        last, fixed = lax.stop_gradient((trained.generator.decoder.last, trained.discriminator))
        still = lax.stop_gradient(features)

        def at_last(term: Callable[[Frames], Array]) -> Array:
            """The norm of a term's gradient at the decoder's last kernel."""
            return optax.tree.norm(
                jax.grad(lambda kernel: term(paint(replace(last, kernel=kernel), still, config)))(last.kernel)
            )

        def fooled(painted: Frames) -> Array:
            return -judge(fixed, painted).mean()

        errors = at_last(lambda painted: _errors(frames, painted, terms, self.perceptual))
        balance = jnp.clip(errors / (at_last(fooled) + 1e-4), 0, 1e4)
        real, drawn = judge(trained.discriminator, frames), judge(trained.discriminator, lax.stop_gradient(painted))
        hinge = (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + drawn).mean()) / 2
        return terms.adversarial * lax.stop_gradient(balance) * fooled(painted) + hinge


def _update_codebook(
    usage: Usage,
    codebook: Any,
    vectors: Float[Array, "B h w d"],
    codes: Int[Array, "B h w"],
    config: QuantizerConfig,
    key: Array,
) -> tuple[Usage, Any]:
    """Moves the averages on, lets codes that nothing chose start again, and makes the codebook of both."""
    vectors, codes = vectors.reshape(-1, vectors.shape[-1]), codes.reshape(-1)
    chosen = jnp.zeros(config.codes).at[codes].add(1.0)
    idle = jnp.where(chosen > 0, 0, usage.idle + 1)
    if not config.has_codebook:
        return replace(usage, idle=idle), codebook
    counts, sums = usage.counts, usage.sums
    if config.normalized:
        vectors = directions(vectors)
    if config.kind == "ema":
        added = jnp.zeros_like(sums).at[codes].add(vectors)
        counts = config.decay * counts + (1 - config.decay) * chosen
        sums = config.decay * sums + (1 - config.decay) * added
        codebook = jnp.where(counts[:, None] > 1e-6, sums / jnp.maximum(counts, 1e-6)[:, None], codebook)
    if config.restart_after:
        dead = idle >= config.restart_after
        fresh = _ill_served(vectors, codebook[codes], config.codes, key)
        codebook = jnp.where(dead[:, None], fresh, codebook)
        counts = jnp.where(dead, RESTART_COUNT, counts)
        sums = jnp.where(dead[:, None], RESTART_COUNT * fresh, sums)
        idle = jnp.where(dead, 0, idle)
    return Usage(counts, sums, idle), codebook


def _ill_served(vectors: Float[Array, "n d"], chosen: Float[Array, "n d"], count: int, key: Array) -> Array:
    """So many of the vectors, drawn by the square of their distance to the codes that they chose: where most vectors
    are alike (an empty ground), new codes would otherwise join those that serve them well already."""
    reach = jnp.cumsum(((vectors - chosen) ** 2).sum(-1))
    places = jnp.searchsorted(reach, reach[-1] * jax.random.uniform(key, (count,)))
    return vectors[jnp.minimum(places, len(vectors) - 1)]
