"""Films to test with, whose every frame can be told from its pixels."""

import io
import tempfile
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image


def grey(index: int, height: int = 16, width: int = 16) -> np.ndarray:
    """A flat frame of the grey level four times its index."""
    return np.full((height, width, 3), 4 * index, np.uint8)


def indices(frames: Iterable[np.ndarray]) -> list[int]:
    """The numbers of grey frames, which may be off by a level or two."""
    return [round(float(frame.mean()) / 4) for frame in frames]


def filmed(
    frames: Iterable[np.ndarray],
    times: Sequence[int],
    *,
    base: Fraction = Fraction(1, 1000),
    kind: str = "matroska",
    codec: str = "ffv1",
    layout: str = "bgr0",
    rate: int = 10,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    prepare: Callable[[VideoStream], None] = lambda stream: None,
) -> bytes:
    """A video file whose frames, RGB or RGBA, carry the timestamps `times`, in units of `base` seconds.

    `rate` is what it claims to be its frame rate, and in Matroska how long its last frame lasts.
    """
    reformatter = VideoReformatter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "film")
        with av.open(path, "w", format=kind, container_options=container_options) as container:
            stream = container.add_stream(codec, rate=rate, options=options or {})
            assert isinstance(stream, VideoStream)
            stream.pix_fmt = layout
            stream.codec_context.time_base = stream.time_base = base
            for number, (frame, time) in enumerate(zip(frames, times, strict=True)):
                if number == 0:
                    stream.height, stream.width = frame.shape[:2]
                    prepare(stream)
                picture = av.VideoFrame.from_ndarray(frame, format="rgba" if frame.shape[2] == 4 else "rgb24")
                picture = reformatter.reformat(picture, format=layout, threads=1)
                picture.pts, picture.time_base = time, base
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
        return path.read_bytes()


def photographed(photographs: Sequence[bytes]) -> bytes:
    """An AVI file of JPEG files, ten a second, as some cameras write them."""
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream = container.add_stream("mjpeg", rate=10)
        assert isinstance(stream, VideoStream)
        with Image.open(io.BytesIO(photographs[0])) as image:
            stream.width, stream.height = image.size
        stream.pix_fmt = "yuvj420p"
        container.start_encoding()
        for number, photograph in enumerate(photographs):
            packet = av.Packet(photograph)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 10), True
            packet.pts = packet.dts = number
            container.mux(packet)
    return file.getvalue()


def saved(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
