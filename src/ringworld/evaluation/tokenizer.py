"""What a tokenizer of frames keeps of them: PSNR, SSIM, codes in use, and pictures beside what became of them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from jaxtyping import Float64, UInt8
from scipy import ndimage

from ringworld.data.frames import FrameSource, Shapes
from ringworld.errors import UserError
from ringworld.evaluation.files import write_json, write_result
from ringworld.progress import tracked
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.images import read_image, to_png, write_image
from ringworld.tokens.video import Number, read_video, video_info, write_video
from ringworld.worlds.film import Scene
from ringworld.worlds.reader import read

Frames = UInt8[np.ndarray, "N H W 3"]
_SIGMA, _REACH = 1.5, 5  # of SSIM's window, in pixels: as its authors chose them
_ACROSS, _DOWN = 8, 4  # pictures on a sheet
_ZOOM = 128  # pixels that a small frame is enlarged to, about, for people to see


def psnr(frames: Frames, others: Frames) -> Float64[np.ndarray, "N"]:
    """Peak signal-to-noise ratio of each frame, in dB, at most 100: identical frames have that."""
    squared = ((frames.astype(np.float64) - others) ** 2).mean((1, 2, 3))
    return np.minimum(100.0, 10 * np.log10(255**2 / np.maximum(squared, 1e-12)))


def ssim(frames: Frames, others: Frames) -> Float64[np.ndarray, "N"]:
    """Structural similarity of each frame, at most 1, the mean over its three channels and all whole windows.

    (Wang et al., IEEE Transactions on Image Processing 13, 2004: Gaussian windows of 11 pixels, K1 = 0.01, K2 = 0.03.)
    Frames are at least 11 pixels high and wide.
    """
    x, y = frames.astype(np.float64), others.astype(np.float64)

    def local(values: np.ndarray) -> np.ndarray:
        smooth = ndimage.gaussian_filter(values, (0, _SIGMA, _SIGMA, 0), radius=(0, _REACH, _REACH, 0))
        return smooth[:, _REACH:-_REACH, _REACH:-_REACH]

    mean_x, mean_y = local(x), local(y)
    variances = local(x * x) - mean_x**2 + local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    a, b = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * mean_x * mean_y + a) * (2 * covariance + b)
    return (numerator / ((mean_x**2 + mean_y**2 + a) * (variances + b))).mean((1, 2, 3))


@dataclass(frozen=True)
class TokenizerResult:
    """What a tokenizer keeps of some frames: means over all of them, the worst PSNR, and the share of codes that were
    used; of frames of the shapes world also the share that a reader of its rules still reads rightly."""

    frames: int
    psnr: float
    worst_psnr: float
    ssim: float
    codes_used: float
    read_rightly: float | None = None

    def __str__(self) -> str:
        read = "" if self.read_rightly is None else f", {self.read_rightly:.1%} of them read rightly"
        return (
            f"PSNR {self.psnr:.2f} dB (worst {self.worst_psnr:.2f}), SSIM {self.ssim:.4f}, {self.codes_used:.1%} of "
            f"the codes used, {self.frames} frames{read}"
        )


def evaluate_tokenizer(
    tokenizer: FrameTokenizer, source: FrameSource, out: Path, *, frames: int = 1000, name: str = "tokenizer"
) -> TokenizerResult:
    """Encodes and decodes frames, and writes `<name>.json` and `<name>.png`, a sheet of some of them.

    Args:
        frames: at most so many, spread evenly over the source where it has more.

    Raises:
        UserError: no frames are asked for, a frame is not of the tokenizer's size, or the results cannot be written.
        ValueError: there are no frames.
    """
    if frames < 1:
        raise UserError(f"frames must be 1 or more, to evaluate the tokenizer on; got {frames}")
    count = min(frames, len(source))
    places = [i * (len(source) // count) for i in range(count)]
    scene = source.scene if isinstance(source, Shapes) else None
    comparison = Comparison(tokenizer, None if scene is None else lambda number: scene(places[number]))
    shown = [*range(0, count, max(1, count // (_ACROSS * _DOWN)))][: _ACROSS * _DOWN]
    pictures = []
    pairs = comparison.pairs(map(source.__getitem__, places))
    for number, pair in enumerate(tracked(pairs, "frames", count)):
        if number in shown:
            pictures.append(pair)
    result = comparison.result()
    write_json(out / f"{name}.json", asdict(result))
    write_result(out / f"{name}.png", to_png(sheet(pictures)))
    return result


def reconstruct(tokenizer: FrameTokenizer, path: Path, out: Path, *, fps: Number | None = None) -> TokenizerResult:
    """Writes a picture or a film as it is after encode and decode, on the right of how it was.

    Args:
        path: cut to a square and resized to the tokenizer's frames.
        out: .png, .webp or .jpg for a picture, .gif or .mp4 for a film.
        fps: frames of a film a second; None: as many as it has, on average.

    Raises:
        UserError: the file cannot be read, or not be written.
    """
    size = tokenizer.config.frame_size, tokenizer.config.frame_size
    info = video_info(path)
    comparison = Comparison(tokenizer)
    if info.frames == 1:
        (pair,) = comparison.pairs([read_image(path, size)])
        write_image(out, pair)
    else:
        fps = (info.fps or 1.0) if fps is None else fps
        pairs = comparison.pairs(read_video(path, fps, size))
        total = None if info.seconds is None else round(info.seconds * fps)
        write_video(out, tracked(pairs, "frames", total), fps)
    return comparison.result()


class Comparison:
    """Frames beside what a tokenizer makes of them, a batch at a time; and over all of them, how like the two are.

    `scene` gives what the frame of a number shows, where that is known.
    """

    def __init__(self, tokenizer: FrameTokenizer, scene: Callable[[int], Scene] | None = None) -> None:
        self._tokenizer = tokenizer
        self._scene = scene
        self._ratios: list[float] = []
        self._similarities: list[float] = []
        self._right: list[bool] = []
        self._used = np.zeros(tokenizer.config.quantizer.codes, bool)

    def pairs(self, frames: Iterable[UInt8[np.ndarray, "H W 3"]]) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """Each frame beside what it is after encode and decode."""
        frames = iter(frames)
        while some := list(islice(frames, self._tokenizer.batch)):
            stacked = np.stack(some)
            codes = self._tokenizer.encode(stacked)
            decoded = self._tokenizer.decode(codes)
            if self._scene is not None:
                first = len(self._ratios)
                self._right += [_shows(frame, self._scene(first + i)) for i, frame in enumerate(decoded)]
            self._ratios += psnr(stacked, decoded).tolist()
            self._similarities += ssim(stacked, decoded).tolist()
            self._used[codes] = True
            yield from map(beside, stacked, decoded)

    def result(self) -> TokenizerResult:
        """Raises ValueError when no frames went through."""
        if not self._ratios:
            raise ValueError("there are no frames to evaluate the tokenizer on")
        return TokenizerResult(
            frames=len(self._ratios),
            psnr=float(np.mean(self._ratios)),
            worst_psnr=min(self._ratios),
            ssim=float(np.mean(self._similarities)),
            codes_used=float(self._used.mean()),
            read_rightly=float(np.mean(self._right)) if self._right else None,
        )


def _shows(frame: UInt8[np.ndarray, "H W 3"], scene: Scene) -> bool:
    return read(frame).agrees(scene.ground, scene.at(0))


def beside(frame: UInt8[np.ndarray, "H W 3"], decoded: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """A frame on the left of what became of it; small ones enlarged in whole pixels."""
    pair = np.concatenate([frame, decoded], axis=1)
    zoom = max(1, _ZOOM // len(frame))
    return pair.repeat(zoom, axis=0).repeat(zoom, axis=1)


def sheet(pictures: list[np.ndarray]) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures of one size in rows, white between them."""
    edged = [np.pad(picture, ((0, 6), (0, 6), (0, 0)), constant_values=255) for picture in pictures]
    edged += [np.full_like(edged[0], 255)] * (-len(edged) % min(_ACROSS, len(edged)))
    across = min(_ACROSS, len(edged))
    return np.concatenate([np.concatenate(edged[i : i + across], axis=1) for i in range(0, len(edged), across)])
