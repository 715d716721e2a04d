"""Films to uint8 frames, sampled by time, and back. Neither way holds more than a few frames at once.

A film is a video file, or an animated GIF, WebP or PNG; a still picture is a film of one frame.
"""

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from jaxtyping import Shaped, UInt8
from PIL import Image
from PIL.GifImagePlugin import getdata, getheader

from ringworld.errors import UserError
from ringworld.tokens.films import EXACT, STILL, Moment, moments, open_film
from ringworld.tokens.images import (
    BLACK,
    Colour,
    Fit,
    check_frame,
    check_framing,
    framed,
    is_picture,
    open_media,
    shown_size,
    writing,
)

Number = int | float | Fraction

# The least and the most, for which every format's counters are wide enough.
FPS, GIF_FPS = (0.001, 1000), (0.002, 100)

# Said in the file, since players would guess it by the size.
_BT709 = 1
# PSNR of a smooth film of 64 x 64: 39.5 dB. Sharp edges between colours lose more, to 4:2:0, at any quality.
# Without mbtree, whose AVX-512 form made other bytes of the same frames, by what was computed between them.
_QUALITY = {"crf": "12", "x264-params": "mbtree=0"}


@dataclass(frozen=True)
class VideoInfo:
    """What a file says of its film: height and width of a frame as shown, in pixels; duration in seconds; average
    frames a second; number of frames. None: it does not say.
    """

    height: int
    width: int
    seconds: float | None
    fps: float | None
    frames: int | None


def read_video(
    path: str | os.PathLike[str],
    fps: Number | None,
    size: tuple[int, int] | None = None,
    *,
    fit: Fit = "crop",
    colour: Colour = BLACK,
    start: Number = 0,
    seconds: Number | None = None,
) -> Generator[UInt8[np.ndarray, "H W 3"], None, None]:
    """The frames on screen at start, start + 1 / fps, start + 2 / fps, ... seconds after a film's first, read-only.

    On screen is the last frame that has begun; a slow film repeats its frames. Times are compared as exactly as the
    file's clock allows: one that counts in milliseconds writes 0.067 for 2/30. Quarter turns, mirroring, pixels that
    are not square and transparency are applied. The content decides what kind of file it is, not the name. Closing or
    dropping the iterator closes the file.

    Args:
        fps: samples a second, 0.001 to 1000; None: every frame once.
        size: (height, width) in pixels; None: as large as the film is.
        fit, colour: as in `read_image`.
        start: seconds; MP4, MOV, MKV, WebM and AVI are decoded from the key frame before it only.
        seconds: how long to read; None: to the end.

    Raises:
        UserError: at once for an impossible argument; with the first frame for a file that is missing, empty, no film,
            shorter than `start`, or of more than half the pixels that Pillow holds safe; and after the frames before
            it, where a film is damaged or cut short, or a frame stays for more than a day. (An MPEG stream that was cut
            between two frames cannot be told from a whole one.)
    """
    check_framing(size, fit, colour)
    rate = None if fps is None else exact_fps(fps)
    if not 0 <= start < float("inf") or (seconds is not None and not 0 < seconds < float("inf")):
        raise UserError(f"start must be 0 or more and seconds above 0, got start {start} and seconds {seconds}")
    begin = _exact(start)
    end = None if seconds is None else begin + _exact(seconds)
    return _read(Path(path), rate, size, fit, colour, begin, end)


def video_info(path: str | os.PathLike[str]) -> VideoInfo:
    """Size, duration, frame rate and number of frames of a film. Only its first frame is decoded, but animated pictures
    are read through.

    Raises:
        UserError: the file is missing, empty, no film, too large for `read_video`, or damaged where it is read.
    """
    path = Path(path)
    with open_media(path) as file:
        pictures = is_picture(file)
        with closing(moments(path, file)) as shown:
            first = next(shown)
            height, width = shown_size(*first.render())
            if pictures:
                frames, end = 1, first.time + first.seconds
                for moment in shown:
                    frames, end = frames + 1, moment.time + moment.seconds
                seconds = None if end == STILL else float(end)
                return VideoInfo(height, width, seconds, frames / seconds if seconds else None, frames)
        file.seek(0)
        with open_film(path, file) as (container, stream):
            seconds = None
            if stream.duration and stream.time_base:
                seconds = float(stream.duration * stream.time_base)
            elif container.duration:
                seconds = container.duration / av.time_base
            fps = max(0.0, float(stream.average_rate or 0))
            # A damaged file may say that there is less than nothing of it, or that there are more frames than bytes.
            size = os.fstat(file.fileno()).st_size
            seconds = seconds if seconds and 0 < seconds * (fps or 1) <= size else None
            frames = stream.frames if 0 < stream.frames <= size else None
            return VideoInfo(height, width, seconds, fps or None, frames)


def write_video(path: str | os.PathLike[str], frames: Iterable[Shaped[np.ndarray, "..."]], fps: Number) -> None:
    """Writes frames, UInt8 [H W 3] of one size, as they come, to a file that is there as a whole or not at all.

    A .gif repeats for ever and is exact where a frame has no more than 256 colours; its times are whole hundredths of a
    second, right in their sum. An .mp4 is H.264 in 4:2:0; an odd height or width is made even, as it must be, by
    repeating the last row or column.

    Args:
        fps: frames a second, 0.001 to 1000; for .gif 0.002 to 100.

    Raises:
        UserError: another suffix, an impossible `fps`, no frames, an array that is no frame or of another size than the
            first, or the file cannot be made. What `frames` itself raises passes through.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise UserError(f"{path} must end in .gif or .mp4, which says what to write; rename it")
    rate = exact_fps(fps, *(GIF_FPS if suffix == ".gif" else FPS))
    with writing(path) as file:
        (_write_gif if suffix == ".gif" else _write_mp4)(file, _checked(frames), rate)


def exact_fps(fps: Number, least: Number = FPS[0], most: Number = FPS[1]) -> Fraction:
    """A rate as it was meant, in frames a second. Raises UserError when it is not from `least` to `most`."""
    if not least <= fps <= most:
        raise UserError(f"fps must be {least} to {most} frames a second, got {fps}")
    return _exact(fps)


def _exact(number: Number) -> Fraction:
    """0.1 as 1/10 and 29.97002997 as 30000/1001: what was meant, and not the float beside it."""
    return Fraction(number).limit_denominator(1_000_000)


def _read(
    path: Path,
    rate: Fraction | None,
    size: tuple[int, int] | None,
    fit: Fit,
    colour: Colour,
    start: Fraction,
    end: Fraction | None,
) -> Generator[UInt8[np.ndarray, "H W 3"], None, None]:
    any_shown = False
    with open_media(path) as file, closing(moments(path, file, start)) as film:
        for moment, times in _on_screen(film, rate, start, end):
            frame = framed(*moment.render(), size, fit, colour)
            for _ in range(times):
                any_shown = True
                yield frame
    if not any_shown:
        raise UserError(f"the film {path} is over before start, {float(start):g} s; begin earlier")


def _on_screen(
    film: Iterator[Moment], rate: Fraction | None, start: Fraction, end: Fraction | None
) -> Iterator[tuple[Moment, int]]:
    """The frames on screen at start + k / rate, before `end`, each with how many of these times it is; or every frame
    that is on screen between `start` and `end` at all.

    A frame counts as begun a tick of its clock early, for so far may its time have been rounded up.
    """
    taken = 0
    for moment, over in _spans(film):
        if rate is None:
            if end is not None and moment.time > end - moment.clock:
                return
            if moment.time >= start or over >= start + moment.clock:
                yield moment, 1
            continue
        wanted = floor((over - moment.clock - start) * rate) + 1
        if end is not None:
            wanted = min(wanted, ceil((end - start) * rate))
        if wanted > taken:
            yield moment, wanted - taken
            taken = wanted
        if end is not None and start + taken / rate >= end:
            return


def _spans(film: Iterator[Moment]) -> Iterator[tuple[Moment, Fraction]]:
    """Each moment with its end. What is wrong with a film is raised after the frame before it, not instead of it."""
    moment, wrong = next(film, None), None
    while moment is not None:
        try:
            following = next(film, None)
        except UserError as error:
            following, wrong = None, error
        yield moment, following.time if following else moment.time + moment.seconds
        moment = following
    if wrong is not None:
        try:
            raise wrong
        finally:
            del wrong  # its traceback has this frame, and the two would keep each other and a film's pictures


def _checked(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    shape = None
    for number, frame in enumerate(frames):
        check_frame(frame, f"frame {number} of the film")
        shape = shape or frame.shape
        if frame.shape != shape:
            raise UserError(
                f"frame {number} is {list(frame.shape)}, but frame 0 is {list(shape)}; give frames of one size"
            )
        yield frame
    if shape is None:
        raise UserError("there are no frames to write; a film needs at least one")


def _write_gif(file: BinaryIO, frames: Iterator[np.ndarray], rate: Fraction) -> None:
    # Frame by frame: Pillow's own way to save an animation holds all of it.
    for number, frame in enumerate(frames):
        image = Image.fromarray(frame).quantize(256)
        if number == 0:
            file.writelines(getheader(image, info={"loop": 0})[0])
        duration = 10 * (_hundredths(number + 1, rate) - _hundredths(number, rate))
        file.writelines(getdata(image, duration=duration, include_color_table=True))
    file.write(b";")


def _hundredths(number: int, rate: Fraction) -> int:
    """When a frame begins. Half of one is rounded down, lest the frame come late for a reader at the same rate."""
    return ceil(number * 100 / rate - Fraction(1, 2))


def _write_mp4(file: BinaryIO, frames: Iterator[np.ndarray], rate: Fraction) -> None:
    reformatter = VideoReformatter()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=_QUALITY)
        stream.thread_count = 1  # how many there are shows in the bytes
        stream.color_primaries = stream.color_trc = stream.colorspace = _BT709
        stream.color_range = ColorRange.MPEG
        for number, frame in enumerate(frames):
            height, width, _ = frame.shape
            even = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if number == 0:
                stream.height, stream.width = even.shape[:2]
            picture = reformatter.reformat(
                av.VideoFrame.from_ndarray(even),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=EXACT,
                threads=1,
            )
            picture.pts, picture.time_base = number, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
