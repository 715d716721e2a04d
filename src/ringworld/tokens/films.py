"""What is in the file of a film: its frames, and when each is on screen.

A film is a video file, or an animated GIF, WebP or PNG; a still picture is a film of one frame. Times are exact
fractions of a second, counted from the first frame.
"""

import ctypes
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import partial
from itertools import chain, count
from math import floor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np
from av import _core
from av.codec.context import ThreadType
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from ringworld.errors import UserError
from ringworld.tokens.images import is_picture, opaque, open_picture, pillow, safe_pixels, too_large, turned

# Without these, colours are off by up to 3 of 255, and by how much depends on whether the sides are even.
EXACT = (
    Interpolation.BILINEAR
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)
# Shorter than any interval of sampling, so that a still picture is one frame at every rate.
STILL = Fraction(1, 100_000)

# Longer than any frame stays: what says so is damaged, and would be repeated for years. Animations cannot say so.
_LONGEST = Fraction(24 * 60 * 60)
# What browsers do with an animation that gives a frame no time.
_UNTIMED = Fraction(1, 10)
# Where a file does not tell its frame rate either; the libraries' own guess.
_GUESSED_RATE = Fraction(25)
# A list, since a demultiplexer of playlists would open other files, and one of text would draw its letters.
_CONTAINERS = "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf"
# The others guess where a time lies, and how late what they find there is.
_INDEXED = ("mov", "matroska", "avi")
_NAMES = "MP4, MOV, MKV, WebM, AVI, MPEG, FLV, Ogg or WMV, or a PNG, JPEG, WebP or GIF picture"
_MP4_BOXES = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"wide", b"free", b"skip", b"pnot")

# The most bytes that FFmpeg takes at a time, enough for a frame as large as `write_video` takes. By itself it stops at
# 2 GB, and then takes more, for an index that only says how many frames there are. PyAV has no name for the function;
# where it cannot be found, only a file made for the purpose needs so much.
with suppress(AttributeError, OSError):
    ctypes.CDLL(_core.__file__).av_max_alloc(ctypes.c_size_t(900_000_000))

# The first two columns and rows of a display matrix -> the turn. Its y axis points down.
_TURNS = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
# Degrees, counterclockwise -> the turn.
_ROTATIONS = {
    90: Image.Transpose.ROTATE_90,
    -90: Image.Transpose.ROTATE_270,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
}
_SWAPPING = {
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
}


class Moment(NamedTuple):
    """One frame of a film.

    It begins at `time` and lasts `seconds`, unless the next begins earlier or later; `clock` is how far the file may
    have rounded these. `render` gives the picture, upright and in RGB, and its pixels' width over their height.
    """

    time: Fraction
    seconds: Fraction
    clock: Fraction
    render: Callable[[], tuple[Image.Image, float]]


def moments(path: Path, file: BinaryIO, start: Fraction = Fraction(0)) -> Generator[Moment, None, None]:
    """The frames of a film in their order. Those that are over by `start` may be left out, where the file has an index.

    Raises:
        UserError: the file is no film, holds no frame, has more pixels than are safe, or is damaged or cut short; the
            last after the frames before it.
    """
    if is_picture(file):
        yield from _picture_moments(path, file)
        return
    with open_film(path, file) as (container, stream):
        if start and container.format.name.startswith(_INDEXED):
            timed = _seek(container, stream, start)
        else:
            timed = _timed(_decoded(container, stream), _period(stream))
        if timed is not None:
            yield from _film_moments(path, file, stream, timed)
            return
    file.seek(0)
    yield from moments(path, file)


@contextmanager
def open_film(path: Path, file: BinaryIO) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its video stream. Raises UserError when there is none that can be decoded."""
    # Of what is decoded, with the margins that decoders need.
    limits = {"max_pixels": str(min(safe_pixels(), 2**31 - 1))}
    try:
        container = av.open(
            _Nameless(file),
            "r",
            options=limits,
            container_options={"format_whitelist": _CONTAINERS},
            metadata_errors="replace",
        )
    except FFmpegError as error:
        if _is_short(file):
            raise UserError(f"the film {path} is cut short and cannot be read; fetch or make it anew") from error
        raise UserError(f"{path} is not a film: it must be {_NAMES}; convert it to one of them") from error
    with container:
        stream = container.streams.best("video")
        # A song's cover is a stream of video, too.
        if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
            found = ", ".join(sorted({other.type for other in container.streams})) or "none"
            raise UserError(f"{path} has no film in it (streams: {found}); name a file with a film")
        if stream.codec_context is None:
            raise _unknown(path)
        if stream.codec_context.width * stream.codec_context.height > _safe_pixels():
            raise too_large(path, _safe_pixels())
        stream.codec_context.options = limits
        # Parts of one frame at a time: with several frames, errors in the last of them would be lost.
        stream.thread_type = ThreadType.SLICE
        yield container, stream


class _Nameless:
    """An open file for FFmpeg, which takes a name for a URL, or its end for what is in the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError:  # a damaged file may lead anywhere, and a negative number is how FFmpeg is told
            return -1


def _picture_moments(path: Path, file: BinaryIO) -> Iterator[Moment]:
    image, turn = open_picture(path, file)
    with pillow(path):
        # A JPEG may hold several pictures too, but they are not a film.
        animated = image.format in ("GIF", "WEBP", "PNG") and getattr(image, "is_animated", False)
    if animated and image.width * image.height > _safe_pixels():
        raise too_large(path, _safe_pixels())
    # GIF counts in hundredths of a second, the others in milliseconds, and neither begins anywhere but at 0.
    clock = Fraction(1, 200 if image.format == "GIF" else 2000) if animated else Fraction(0)
    time = Fraction(0)
    # The picture that an animated PNG shows where it cannot be animated may not be one of the film's.
    for index in count(int(getattr(image, "default_image", False))) if animated else (0,):
        with pillow(path):
            try:
                image.seek(index)
            except EOFError:
                break
            picture = turned(opaque(image), turn)
        milliseconds = Fraction(image.info.get("duration", 0)).limit_denominator(1_000_000)
        seconds = (milliseconds / 1000 or _UNTIMED) if animated else STILL
        yield Moment(time, seconds, clock, partial(_as_it_is, picture))
        time += seconds
    if image.format == "GIF" and not _has_trailer(file):
        raise _damaged(path, time)


def _as_it_is(picture: Image.Image) -> tuple[Image.Image, float]:
    return picture, 1.0


def _film_moments(
    path: Path, file: BinaryIO, stream: VideoStream, timed: Iterator[tuple[Fraction, VideoFrame]]
) -> Iterator[Moment]:
    period = _period(stream)
    aspect = float(stream.sample_aspect_ratio or 1)
    # Matroska rounds to milliseconds. A coarser clock is AVI's, which ticks once a frame and rounds nothing.
    clock = min(stream.time_base or period, Fraction(1, 1000))
    reformatter = VideoReformatter()
    limit = _safe_pixels()
    reached, began = None, Fraction(0)
    rotation = turn = None
    try:
        for time, frame in timed:
            if frame.is_corrupt:
                raise _Corrupt
            if frame.width * frame.height * max(aspect, 1 / aspect) > limit:
                raise too_large(path, limit)
            seconds = frame.duration * frame.time_base if frame.duration > 0 and frame.time_base else period
            if max(seconds, time - began) > _LONGEST:
                raise UserError(
                    f"the film {path} is damaged: after {float(began):.2f} s, a frame stays for more than a day; fetch "
                    "or make it anew, or read only what comes before"
                )
            if frame.rotation != rotation:  # mirrors alone do not come or go amid a film
                rotation, turn = frame.rotation, _turn(frame)
            yield Moment(time, seconds, clock, partial(_render, path, frame, turn, aspect, reformatter))
            reached, began = time + seconds, time
    except (FFmpegError, _Corrupt) as error:
        raise _damaged(path, reached or Fraction(0)) from error
    if reached is None or _is_short(file):
        raise _damaged(path, reached or Fraction(0))


class _Corrupt(Exception):
    """A packet or a frame that the libraries hand on although they know it to be damaged."""


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    # All streams are read, since a file that is cut short may show it in the sound alone.
    for packet in container.demux():
        if packet.is_corrupt:
            raise _Corrupt
        if packet.stream.index == stream.index:
            for frame in stream.decode(packet):
                # AVI has one time for each frame, its place in the file; the others are made up, and often wrong.
                if container.format.name == "avi":
                    frame.pts = frame.dts
                yield frame


def _timed(
    frames: Iterator[VideoFrame], period: Fraction, origin: Fraction | None = None
) -> Iterator[tuple[Fraction, VideoFrame]]:
    """Each frame with its time since the timestamp `origin`; None: the first frame's.

    A frame without a timestamp, or with an earlier one than the frame before, comes `period` after that.
    """
    time = -period
    for frame in frames:
        following = time + period
        stamp = None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
        if stamp is not None and origin is None:
            origin = stamp - following
        time = following if stamp is None or origin is None or stamp - origin < time else stamp - origin
        yield time, frame


def _seek(
    container: InputContainer, stream: VideoStream, start: Fraction
) -> Iterator[tuple[Fraction, VideoFrame]] | None:
    """The frames from the last key frame that begins by `start`; None: the file does not let one find it."""
    base = stream.time_base
    try:
        first = next(_decoded(container, stream), None)
        if first is None or first.pts is None or base is None:
            return None
        container.seek(floor(first.pts + start / base), stream=stream)
        frames = _decoded(container, stream)
        landed = next(frames, None)
    except (FFmpegError, _Corrupt):
        return None
    if landed is None or landed.pts is None or (landed.pts - first.pts) * base > start:
        return None
    return _timed(chain([landed], frames), _period(stream), first.pts * base)


def _period(stream: VideoStream) -> Fraction:
    rates = (stream.average_rate, stream.guessed_rate)
    return 1 / next((rate for rate in rates if rate is not None and rate > 0), _GUESSED_RATE)


def _render(
    path: Path, frame: VideoFrame, turn: Image.Transpose | None, aspect: float, reformatter: VideoReformatter
) -> tuple[Image.Image, float]:
    transparent = any(component.is_alpha for component in frame.format.components)
    try:
        # One thread: several now and then leave pixels out.
        rgb = reformatter.reformat(frame, format="rgba" if transparent else "rgb24", interpolation=EXACT, threads=1)
    except FFmpegError as error:
        raise _unknown(path) from error
    image = Image.fromarray(rgb.to_ndarray())
    return turned(opaque(image) if transparent else image, turn), 1 / aspect if turn in _SWAPPING else aspect


def _turn(frame: VideoFrame) -> Image.Transpose | None:
    try:
        # Of a small copy: what is said of a frame keeps it in memory until garbage is collected.
        small = VideoReformatter().reformat(frame, 1, 1, "gray", interpolation=Interpolation.POINT, threads=1)
        matrix = small.side_data.get("DISPLAYMATRIX")
    except (FFmpegError, ValueError):  # the colours, or something else that is said of it, are unknown to the libraries
        return _ROTATIONS.get(frame.rotation)
    if matrix is None:
        return None
    # Fixed point, with 16 bits after the point. Only quarter turns and mirrors are known here.
    a, b, _, c, d = np.rint(np.frombuffer(bytes(matrix), np.int32)[:5] / (1 << 16)).tolist()
    return _TURNS.get((a, b, c, d))


def _unknown(path: Path) -> UserError:
    return UserError(f"the film {path} is coded in a way that is not known here; convert it to H.264")


def _safe_pixels() -> int:
    """How many pixels a film may have: half as many as a picture, since several of its frames are held at a time."""
    return safe_pixels() // 2


def _damaged(path: Path, reached: Fraction) -> UserError:
    return UserError(
        f"the film {path} is damaged or cut short after {float(reached):.2f} s; fetch or make it anew, or read only "
        "what comes before"
    )


def _has_trailer(file: BinaryIO) -> bool:
    """Whether a GIF ends as it must, whatever few bytes some program appended."""
    file.seek(-min(64, _size(file)), os.SEEK_END)
    return b"\0;" in file.read()


def _is_short(file: BinaryIO) -> bool:
    """Whether a video file says of itself that it is longer. Demultiplexers take the end of a file for a film's end."""
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF":
        # Some programs count the eight bytes of the header, too.
        stated = int.from_bytes(head[4:8], "little")
    elif head[:4] == b"\x1aE\xdf\xa3":
        stated = _matroska_size(file)
    elif head[4:8] in _MP4_BOXES:
        stated = _mp4_size(file)
    else:
        return False
    return stated > _size(file)


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _matroska_size(file: BinaryIO) -> int:
    file.seek(4)
    file.seek(min(_matroska_number(file), _size(file)), os.SEEK_CUR)
    if file.read(4) != b"\x18S\x80g":
        return 0
    length = _matroska_number(file)
    return file.tell() + length


def _matroska_number(file: BinaryIO) -> int:
    """A length, whose first byte says by its leading zeros how many follow. All ones: unknown, here 0."""
    first = int.from_bytes(file.read(1))
    bits = 7 * (9 - first.bit_length())
    number = int.from_bytes(bytes([first]) + file.read(bits // 7 - 1)) & ((1 << bits) - 1)
    return 0 if number == (1 << bits) - 1 else number


def _mp4_size(file: BinaryIO) -> int:
    """Where the last of the boxes on top ends."""
    end = 0
    while end < _size(file):
        file.seek(end)
        header = file.read(16)
        length = int.from_bytes(header[:4])
        if length == 1:
            length = int.from_bytes(header[8:16])
        # Length 0 is a box that ends with the file; what has no name of four letters is no box.
        if length < 8 or not header[4:8].isalnum():
            break
        end += length
    return end
