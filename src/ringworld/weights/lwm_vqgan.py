"""LWM's own tokenizer weights: a pickle of a tree of arrays, which is read without running what it says.

A pickle names the functions that rebuild what is in it. Here only those are known that make containers and arrays, by
stand-ins of our own; a file that names any other is refused, with that name.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ringworld.errors import UserError
from ringworld.parameters import abstract
from ringworld.tokens.vqgan import LWM_VQGAN, VqganConfig, VqganWeights, declare
from ringworld.weights.checkpoint import misfits

_ARRAYS = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy._core.numeric", "numpy.core.numeric")


def _array_of_jax(function: Any, arguments: Any, state: Any, _: Any) -> np.ndarray:
    """A jax array, which pickles as a numpy one and what jax adds to it."""
    array = function(*arguments)
    array.__setstate__(state)
    return array


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "dict"): dict,
    ("flax.core.frozen_dict", "FrozenDict"): dict,
    ("jax._src.array", "_reconstruct_array"): _array_of_jax,
    **{
        (module, name): function
        for module in _ARRAYS
        for name, function in (
            ("ndarray", np.ndarray),
            ("dtype", np.dtype),
            ("_reconstruct", np._core.multiarray._reconstruct),  # pyright: ignore[reportAttributeAccessIssue]
            ("_frombuffer", np._core.numeric._frombuffer),  # pyright: ignore[reportAttributeAccessIssue]
        )
    },
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        known = _KNOWN.get((module_name, global_name))
        if known is None:
            raise _Refused(f"{module_name}.{global_name}")
        return known

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"the persistent object {pid!r}")


class _Refused(Exception):
    """What a file would have had made."""


def read_array_pickle(path: Path) -> Any:
    """The containers and arrays in a pickle.

    Raises:
        UserError: there is no such file, it is no whole pickle, or one of anything else: that is named, and not run.
    """
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file).load()
    except _Refused as error:
        raise UserError(
            f"{path} was refused: it would make {error}, and only arrays and containers are taken from a pickle"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name LWM's vqgan file") from error
    except Exception as error:  # a pickle that was cut short or is none can fail in any way
        raise UserError(f"{path} is no whole pickle ({error or type(error).__name__}): fetch it anew") from error


def read_lwm_vqgan(path: Path, config: VqganConfig = LWM_VQGAN) -> VqganWeights:
    """The weights in LWM's file, as numpy arrays of float32.

    Raises:
        UserError: as `read_array_pickle`; or an array is missing, one too many, or of another shape.
    """
    tree = read_array_pickle(path)
    if isinstance(tree, dict) and set(tree) == {"params"}:
        tree = tree["params"]
    found = dict(_leaves(tree))
    shapes = abstract(declare(config))
    names = {lwm_name(_path(keys)): leaf for keys, leaf in jax.tree.leaves_with_path(shapes)}
    if unlike := misfits(found, names):
        raise UserError(f"{path} is not LWM's tokenizer: {unlike[0]}")
    return jax.tree.unflatten(jax.tree.structure(shapes), [np.asarray(found[n], np.float32) for n in names])


def _leaves(tree: Any, path: str = "") -> Any:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{path}/{key}" if path else str(key))
    else:
        yield path, np.asarray(tree)


def _path(keys: Any) -> list[Any]:
    return [key.idx if isinstance(key, jax.tree_util.SequenceKey) else key.name for key in keys]


def lwm_name(path: list[Any]) -> str:
    """Where LWM's tree has a weight of ours: ["encoder", "levels", 0, "blocks", 1, "convs", 0, "kernel"] ->
    "encoder/DownsamplingBlock_0/ResnetBlock_1/Conv_0/kernel"."""
    match path:
        case ["codebook"]:
            return "quantize/embeddings"
        case ["to_codes", leaf]:
            return f"quant_conv/{leaf}"
        case ["from_codes", leaf]:
            return f"post_quant_conv/{leaf}"
        case [coder, ("first" | "last") as end, leaf]:
            return f"{coder}/Conv_{int(end == 'last')}/{leaf}"
        case [coder, "norm", leaf]:
            return f"{coder}/GroupNorm_0/{leaf}"
        case [coder, "middle", block, *rest]:
            return f"{coder}/MidBlock_0/ResnetBlock_{block}/{_in_block(rest)}"
        case [coder, "levels", level, "blocks", block, *rest]:
            return f"{coder}/{_level(coder)}_{level}/ResnetBlock_{block}/{_in_block(rest)}"
        case [coder, "levels", level, "resample", leaf]:
            return f"{coder}/{_level(coder)}_{level}/{'Down' if coder == 'encoder' else 'Up'}sample_0/Conv_0/{leaf}"
    raise ValueError(f"LWM's tokenizer has no {path}")


def _level(coder: str) -> str:
    return "DownsamplingBlock" if coder == "encoder" else "UpsamplingBlock"


def _in_block(rest: list[Any]) -> str:
    match rest:
        case ["norms", number, leaf]:
            return f"GroupNorm_{number}/{leaf}"
        case ["convs", number, leaf]:
            return f"Conv_{number}/{leaf}"
        case ["shortcut", leaf]:
            return f"Conv_2/{leaf}"
    raise ValueError(f"LWM's blocks have no {rest}")
