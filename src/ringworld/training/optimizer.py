"""The optimizers, from optax, with the learning rate left out: it is data of the step, so that stages share one
compilation."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import KeyPath, keystr, tree_flatten_with_path, tree_map_with_path
from optax.contrib import MuonDimensionNumbers, muon

from ringworld.parameters import Parameter, map_declared


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101), or Muon (Jordan 2024; Liu et al., arXiv 2502.16982) on the
    matrices of the layers with AdamW on the rest."""

    kind: Literal["adamw", "muon"] = "adamw"
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0  # the gradient's norm is cut to this
    muon_rate: float = 10.0  # Muon's learning rate, in units of AdamW's
    muon_momentum: float = 0.95
    spike: float = 10.0  # a gradient norm above this many times its running mean skips the step


def build(optimizer: OptimizerConfig, declared: Any) -> optax.GradientTransformation:
    """Turns gradients of declared weights into updates for a learning rate of 1, which the caller multiplies by the
    step's.

    Weight decay goes to matrices alone, as gains and biases have no size to keep small.
    """
    decayed = map_declared(lambda p: p.deviation is not None, declared)
    if optimizer.kind == "muon":
        rule = muon(
            optimizer.muon_rate,
            beta=optimizer.muon_momentum,
            weight_decay=optimizer.weight_decay / optimizer.muon_rate,
            weight_decay_mask=decayed,
            adam_learning_rate=1.0,
            adam_b1=optimizer.b1,
            adam_b2=optimizer.b2,
            eps=optimizer.eps,
            muon_weight_dimension_numbers=map_declared(_matrix, declared),
        )
    else:
        rule = optax.adamw(
            1.0, b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps, weight_decay=optimizer.weight_decay, mask=decayed
        )
    return optax.chain(optax.clip_by_global_norm(optimizer.clip_norm), rule)


def _matrix(parameter: Parameter) -> MuonDimensionNumbers | None:
    """Which axes of a weight are the rows and which the columns of its matrix; None for what is not one.

    Those before the rows number matrices; those after them are the columns.
    """
    if not parameter.inputs:
        return None
    return MuonDimensionNumbers(parameter.inputs, tuple(range(parameter.inputs[-1] + 1, len(parameter.shape))))


def abstract_moments(rule: optax.GradientTransformation, weights: Any, mesh: Mesh) -> Any:
    """Shapes, types and places of the state of an optimizer of these (abstract) weights. A moment lies where its weight
    lies."""
    replicated = NamedSharding(mesh, PartitionSpec())
    places = {keystr(path): weight.sharding for path, weight in tree_flatten_with_path(weights)[0]}

    def placed(path: KeyPath, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        # optax keeps moments in trees shaped like the weights, so the end of a moment's path names its weight.
        names = (keystr(path[start:]) for start in range(len(path)))
        sharding = next((places[name] for name in names if name in places), replicated)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return tree_map_with_path(placed, jax.eval_shape(rule.init, weights))
