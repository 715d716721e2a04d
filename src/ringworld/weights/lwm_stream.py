"""The byte layout of the released LWM's checkpoints: a stream of tensors, read by offset and written piece by piece.

The stream is one msgpack pair after the other: a tensor's path in the tree of parameters as a list of strings, and as
bytes what `flax.serialization.to_bytes` makes of the array. That is a msgpack extension of type 1 around

    [shape, name of the type, raw bytes in row-major order]

and for an array of more than 2^30 bytes a map, whose chunks are such extensions of the flattened array:

    {"__msgpack_chunked_array__": true, "shape": {"0": 32, ...}, "chunks": {"0": ..., "1": ...}}

Reading passes over the raw bytes and notes where they are; nothing but the array that is asked for is ever held.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, TypeVar

import jax.numpy as jnp
import msgpack
import numpy as np

from ringworld.errors import UserError

LARGEST = 2**32 - 1  # bytes in one msgpack object
CHUNK = 2**30  # bytes in one of flax's chunks
_CHUNKED = "__msgpack_chunked_array__"
_NDARRAY = 1  # flax's number for the extension
_TYPES = {np.dtype(kind).name: np.dtype(kind) for kind in (jnp.bfloat16, np.float16, np.float32)}
_BESIDE_WEIGHTS = (["step"], ["opt_state"])  # what else a `streaming_train_state` holds
_LONGEST = 1024  # bytes of a name, entries of a list or map: a damaged length must not fill the memory
_T = TypeVar("_T")

# First bytes of msgpack objects: those that hold their length (or an integer its value), and those that it follows.
_SHORT = ((0x00, 0x7F, "integer"), (0x80, 0x8F, "map"), (0x90, 0x9F, "list"), (0xA0, 0xBF, "string"))
_LONG = {
    **{0xC4 + power: ("bytes", 1 << power) for power in range(3)},
    **{0xC7 + power: ("extension", 1 << power) for power in range(3)},
    **{0xCC + power: ("integer", 1 << power) for power in range(4)},
    **{0xD9 + power: ("string", 1 << power) for power in range(3)},
    **{0xDC + power: ("list", 2 << power) for power in range(2)},
    **{0xDE + power: ("map", 2 << power) for power in range(2)},
}
_FIXED_EXTENSIONS = {1 << power: 0xD4 + power for power in range(5)}  # by their lengths
_TRUE = 0xC3


@dataclass(frozen=True)
class StreamedArray:
    """An array of a stream, and where it lies.

    Attributes:
        pieces: offsets in the file and bytes, in the array's order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class _Damaged(Exception):
    """What is wrong with a stream."""


def index_stream(path: Path) -> dict[str, StreamedArray]:
    """The arrays of a stream by their paths in the tree of parameters, such as "lm_head/kernel".

    Of a `streaming_train_state` only the parameters are taken, without the "params" that their paths begin with.

    Raises:
        UserError: the file cannot be read, ends too early, or is no stream of arrays.
    """
    found: dict[str, StreamedArray] = {}
    name = ""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while file.tell() < size:
                name = ""
                _expect(file, "list", 2)
                key = [_string(file) for _ in range(_length(file, "list"))]
                name = "/".join(key)
                end = _expect(file, "bytes") + file.tell()
                if end > size:
                    raise _Damaged(f"it ends {end - size} bytes too early")
                if key[:1] not in _BESIDE_WEIGHTS:
                    found[name.removeprefix("params/").removeprefix("params/")] = _array(file)
                    if file.tell() != end:
                        raise _Damaged(f"the array ends at byte {file.tell()}, and what holds it at byte {end}")
                file.seek(end)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): name LWM's file of weights") from error
    except _Damaged as error:
        where = f"within {name}" if name else f"after {list(found)[-1]}" if found else "at its beginning"
        raise UserError(
            f"{path} is no whole stream of LWM's tensors ({where}: {error}): give a file such as streaming_params, and "
            "fetch it again if it is one"
        ) from error
    return found


def read_streamed(path: Path, array: StreamedArray) -> np.ndarray:
    """An array, in the type that the stream has it in. Raises UserError when the file is not what it was."""
    whole = np.empty(array.shape, array.dtype)
    rest = whole.reshape(-1).view(np.uint8).data
    try:
        with path.open("rb") as file:
            for offset, length in array.pieces:
                file.seek(offset)
                if file.readinto(rest[:length]) != length:
                    raise UserError(f"{path} has become shorter since it was opened: fetch it again")
                rest = rest[length:]
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): it was there when it was opened") from error
    return whole


def _array(file: BinaryIO) -> StreamedArray:
    kind, entries = _head(file)
    if kind == "extension":
        return _whole_array(file)
    if kind == "map":
        return _chunked_array(file, entries)
    raise _Damaged(f"there is {kind!r} before byte {file.tell()} in place of an array")


def _whole_array(file: BinaryIO) -> StreamedArray:
    if _take(file, 1)[0] != _NDARRAY:
        raise _Damaged(f"the extension at byte {file.tell()} is no array")
    _expect(file, "list", 3)
    shape = tuple(_expect(file, "integer") for _ in range(_length(file, "list")))
    dtype = _known_type(_string(file))
    length = _expect(file, "bytes")
    array = StreamedArray(shape, dtype, ((file.tell(), length),))
    file.seek(length, os.SEEK_CUR)
    return _checked(array)


def _chunked_array(file: BinaryIO, entries: int) -> StreamedArray:
    parts: dict[str, tuple] = {}
    for _ in range(min(entries, 3)):
        match _string(file):
            case "shape":
                parts["shape"] = _numbered(file, lambda: _expect(file, "integer"))
            case "chunks":
                parts["chunks"] = _numbered(file, lambda: _chunk(file))
            case name:
                if name != _CHUNKED or _take(file, 1)[0] != _TRUE:
                    raise _Damaged(f"there is {name!r} before byte {file.tell()} in place of an array's chunks")
    if len(parts) != 2 or len({chunk.dtype for chunk in parts["chunks"]}) != 1:
        raise _Damaged(f"the chunks before byte {file.tell()} do not make an array")
    pieces = tuple(piece for chunk in parts["chunks"] for piece in chunk.pieces)
    return _checked(StreamedArray(parts["shape"], parts["chunks"][0].dtype, pieces))


def _chunk(file: BinaryIO) -> StreamedArray:
    _expect(file, "extension")
    return _whole_array(file)


def _checked(array: StreamedArray) -> StreamedArray:
    length = sum(length for _, length in array.pieces)
    if array.nbytes != length:
        raise _Damaged(f"{length} bytes do not make an array {list(array.shape)} of {array.dtype.name}")
    return array


def _known_type(name: str) -> np.dtype:
    if name not in _TYPES:
        raise _Damaged(f"it is kept as {name}, and weights must be one of {', '.join(_TYPES)}")
    return _TYPES[name]


def _numbered(file: BinaryIO, read: Callable[[], _T]) -> tuple[_T, ...]:
    """A map of "0", "1", ... as flax writes tuples."""
    values = {_string(file): read() for _ in range(_length(file, "map"))}
    if values.keys() != {str(number) for number in range(len(values))}:
        raise _Damaged(f"the keys before byte {file.tell()} must be numbers from 0 on")
    return tuple(values[str(number)] for number in range(len(values)))


def _string(file: BinaryIO) -> str:
    return _take(file, _length(file, "string")).decode(errors="replace")


def _length(file: BinaryIO, kind: str) -> int:
    length = _expect(file, kind)
    if length > _LONGEST:
        raise _Damaged(f"the {kind} at byte {file.tell()} has the length {length}")
    return length


def _expect(file: BinaryIO, kind: str, value: int | None = None) -> int:
    """The length of the next object, or an integer's value, when it is what must be there."""
    offset = file.tell()
    found = _head(file)
    if found[0] != kind or value not in (None, found[1]):
        raise _Damaged(f"there is {found[0]!r} at byte {offset} in place of {kind!r}")
    return found[1]


def _head(file: BinaryIO) -> tuple[str, int]:
    """The kind of the next object, and its length or an integer's value.

    (github.com/msgpack/msgpack, spec.md; the kinds that arrays are made of.)
    """
    first = _take(file, 1)[0]
    for low, high, kind in _SHORT:
        if low <= first <= high:
            return kind, first - low
    for length, code in _FIXED_EXTENSIONS.items():
        if first == code:
            return "extension", length
    if first not in _LONG:
        raise _Damaged(f"the byte 0x{first:02x} at byte {file.tell() - 1} begins nothing that arrays are made of")
    kind, width = _LONG[first]
    return kind, int.from_bytes(_take(file, width), "big")


def _take(file: BinaryIO, length: int) -> bytes:
    content = file.read(length)
    if len(content) != length:
        raise _Damaged(f"it ends at byte {file.tell()}")
    return content


def write_streamed(file: BinaryIO, name: str, array: np.ndarray) -> None:
    """Writes one pair, to the byte as the original does; of a large array nothing is copied.

    Raises:
        OSError: the disk is full, or the like.
        ValueError: the array is too large for the format.
    """
    parts = list(_chunks(array) if array.nbytes > CHUNK else _extension(array))
    packer = msgpack.Packer()
    file.write(packer.pack_array_header(2) + packer.pack(name.split("/")) + _bytes_header(sum(map(len, parts))))
    for part in parts:
        file.write(part)


def _chunks(array: np.ndarray) -> Iterator[bytes | memoryview]:
    packer = msgpack.Packer()
    flat, step = array.reshape(-1), CHUNK // array.itemsize
    chunks = [flat[start : start + step] for start in range(0, flat.size, step)]
    yield packer.pack_map_header(3) + packer.pack(_CHUNKED) + packer.pack(True)
    yield packer.pack("shape") + packer.pack({str(axis): size for axis, size in enumerate(array.shape)})
    yield packer.pack("chunks") + packer.pack_map_header(len(chunks))
    for number, chunk in enumerate(chunks):
        yield packer.pack(str(number))
        yield from _extension(chunk)


def _extension(array: np.ndarray) -> Sequence[bytes | memoryview]:
    packer = msgpack.Packer()
    content = packer.pack_array_header(3) + packer.pack(array.shape) + packer.pack(array.dtype.name)
    content += _bytes_header(array.nbytes)
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    return [_extension_header(len(content) + array.nbytes) + content, raw]


def _extension_header(length: int) -> bytes:
    if length in _FIXED_EXTENSIONS:
        return bytes([_FIXED_EXTENSIONS[length], _NDARRAY])
    return _header("extension", length) + bytes([_NDARRAY])


def _bytes_header(length: int) -> bytes:
    return _header("bytes", length)


def _header(kind: str, length: int) -> bytes:
    """The shortest that says it, as msgpack has it."""
    for first, (there, width) in _LONG.items():
        if there == kind and length < 1 << 8 * width:
            return bytes([first]) + length.to_bytes(width, "big")
    raise ValueError(f"msgpack has no {kind} of {length} bytes")
