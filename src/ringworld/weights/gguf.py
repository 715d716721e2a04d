"""Models in GGUF files: LLaMA's architecture, as llama.cpp writes it, with the tokenizer that is in the file.

llama.cpp keeps the rows of queries and keys in the order in which its rotary embedding takes them: of each head first
with second half interleaved. Here the halves lie one after the other, so the two are put back in order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Float64, Shaped

from ringworld.errors import UserError
from ringworld.model.config import ModelConfig
from ringworld.model.rope import RopeScaling, rope_frequencies
from ringworld.tokens.pretrained import Kind, Merge, byte_level, find_split, merges_of_scores, sentencepiece
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vocabulary import Vocabulary
from ringworld.weights.checkpoint import Description, misfits
from ringworld.weights.gguf_file import GgufFile
from ringworld.weights.source import Source

ARCHITECTURE = "llama"
_T = TypeVar("_T")
_FACTORS = "rope_freqs.weight"
_IN_LAYERS = "layers/"
_TOKENIZER = "tokenizer.ggml"

# Our names, and theirs.
_NAMES = {
    "embedding": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "layers/attention_norm": "blk.{}.attn_norm.weight",
    "layers/query": "blk.{}.attn_q.weight",
    "layers/key": "blk.{}.attn_k.weight",
    "layers/value": "blk.{}.attn_v.weight",
    "layers/output": "blk.{}.attn_output.weight",
    "layers/ffn_norm": "blk.{}.ffn_norm.weight",
    "layers/gate": "blk.{}.ffn_gate.weight",
    "layers/up": "blk.{}.ffn_up.weight",
    "layers/down": "blk.{}.ffn_down.weight",
}


def open_gguf(path: Path) -> Source:
    """A model in a GGUF file. Its arrays come in their own type where that is F32, F16 or BF16, else dequantised to
    float32; so do stacks of layers that are of several types.

    Raises:
        UserError: the file cannot be read, is damaged, of another architecture, holds no tokenizer or one that is not
            known, has arrays that its metadata does not describe, or lacks some that it does.
    """
    file = GgufFile.open(path)
    try:
        description, tokenizer = _described(file)
    except UserError as error:
        raise UserError(f"cannot use {path}: {error}") from error
    return Source(path, description, tokenizer, lambda name: _read(file, name, description.config))


def _described(file: GgufFile) -> tuple[Description, TextTokenizer]:
    """What a file holds. What it lacks is raised as UserError, in sentences about "it"."""
    metadata = _Metadata(file.metadata)
    if metadata.value("split.count", int, 1) > 1:
        raise UserError("it is one part of several: join them with llama.cpp's llama-gguf-split --merge")
    architecture = metadata.value("general.architecture", str)
    if architecture != ARCHITECTURE:
        raise UserError(f"it holds a model of the architecture {architecture!r}, and only {ARCHITECTURE!r} is read")
    tokenizer = tokenizer_of(file)
    config = _config(metadata, tokenizer.vocabulary.size, tied=_NAMES["head"] not in file.arrays)
    _check_arrays(file, config)
    theta = metadata.model("rope.freq_base", float, 10000.0)
    length = metadata.model("context_length", int)
    scaling = _rope_scaling(metadata, length)
    if _FACTORS in file.arrays:
        if scaling is not None:
            raise UserError(f"it scales its rotary frequencies twice, by {scaling.kind} and by {_FACTORS}")
        scaling = _scaling_of_factors(file.read(_FACTORS), theta, config.head_dim)
    return Description(config, tokenizer.vocabulary, length, theta, scaling), tokenizer


@dataclass(frozen=True)
class _Metadata:
    """A file's metadata. What is missing or of a wrong type raises UserError."""

    values: Mapping[str, Any]

    def value(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        found = self.values.get(key, default)
        if kind is float and type(found) is int:
            found = float(found)
        if found is None:
            raise UserError(f"it does not say its {key}: it is no whole model, or damaged")
        if not isinstance(found, kind):
            raise UserError(f"it has {found!r} for its {key}, which must be of the type {kind.__name__}")
        return found  # pyright: ignore[reportReturnType]

    def values_of(self, key: str, kind: type[_T], default: list[_T] | None = None) -> list[_T]:
        """A list of values of one type."""
        found = self.value(key, list, default)
        if unlike := [value for value in found if not isinstance(value, kind)]:
            raise UserError(f"it has {unlike[0]!r} in its {key}, which must be of the type {kind.__name__} throughout")
        return found

    def model(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        """A value of the model itself. Some files have one for each layer: they must all be the same."""
        key = f"{ARCHITECTURE}.{key}"
        found = self.values.get(key)
        if not isinstance(found, list):
            return self.value(key, kind, default)
        if len(set(found)) != 1:
            raise UserError(f"it has layers that differ in their {key} ({found}), and all must be alike")
        return _Metadata({key: found[0]}).value(key, kind)


def _config(metadata: _Metadata, vocabulary_size: int, *, tied: bool) -> ModelConfig:
    if experts := metadata.model("expert_count", int, 0):
        raise UserError(f"it holds a mixture of {experts} experts, and only models without are read")
    dim, heads = metadata.model("embedding_length", int), metadata.model("attention.head_count", int)
    config = ModelConfig(
        vocabulary_size=vocabulary_size,
        dim=dim,
        ffn=metadata.model("feed_forward_length", int),
        layers=metadata.model("block_count", int),
        heads=heads,
        kv_heads=metadata.model("attention.head_count_kv", int, heads),
        head_dim=metadata.model("attention.key_length", int, dim // heads if heads else 0),
        tied=tied,
        norm_eps=metadata.model("attention.layer_norm_rms_epsilon", float),
    )
    for key in ("rope.dimension_count", "attention.value_length"):
        if (size := metadata.model(key, int, config.head_dim)) != config.head_dim:
            raise UserError(f"it has heads of {config.head_dim} dimensions and {key} {size}: the two must be the same")
    return config


def _their_shape(name: str, config: ModelConfig) -> tuple[int, ...]:
    """The shape of an array, or of one layer's, as it is in the file: a matrix has a row for each output."""
    c = config
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    return {
        "embedding": (c.vocabulary_size, c.dim),
        "head": (c.vocabulary_size, c.dim),
        "layers/query": (queries, c.dim),
        "layers/key": (keys, c.dim),
        "layers/value": (keys, c.dim),
        "layers/output": (c.dim, queries),
        "layers/gate": (c.ffn, c.dim),
        "layers/up": (c.ffn, c.dim),
        "layers/down": (c.dim, c.ffn),
    }.get(name, (c.dim,))


def _their_names(name: str, config: ModelConfig) -> list[str]:
    """The array's name in the file, or those of its layers."""
    return [_NAMES[name].format(layer) for layer in range(config.layers if name.startswith(_IN_LAYERS) else 1)]


def _check_arrays(file: GgufFile, config: ModelConfig) -> None:
    if config.layers > len(file.arrays):  # names for the layers of a damaged number could fill the memory
        raise UserError(f"it has {config.layers} layers by its metadata, and {len(file.arrays)} arrays: it is damaged")
    wanted = {
        theirs: jax.ShapeDtypeStruct(_their_shape(name, config), np.float32)
        for name in _NAMES
        for theirs in _their_names(name, config)
        if not (name == "head" and config.tied)
    }
    there = {name: array for name, array in file.arrays.items() if name != _FACTORS}
    if unlike := misfits(there, wanted):
        raise UserError(
            f"{len(unlike)} of its arrays do not fit the model that its metadata describes: {unlike[0]}; fetch it "
            "anew, or a model of plain LLaMA layers"
        )


def _read(file: GgufFile, name: str, config: ModelConfig) -> np.ndarray:
    """An array in our shape and order. Of a stack one layer at a time is read into its place."""
    theirs = _their_names(name, config)
    if not name.startswith(_IN_LAYERS):
        return np.ascontiguousarray(_ours(name, file.read(theirs[0]), config))
    types = {file.arrays[layer].dtype for layer in theirs}
    stack: np.ndarray | None = None
    for index, layer in enumerate(theirs):
        array = _ours(name, file.read(layer), config)
        if stack is None:
            stack = np.empty((config.layers, *array.shape), types.pop() if len(types) == 1 else np.float32)
        stack[index] = array
    assert stack is not None  # a model has a layer
    return stack


def _ours(name: str, array: np.ndarray, config: ModelConfig) -> np.ndarray:
    match name.removeprefix(_IN_LAYERS):
        case "query" | "key":
            return _by_head(_half_split(array, config.head_dim), config.head_dim)
        case "value":
            return _by_head(array, config.head_dim)
        case "output":
            return array.T.reshape(config.heads, config.head_dim, config.dim)
        case "gate" | "up" | "down" | "head":
            return array.T
    return array


def _half_split(rows: Shaped[np.ndarray, "NK D"], head_dim: int) -> Shaped[np.ndarray, "NK D"]:
    """Rows that alternate between the halves of their head, put in order: first all of one half, then of the other."""
    pairs = rows.reshape(-1, head_dim // 2, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _by_head(rows: Shaped[np.ndarray, "NK D"], head_dim: int) -> Shaped[np.ndarray, "D N K"]:
    return rows.T.reshape(rows.shape[1], -1, head_dim)


def _rope_scaling(metadata: _Metadata, context_length: int) -> RopeScaling | None:
    factor = metadata.model("rope.scaling.factor", float, metadata.model("rope.scale_linear", float, 1.0))
    kind = metadata.model("rope.scaling.type", str, "linear")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):  # 0 is how llama.cpp writes "not at all"
        return None
    original = metadata.model("rope.scaling.original_context_length", int, context_length)
    if kind == "linear":
        return RopeScaling("linear", factor, original)
    if kind == "yarn":
        magnitude = metadata.model("rope.scaling.attn_factor", float, 1.0)
        return RopeScaling(
            "yarn",
            factor,
            original,
            low=metadata.model("rope.scaling.yarn_beta_slow", float, 1.0),
            high=metadata.model("rope.scaling.yarn_beta_fast", float, 32.0),
            # llama.cpp multiplies the paper's magnitude by this number.
            magnitude=None if magnitude == 1 else magnitude * (0.1 * log(factor) + 1),
        )
    raise UserError(f"it scales its rotary frequencies by {kind!r}; linear and yarn are read")


def _scaling_of_factors(factors: np.ndarray, theta: float, head_dim: int) -> RopeScaling | None:
    """LLaMA-3.1's scaling, of which a GGUF file holds no more than what each frequency is divided by."""
    turns = _turns(theta, head_dim)
    if factors.shape == turns.shape:
        for scaling in (None, _fitted(factors.astype(np.float64), turns)):
            if np.allclose(turns / _turns(theta, head_dim, scaling), factors, rtol=1e-5, atol=0):
                return scaling
    raise UserError(
        f"the factors of its rotary frequencies ({_FACTORS}) are not those of LLaMA-3.1's scaling, and no other is read"
    )


def _fitted(factors: Float64[np.ndarray, "half"], turns: Float64[np.ndarray, "half"]) -> RopeScaling | None:
    """The scaling of kind "llama3" that is nearest to these factors, if there is any.

    Between the frequencies that are divided by the whole factor and those that are left alone, the inverse of the
    divisor is a line in the turns that a frequency makes in the original context. The line gives that context and
    `high` where `low` is 1, as in all of Meta's models.
    """
    whole = float(factors.max())
    between = (factors > 1) & (factors < whole)
    if between.sum() < 2:
        return None
    unstretched = (1 / factors[between] - 1 / whole) / (1 - 1 / whole)  # (original x turns - low) / (high - low)
    slope, offset = np.polyfit(turns[between], unstretched, 1)
    if not slope > 0 > offset:
        return None
    return RopeScaling("llama3", whole, round(-slope / offset), low=1.0, high=round(float(1 - 1 / offset), 3))


def _turns(theta: float, head_dim: int, scaling: RopeScaling | None = None) -> Float64[np.ndarray, "half"]:
    """The turns a position of each frequency."""
    high, low = np.asarray(rope_frequencies(theta, head_dim, scaling).turns, np.float64)
    return (high + low / 2**32) / 2**32


def tokenizer_of(file: GgufFile) -> TextTokenizer:
    """The tokenizer in a GGUF file. Raises UserError when there is none, or one that is not known."""
    metadata = _Metadata(file.metadata)
    family = metadata.values.get(f"{_TOKENIZER}.model")
    if family is None:
        raise UserError(f"there is no tokenizer in it ({_TOKENIZER}.model is missing): convert the model with its own")
    tokens = metadata.values_of(f"{_TOKENIZER}.tokens", str)
    kinds = metadata.values_of(f"{_TOKENIZER}.token_type", int, [Kind.NORMAL.value] * len(tokens))
    if family == "gpt2":
        # A file that says nothing is older than the name; "default" says as little.
        split = find_split(metadata.value(f"{_TOKENIZER}.pre", str, "default"))
        tokenizer, bos = byte_level(tokens, kinds, _merges(metadata), split), split.bos
    elif family == "llama":
        merges = _merges(metadata) if f"{_TOKENIZER}.merges" in metadata.values else _scored(metadata, tokens, kinds)
        space_first = metadata.value(f"{_TOKENIZER}.add_space_prefix", bool, True)
        tokenizer, bos = sentencepiece(tokens, kinds, merges, space_first=space_first), True
    else:
        raise UserError(f"its tokenizer is of the kind {family!r}, and gpt2 and llama are read")
    vocabulary = _vocabulary(metadata, len(tokens), metadata.value(f"{_TOKENIZER}.add_bos_token", bool, bos))
    return TextTokenizer(tokenizer, vocabulary, metadata.value("tokenizer.chat_template", str, "") or None)


def _merges(metadata: _Metadata) -> list[Merge]:
    merges = metadata.values_of(f"{_TOKENIZER}.merges", str)
    return [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]


def _scored(metadata: _Metadata, tokens: Sequence[str], kinds: Sequence[int]) -> list[Merge]:
    scores = metadata.values_of(f"{_TOKENIZER}.scores", float)
    if not len(tokens) == len(kinds) == len(scores):
        raise UserError(f"it has {len(tokens)} tokens, {len(kinds)} kinds of token and {len(scores)} scores of tokens")
    return merges_of_scores(tokens, kinds, scores)


def _vocabulary(metadata: _Metadata, size: int, bos: bool) -> Vocabulary:
    eos = metadata.value(f"{_TOKENIZER}.eos_token_id", int)
    try:
        return Vocabulary(
            text_size=size,
            bos=metadata.value(f"{_TOKENIZER}.bos_token_id", int) if bos else None,
            eos=eos,
            pad=metadata.value(f"{_TOKENIZER}.padding_token_id", int, eos),
        )
    except ValueError as error:
        raise UserError(f"its special tokens do not fit its vocabulary: {error}") from error
