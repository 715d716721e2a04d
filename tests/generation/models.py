"""A small model with random weights, and one tokenizer, for the tests of generation and evaluation."""

from dataclasses import replace
from functools import cache

import jax
import numpy as np

from drawn import draw
from ringworld.data.corpora import load_corpus
from ringworld.generation.model import Model
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.config import ModelConfig
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.text import TextTokenizer, train_tokenizer
from tokens.small_vqgan import SMALL
from tokens.small_vqgan import draw as draw_vqgan


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


TINY_FRAMES = replace(SMALL, frame_size=8)  # 2x2 codes of 64


@cache
def frame_tokenizer() -> FrameTokenizer:
    return FrameTokenizer(draw_vqgan(TINY_FRAMES), TINY_FRAMES, build_mesh(MeshShape(), jax.devices()[:1]), batch=4)


@cache
def seeing_model(shape: MeshShape = MeshShape()) -> Model:
    """The like with vision: frames of 2x2 codes of 64, a third of the frame's ids of no use, LWM's chat layout."""
    text = tokenizer()
    start, end = (tuple(text.encode(mark)) for mark in ("<vision>", "</vision>"))
    vocabulary = replace(
        text.vocabulary, codes=64, vision_size=100, vision_start=start, vision_end=end, frame_height=2, frame_width=2
    )
    config = replace(random_model(shape).config, vocabulary_size=vocabulary.size)
    mesh = random_model(shape).mesh
    return Model(
        draw(1, config, mesh, scale=0.7), config, TextTokenizer(text.inner, vocabulary), 1e4, mesh, context_length=128,
        frames=frame_tokenizer(),
    )  # fmt: skip
