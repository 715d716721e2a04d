"""Tokenizers of frames on disk: a run folder, one .safetensors file, as people pass them on, or LWM's own file; some
are shipped.

A .safetensors file holds the arrays by their paths ("decoder/first/kernel"), and in its metadata the configuration as
JSON.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ringworld.errors import UserError
from ringworld.files import write_atomically
from ringworld.mesh import axis_size
from ringworld.parameters import abstract, shardings
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.vqgan import LWM_VQGAN, VqganConfig, VqganWeights, declare
from ringworld.weights.checkpoint import misfits, named, newest_checkpoint, read_json, restore
from ringworld.weights.lwm_vqgan import read_lwm_vqgan

KIND = "vqgan"
SHIPPED = {path.stem: path for path in sorted((Path(__file__).parent / "shipped").glob("*.safetensors"))}
_METADATA = "ringworld"
_FRAMES = 32  # a device encodes at a time


def describe(config: VqganConfig) -> dict[str, Any]:
    """What a tokenizer's weights are of: a checkpoint's `model.json`, and a file's metadata."""
    return {"kind": KIND, "config": config.to_dict()}


def load_tokenizer(path: Path, mesh: Mesh, batch: int | None = None) -> FrameTokenizer:
    """A tokenizer of frames, spread over `mesh`.

    Args:
        path: a training run's folder, a .safetensors file, or LWM's `vqgan`; where there is none of them, a name in
            `SHIPPED`.
        batch: frames at a time; by default 32 for each device that frames are spread over.

    Raises:
        UserError: there is no such path, or what is there is damaged or no tokenizer of frames.
    """
    if not path.exists():
        path = SHIPPED.get(str(path), path)
    read = _from_run if not path.is_file() else _from_lwm if _is_pickle(path) else _from_file
    config, weights = read(path, mesh)
    return FrameTokenizer(weights, config, mesh, batch or _FRAMES * axis_size(mesh, "batch"))


def save_tokenizer(path: Path, config: VqganConfig, weights: VqganWeights, dtype: Any = np.float32) -> None:
    """Writes a .safetensors file, whole or not at all. `dtype` float16 halves it, and changes few codes."""
    arrays = {name: np.asarray(leaf, dtype) for name, leaf in named(weights).items()}
    write_atomically(path, save(arrays, {_METADATA: json.dumps(describe(config))}))


def _config(about: Any, path: Path) -> VqganConfig:
    if not isinstance(about, dict) or about.get("kind") != KIND:
        raise UserError(f"{path} holds no tokenizer of frames: give the folder of a run that trained one")
    try:
        return VqganConfig.from_dict(about["config"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not describe a tokenizer ({error!r}): it was written by another version of ringworld, or "
            "changed by hand"
        ) from error


def _from_run(path: Path, mesh: Mesh) -> tuple[VqganConfig, VqganWeights]:
    if not path.exists():
        raise UserError(
            f"there is no tokenizer {path}: give the folder of a run that trained one, a .safetensors file, LWM's "
            f"vqgan, or the name of a shipped one: {', '.join(SHIPPED)}"
        )
    checkpoint = newest_checkpoint(path)
    config = _config(read_json(checkpoint, "model", "model.json"), checkpoint)
    return config, restore(checkpoint / "weights", abstract(declare(config), mesh))


def _is_pickle(path: Path) -> bool:
    """A pickle of protocol 2 or later begins with 0x80, and so may a .safetensors file."""
    try:
        with path.open("rb") as file:
            return path.suffix != ".safetensors" and file.read(1) == b"\x80"
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _from_lwm(path: Path, mesh: Mesh) -> tuple[VqganConfig, VqganWeights]:
    weights = read_lwm_vqgan(path, LWM_VQGAN)
    return LWM_VQGAN, jax.device_put(weights, shardings(declare(LWM_VQGAN), mesh))


def _from_file(path: Path, mesh: Mesh) -> tuple[VqganConfig, VqganWeights]:
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {}).get(_METADATA, "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"cannot read {path} ({error}): it must be a whole .safetensors file") from error
    config = _config(about, path)
    like = abstract(declare(config), mesh)
    wanted = named(like)
    if unlike := misfits(arrays, wanted):
        raise UserError(f"{path} does not fit its own configuration: {unlike[0]}")
    leaves = [jax.device_put(arrays[name].astype(np.float32), shape.sharding) for name, shape in wanted.items()]
    return config, jax.tree.unflatten(jax.tree.structure(like), leaves)
