"""GGUF, the file format of llama.cpp: metadata by key, then arrays, most of them quantised.

The header is read here and the arrays are dequantised by the `gguf` package. That package reads headers too, but a
vocabulary of 49,152 tokens takes it several seconds. (Format: ggml's docs/gguf.md.)
"""

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import jax.numpy as jnp
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from ringworld.errors import UserError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # of the arrays, unless general.alignment says otherwise

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_FLOAT, _STRING, _ARRAY = 6, 8, 9

_PLAIN = {
    GGMLQuantizationType.F32: np.dtype("<f4"),
    GGMLQuantizationType.F16: np.dtype("<f2"),
    GGMLQuantizationType.BF16: np.dtype(jnp.bfloat16),
}
# The files that people pass on mix these: "Q4_K_M" holds Q6_K too, and Q5_0 or Q8_0 for rows that 256 does not divide.
_QUANTISED = tuple(
    GGMLQuantizationType[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
)
TYPES = (*_PLAIN, *_QUANTISED)
_AT_ONCE = 2**18  # numbers that are dequantised at a time: what is made on the way stays small


class _Damaged(ValueError):
    """What is wrong with a header."""


@dataclass(frozen=True)
class StoredArray:
    """Where an array lies in a file.

    Attributes:
        shape: rows first, as numpy has it; GGUF writes it the other way round.
        offset: of its first byte, from the start of the file.
    """

    shape: tuple[int, ...]
    type: GGMLQuantizationType
    offset: int

    @property
    def dtype(self) -> np.dtype:
        """What it is read as: its own type, or float32 where it is quantised."""
        return _PLAIN.get(self.type, np.dtype(np.float32))

    @property
    def numbers(self) -> int:
        return int(np.prod(self.shape, dtype=object))  # of Python's integers: a damaged shape overflows no word

    @property
    def bytes(self) -> int:
        block_numbers, block_bytes = GGML_QUANT_SIZES[self.type]
        return self.numbers // block_numbers * block_bytes


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file, of which the header has been read.

    Attributes:
        metadata: strings, numbers, and lists of these.
        arrays: by their names in the file.
    """

    path: Path
    metadata: dict[str, Any]
    arrays: dict[str, StoredArray]

    @classmethod
    def open(cls, path: Path) -> "GgufFile":
        """Reads the header.

        Raises:
            UserError: there is no such file, it is no GGUF file, damaged or cut short, or holds arrays of a type that
                is not in `TYPES`.
        """
        try:
            with path.open("rb") as file:
                return cls(path, *_Header(file, path.stat().st_size).read())
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}; name a .gguf file") from error
        except _Damaged as error:
            raise UserError(f"cannot read {path}: {error}") from error

    def read(self, name: str) -> np.ndarray:
        """An array, dequantised to float32 where it is quantised. Raises UserError when the file cannot be read."""
        stored = self.arrays[name]
        try:
            if stored.type in _PLAIN:
                return self._stored(stored.dtype, stored.offset, stored.numbers).reshape(stored.shape)
            return self._dequantised(stored)
        except (OSError, ValueError) as error:  # ValueError: fewer bytes than there were
            raise UserError(f"cannot read {name} in {self.path} ({error}): was the file changed?") from error

    def _stored(self, dtype: np.dtype, offset: int, count: int) -> np.ndarray:
        found = np.fromfile(self.path, dtype, count, offset=offset)
        if len(found) != count:
            raise ValueError(f"{len(found)} of {count} values")
        return found

    def _dequantised(self, stored: StoredArray) -> np.ndarray:
        block_numbers, block_bytes = GGML_QUANT_SIZES[stored.type]
        numbers = np.empty(stored.numbers, np.float32)
        for start in range(0, stored.numbers, _AT_ONCE):
            piece = numbers[start : start + _AT_ONCE]
            offset = stored.offset + start // block_numbers * block_bytes
            blocks = self._stored(np.dtype(np.uint8), offset, len(piece) // block_numbers * block_bytes)
            piece[:] = dequantize(blocks[None], stored.type)[0]
        return numbers.reshape(stored.shape)


class _Header:
    """The beginning of a file, read from front to back. What is wrong with it is raised as `_Damaged`."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size, self._place = file, size, 0

    def read(self) -> tuple[dict[str, Any], dict[str, StoredArray]]:
        if self._file.read(len(_MAGIC)) != _MAGIC:
            raise _Damaged("it is not a GGUF file, which would begin with the letters GGUF")
        self._place = len(_MAGIC)
        version = self._number("<I")
        if version not in _VERSIONS:
            # A small number read in the wrong order is a large one.
            what = f"GGUF version {version}" if version < 2**16 else "GGUF for machines of the other byte order"
            raise _Damaged(f"it is {what}, and versions 2 and 3 are read, little-endian: convert it anew")
        arrays, keys = self._number("<Q"), self._number("<Q")
        metadata = {}
        for _ in range(keys):
            key = self._string()
            metadata[key] = self._value(self._number("<I"))
        places = dict(self._place_of_array() for _ in range(arrays))
        return metadata, self._checked(places, metadata.get("general.alignment", _ALIGNMENT))

    def _checked(self, places: dict[str, StoredArray], alignment: Any) -> dict[str, StoredArray]:
        """The arrays, with offsets from the start of the file; all of them are in it."""
        if not isinstance(alignment, int) or alignment < 1:
            raise _Damaged(f"it aligns its arrays to {alignment!r} bytes: the file is damaged")
        start = -(-self._place // alignment) * alignment
        arrays = {name: StoredArray(place.shape, place.type, start + place.offset) for name, place in places.items()}
        end = max((array.offset + array.bytes for array in arrays.values()), default=0)
        if end > self._size:
            raise _Damaged(f"it has {self._size} bytes, and its arrays need {end}: it was cut short, fetch it anew")
        return arrays

    def _place_of_array(self) -> tuple[str, StoredArray]:
        name = self._string()
        shape = tuple(self._number("<Q") for _ in range(self._number("<I")))[::-1]
        number, offset = self._number("<I"), self._number("<Q")
        known = {kind.value: kind for kind in GGMLQuantizationType}.get(number)
        if known is None or known not in TYPES:
            raise _Damaged(
                f"its array {name} is of the type {known.name if known else number}, and those that are read are "
                f"{', '.join(kind.name for kind in TYPES)}: choose a file of one of these"
            )
        if (shape[-1] if shape else 1) % GGML_QUANT_SIZES[known][0]:
            raise _Damaged(f"its array {name} {list(shape)} is not of whole blocks of {known.name}: it is damaged")
        return name, StoredArray(shape, known, offset)

    def _bytes(self, count: int) -> bytes:
        self._place += count
        if self._place > self._size:
            raise _Damaged("it ends inside its header: it was cut short, fetch it anew")
        return self._file.read(count)

    def _number(self, layout: str) -> Any:
        return struct.unpack(layout, self._bytes(struct.calcsize(layout)))[0]

    def _string(self) -> str:
        content = self._bytes(self._number("<Q"))
        try:
            return content.decode()
        except UnicodeDecodeError as error:
            raise _Damaged(f"a text in its header is no UTF-8 ({error.reason}): the file is damaged") from error

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._list(self._number("<I"), self._number("<Q"))
        if kind not in _SCALARS:
            raise _Damaged(f"its header holds a value of the unknown type {kind}: the file is damaged")
        return self._scalars(kind, 1)[0]

    def _list(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            return [self._string() for _ in range(count)]
        if kind not in _SCALARS:
            raise _Damaged(f"its header holds a list of the type {kind}, which is not read")
        return self._scalars(kind, count)

    def _scalars(self, kind: int, count: int) -> list[Any]:
        layout = np.dtype(_SCALARS[kind])
        found = np.frombuffer(self._bytes(count * layout.itemsize), layout)
        # 0.00001, as was meant, and not the float64 nearest to its float32.
        return [float(str(value)) for value in found] if kind == _FLOAT else found.tolist()
