"""The kinds of values on the command line, how they are read and shown, and what many commands take."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

if TYPE_CHECKING:
    from ringworld.generation.model import Model
    from ringworld.mesh import MeshShape
    from ringworld.tokens.codec import FrameTokenizer


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"must be a whole number, 0 or more; got {text!r}")
    return int(text)


def _wholes(text: str) -> tuple[int, ...]:
    return tuple(map(_whole, text.split(",")))


def _lengths(text: str) -> tuple[int, ...]:
    """ "8k,16384" -> 8192, 16384."""
    return tuple(1024 * _whole(word[:-1]) if word[-1:] in ("k", "K") else _whole(word) for word in text.split(","))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"must be a number; got {text!r}") from None


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(_number, text.split(",")))


def _span(text: str) -> tuple[int, int]:
    """ "1,3" -> 1, 3; "2" -> 2, 2."""
    least, *more = _wholes(text)
    if len(more) > 1:
        raise ValueError(f"must be a whole number, or the smallest and the largest, such as 1,3; got {text!r}")
    return least, more[0] if more else least


def words(metavar: str, read: Callable[[str], Any], write: Callable[[Any], str] = str) -> PrimitiveConstructorSpec[Any]:
    """How tyro reads and shows one kind of value. Its own reading of `int | None` speaks of Python classes."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [write(value)],
    )


Count = Annotated[int, words("N", _whole)]
Counts = Annotated[tuple[int, ...], words("N,N,...", _wholes, lambda values: ",".join(map(str, values)))]
Lengths = Annotated[tuple[int, ...], words("N,Nk,...", _lengths, lambda values: ",".join(map(str, values)))]
Span = Annotated[tuple[int, int], words("N[,N]", _span, lambda values: ",".join(map(str, values)))]
Number = Annotated[float, words("X", _number)]
Numbers = Annotated[tuple[float, ...], words("X,X,...", _numbers, lambda values: ",".join(map(str, values)))]
MaybeCount = Annotated[int | None, words("N", _whole)]
MaybeMesh = Annotated[str | None, words("AXIS=N,...", str)]
MaybeNumber = Annotated[float | None, words("X", _number)]
MaybeText = Annotated[str | None, words("TEXT", str)]
MaybePath = Annotated[Path | None, words("PATH", Path)]
Text = Annotated[str, words("TEXT", str)]
Names = Annotated[tuple[str, ...], words("NAME,...", lambda text: tuple(text.split(",")), ",".join)]
Folder = Annotated[Path, words("DIR", Path)]


def default(meaning: str) -> Any:
    """Says in the help what leaving a flag out means."""
    return arg(help_behavior_hint=f"(default: {meaning})")


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Where to compute.

    Attributes:
        mesh: devices along each axis, such as data=2,sequence=4. Axes: data, fsdp, tensor, sequence. One number may be
            -1, all devices that the others leave.
        devices: make so many virtual devices of the CPU.
    """

    mesh: Annotated[MaybeMesh, default("the recipe's; rows over all devices to evaluate; one to generate")] = None
    devices: Annotated[MaybeCount, default("two, where there are two cores")] = None

    def shape(self) -> "MeshShape | None":
        """The mesh that was asked for. Makes the devices, so it comes before anything that asks JAX for its own."""
        from ringworld.mesh import MeshShape, default_cpu_devices, use_cpu_devices

        use_cpu_devices(default_cpu_devices() if self.devices is None else self.devices)
        return None if self.mesh is None else MeshShape.parse(self.mesh)


@dataclass(frozen=True, kw_only=True)
class OfModel:
    """What every command takes that asks a trained model.

    Attributes:
        model: nano (shipped), what `ringworld train --out` or `ringworld convert` wrote, smollm2 (fetched), a name on
            Hugging Face, a folder that transformers opens, or a .gguf file.
        cache: in which keys and values are kept: bfloat16 takes half of the memory, int8 a little more than a quarter.
    """

    model: Annotated[str, words("MODEL", str)]
    cache: Literal["float32", "bfloat16", "int8"] = "float32"
    compute: Devices = field(default_factory=Devices)

    def load(self, *, many_rows: bool) -> "Model":
        """On the mesh asked for, or else on all devices for many rows and on one for a single row."""
        mesh = self.compute.shape()
        import ringworld
        from ringworld.mesh import MeshShape

        return ringworld.load(self.model, MeshShape(data=-1) if mesh is None and many_rows else mesh, self.cache)


@dataclass(frozen=True, kw_only=True)
class OfTokenizer:
    """What every command takes that uses a tokenizer of frames.

    Attributes:
        tokenizer: nano, shipped, for frames of shapes; what `ringworld train vqgan-...` wrote; a .safetensors file; or
            LWM's vqgan.
    """

    tokenizer: Folder
    compute: Devices = field(default_factory=Devices)

    def load(self) -> "FrameTokenizer":
        """On the mesh asked for, or else with its frames spread over all devices."""
        mesh = self.compute.shape()
        from ringworld.mesh import MeshShape, build_mesh
        from ringworld.weights.tokenizer import load_tokenizer

        return load_tokenizer(self.tokenizer, build_mesh(mesh or MeshShape(data=-1)))
