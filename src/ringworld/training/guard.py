"""The rule for a step that went wrong.

A loss or gradient that is not finite, or a gradient norm far above its running mean, leaves everything as it was.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Tree = TypeVar("Tree")
RUNNING_MEAN = 0.95  # memory of the gradient norm's running mean
SETTLED = 20  # steps before a spike can be told from the start of training


def verdict(
    loss: Float[Array, ""], norm: Float[Array, ""], step: Int[Array, ""], mean: Float[Array, ""], spike: float
) -> tuple[Bool[Array, ""], Float[Array, ""]]:
    """Whether a step is good, and the running mean of the gradient's norm after it.

    Args:
        step: good steps so far.
        mean: the running mean before.
        spike: a norm above this many times the mean is not good.
    """
    limit = jnp.where(step >= SETTLED, spike * mean, jnp.inf)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    memory = jnp.minimum(RUNNING_MEAN, step / (step + 1))  # a plain mean at first
    # A spike counts as high as the limit: if it was the first of many, the mean follows, and training goes on.
    after = memory * mean + (1 - memory) * jnp.minimum(norm, limit)
    return finite & (norm <= limit), jnp.where(finite, after, mean)


def choose(good: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    """The new tree after a good step, the old one otherwise."""
    return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)
