"""Weights declared once: shape, logical axes and initialiser. A model's declaration is a pytree of `Parameter`; its
shapes, its places on a mesh and its first values follow from it, and so does what a converter or an optimizer has to
know."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from ringworld.mesh import axis_size, named_sharding

LogicalAxes = tuple[str | None, ...]


@dataclass(frozen=True)
class Parameter:
    """The declaration of one weight.

    It is drawn from a normal distribution of this deviation, or is 1 everywhere if that is None. With `common` a vector
    is added to its rows that is the same for all, drawn in the same way.
    """

    shape: tuple[int, ...]
    axes: LogicalAxes
    deviation: float | None
    inputs: tuple[int, ...] = ()  # the axes, side by side, that a product contracts with what it takes; (): no matrix
    common: bool = False


def map_declared(function: Callable[[Parameter], Any], declared: Any) -> Any:
    """The declaration's tree, with `function` of each parameter in its place."""
    return jax.tree.map(function, declared, is_leaf=lambda x: isinstance(x, Parameter))


def shardings(declared: Any, mesh: Mesh) -> Any:
    """Where each weight lies: its declared axes, less those that its shape does not divide over (these are
    replicated)."""

    def sharding(parameter: Parameter) -> NamedSharding:
        axes = (
            axis if axis and size % axis_size(mesh, axis) == 0 else None
            for axis, size in zip(parameter.axes, parameter.shape, strict=True)
        )
        return named_sharding(mesh, tuple(axes))

    return map_declared(sharding, declared)


def abstract(declared: Any, mesh: Mesh | None = None) -> Any:
    """Shapes and types (and shardings, given a mesh) without any numbers: for `jax.eval_shape`, checkpoints and
    converters."""
    shapes = map_declared(lambda parameter: jax.ShapeDtypeStruct(parameter.shape, jnp.float32), declared)
    if mesh is None:
        return shapes
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings(declared, mesh)
    )


def init(key: Array, declared: Any, mesh: Mesh) -> Any:
    """Fresh float32 weights, each born in its place on the mesh. They depend on the key alone, not on the mesh."""

    def draw(key: Array) -> Any:
        parameters, tree = jax.tree.flatten(declared, is_leaf=lambda x: isinstance(x, Parameter))
        keys = jax.random.split(key, len(parameters))
        return tree.unflatten(_draw(p, k) for p, k in zip(parameters, keys, strict=True))

    return jax.jit(draw, out_shardings=shardings(declared, mesh))(key)


def _draw(parameter: Parameter, key: Array) -> Array:
    if parameter.deviation is None:
        return jnp.ones(parameter.shape)
    drawn = jax.random.normal(key, parameter.shape)
    if parameter.common:
        drawn += jax.random.normal(jax.random.fold_in(key, 0), (1, *parameter.shape[1:]))
    return parameter.deviation * drawn
