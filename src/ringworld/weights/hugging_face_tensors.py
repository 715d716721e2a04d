"""The tensors of LLaMA-shaped models in safetensors files, by the names and in the shapes that transformers gives them.

Linear layers are [outputs, inputs] there, one tensor a layer; ours are [inputs, outputs], all layers stacked. Pairs of
rotary dimensions are half-split on both sides, so an array is transposed and reshaped, and nothing is permuted. Tensors
pass one stack at a time, in the type that they are kept in.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ringworld.errors import UserError
from ringworld.files import write_atomically
from ringworld.weights.safetensors_files import TYPES, opened, shard_name, write_shards
from ringworld.weights.source import Source

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_NAMES = {
    "embedding": "model.embed_tokens.weight",
    "layers/attention_norm": "model.layers.{}.input_layernorm.weight",
    "layers/query": "model.layers.{}.self_attn.q_proj.weight",
    "layers/key": "model.layers.{}.self_attn.k_proj.weight",
    "layers/value": "model.layers.{}.self_attn.v_proj.weight",
    "layers/output": "model.layers.{}.self_attn.o_proj.weight",
    "layers/query_norm": "model.layers.{}.self_attn.q_norm.weight",
    "layers/key_norm": "model.layers.{}.self_attn.k_norm.weight",
    "layers/ffn_norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers/gate": "model.layers.{}.mlp.gate_proj.weight",
    "layers/up": "model.layers.{}.mlp.up_proj.weight",
    "layers/down": "model.layers.{}.mlp.down_proj.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
}
HEAD = _NAMES["head"]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError when there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"there is no {path.name} in {path.parent}: give the folder of a model that transformers opens, with "
            f"{CONFIG}, tokenizer.json and {WEIGHTS}"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}): fetch it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object (it holds a {type(values).__name__}): fetch it again")
    return values


def find_tensors(folder: Path) -> dict[str, Path]:
    """The file that each tensor of a folder is in: the one that there is, or the shard that the index names.

    Raises:
        UserError: there are none, or the file or the index cannot be read.
    """
    if (folder / WEIGHTS).exists():
        with opened(folder / WEIGHTS) as file:
            return dict.fromkeys(file.keys(), folder / WEIGHTS)
    if not (folder / INDEX).exists():
        pickles = " (.bin files may run code when they are read)" if any(folder.glob("*.bin")) else ""
        raise UserError(
            f"there are no weights in {folder}: ringworld reads {WEIGHTS}, or shards with their {INDEX}{pickles}; "
            "fetch these"
        )
    weight_map = read_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UserError(f"{folder / INDEX} has no weight_map: fetch it again")
    return {name: folder / file for name, file in weight_map.items()}


def _tensors(name: str, shape: tuple[int, ...]) -> list[str]:
    """The tensors, layer after layer, that one of our arrays is made of."""
    return [_NAMES[name].format(layer) for layer in range(shape[0])] if _stacked(name) else [_NAMES[name]]


def _stacked(name: str) -> bool:
    return name.startswith("layers/")


def _one(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Our shape without the layers."""
    return shape[1:] if _stacked(name) else shape


def _as_it_is(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is the same on both sides: gains and the table of embeddings are."""
    return name == "embedding" or len(shape) == 1


def _shape_there(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor that in our shape, of one layer, is `shape`."""
    if _as_it_is(name, shape):
        return shape
    inputs = prod(shape[:-1]) if name == "layers/output" else shape[0]
    return prod(shape) // inputs, inputs


def _shapes_there(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Every tensor's name and shape, of our arrays'."""
    return {
        tensor: _shape_there(name, _one(name, shape))
        for name, shape in shapes.items()
        for tensor in _tensors(name, shape)
    }


def open_tensors(
    files: Mapping[str, Path], shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> Callable[[str], np.ndarray]:
    """What reads an array of ours out of a folder's tensors, once these have been found to be those of the model.

    A stack is kept in the type of its tensors, or in float32 where these differ.

    Args:
        files: of `find_tensors`.
        shapes: of our arrays, by our names.

    Raises:
        UserError: a tensor is missing, one too many, of another shape, or quantised.
    """
    wanted = _shapes_there(shapes)
    if missing := sorted(wanted.keys() - files.keys()):
        raise UserError(
            f"the tensor {missing[0]} {list(wanted[missing[0]])} is missing in {folder} ({len(missing)} of "
            f"{len(wanted)} are): the files are damaged, or not of the model that the {CONFIG} describes"
        )
    # Tables of RoPE were saved once, and a tied head sometimes is: both follow from the rest.
    derived = {name for name in files if name.endswith("rotary_emb.inv_freq")} | {HEAD}
    if more := sorted(files.keys() - wanted.keys() - derived):
        raise UserError(
            f"the tensor {more[0]} in {files[more[0]]} is no part of the model that the {CONFIG} describes "
            f"({len(more)} are none): without it the model would be another, so it is not opened"
        )
    types: dict[str, np.dtype] = {}
    for path in sorted(set(map(files.__getitem__, wanted))):
        with opened(path) as file:
            there = [tensor for tensor in wanted if files[tensor] == path]
            if missing := sorted(set(there) - set(file.keys())):
                raise UserError(f"the tensor {missing[0]} is missing in {path}, where {INDEX} has it: fetch both again")
            types |= {tensor: _checked_type(file.get_slice(tensor), tensor, wanted[tensor], path) for tensor in there}
    return lambda name: _read(name, shapes[name], files, types)


def _checked_type(there: Any, tensor: str, wanted: tuple[int, ...], path: Path) -> np.dtype:
    if tuple(there.get_shape()) != wanted:
        raise UserError(
            f"the tensor {tensor} is {there.get_shape()} in {path} and {list(wanted)} in the model that the {CONFIG} "
            "describes: the two do not belong together"
        )
    if there.get_dtype() not in TYPES:
        raise UserError(
            f"the tensor {tensor} is kept as {there.get_dtype()} in {path}, and ringworld reads {', '.join(TYPES)}: "
            "choose a model that is not quantised"
        )
    return TYPES[there.get_dtype()]


def _read(name: str, shape: tuple[int, ...], files: Mapping[str, Path], types: Mapping[str, np.dtype]) -> np.ndarray:
    ours = _one(name, shape)

    def one(tensor: str) -> np.ndarray:
        with opened(files[tensor]) as file:
            array = file.get_tensor(tensor)
        return array if _as_it_is(name, ours) else array.T.reshape(ours)

    tensors = _tensors(name, shape)
    if not _stacked(name):
        return one(tensors[0])
    kept = {types[tensor] for tensor in tensors}
    stack = np.empty(shape, kept.pop() if len(kept) == 1 else np.float32)
    for layer, tensor in enumerate(tensors):
        stack[layer] = one(tensor)
    return stack


def write_tensors(source: Source, folder: Path, shard_bytes: int) -> np.dtype:
    """Writes every tensor of a model, and the index where they are in several files.

    Args:
        folder: that is there, and has no tensors in it.
        shard_bytes: a file ends before its tensors grow beyond this; one tensor alone may.

    Returns:
        the type of the embedding.

    Raises:
        OSError: the disk is full, or the like.
        UserError: the source is damaged.
    """
    shapes = _shapes_there(source.shapes)
    kept: dict[str, np.dtype] = {}
    files = write_shards(folder, _outgoing(source, kept), shapes, stem=Path(WEIGHTS).stem, shard_bytes=shard_bytes)
    if len(set(files.values())) == 1:
        (folder / shard_name(Path(WEIGHTS).stem, 1, 1)).rename(folder / WEIGHTS)
    else:
        size = sum(prod(shape) * kept[tensor].itemsize for tensor, shape in shapes.items())
        index = {"metadata": {"total_size": size}, "weight_map": files}
        write_atomically(folder / INDEX, json.dumps(index, indent=2) + "\n")
    return kept[_NAMES["embedding"]]


def _outgoing(source: Source, kept: dict[str, np.dtype]) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by its name there; what type it is kept in goes into `kept`."""
    for name, array in source.arrays():
        tensors = _tensors(name, array.shape)
        kept |= dict.fromkeys(tensors, array.dtype)
        yield from zip(tensors, map(partial(_turned, name), array if _stacked(name) else [array]), strict=True)
        del array  # or it would be held while the next one is read


def _turned(name: str, layer: np.ndarray) -> np.ndarray:
    """One layer's array of ours as a tensor there."""
    if _as_it_is(name, layer.shape):
        return layer
    return layer.reshape(_shape_there(name, layer.shape)[::-1]).T
