"""Frames to codes: ringworld against the same network, with the same weights, in torch.

    pip install torch  # its build for CPUs is enough
    python benchmarks/encode.py [--frames 256] [--runs 7]

Runs alternate, so that a machine whose speed drifts slows both alike; the figure to quote is the median of the ratios
of pairs. torch runs with channels last, which is what its convolutions are fastest with on a CPU, and with as many
threads as there are cores; so does XLA. The share of equal codes shows that both are the same network; where two codes
are equally near, rounding decides.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import tyro

from ringworld.mesh import MeshShape, build_mesh
from ringworld.parameters import init
from ringworld.recipes.vqgan import VQGAN_NANO
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.vqgan import LWM_VQGAN, Block, Coder, Conv, NormWeights, VqganConfig, VqganWeights, declare

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    print("skipped: this compares with torch, which is not installed here (pip install torch)")
    raise SystemExit from None


@dataclass(frozen=True)
class Settings:
    frames: int = 256
    lwm_frames: int = 2
    runs: int = 7


class TorchEncoder:
    """A VQGAN's encoder and codebook."""

    def __init__(self, weights: VqganWeights, config: VqganConfig) -> None:
        def tensor(leaf: Any) -> Any:
            array = torch.from_numpy(np.array(leaf))
            # Kernels are [height, width, in, out] here and [out, in, height, width] there.
            return array.permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last) if array.ndim == 4 else array

        self.weights: VqganWeights = jax.tree.map(tensor, weights)
        self.config = config

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1  # channels last, as the frames are
        x = self._encode(self.weights.encoder, x)
        vectors = self._conv(x, self.weights.to_codes).permute(0, 2, 3, 1)
        book = self.weights.codebook
        distances = (book * book).sum(-1) / 2 - vectors.reshape(-1, book.shape[1]) @ book.T
        return distances.argmin(-1).reshape(vectors.shape[:3]).int().numpy()

    def _encode(self, coder: Coder, x: torch.Tensor) -> torch.Tensor:
        x = self._conv(self._patches(x, self.config.patch), coder.first)
        for level in coder.levels:
            for block in level.blocks:
                x = self._block(x, block)
            if level.resample is not None and self.config.resample == "conv":
                x = F.conv2d(F.pad(x, (0, 1, 0, 1)), level.resample.kernel, level.resample.bias, stride=2)
            elif level.resample is not None:
                x = self._conv(self._patches(x, 2), level.resample)
        for block in coder.middle:
            x = self._block(x, block)
        return self._conv(F.silu(self._norm(x, coder.norm)), coder.last)

    def _block(self, x: torch.Tensor, block: Block) -> torch.Tensor:
        h = x
        for norm, conv in zip(block.norms, block.convs, strict=True):
            h = self._conv(F.silu(self._norm(h, norm)), conv)
        return h + (x if block.shortcut is None else self._conv(x, block.shortcut))

    def _conv(self, x: torch.Tensor, conv: Conv) -> torch.Tensor:
        return F.conv2d(x, conv.kernel, conv.bias, padding=conv.kernel.shape[-1] // 2)

    def _norm(self, x: torch.Tensor, norm: NormWeights) -> torch.Tensor:
        if self.config.norm == "group":
            return F.group_norm(x, self.config.groups, norm.scale, norm.bias, 1e-6)
        last = F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), norm.scale, norm.bias, 1e-6)
        return last.permute(0, 3, 1, 2)

    def _patches(self, x: torch.Tensor, patch: int) -> torch.Tensor:
        if patch == 1:
            return x
        n, c, h, w = x.shape
        x = x.permute(0, 2, 3, 1).reshape(n, h // patch, patch, w // patch, patch, c).transpose(2, 3)
        return x.reshape(n, h // patch, w // patch, -1).permute(0, 3, 1, 2)


def seconds(encode: Callable[[np.ndarray], object], frames: np.ndarray) -> float:
    start = time.perf_counter()
    encode(frames)
    return time.perf_counter() - start


def main(settings: Settings) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; jax {jax.__version__}; float32")
    print("| tokenizer | ours, frames/s | torch, frames/s | ours / torch (median of pairs) | equal codes |")
    print("|---|---|---|---|---|")
    mesh = build_mesh(MeshShape(), jax.devices()[:1])
    rng = np.random.default_rng(0)
    for name, config, count in (("nano", VQGAN_NANO, settings.frames), ("lwm", LWM_VQGAN, settings.lwm_frames)):
        weights = init(jax.random.key(0), declare(config), mesh)
        tokenizer = FrameTokenizer(weights, config, mesh, batch=min(count, 32))
        frames = rng.integers(0, 256, (count, config.frame_size, config.frame_size, 3), np.uint8)
        encoder = TorchEncoder(weights, config)
        equal = (tokenizer.encode(frames) == encoder(frames)).mean()
        pairs = [(seconds(tokenizer.encode, frames), seconds(encoder, frames)) for _ in range(settings.runs)]
        ours, theirs = (count / statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"| {name} | {ours:.1f} | {theirs:.1f} | {ratio:.2f} | {equal:.2%} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Settings))
