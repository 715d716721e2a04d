"""A VQGAN: a convolutional encoder that makes codes of a frame, and the decoder that makes a frame of codes.

(Esser et al., arXiv 2012.09841.) One architecture by configuration, from LWM's to the layer to one that a laptop
trains. Frames are [B, H, W, 3], from -1 to 1 inside of the model; levels go from the finest to the coarsest, halving
the resolution; weights are declared once, in `declare`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from ringworld.errors import UserError
from ringworld.parameters import Parameter
from ringworld.tokens.quantizers import QuantizerConfig, look_up, quantize

Norm = Literal["group", "position"]
Resample = Literal["conv", "patch"]
_EPS = 1e-6


@dataclass(frozen=True)
class VqganConfig:
    """The shape of a VQGAN.

    Attributes:
        frame_size: pixels of a frame's side.
        channels: of each level; from one to the next the resolution halves.
        latent: channels that the encoder gives, before the 1x1 convolution to the quantiser's.
        quantizer: how latents become codes.
        patch: the encoder begins with patches of so many pixels a side, and the decoder ends with them: a convolution
            of pixels where it is 1, otherwise a matrix product, which is what trains fast on a CPU.
        encoder_blocks: residual blocks of each level on the way down,
        decoder_blocks: on the way up,
        middle_blocks: and on the coarsest level between the two, on either side.
        kernel: of the encoder's convolutions; 1 keeps codes local: each is of its own patch alone, given one level.
        norm: "group" over groups of channels and the whole frame (Wu and He, arXiv 1803.08494); "position" over the
            channels of each place, which keeps codes local.
        groups: of channels.
        resample: between levels: "conv" as in LWM's, a 3x3 convolution of every second place on the way down, and on
            the way up one after each place is repeated; "patch" a matrix product of 2x2 places to one and back, which
            keeps codes local.
    """

    frame_size: int
    channels: tuple[int, ...]
    latent: int
    quantizer: QuantizerConfig
    patch: int = 1
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    middle_blocks: int = 2
    kernel: int = 3
    norm: Norm = "group"
    groups: int = 32
    resample: Resample = "conv"

    def __post_init__(self) -> None:
        if not self.channels or min(self.frame_size, self.latent, self.patch, *self.channels) < 1:
            raise UserError(f"a VQGAN needs one or more levels and sizes from 1 up; got {self}")
        if min(self.encoder_blocks, self.decoder_blocks, self.middle_blocks) < 0:
            raise UserError(f"a VQGAN's numbers of blocks are 0 or more; got {self}")
        if len(set(self.channels)) > 1 and not (self.encoder_blocks and self.decoder_blocks):
            raise UserError(
                f"from one width to another of channels {self.channels} leads a residual block: take 1 or more of "
                f"encoder_blocks and decoder_blocks; got {self.encoder_blocks} and {self.decoder_blocks}"
            )
        if self.frame_size % self.reduction:
            raise UserError(
                f"frames of {self.frame_size} pixels do not divide into codes of {self.reduction}: patches of "
                f"{self.patch}, halved {len(self.channels) - 1} times; take a multiple of {self.reduction}"
            )
        if self.norm == "group" and any(width % self.groups for width in self.channels):
            raise UserError(f"channels {self.channels} do not divide into {self.groups} groups")

    @property
    def reduction(self) -> int:
        """Pixels of a code's side."""
        return self.patch * 2 ** (len(self.channels) - 1)

    @property
    def grid(self) -> int:
        """Codes of a frame's side."""
        return self.frame_size // self.reduction

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, read back by `from_dict`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        quantizer = QuantizerConfig(**{**values["quantizer"], "levels": tuple(values["quantizer"]["levels"])})
        return cls(**{**values, "channels": tuple(values["channels"]), "quantizer": quantizer})


# LWM's (arXiv 2402.08268): 256x256 pixels, 16x16 codes of 8192.
LWM_VQGAN = VqganConfig(
    frame_size=256,
    channels=(128, 256, 256, 512, 768),
    latent=64,
    quantizer=QuantizerConfig("gradient", codes=8192, dim=64),
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Conv:
    kernel: Any  # [height, width, in, out]
    bias: Any  # [out]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NormWeights:
    scale: Any  # [channels]
    bias: Any  # [channels]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Block:
    """A residual block; `shortcut` where its width changes, otherwise None."""

    norms: tuple[NormWeights, NormWeights]
    convs: tuple[Conv, Conv]
    shortcut: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Level:
    """The blocks of one resolution, and the convolution to the next; None at the end."""

    blocks: tuple[Block, ...]
    resample: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Coder:
    """An encoder: first, levels, middle, norm, last. A decoder: first, middle, levels, norm, last."""

    first: Conv
    levels: tuple[Level, ...]
    middle: tuple[Block, ...]
    norm: NormWeights
    last: Conv


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VqganWeights:
    """All weights of a VQGAN; the same tree holds their declarations, shardings or gradients."""

    encoder: Coder
    to_codes: Conv  # 1x1, to the quantiser's dimensions
    codebook: Any  # [codes, dim]; None where the quantiser has none
    from_codes: Conv
    decoder: Coder


def declare(config: VqganConfig) -> VqganWeights:
    """Every weight's shape, logical axes and initialiser: a tree of `Parameter`.

    A fresh residual block adds nothing.
    """
    c = config

    def conv(size: int, width: int, out: int, deviation: float | None = None) -> Conv:
        deviation = (size * size * width) ** -0.5 if deviation is None else deviation
        return Conv(
            Parameter((size, size, width, out), (None,) * 4, deviation, inputs=(0, 1, 2)),
            Parameter((out,), (None,), 0.0),
        )

    def norm(width: int) -> NormWeights:
        return NormWeights(Parameter((width,), (None,), None), Parameter((width,), (None,), 0.0))

    def blocks(count: int, width: int, out: int, kernel: int) -> tuple[Block, ...]:
        widths = [width] + [out] * count
        return tuple(
            Block(
                norms=(norm(before), norm(out)),
                convs=(conv(kernel, before, out), conv(kernel, out, out, 0.0)),
                shortcut=None if before == out else conv(1, before, out),
            )
            for before in widths[:-1]
        )

    def levels(widths: Sequence[int], count: int, kernel: int, up: bool) -> tuple[Level, ...]:
        found, width = [], widths[0]
        for number, out in enumerate(widths, start=1):
            if number == len(widths):
                resample = None
            elif c.resample == "conv":
                resample = conv(3, out, out)
            else:
                resample = conv(1, out, 4 * out) if up else conv(1, 4 * out, out)
            found.append(Level(blocks(count, width, out, kernel), resample))
            width = out
        return tuple(found)

    fine, coarse, pixels = c.channels[0], c.channels[-1], 3 * c.patch**2
    edge = 3 if c.patch == 1 else 1
    return VqganWeights(
        encoder=Coder(
            first=conv(edge, pixels, fine),
            levels=levels(c.channels, c.encoder_blocks, c.kernel, up=False),
            middle=blocks(c.middle_blocks, coarse, coarse, c.kernel),
            norm=norm(coarse),
            last=conv(c.kernel, coarse, c.latent),
        ),
        to_codes=conv(1, c.latent, c.quantizer.dim),
        codebook=(
            Parameter((c.quantizer.codes, c.quantizer.dim), (None, None), 1.0) if c.quantizer.has_codebook else None
        ),
        from_codes=conv(1, c.quantizer.dim, c.latent),
        decoder=Coder(
            first=conv(3, c.latent, coarse),
            levels=levels(c.channels[::-1], c.decoder_blocks, 3, up=True),
            middle=blocks(c.middle_blocks, coarse, coarse, 3),
            norm=norm(fine),
            last=conv(edge, fine, pixels),
        ),
    )


def convolve(x: Float[Array, "B H W I"], conv: Conv, stride: int = 1, padding: Any = "SAME") -> Float[Array, "B h w O"]:
    if conv.kernel.shape[:2] == (1, 1) and stride == 1:
        return x @ conv.kernel[0, 0] + conv.bias[None, None, None]
    out = lax.conv_general_dilated(
        x, conv.kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return out + conv.bias[None, None, None]


def normalize(x: Float[Array, "B H W I"], norm: NormWeights, config: VqganConfig) -> Float[Array, "B H W I"]:
    """The configuration's norm, in float32."""
    shape = x.shape
    wide = x.astype(jnp.float32)
    axes: tuple[int, ...] = (-1,)
    if config.norm == "group":
        wide = wide.reshape(shape[0], shape[1] * shape[2], config.groups, -1)
        axes = (1, 3)
    wide = wide - wide.mean(axes, keepdims=True)
    wide = wide * lax.rsqrt((wide * wide).mean(axes, keepdims=True) + _EPS)
    return (wide.reshape(shape) * norm.scale[None, None, None] + norm.bias[None, None, None]).astype(x.dtype)


def _block(x: Array, block: Block, config: VqganConfig) -> Array:
    h = x
    for norm, conv in zip(block.norms, block.convs, strict=True):
        h = convolve(jax.nn.silu(normalize(h, norm, config)), conv)
    return h + (x if block.shortcut is None else convolve(x, block.shortcut))


def _through(x: Array, blocks: tuple[Block, ...], config: VqganConfig) -> Array:
    for block in blocks:
        x = _block(x, block, config)
    return x


def to_patches(x: Float[Array, "B H W c"], patch: int) -> Float[Array, "B h w C"]:
    """Space to depth: squares of pixels become channels."""
    if patch == 1:
        return x
    rows, height, width, channels = x.shape
    x = x.reshape(rows, height // patch, patch, width // patch, patch, channels)
    return x.swapaxes(2, 3).reshape(rows, height // patch, width // patch, -1)


def from_patches(x: Float[Array, "B h w C"], patch: int) -> Float[Array, "B H W c"]:
    """Depth to space: what `to_patches` undoes."""
    if patch == 1:
        return x
    rows, height, width, _ = x.shape
    x = x.reshape(rows, height, width, patch, patch, -1).swapaxes(2, 3)
    return x.reshape(rows, height * patch, width * patch, -1)


def encode(weights: VqganWeights, frames: Float[Array, "B H W 3"], config: VqganConfig) -> Float[Array, "B h w d"]:
    """Frames, from -1 to 1, -> the vectors that a quantiser takes."""
    coder = weights.encoder
    x = convolve(to_patches(frames, config.patch), coder.first)
    for level in coder.levels:
        x = _through(x, level.blocks, config)
        if level.resample is not None and config.resample == "conv":
            # As LWM does: a row and a column of zeros below and to the right, then every second place.
            x = convolve(x, level.resample, stride=2, padding=((0, 1), (0, 1)))
        elif level.resample is not None:
            x = convolve(to_patches(x, 2), level.resample)
    x = _through(x, coder.middle, config)
    return convolve(convolve(jax.nn.silu(normalize(x, coder.norm, config)), coder.last), weights.to_codes)


def decode_features(
    weights: VqganWeights, vectors: Float[Array, "B h w d"], config: VqganConfig
) -> Float[Array, "B H W c"]:
    """All of the decoder but its last convolution: see `paint`."""
    coder = weights.decoder
    x = convolve(convolve(vectors, weights.from_codes), coder.first)
    x = _through(x, coder.middle, config)
    for level in coder.levels:
        x = _through(x, level.blocks, config)
        if level.resample is not None and config.resample == "conv":
            x = convolve(x.repeat(2, axis=1).repeat(2, axis=2), level.resample)
        elif level.resample is not None:
            x = from_patches(convolve(x, level.resample), 2)
    return jax.nn.silu(normalize(x, coder.norm, config))


def paint(last: Conv, features: Float[Array, "B h w c"], config: VqganConfig) -> Float[Array, "B H W 3"]:
    """The decoder's last convolution: features -> frames, about from -1 to 1."""
    return from_patches(convolve(features, last), config.patch)


def decode(weights: VqganWeights, vectors: Float[Array, "B h w d"], config: VqganConfig) -> Float[Array, "B H W 3"]:
    """Vectors of codes -> frames, about from -1 to 1."""
    return paint(weights.decoder.last, decode_features(weights, vectors, config), config)


def from_bytes(frames: UInt8[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
    """0 to 255 -> -1 to 1, as LWM does."""
    return frames.astype(jnp.float32) / 127.5 - 1


def to_bytes(frames: Float[Array, "B H W 3"]) -> UInt8[Array, "B H W 3"]:
    """-1 to 1 -> 0 to 255, to the nearest."""
    return jnp.round((frames + 1) * 127.5).astype(jnp.uint8)


def to_codes(weights: VqganWeights, frames: Float[Array, "B H W 3"], config: VqganConfig) -> Int[Array, "B h w"]:
    """Frames, from -1 to 1, -> codes."""
    return quantize(encode(weights, frames, config), weights.codebook, config.quantizer)


def to_frames(weights: VqganWeights, codes: Int[Array, "B h w"], config: VqganConfig) -> Float[Array, "B H W 3"]:
    """Codes -> frames, cut to -1 to 1."""
    return jnp.clip(decode(weights, look_up(codes, weights.codebook, config.quantizer), config), -1, 1)
