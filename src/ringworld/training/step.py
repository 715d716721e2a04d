"""One step of training a language model, compiled: loss, gradients, update, and the rule for a step that went wrong."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from ringworld.data.packing import Batch
from ringworld.model.config import ModelConfig
from ringworld.model.rope import Frequencies
from ringworld.model.transformer import Remat, Weights, declare, forward, head
from ringworld.parameters import abstract, init
from ringworld.training.curriculum import Metrics
from ringworld.training.guard import choose, verdict
from ringworld.training.loss import Sums, cross_entropy
from ringworld.training.optimizer import OptimizerConfig, abstract_moments, build


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that training carries from step to step; or, in the same tree, shapes or places of it."""

    weights: Weights
    optimizer_state: Any
    step: Any  # int32 scalar, steps that changed the weights
    gradient_norm: Any  # float32 scalar, its running mean


@dataclass(frozen=True)
class Precision:
    """How a step computes: type of the products, what the backward pass recomputes."""

    dtype: str = "float32"
    remat: Remat = "none"


def init_state(
    key: Array, config: ModelConfig, optimizer: OptimizerConfig, mesh: Mesh, weights: Weights | None = None
) -> TrainState:
    """Weights, fresh where none are given, and an optimizer that has seen nothing, in their places on the mesh."""
    begin = init(key, declare(config), mesh) if weights is None else weights
    return _with_optimizer(begin, config, optimizer, mesh)


def reset_optimizer(state: TrainState, config: ModelConfig, optimizer: OptimizerConfig, mesh: Mesh) -> TrainState:
    """The same weights with an optimizer that has seen nothing."""
    return _with_optimizer(state.weights, config, optimizer, mesh)


def _with_optimizer(weights: Weights, config: ModelConfig, optimizer: OptimizerConfig, mesh: Mesh) -> TrainState:
    shardings = jax.tree.map(lambda x: x.sharding, abstract_state(config, optimizer, mesh))
    fresh = jax.jit(build(optimizer, declare(config)).init, out_shardings=shardings.optimizer_state)(weights)
    scalar = shardings.step
    return TrainState(weights, fresh, jax.device_put(jnp.int32(0), scalar), jax.device_put(jnp.float32(0), scalar))


def abstract_state(config: ModelConfig, optimizer: OptimizerConfig, mesh: Mesh) -> TrainState:
    """Shapes, types and places of a `TrainState`, without numbers. A moment lies where its weight lies."""
    weights = abstract(declare(config), mesh)
    replicated = NamedSharding(mesh, PartitionSpec())
    return TrainState(
        weights,
        abstract_moments(build(optimizer, declare(config)), weights, mesh),
        jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated),
        jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated),
    )


def _loss(
    weights: Weights,
    batch: Batch,
    frequencies: Frequencies,
    slices: tuple[slice, ...],
    config: ModelConfig,
    mesh: Mesh,
    precision: Precision,
    z_loss: float,
) -> tuple[Array, Sums]:
    tokens, segments, positions = (jnp.asarray(x) for x in (batch.tokens, batch.segments, batch.positions))
    hidden = forward(
        weights,
        tokens,
        segments,
        positions,
        config=config,
        frequencies=frequencies,
        mesh=mesh,
        dtype=jnp.dtype(precision.dtype),
        remat=precision.remat,
    )
    targets, counts = jnp.asarray(batch.targets), jnp.asarray(batch.weights)
    sums = cross_entropy(hidden, head(weights), targets, counts, slices=slices, mesh=mesh, z_loss=z_loss)
    return sums.nll / jnp.maximum(sums.weight, 1e-9), sums


def make_step(
    config: ModelConfig,
    optimizer: OptimizerConfig,
    mesh: Mesh,
    slices: tuple[slice, ...],
    precision: Precision = Precision(),
    z_loss: float = 0.0,
) -> Callable[[TrainState, Batch, Frequencies, Array], tuple[TrainState, Metrics]]:
    """step(state, batch, frequencies, learning_rate) -> (state, metrics), the old state's memory being given up.

    Metrics are float32 scalars: loss, accuracy, gradient_norm, skipped. A loss or gradient that is not finite, or a
    gradient norm `optimizer.spike` times above its running mean, leaves weights and optimizer as they were (skipped =
    1). The loss has the `z_loss` in it (see `cross_entropy`). Learning rate and frequencies are data.
    """
    rule: Any = build(optimizer, declare(config))

    def step(
        state: TrainState, batch: Batch, frequencies: Frequencies, learning_rate: Array
    ) -> tuple[TrainState, Metrics]:
        gradients_of = jax.value_and_grad(_loss, has_aux=True)
        (loss, sums), gradients = gradients_of(
            state.weights, batch, frequencies, slices, config, mesh, precision, z_loss
        )
        norm = optax.tree.norm(gradients)
        good, mean = verdict(loss, norm, state.step, state.gradient_norm, optimizer.spike)
        updates, optimizer_state = rule.update(gradients, state.optimizer_state, state.weights)
        weights = jax.tree.map(lambda w, u: w + learning_rate * u, state.weights, updates)
        after = TrainState(weights, optimizer_state, state.step + 1, mean)
        state = replace(choose(good, after, state), gradient_norm=mean)
        metrics = {"loss": loss, "accuracy": _accuracy(sums), "gradient_norm": norm, "skipped": 1.0 - good}
        return state, metrics

    places = jax.tree.map(lambda x: x.sharding, abstract_state(config, optimizer, mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=(places, NamedSharding(mesh, PartitionSpec())))


def make_evaluation(
    config: ModelConfig, mesh: Mesh, slices: tuple[slice, ...], precision: Precision = Precision()
) -> Callable[[Weights, Batch, Frequencies], Metrics]:
    """evaluate(weights, batch, frequencies) -> loss and accuracy of a batch."""

    @jax.jit
    def evaluate(weights: Weights, batch: Batch, frequencies: Frequencies) -> Metrics:
        loss, sums = _loss(weights, batch, frequencies, slices, config, mesh, precision, 0.0)
        return {"loss": loss, "accuracy": _accuracy(sums)}

    return evaluate


def _accuracy(sums: Sums) -> Array:
    """The share of the targets, by weight, that are the likeliest of their slice."""
    return sums.correct / jnp.maximum(sums.weight, 1e-9)
