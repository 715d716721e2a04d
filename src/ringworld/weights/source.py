"""A model as some format holds it: what it is, and its arrays one at a time, in our names, shapes and order.

Every format is read into a `Source` and written from one, so a converter knows two formats and never more than one
array: a model larger than the memory goes through.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from ringworld.errors import UserError
from ringworld.model.transformer import Weights, declare
from ringworld.parameters import abstract
from ringworld.tokens.text import TextTokenizer
from ringworld.weights.checkpoint import Description, SavedModel, named


@dataclass(frozen=True)
class Source:
    """A model in a file or folder, of which nothing but its description has been read.

    Attributes:
        place: the file or folder, for messages.
        read: the array of a name such as "layers/query" (all layers stacked, as `model.transformer.declare` has it), in
            the type that it is kept in: float32, float16 or bfloat16. Raises UserError when it is damaged.
        frames: the file of its tokenizer of frames; None: it has none.
    """

    place: Path
    description: Description
    tokenizer: TextTokenizer
    read: Callable[[str], np.ndarray]
    frames: Path | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every array's name and shape."""
        return {name: leaf.shape for name, leaf in named(self._like()).items()}

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every array by its name, read one at a time. Raises UserError when one is of another shape."""
        for name, shape in self.shapes.items():
            yield name, self._checked(name, shape)

    def load(self, mesh: Mesh) -> SavedModel:
        """The model in memory, its weights in float32 over `mesh`."""
        like = self._like(mesh)
        leaves = [
            jax.device_put(self._checked(name, leaf.shape).astype(leaf.dtype, copy=False), leaf.sharding)
            for name, leaf in named(like).items()
        ]
        weights = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return SavedModel(self.place, self.description, self.tokenizer, weights, mesh, self.frames)

    def _like(self, mesh: Mesh | None = None) -> Weights:
        shapes: Any = abstract(declare(self.description.config), mesh)
        return shapes

    def _checked(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = self.read(name)
        if array.shape != shape:
            raise UserError(
                f"{name} is {list(array.shape)} in {self.place} and {list(shape)} in the model that its configuration "
                "describes: the two do not belong together"
            )
        return array
