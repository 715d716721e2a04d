"""Pictures: files to uint8 frames and back.

A frame is `UInt8[np.ndarray, "H W 3"]`, RGB, as a person sees the picture: upright, and on white where it is
transparent. Colour profiles are not applied.
"""

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError

from ringworld.errors import UserError
from ringworld.files import replacing

Fit = Literal["crop", "pad"]
Colour = tuple[int, int, int]

BLACK: Colour = (0, 0, 0)
# The longest side that every format here can hold; WebP's is the shortest.
MAX_SIDE = 16383

# Rows that are made opaque at once.
_BAND = 256
# The first bytes of what Pillow reads here; a name says nothing for certain.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
_MAGICS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8")

# How a picture with each value of the EXIF orientation is set upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SAVING = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"},
    ".webp": {"format": "WEBP", "lossless": True},
}


def read_image(
    path: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    *,
    fit: Fit = "crop",
    colour: Colour = BLACK,
) -> UInt8[np.ndarray, "H W 3"]:
    """A PNG, JPEG, WebP or GIF file (the first picture of it) as a frame, read-only. The content decides, not the name.

    Args:
        size: (height, width) in pixels; None: as large as the picture is.
        fit: what happens when the picture has another shape than `size`. "crop" fills the frame and cuts off what
            stands over on both sides; "pad" shows all of the picture in the frame's middle, on `colour`. Both resize
            by antialiased bicubic interpolation.

    Raises:
        UserError: no such file, or it is empty, damaged, cut short, none of the four formats, or has more pixels than
            Pillow holds safe, or a WebP half as many; or `size` or `colour` is impossible.
    """
    check_framing(size, fit, colour)
    path = Path(path)
    with open_media(path) as file:
        if not is_picture(file):
            raise UserError(f"{path} is not a picture: it must be PNG, JPEG, WebP or GIF; convert it to one of them")
        image, turn = open_picture(path, file)
        with pillow(path):
            picture = turned(opaque(image), turn)
        del image  # of the largest pictures there is no room for many copies
    return framed(picture, 1.0, size, fit, colour)


def write_image(path: str | os.PathLike[str], frame: Shaped[np.ndarray, "..."]) -> None:
    """Writes a frame, UInt8 [H W 3], whole or not at all: .png and .webp without loss, .jpg or .jpeg at quality 95.

    Raises:
        UserError: another suffix, an array that is not a frame, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _SAVING:
        raise UserError(f"{path} must end in one of {', '.join(_SAVING)}, which says what to write; rename it")
    check_frame(frame, "the picture")
    with writing(path) as file:
        Image.fromarray(frame).save(file, **_SAVING[path.suffix.lower()])


def to_png(frame: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """A frame as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG")
    return buffer.getvalue()


def check_framing(size: tuple[int, int] | None, fit: str, colour: Colour) -> None:
    """Raises UserError when no frame can have this size, or no pixel this colour."""
    if size is not None and not all(1 <= side <= MAX_SIDE for side in size):
        raise UserError(f"size must be (height, width), each 1 to {MAX_SIDE} pixels, got {size}")
    if fit not in ("crop", "pad"):
        raise UserError(f"fit must be 'crop' or 'pad', got {fit!r}")
    if not all(0 <= part <= 255 for part in colour):
        raise UserError(f"colour must be (red, green, blue), each 0 to 255, got {colour}")


def check_frame(frame: Shaped[np.ndarray, "..."], name: str) -> None:
    """Raises UserError when the array is not UInt8 [H W 3]; `name` is what the message calls it."""
    shape = frame.shape
    if frame.dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or not all(1 <= n <= MAX_SIDE for n in shape):
        raise UserError(
            f"{name} must be uint8 [height, width, 3] with sides of 1 to {MAX_SIDE} pixels, got {frame.dtype} "
            f"{list(shape)}; convert it before writing"
        )


@contextmanager
def open_media(path: Path) -> Iterator[BinaryIO]:
    """The file, open for reading. Raises UserError when it cannot be opened or is empty."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name a file with a picture or a film") from error
    with file:
        if not file.peek(1):
            raise UserError(f"{path} is empty; fetch or make it anew")
        yield file


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block is left in peace, and is gone when it is not.

    Raises UserError when the folder or the file cannot be made.
    """
    with ExitStack() as stack:
        try:
            if path.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            file = stack.enter_context(stack.enter_context(replacing(path)).open("w+b"))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; give another name or folder") from error
        yield file


def is_picture(file: BinaryIO) -> bool:
    """Whether a file, at its beginning and left there, is for Pillow to read: a picture, or a film made of pictures."""
    head = file.read(12)
    file.seek(0)
    return head.startswith(_MAGICS) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


@contextmanager
def pillow(path: Path) -> Iterator[None]:
    """Calls of Pillow: without its warnings, and whatever it raises is a UserError that names the file."""
    # Threads share the filters of warnings: at the worst, one of them says what it should not.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Image.DecompressionBombError as error:
            raise too_large(path, safe_pixels()) from error
        except UnidentifiedImageError as error:  # what it says is how the file was opened
            raise UserError(f"{path} is damaged or cut short; fetch or make it anew") from error
        except Exception as error:  # a parser of a damaged file may stumble over anything
            said = str(error) or type(error).__name__
            raise UserError(f"{path} is damaged or cut short ({said}); fetch or make it anew") from error


def open_picture(path: Path, file: BinaryIO) -> tuple[Image.Image, Image.Transpose | None]:
    """A picture before it is decoded, and the turn that sets it upright."""
    turn = None
    with pillow(path):
        image = Image.open(file, formats=_FORMATS)
        # EXIF that cannot be read says nothing about the picture, which may be whole.
        with suppress(Exception):
            turn = _UPRIGHT.get(image.getexif()[ExifTags.Base.Orientation])
    # The decoder of WebP holds four copies.
    limit = safe_pixels() // (2 if image.format == "WEBP" else 1)
    if image.width * image.height > limit:
        raise too_large(path, limit)
    return image, turn


def opaque(image: Image.Image) -> Image.Image:
    """A new picture in RGB, on white where this one is transparent."""
    whole = Image.new("RGB", image.size)
    # In bands, since what lies between takes up to 16 bytes a pixel.
    for top in range(0, image.height, _BAND):
        whole.paste(_opaque(image.crop((0, top, image.width, min(top + _BAND, image.height)))), (0, top))
    return whole


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # grey of 16 bits, which Pillow itself would clip to 8
        values = np.asarray(image)
        grey = np.rint(values / 257).astype(np.uint8)
        grey[values == image.info.get("transparency", -1)] = 255
        image = Image.fromarray(grey)
    if image.has_transparency_data:
        ground = Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
    return image.convert("RGB")


def turned(image: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return image if turn is None else image.transpose(turn)


def shown_size(image: Image.Image, pixel_aspect: float = 1.0) -> tuple[int, int]:
    """(height, width) of a picture as `framed` shows it by itself."""
    return round(image.height * max(1.0, 1 / pixel_aspect)), round(image.width * max(1.0, pixel_aspect))


def framed(
    image: Image.Image,
    pixel_aspect: float = 1.0,
    size: tuple[int, int] | None = None,
    fit: Fit = "crop",
    colour: Colour = BLACK,
) -> UInt8[np.ndarray, "H W 3"]:
    """An RGB picture, whose pixels are `pixel_aspect` times as wide as high, in a frame; `read_image` has the rest."""
    # Pixels that are not square grow, so that a frame as large as the picture loses none of them.
    across, down = max(1.0, pixel_aspect), max(1.0, 1 / pixel_aspect)
    wide, high = image.width * across, image.height * down
    rows, columns = size or shown_size(image, pixel_aspect)
    if (columns, rows) == image.size and pixel_aspect == 1:
        return np.asarray(image)
    if fit == "crop":
        scale = min(wide / columns, high / rows)
        left = max(0.0, (image.width - columns * scale / across) / 2)
        top = max(0.0, (image.height - rows * scale / down) / 2)
        box = (left, top, image.width - left, image.height - top)
        return np.asarray(image.resize((columns, rows), Image.Resampling.BICUBIC, box))
    scale = min(columns / wide, rows / high)
    inner = max(1, round(wide * scale)), max(1, round(high * scale))
    ground = Image.new("RGB", (columns, rows), colour)
    resized = image.resize(inner, Image.Resampling.BICUBIC)
    ground.paste(resized, ((columns - inner[0]) // 2, (rows - inner[1]) // 2))
    return np.asarray(ground)


def safe_pixels() -> int:
    """How many pixels a picture may have, by Pillow's setting."""
    return Image.MAX_IMAGE_PIXELS or sys.maxsize


def too_large(path: Path, limit: int) -> UserError:
    return UserError(
        f"{path} has more than the {limit:,} pixels that are safe to decode; make it smaller, or raise "
        "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    )
