"""Peak memory of attention, forward and backward, at growing lengths: it has to lie on a line.

    python benchmarks/memory.py [--lengths 32768 65536 131072]

Each length runs in a process of its own; the figure is that process's peak resident size, less that of one that
computes 256 tokens.
"""

import resource
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import tyro


@dataclass(frozen=True)
class Settings:
    lengths: tuple[int, ...] = (32_768, 65_536, 131_072)
    width: int = 64
    only: int | None = None
    """Compute this one length, print the peak resident size in bytes, and end."""


def peak(length: int, width: int) -> int:
    """Bytes this process has held at most, after one forward and backward pass of one head."""
    import jax
    import jax.numpy as jnp

    from ringworld.attention import attention
    from ringworld.mesh import MeshShape, build_mesh

    mesh = build_mesh(MeshShape())
    heads = [jax.random.normal(key, (1, length, 1, width)) for key in jax.random.split(jax.random.key(0), 3)]
    positions = jnp.arange(length)[None]
    segments = jnp.ones_like(positions)
    gradient = jax.jit(jax.grad(lambda *x: jnp.sum(attention(*x, segments, positions, mesh=mesh) ** 2), (0, 1, 2)))
    jax.block_until_ready(gradient(*heads))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(length: int, settings: Settings) -> int:
    command = [sys.executable, __file__, "--only", str(length), "--width", str(settings.width)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(settings: Settings) -> None:
    if settings.only is not None:
        print(peak(settings.only, settings.width))
        return
    empty = measure(256, settings)
    sizes = np.array([measure(length, settings) - empty for length in settings.lengths], float)
    slope, start = np.polyfit(settings.lengths, sizes, 1)
    print(f"one head of {settings.width}, float32; the program alone takes {empty / 2**20:.0f} MB")
    print("| tokens | MB | bytes a token | off the line |\n|---|---|---|---|")
    for length, size in zip(settings.lengths, sizes, strict=True):
        line = slope * length + start
        print(f"| {length} | {size / 2**20:.0f} | {size / length:.0f} | {size / line - 1:+.1%} |")


if __name__ == "__main__":
    main(tyro.cli(Settings))
