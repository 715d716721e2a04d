"""A VQGAN of LWM's architecture that a test can run, its weights drawn, and its forward pass in plain numpy."""

import jax
import numpy as np

from ringworld.parameters import Parameter
from ringworld.tokens.quantizers import QuantizerConfig
from ringworld.tokens.vqgan import VqganConfig, VqganWeights, declare

SMALL = VqganConfig(
    frame_size=32,
    channels=(8, 16, 16),
    latent=6,
    quantizer=QuantizerConfig("gradient", codes=64, dim=6),
    groups=4,
)


def draw(config: VqganConfig, seed: int = 0) -> VqganWeights:
    """Every weight random, so that nothing is hidden by what begins at 0."""
    rng = np.random.default_rng(seed)

    def one(parameter: Parameter) -> np.ndarray:
        center = 1.0 if parameter.deviation is None else 0.0
        inputs = np.prod(parameter.shape[:-1]) if len(parameter.shape) == 4 else 4.0
        return rng.normal(center, inputs**-0.5, parameter.shape).astype(np.float32)

    return jax.tree.map(one, declare(config), is_leaf=lambda x: isinstance(x, Parameter))


def conv(x: np.ndarray, weights: dict, stride: int = 1, padding: int | tuple[int, int] = 1) -> np.ndarray:
    """x [H, W, I]; the sum over offsets of the kernel, as the definition says."""
    kernel, bias = weights["kernel"], weights["bias"]
    before, after = (padding, padding) if isinstance(padding, int) else padding
    if kernel.shape[0] == 1:
        before = after = 0
    x = np.pad(x, ((before, after), (before, after), (0, 0)))
    height = (x.shape[0] - kernel.shape[0]) // stride + 1
    width = (x.shape[1] - kernel.shape[1]) // stride + 1
    out = np.broadcast_to(bias, (height, width, kernel.shape[3])).astype(np.float64)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            out = out + x[i : i + stride * height : stride, j : j + stride * width : stride] @ kernel[i, j]
    return out


def norm(x: np.ndarray, weights: dict, groups: int) -> np.ndarray:
    grouped = x.reshape(*x.shape[:2], groups, -1)
    mean = grouped.mean((0, 1, 3), keepdims=True)
    variance = ((grouped - mean) ** 2).mean((0, 1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape) * weights["scale"] + weights["bias"]


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def block(x: np.ndarray, weights: dict, groups: int) -> np.ndarray:
    h = conv(silu(norm(x, weights["GroupNorm_0"], groups)), weights["Conv_0"])
    h = conv(silu(norm(h, weights["GroupNorm_1"], groups)), weights["Conv_1"])
    return h + (conv(x, weights["Conv_2"]) if "Conv_2" in weights else x)


def blocks(x: np.ndarray, level: dict, groups: int) -> np.ndarray:
    for number in range(sum(name.startswith("ResnetBlock") for name in level)):
        x = block(x, level[f"ResnetBlock_{number}"], groups)
    return x


def latents(frame: np.ndarray, tree: dict, levels: int, groups: int) -> np.ndarray:
    """A frame [H, W, 3] of uint8 -> vectors [h, w, d], through a tree with LWM's names."""
    coder = tree["encoder"]
    x = conv(frame / 127.5 - 1, coder["Conv_0"])
    for number in range(levels):
        level = coder[f"DownsamplingBlock_{number}"]
        x = blocks(x, level, groups)
        if "Downsample_0" in level:
            x = conv(x, level["Downsample_0"]["Conv_0"], stride=2, padding=(0, 1))
    x = blocks(x, coder["MidBlock_0"], groups)
    x = conv(silu(norm(x, coder["GroupNorm_0"], groups)), coder["Conv_1"])
    return conv(x, tree["quant_conv"])


def encode(frame: np.ndarray, tree: dict, levels: int, groups: int) -> np.ndarray:
    """A frame [H, W, 3] of uint8 -> codes [h, w]."""
    codebook = tree["quantize"]["embeddings"]
    return ((latents(frame, tree, levels, groups)[:, :, None] - codebook) ** 2).sum(-1).argmin(-1)


def decode(codes: np.ndarray, tree: dict, levels: int, groups: int) -> np.ndarray:
    """Codes [h, w] -> a frame [H, W, 3], from -1 to 1."""
    coder = tree["decoder"]
    x = conv(conv(tree["quantize"]["embeddings"][codes], tree["post_quant_conv"]), coder["Conv_0"])
    x = blocks(x, coder["MidBlock_0"], groups)
    for number in range(levels):
        level = coder[f"UpsamplingBlock_{number}"]
        x = blocks(x, level, groups)
        if "Upsample_0" in level:
            x = conv(np.kron(x, np.ones((2, 2, 1))), level["Upsample_0"]["Conv_0"])
    x = conv(silu(norm(x, coder["GroupNorm_0"], groups)), coder["Conv_1"])
    return np.clip(x, -1, 1)
