"""The devices: axis names, the mesh, and which logical axis of an array lies on which axis of the mesh.

Everything that knows about devices is here. The rest of the program names the *logical* axes of its arrays ("batch",
"sequence", "heads", ...) and holds on any mesh.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ringworld.errors import UserError

AXES = ("data", "fsdp", "tensor", "sequence")
_PATIENCE, _PATIENCE_SECONDS = "--xla_cpu_collective_call_terminate_timeout_seconds", 6 * 3600

# Weights are spread over `sequence` too: with a ring over all chips there would otherwise be a copy of them on each.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "sequence": ("sequence",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffn": ("tensor",),
    "vocabulary": ("tensor",),
    "embed": ("fsdp", "sequence"),
}


@dataclass(frozen=True)
class MeshShape:
    """Devices along each axis of the mesh. One axis may be -1: all the devices that the others leave."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1

    def __post_init__(self) -> None:
        sizes = self.sizes
        if any(size == 0 or size < -1 for size in sizes) or sizes.count(-1) > 1:
            raise UserError(
                f"the mesh {self} is not possible: every axis takes a number of devices, and one may be -1, the rest"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(getattr(self, axis) for axis in AXES)

    @classmethod
    def parse(cls, text: str) -> Self:
        """`data=1,sequence=8` -> MeshShape(data=1, sequence=8). Raises UserError on anything else."""
        sizes: dict[str, int] = {}
        for part in text.split(","):
            axis, _, size = (piece.strip() for piece in part.partition("="))
            if axis not in AXES or axis in sizes or not size.lstrip("-").isdigit():
                raise UserError(
                    f"cannot read the mesh {text!r} at {part!r}: write axis=devices with commas between; the axes are "
                    f"{', '.join(AXES)}"
                )
            sizes[axis] = int(size)
        return cls(**sizes)

    def resolve(self, devices: int) -> Self:
        """Fills in a -1; raises UserError when the axes do not multiply to `devices`."""
        known = int(np.prod([size for size in self.sizes if size != -1]))
        resolved = type(self)(*(devices // known if size == -1 else size for size in self.sizes))
        if int(np.prod(resolved.sizes)) != devices:
            raise UserError(
                f"the mesh {self} needs {'a multiple of ' if -1 in self.sizes else ''}{known} devices but there are "
                f"{devices}: "
                "change the mesh with --mesh, or on a CPU the number of devices with --devices"
            )
        return resolved

    def __str__(self) -> str:
        return ",".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))


def use_cpu_devices(count: int) -> None:
    """Makes `count` virtual devices of the CPU. Has to come before anything asks JAX for its devices.

    They share the cores, so one may wait for another's work for long; XLA would end the program after 40 seconds. What
    the environment's XLA_FLAGS say about that is left as it is.
    """
    if count < 1:
        raise UserError(f"cannot make {count} devices: --devices takes a number from 1 up")
    flags = os.environ.get("XLA_FLAGS", "")
    if _PATIENCE not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_PATIENCE}={_PATIENCE_SECONDS}".strip()
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        raise UserError(f"cannot make {count} CPU devices: JAX has started already, so ask for them first") from error


def default_cpu_devices() -> int:
    """Virtual devices to make of the CPU when nobody says how many: two, as a small model leaves a second core idle, or
    one, where this process may use one core alone."""
    return min(2, usable_cores())


def usable_cores() -> int:
    """Of this machine's processor, by this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def build_mesh(shape: MeshShape = MeshShape(), devices: Sequence[Any] | None = None) -> Mesh:
    """The device mesh of a shape, over `devices` (default: all there are).

    `jax.make_mesh` orders devices by the machine's topology; that neighbours in the ring are neighbours on the wires
    was not checked on a machine that has any. Axes are Auto everywhere: arrays are born with a sharding and XLA
    carries it on, but in the rooms that use `shard_map`.

    Raises:
        UserError: the shape does not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = shape.resolve(len(devices)).sizes
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def partition_spec(logical_axes: Sequence[str | None]) -> PartitionSpec:
    """Logical axes of an array -> its PartitionSpec, e.g. ("batch", "sequence", None) -> P(("data", "fsdp"),
    "sequence")."""
    entries = [RULES[axis] if axis is not None else () for axis in logical_axes]
    used = [axis for entry in entries for axis in entry]
    if len(used) != len(set(used)):
        raise ValueError(f"logical axes {tuple(logical_axes)} lie on the same mesh axis twice: {used}")
    return PartitionSpec(*(entry[0] if len(entry) == 1 else entry or None for entry in entries))


def named_sharding(mesh: Mesh, logical_axes: Sequence[str | None]) -> NamedSharding:
    """The sharding on `mesh` of an array with these logical axes."""
    return NamedSharding(mesh, partition_spec(logical_axes))


def constrain(array: jax.Array, mesh: Mesh, *logical_axes: str | None) -> jax.Array:
    """States, inside a compiled function, where `array` lies."""
    return jax.lax.with_sharding_constraint(array, named_sharding(mesh, logical_axes))


def axis_size(mesh: Mesh, logical_axis: str) -> int:
    """Devices that a logical axis is spread over."""
    return int(np.prod([mesh.shape[axis] for axis in RULES[logical_axis]]))
