"""A small model with random weights, and one tokenizer, for the tests of generation and evaluation."""

from functools import cache

import jax
import numpy as np

from drawn import draw
from ringworld.data.corpora import load_corpus
from ringworld.generation.model import Model
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.config import ModelConfig
from ringworld.tokens.text import TextTokenizer, train_tokenizer


@cache
def tokenizer() -> TextTokenizer:
    """400 ids, digits one by one."""
    return train_tokenizer([text for _, text in load_corpus("tiny")], 400)


@cache
def random_model(shape: MeshShape = MeshShape(), seed: int = 0, norm_eps: float = 1e-6) -> Model:
    """Two layers, grouped queries, tied; weights large enough that the next token depends on what came before.

    A test that must see its own compilation takes a `norm_eps` of its own.
    """
    config = ModelConfig(
        vocabulary_size=400, dim=32, ffn=64, layers=2, heads=4, kv_heads=2, head_dim=8, tied=True, qk_norm=True,
        norm_eps=norm_eps,
    )  # fmt: skip
    mesh = build_mesh(shape, jax.devices()[: int(np.prod(shape.sizes))])
    weights = draw(seed, config, mesh, scale=0.7)
    return Model(weights, config, tokenizer(), 1e4, mesh, context_length=128)
