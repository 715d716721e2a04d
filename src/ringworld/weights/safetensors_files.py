"""Folders of safetensors files, written a tensor at a time, so that a model larger than the memory goes through."""

import json
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from ringworld.errors import UserError
from ringworld.files import appearing_folder, is_free

TYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16)}
_NAMES = {dtype: name for name, dtype in TYPES.items()}
_LARGEST = 10**15  # an offset as long as any


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder that takes its place when the block is left in peace, and is gone when it is not."""
    folder = folder.absolute()
    try:
        if not is_free(folder):
            raise UserError(f"{folder} exists already, and is not an empty folder: name another, or remove it")
        with appearing_folder(folder) as made:
            yield made
    except OSError as error:
        raise UserError(
            f"could not write the model to {folder} ({error.strerror or error}): nothing is left of it; free some "
            "space or name another folder"
        ) from error


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises UserError, inside of the block too, when it cannot be read."""
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {path} ({error}): the file is missing or damaged, fetch it again") from error


def write_shards(
    folder: Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    shapes: dict[str, tuple[int, ...]],
    *,
    stem: str,
    shard_bytes: int,
) -> dict[str, str]:
    """Writes tensors, one after another, into `<stem>-00001-of-0000N.safetensors`.

    Args:
        shapes: of all tensors that will come, in any order.
        shard_bytes: a file ends before it grows beyond this; one tensor alone may.

    Returns:
        the name of the file that each tensor is in.

    Raises:
        OSError: the disk is full, or the like.
    """
    room = _header_room(shapes)
    shards: list[_Shard] = []
    for name, tensor in tensors:
        if not shards or shards[-1].size + tensor.nbytes > shard_bytes:
            shards.append(_Shard(folder / str(len(shards)), room))
        shards[-1].add(name, tensor)
        del tensor  # or it would be held while the next one is read
    found: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = shard_name(stem, number, len(shards))
        shard.finish(file)
        found |= dict.fromkeys(shard.entries, file)
    return found


def shard_name(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number:05}-of-{count:05}.safetensors"


class _Shard:
    """A safetensors file that grows by a tensor at a time.

    It begins with a header that says where the tensors are, and is known when all of them are written: until then there
    is room for it.
    """

    def __init__(self, path: Path, room: int) -> None:
        self._path = path
        self._room = room
        self.entries: dict[str, Any] = {}
        self.size = 0  # of the tensors, in bytes
        path.write_bytes(bytes(room))

    def add(self, name: str, tensor: np.ndarray) -> None:
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
        end = self.size + tensor.nbytes
        self.entries[name] = _entry(_NAMES[tensor.dtype], tensor.shape, self.size, end)
        self.size = end

    def finish(self, name: str) -> None:
        """Gives the file its header and its name."""
        length = self._room - 8
        with self._path.open("r+b") as file:
            file.write(struct.pack("<Q", length) + _header(self.entries).ljust(length))
            os.fsync(file.fileno())
        self._path.rename(self._path.with_name(name))


def _entry(dtype: str, shape: tuple[int, ...], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def _header(entries: dict[str, Any]) -> bytes:
    return json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()  # transformers asks for the format


def _header_room(shapes: dict[str, tuple[int, ...]]) -> int:
    """Bytes for a header, whichever tensors a file will have: its length in 8 bytes, then JSON, filled with spaces."""
    longest = _header({name: _entry("BF16", shape, _LARGEST, _LARGEST) for name, shape in shapes.items()})
    return 8 + -(-len(longest) // 8) * 8
