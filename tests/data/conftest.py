from pathlib import Path

import jax
import pytest

from ringworld.mesh import MeshShape, build_mesh
from ringworld.tokens.codec import FrameTokenizer
from ringworld.weights.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def nano() -> FrameTokenizer:
    """The shipped tokenizer of frames."""
    return load_tokenizer(Path("nano"), build_mesh(MeshShape(), jax.devices()[:1]))
