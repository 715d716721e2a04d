"""Weights to test with."""

import jax
import numpy as np
from jax.sharding import Mesh

from ringworld.model.config import ModelConfig
from ringworld.model.transformer import Weights, declare
from ringworld.parameters import Parameter, shardings


def draw(seed: int, config: ModelConfig, mesh: Mesh, scale: float = 0.2) -> Weights:
    """Every weight is random, gains around 1: a fresh model's layers add nothing to the residual stream, which would
    hide whatever is wrong in them.

    Drawn by numpy: jax would compile a program for every shape.
    """
    rng = np.random.default_rng(seed)

    def one(parameter: Parameter, sharding: jax.sharding.NamedSharding) -> jax.Array:
        center = 1.0 if parameter.deviation is None else 0.0
        return jax.device_put(rng.normal(center, scale, parameter.shape).astype(np.float32), sharding)

    declared = declare(config)
    return jax.tree.map(one, declared, shardings(declared, mesh), is_leaf=lambda x: isinstance(x, Parameter))
