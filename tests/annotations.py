"""Which of ringworld's type annotations the tests check, with shapes: those of every function and method.

Not the fields of dataclasses: JAX rebuilds a pytree with anything in its leaves (shapes, shardings, None), and that is
not a mistake. The functions that take the dataclass are checked.
"""

from collections.abc import Callable
from typing import Any, Self

from beartype import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """The type checker for jaxtyping's import hook."""
    if function.__qualname__.endswith(".__init__"):
        return function
    # The hook checks a method apart from its class, where beartype cannot know what Self is.
    function.__annotations__ = {name: Any if hint is Self else hint for name, hint in function.__annotations__.items()}
    return beartype(function)
