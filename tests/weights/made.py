"""Sources of random weights, to convert."""

import weakref
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, models

from ringworld.model.config import ModelConfig
from ringworld.model.transformer import declare
from ringworld.parameters import abstract
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vocabulary import Vocabulary
from ringworld.weights.checkpoint import Description, named
from ringworld.weights.source import Source

TEXT = Vocabulary(text_size=11, bos=1, eos=2, pad=0)
VISION = replace(TEXT, codes=4, vision_size=7, vision_start=(3, 4), vision_end=(5, 6), frame_height=2, frame_width=2)


def config(vocabulary: Vocabulary = TEXT, **changes: object) -> ModelConfig:
    shape = ModelConfig(vocabulary.size, dim=16, ffn=12, layers=3, heads=2, kv_heads=2, head_dim=8)
    return replace(shape, **changes)


def tokenizer(vocabulary: Vocabulary) -> TextTokenizer:
    """It knows no words, and is told from others by its vocabulary."""
    return TextTokenizer(Tokenizer(models.BPE()), vocabulary)


def source(
    vocabulary: Vocabulary = TEXT, dtype: object = jnp.bfloat16, model: ModelConfig | None = None, seed: int = 0
) -> Source:
    model = model or config(vocabulary)
    rng = np.random.default_rng(seed)
    arrays = {name: rng.normal(size=leaf.shape).astype(dtype) for name, leaf in named(abstract(declare(model))).items()}
    description = Description(model, vocabulary, context_length=64, rope_theta=1e6)
    return Source(Path("made"), description, tokenizer(vocabulary), arrays.__getitem__)


class Counting:
    """A source that counts how many of the arrays it has given are held by anyone."""

    def __init__(self, source: Source) -> None:
        self.most = 0
        self._held = 0
        self._read = source.read
        self.source = replace(source, read=self._given)

    def _given(self, name: str) -> np.ndarray:
        array = self._read(name).copy()
        self._held += 1
        self.most = max(self.most, self._held)
        weakref.finalize(array, self._gone)
        return array

    def _gone(self) -> None:
        self._held -= 1


def same(ours: Source, theirs: Source) -> None:
    """Every array is the same, to the bit, and of the same type; and so is what describes them."""
    assert ours.description == theirs.description
    assert ours.tokenizer.to_json() == theirs.tokenizer.to_json()
    for (name, array), (_, other) in zip(ours.arrays(), theirs.arrays(), strict=True):
        assert array.dtype == other.dtype, name
        bits, others = (np.ascontiguousarray(x).view(np.uint8) for x in (array, other))
        np.testing.assert_array_equal(bits, others, err_msg=name)
