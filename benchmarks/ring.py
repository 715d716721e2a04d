"""A ring of 8 virtual devices against one device, for the same attention on the same cores.

    python benchmarks/ring.py [--tokens 8192] [--heads 4] [--width 64] [--devices 8] [--runs 7]

Runs alternate, so that a machine whose speed drifts slows both alike; the figure to quote is the median of the ratios
of pairs. What the ring costs beyond 1 is what its transfers, smaller blocks and merging do not hide.

On several cores a ratio below 1 says only that one device leaves cores idle; for the cost of the ring itself give both
one core alone (`taskset -c 0 python benchmarks/ring.py`).
"""

import statistics
import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from ringworld.attention import attention
from ringworld.attention.layout import order
from ringworld.mesh import MeshShape, build_mesh, named_sharding, use_cpu_devices


@dataclass(frozen=True)
class Settings:
    tokens: int = 8192
    heads: int = 4
    width: int = 64
    devices: int = 8
    runs: int = 7


def work(shape: MeshShape, layout, settings: Settings, backward: bool):
    """A compiled call with its operands in place, to be timed."""
    mesh = build_mesh(shape, jax.devices()[: shape.sequence])
    rng = np.random.default_rng(0)
    there = order(settings.tokens, shape.sequence, layout)
    heads = named_sharding(mesh, ("batch", "sequence", "heads", None))
    ids = named_sharding(mesh, ("batch", "sequence"))
    operands = [
        jax.device_put(
            rng.normal(size=(1, settings.tokens, settings.heads, settings.width)).astype(np.float32)[:, there], heads
        )
        for _ in range(3)
    ]
    segments = jax.device_put(np.ones((1, settings.tokens), np.int32), ids)
    positions = jax.device_put(np.arange(settings.tokens, dtype=np.int32)[None, there], ids)

    def forward(*operands):
        return attention(*operands, segments, positions, mesh=mesh)

    def loss(*operands):
        return jnp.sum(forward(*operands) ** 2)

    call = jax.jit(jax.grad(loss, (0, 1, 2)) if backward else forward)
    jax.block_until_ready(call(*operands))
    return lambda: jax.block_until_ready(call(*operands))


def seconds(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(settings: Settings) -> None:
    use_cpu_devices(settings.devices)
    print(f"{settings.tokens} tokens, {settings.heads} heads of {settings.width}, float32, ring of {settings.devices}")
    print("| pass | layout | one device | ring | ring / one (median of pairs) |\n|---|---|---|---|---|")
    for backward in (False, True):
        for layout in ("zigzag", "contiguous"):
            one = work(MeshShape(), layout, settings, backward)
            ring = work(MeshShape(sequence=settings.devices), layout, settings, backward)
            pairs = [(seconds(one), seconds(ring)) for _ in range(settings.runs)]
            alone, together = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            name = "forward + backward" if backward else "forward"
            print(f"| {name} | {layout} | {alone * 1e3:.0f} ms | {together * 1e3:.0f} ms | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings))
