"""The released LWM's checkpoints, read and written: its names, its two tables, its order of rotary pairs.

`streaming_params`, or `params` as it was published, holds (Liu et al., arXiv 2402.08268; `lwm_stream` for the bytes)

    transformer/wte/embedding                                   [T, D]      T text ids
    transformer/vte/embedding                                   [V, D]      V vision ids; not in a text model
    transformer/h/scan_decoder/attention/{wq,wk,wv}/kernel      [L, D, HK]
    transformer/h/scan_decoder/attention/wo/kernel              [L, HK, D]
    transformer/h/scan_decoder/feed_forward/{w1,w3}/kernel      [L, D, F]
    transformer/h/scan_decoder/feed_forward/w2/kernel           [L, F, D]
    transformer/h/scan_decoder/{attention,ffn}_norm/kernel      [L, D]
    transformer/ln_f/kernel                                     [D]
    lm_head/kernel                                              [D, T]
    vision_head/kernel                                          [D, V]      not in a text model

The two tables and the two heads are the parts of our one table [T + V, D] and head [D, T + V]. Pairs of rotary
dimensions lie side by side there (2i, 2i + 1), and half a head apart here (i, i + K/2). All is bfloat16 as a rule.

The pickles beside the file (metadata.pkl, dataset.pkl) are never opened. So nothing says how many heads there are, and
what text the ids stand for: whoever opens a file does.
"""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from ringworld.errors import UserError
from ringworld.files import replacing
from ringworld.model.config import ModelConfig
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vocabulary import Vocabulary
from ringworld.weights.checkpoint import Description, misfits
from ringworld.weights.lwm_stream import LARGEST, StreamedArray, index_stream, read_streamed, write_streamed
from ringworld.weights.source import Source

VISION_TABLE = "transformer/vte/embedding"  # what a model without vision has not
_LAYERS = "transformer/h/scan_decoder"
# By our names; two where the first is of the text and the second of the vision.
_NAMES = {
    "embedding": ("transformer/wte/embedding", VISION_TABLE),
    "layers/attention_norm": (f"{_LAYERS}/attention_norm/kernel",),
    "layers/query": (f"{_LAYERS}/attention/wq/kernel",),
    "layers/key": (f"{_LAYERS}/attention/wk/kernel",),
    "layers/value": (f"{_LAYERS}/attention/wv/kernel",),
    "layers/output": (f"{_LAYERS}/attention/wo/kernel",),
    "layers/ffn_norm": (f"{_LAYERS}/ffn_norm/kernel",),
    "layers/gate": (f"{_LAYERS}/feed_forward/w1/kernel",),
    "layers/up": (f"{_LAYERS}/feed_forward/w3/kernel",),
    "layers/down": (f"{_LAYERS}/feed_forward/w2/kernel",),
    "final_norm": ("transformer/ln_f/kernel",),
    "head": ("lm_head/kernel", "vision_head/kernel"),
}
_GATE = _NAMES["layers/gate"][0]
_ROTARY = ("layers/query", "layers/key")
_HEADER = 1024  # bytes around an array, at most


def half_split(heads: Shaped[np.ndarray, "*axes K"]) -> Shaped[np.ndarray, "*axes K"]:
    """Pairs (2i, 2i + 1) of each head's dimensions put half a head apart: (i, i + K/2)."""
    return heads.reshape(*heads.shape[:-1], -1, 2).swapaxes(-1, -2).reshape(heads.shape)


def interleaved(heads: Shaped[np.ndarray, "*axes K"]) -> Shaped[np.ndarray, "*axes K"]:
    """Undoes `half_split`."""
    return heads.reshape(*heads.shape[:-1], 2, -1).swapaxes(-1, -2).reshape(heads.shape)


def open_lwm(
    path: Path,
    *,
    tokenizer: TextTokenizer,
    rope_theta: float,
    context_length: int,
    head_dim: int = 128,
    config: ModelConfig | None = None,
) -> Source:
    """A model in LWM's file, of which only the places of its tensors are read yet.

    Args:
        path: the file itself: `streaming_params`, `streaming_train_state`, or `params` as published.
        tokenizer: LLaMA's; its vocabulary says whether there is vision (`ringworld.tokens.vocabulary.LWM`).
        rope_theta: of the stage that the file is from: 5e7 of the models for a million tokens.
        context_length: of that stage.
        head_dim: the file does not say: 128 in all of LWM's models but those of 3B, where it is 100.
        config: the shape that the file must have, `head_dim` among it; None: the one that it has.

    Raises:
        UserError: the file cannot be read, is a pickle or damaged, or is not of such a model.
    """
    _refuse_pickle(path)
    vocabulary = tokenizer.vocabulary
    arrays = index_stream(path)
    config = config or _derived(arrays, vocabulary, head_dim, path)
    _refuse_unlike_lwm(config, f"the configuration given for {path}")
    if unlike := misfits(arrays, _shapes(config, vocabulary)):
        raise UserError(
            f"{path} does not hold the model asked for, with {vocabulary.text_size} text ids, {vocabulary.vision_size} "
            f"vision ids and heads of {config.head_dim} ({len(unlike)} of its tensors differ): {unlike[0]}; give the "
            "tokenizer and configuration that it was trained with"
        )
    description = Description(config, vocabulary, context_length, rope_theta)
    return Source(path, description, tokenizer, lambda name: _read(path, arrays, name, description))


def write_lwm(source: Source, path: Path) -> None:
    """Writes a file that LWM's own programs read as `params::<path>`: all in bfloat16, whole or not at all.

    The original is told the number of heads, theta and the norms' epsilon on its command line. It has a head of its own
    always: that of a model with a tied one is a copy of the embedding.

    Args:
        path: that does not exist.

    Raises:
        UserError: LWM has no such models, the file is there already or cannot be written, or the source is damaged.
    """
    if path.exists():
        raise UserError(f"{path} exists already: name another file, or remove it")
    description = source.description
    _refuse_unlike_lwm(description.config, str(source.place))
    if description.rope_scaling is not None:
        raise UserError(
            f"the model {source.place} scales its RoPE frequencies ({description.rope_scaling.kind}), and LWM has a "
            "theta only: write another format"
        )
    for name, shape in _shapes(description.config, description.vocabulary).items():
        if prod(shape.shape) * shape.dtype.itemsize > LARGEST - _HEADER:
            raise UserError(
                f"{name} {list(shape.shape)} of the model {source.place} is too large for LWM's format, where a tensor "
                f"has at most {LARGEST} bytes: write another format"
            )
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            for name, array in source.arrays():
                _write(file, name, array, description)
                if name == "embedding" and description.config.tied:
                    _write(file, "head", array.T, description)
                del array  # or it would be held while the next one is read
    except OSError as error:
        raise UserError(
            f"could not write the model to {path} ({error.strerror or error}): nothing is left of it; free some space "
            "or name another file"
        ) from error


def _refuse_pickle(path: Path) -> None:
    """A pickle of protocol 2 or later begins with 0x80 and the protocol; the weights begin with a pair."""
    try:
        with path.open("rb") as file:
            first = file.read(2)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): name LWM's file of weights itself") from error
    if path.suffix in (".pkl", ".pickle") or first[:1] == b"\x80":
        raise UserError(
            f"{path} is a pickle, which may run code when it is opened, so it was not: name LWM's streaming_params or "
            "params (metadata.pkl and dataset.pkl are not needed)"
        )


def _derived(arrays: Mapping[str, StreamedArray], vocabulary: Vocabulary, head_dim: int, path: Path) -> ModelConfig:
    gate = arrays.get(_GATE)
    if gate is None or len(gate.shape) != 3:
        there = "is missing" if gate is None else f"is {list(gate.shape)}"
        raise UserError(
            f"{_GATE} {there} in {path}, and must be [layers, width, inner width] there: it is no file of LWM's, or of "
            "a model whose layers are not stacked (scan_layers=False)"
        )
    layers, dim, ffn = gate.shape
    if head_dim < 1 or dim % head_dim:
        raise UserError(f"{path} is {dim} wide, which heads of {head_dim} do not divide: give another head_dim")
    heads = dim // head_dim
    return ModelConfig(vocabulary.size, dim, ffn, layers, heads, kv_heads=heads, head_dim=head_dim)


def _refuse_unlike_lwm(config: ModelConfig, what: str) -> None:
    reasons = {
        f"{config.kv_heads} key heads for {config.heads} query heads": config.kv_heads != config.heads,
        f"{config.heads} heads of {config.head_dim} in a width of {config.dim}": config.heads * config.head_dim
        != config.dim,
        "norms of queries and keys": config.qk_norm,
        "queries that grow with their position": config.sharpened_from is not None,
    }
    if reason := next((reason for reason, so in reasons.items() if so), None):
        raise UserError(
            f"{what} has {reason}, and LWM's models have as many key heads as query heads, a width that these fill, "
            "and leave both as they are: use another format"
        )


def _names(name: str, vocabulary: Vocabulary) -> tuple[str, ...]:
    """LWM's names of an array of ours, or of its parts."""
    return _NAMES[name] if vocabulary.vision_size else _NAMES[name][:1]


def _shapes(config: ModelConfig, vocabulary: Vocabulary) -> dict[str, jax.ShapeDtypeStruct]:
    """LWM's names and shapes of all that is in a model's file."""
    depth, dim, ffn, width = config.layers, config.dim, config.ffn, config.heads * config.head_dim
    text = _text_rows(config, vocabulary)
    vision = config.vocabulary_size - text
    ours = {
        "embedding": ((text, dim), (vision, dim)),
        "layers/attention_norm": ((depth, dim),),
        "layers/query": ((depth, dim, width),),
        "layers/key": ((depth, dim, width),),
        "layers/value": ((depth, dim, width),),
        "layers/output": ((depth, width, dim),),
        "layers/ffn_norm": ((depth, dim),),
        "layers/gate": ((depth, dim, ffn),),
        "layers/up": ((depth, dim, ffn),),
        "layers/down": ((depth, ffn, dim),),
        "final_norm": ((dim,),),
        "head": ((dim, text), (dim, vision)),
    }
    return {
        there: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for name, shapes in ours.items()
        for there, shape in zip(_names(name, vocabulary), shapes, strict=False)
    }


def _text_rows(config: ModelConfig, vocabulary: Vocabulary) -> int:
    return vocabulary.text_size if vocabulary.vision_size else config.vocabulary_size


def _vocabulary_axis(name: str) -> int:
    return 1 if name == "head" else 0


def _read(path: Path, arrays: Mapping[str, StreamedArray], name: str, description: Description) -> np.ndarray:
    """An array of ours out of LWM's file."""
    config, names = description.config, _names(name, description.vocabulary)
    parts = [read_streamed(path, arrays[there]) for there in names]
    array = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=_vocabulary_axis(name))
    if name == "layers/output":
        return array.reshape(config.layers, config.heads, config.head_dim, config.dim)
    if name in (*_ROTARY, "layers/value"):
        heads = array.reshape(config.layers, config.dim, config.heads, config.head_dim)
        return half_split(heads) if name in _ROTARY else heads
    return array


def _write(file: BinaryIO, name: str, array: np.ndarray, description: Description) -> None:
    for there, part in _parts(name, array.astype(jnp.bfloat16, copy=False), description):
        write_streamed(file, there, part)


def _parts(name: str, array: np.ndarray, description: Description) -> Iterator[tuple[str, np.ndarray]]:
    """What an array of ours is in LWM's file, by its names there."""
    config, vocabulary = description.config, description.vocabulary
    names, shapes = _names(name, vocabulary), _shapes(config, vocabulary)
    if name in _ROTARY:
        array = interleaved(array)
    text = _text_rows(config, vocabulary)
    parts = np.split(array, [text], _vocabulary_axis(name)) if len(names) == 2 else [array]
    for there, part in zip(names, parts, strict=True):
        yield there, part.reshape(shapes[there].shape)
