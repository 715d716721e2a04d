"""Damaged media files, to fuzz the readers with: small files of every kind, and what can go wrong with a file.

A mutant follows from the seed of a fuzz and its number, so that any one of them can be made again.
"""

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import NamedTuple

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream
from PIL import Image

from ringworld.tokens.images import write_image
from ringworld.tokens.video import write_video
from tokens.filmed import filmed, photographed

# x265 writes beyond its memory when a film is less than 64 pixels wide.
HEIGHT, WIDTH = 48, 64
COUNT = 6

# Some formats have random numbers by which files are known. What else makes the bytes the same is said in video.py.
_ALWAYS_SAME = {"fflags": "+bitexact"}
_PNG = b"\x89PNG\r\n\x1a\n"


class Mutant(NamedTuple):
    """A file to read: what was done to it, its name, and what is in it."""

    kind: str
    name: str
    content: bytes


def write_originals(folder: Path) -> None:
    """Whole files of every kind that the libraries write, under names with the right suffix."""
    frames = list(_frames())
    for name in ("own.png", "own.jpg", "own.webp"):
        write_image(folder / name, frames[0])
    for name in ("own.gif", "own.mp4"):
        write_video(folder / name, frames, 10)
    files = {name: _pictured(**options) for name, options in _PICTURES.items()}
    plain = {"times": range(0, 600, 100), "container_options": _ALWAYS_SAME, "prepare": _plain}
    files |= {name: filmed(**{"frames": _frames()} | plain | film) for name, film in _FILMS.items()}
    files |= {f"sound{end}": _sounding(kind) for end, kind in ((".mp4", "mp4"), (".mkv", "matroska"), (".avi", "avi"))}
    files["exif.avi"] = photographed([_pictured("JPEG", exif=_exif())] * COUNT)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def mutant(originals: Mapping[str, bytes], seed: int, number: int) -> Mutant:
    """The mutant of this number, whatever the others are."""
    rng = Random(f"{seed} {number}")
    (kind,) = rng.choices(list(MUTATIONS), [weight for weight, _ in MUTATIONS.values()])
    name = rng.choice(list(originals))
    content = MUTATIONS[kind][1](originals[name], rng, list(originals.values()))
    # Checksums that are wrong would be all that is ever seen to be wrong.
    if content.startswith(_PNG) and (kind in ("sized", "counted") or rng.random() < 0.5):
        content = _checked(content)
    suffix = rng.choice(_SUFFIXES) if kind in ("renamed", "noise", "text") else Path(name).suffix
    return Mutant(kind, f"{number:05d}.{kind}.{Path(name).stem}{suffix}", content)


def _frames(count: int = COUNT) -> Iterator[np.ndarray]:
    """Smooth, with some noise."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0).integers(0, 20, (HEIGHT, WIDTH, 3))
    for t in range(count):
        parts = 90 * np.sin(x / 9 + t / 3), 80 * np.cos(y / 7 - t / 4), 70 * np.sin((x + y) / 11)
        yield (np.stack([110 + part for part in parts], -1) + noise).astype(np.uint8)


def _pictured(kind: str, mode: str = "RGB", count: int = 1, **options: object) -> bytes:
    """A picture of some mode, or an animation of `count` pictures."""
    pictures = [Image.fromarray(frame).convert("L" if mode == "I;16" else mode) for frame in _frames(count)]
    if mode == "I;16":
        pictures = [Image.fromarray(np.asarray(image).astype(np.uint16) * 200) for image in pictures]
    if mode.endswith("A"):
        for image in pictures:
            image.putalpha(Image.linear_gradient("L").resize((WIDTH, HEIGHT)))
    animation = {"save_all": True, "append_images": pictures[1:]} if count > 1 else {}
    stream = io.BytesIO()
    pictures[0].save(stream, kind, **animation, **options)
    return stream.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[274], exif[271], exif[306] = 6, "a camera", "2024:01:02 03:04:05"
    return exif


def _sounding(kind: str) -> bytes:
    """A film with sound."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind, container_options=_ALWAYS_SAME) as container:
        pictures = container.add_stream("mpeg4", rate=10)
        assert isinstance(pictures, VideoStream)
        pictures.height, pictures.width, pictures.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        _plain(pictures)
        sounds = container.add_stream("mp2", rate=16000)
        assert isinstance(sounds, AudioStream)
        for number, frame in enumerate(_frames()):
            picture = av.VideoFrame.from_ndarray(frame)
            picture.pts, picture.time_base = number, Fraction(1, 10)
            container.mux(pictures.encode(picture))
            sound = av.AudioFrame(format="s16", layout="stereo", samples=1600)
            for plane in sound.planes:
                plane.update(bytes(plane.buffer_size))
            sound.sample_rate, sound.pts = 16000, 1600 * number
            container.mux(sounds.encode(sound))
        container.mux(pictures.encode())
        container.mux(sounds.encode())
    return file.getvalue()


def _plain(stream: VideoStream) -> None:
    stream.thread_count = 1


def _turned(stream: VideoStream) -> None:
    _plain(stream)
    stream.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio = Fraction(4, 3)
    stream.set_display_rotation(90)


_PICTURES = {
    "deep.png": {"kind": "PNG", "mode": "I;16"},
    "palette.png": {"kind": "PNG", "mode": "P", "transparency": 3},
    "alpha.png": {"kind": "PNG", "mode": "RGBA", "exif": _exif()},
    "grey-alpha.png": {"kind": "PNG", "mode": "LA"},
    "bits.png": {"kind": "PNG", "mode": "1"},
    "animated.png": {"kind": "PNG", "mode": "RGBA", "count": 4, "duration": [100, 0, 300, 50], "blend": 1},
    "still.png": {"kind": "PNG", "count": 3, "default_image": True, "duration": 100},
    "exif.jpg": {"kind": "JPEG", "exif": _exif()},
    "cmyk.jpg": {"kind": "JPEG", "mode": "CMYK"},
    "progressive.jpg": {"kind": "JPEG", "progressive": True},
    "grey.jpg": {"kind": "JPEG", "mode": "L"},
    "several.jpg": {"kind": "MPO", "count": 3},
    "lossy.webp": {"kind": "WEBP", "exif": _exif()},
    "alpha.webp": {"kind": "WEBP", "mode": "RGBA"},
    "lossless.webp": {"kind": "WEBP", "mode": "RGBA", "lossless": True},
    "animated.webp": {"kind": "WEBP", "mode": "RGBA", "count": 4, "duration": [100, 0, 300, 50]},
    "still.gif": {"kind": "GIF", "mode": "P", "transparency": 3},
    "animated.gif": {"kind": "GIF", "mode": "RGBA", "count": 4, "duration": [100, 0, 300, 50], "disposal": 2},
}

_H264 = {"kind": "mp4", "codec": "libx264", "layout": "yuv420p", "options": {"x264-params": "mbtree=0:keyint=2"}}
_TICKS = {"base": Fraction(1, 10), "times": range(COUNT)}
_MPEG2 = {"codec": "mpeg2video", "layout": "yuv420p", "base": Fraction(1, 25), "rate": 25, "times": range(COUNT)}
_FILMS = {
    "h264.mp4": _H264 | {"container_options": {"movflags": "faststart"}},
    "turned.mp4": _H264 | {"prepare": _turned},
    "fragmented.mp4": _H264 | {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "hevc.mp4": _H264 | {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "raw.mov": {"kind": "mov", "codec": "rawvideo", "layout": "rgb24"},
    "png.mov": {"kind": "mov", "codec": "png", "layout": "rgb24"},
    "prores.mov": {"kind": "mov", "codec": "prores", "layout": "yuv422p10le"},
    "rle.mov": {"kind": "mov", "codec": "qtrle", "layout": "rgb24"},
    "ffv1.mkv": {},
    # So large that its sides are two bytes each.
    "h264.mkv": _H264 | {"kind": "matroska", "frames": [np.full((272, 288, 3), grey, np.uint8) for grey in range(6)]},
    "mjpeg.mkv": {"codec": "mjpeg", "layout": "yuvj420p"},
    "vp8.webm": {"kind": "webm", "codec": "libvpx", "layout": "yuv420p"},
    "vp9.webm": {"kind": "webm", "codec": "libvpx-vp9", "layout": "yuv420p"},
    "mpeg4.avi": {"kind": "avi", "codec": "mpeg4", "layout": "yuv420p", "options": {"bf": "2"}} | _TICKS,
    "mjpeg.avi": {"kind": "avi", "codec": "mjpeg", "layout": "yuvj420p"} | _TICKS,
    "ffv1.avi": {"kind": "avi"} | _TICKS,
    "raw.avi": {"kind": "avi", "codec": "rawvideo", "layout": "bgr24"} | _TICKS,
    "huffman.avi": {"kind": "avi", "codec": "ffvhuff", "layout": "yuv420p"} | _TICKS,
    "h264.ts": _H264 | {"kind": "mpegts"},
    "mpeg2.ts": {"kind": "mpegts"} | _MPEG2,
    "mpeg2.mpg": {"kind": "mpeg"} | _MPEG2,
    "h264.flv": _H264 | {"kind": "flv"},
    "flv1.flv": {"kind": "flv", "codec": "flv", "layout": "yuv420p"},
    "vp8.ogv": {"kind": "ogg", "codec": "libvpx", "layout": "yuv420p", "base": Fraction(1, 25), "rate": 25},
    "wmv2.wmv": {"kind": "asf", "codec": "wmv2", "layout": "yuv420p"},
}
_SUFFIXES = (".png", ".jpg", ".webp", ".gif", ".mp4", ".mkv", ".avi", ".ts", ".txt", ".m3u8", ".7z", "")
_TEXTS = (
    b"This is a text that someone called a film.\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>\n",
    b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n00000.ts\n#EXT-X-ENDLIST\n",
    b"ffconcat version 1.0\nfile 00000.ts\n",
    b'{"spans": [{"image": "a.png"}]}\n',
    b"P6 65535 65535 255\n",
    b"\xef\xbb\xbf<html>not found</html>\r\n",
)
_CODINGS = re.findall(
    b"....",
    b"avc1hvc1vp08vp09av01mp4vpng raw rle jpegapcnSVQ3cvidMJPGFFV1FFVHHFYUXVIDDIV3WMV2WMV3IV50CRAMLAGSULRGtscc"
    b"DXSBMPNGMSS2G2M4CFHDFPS1VP60RV40ZMBV",
)
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0xFFFFFF, 80_000_000, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
# (9400, 9400) is as much as is held safe.
_SIDES = (0, 1, 2, 31, 33, 640, 4096, 9400, 16383, 16384, 32767, 65535, 2**24 - 1, 2**31 - 1, 2**32 - 1)


def _struck(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """Some bytes are others."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 4, 8, 30))):
        changed[rng.randrange(len(changed))] = rng.choice((0, 255, rng.randrange(256)))
    return bytes(changed)


def _struck_head(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    length = rng.choice((16, 64, 300, 1000))
    return _struck(content[:length], rng, others) + content[length:]


def _extreme(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """Numbers anywhere that no file has."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        length = rng.choice((1, 2, 3, 4, 4, 4, 8))
        number = rng.choice(_EXTREMES) % 256**length
        at = rng.randrange(len(content))
        content = content[:at] + number.to_bytes(length, rng.choice(("big", "little"))) + content[at + length :]
    return content


def _cut(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    return content[: rng.randrange(1, len(content))]


def _empty(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    return b""


def _shuffled(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """Chunks left out, doubled or exchanged."""
    parts = _parts(content, rng)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, other = rng.randrange(len(parts)), rng.randrange(len(parts))
        match rng.choice(("out", "double", "exchange")):
            case "out":
                parts[at] = b""
            case "double":
                parts.insert(other, parts[at])
            case _:
                parts[at], parts[other] = parts[other], parts[at]
    return b"".join(parts)


def _parts(content: bytes, rng: Random) -> list[bytes]:
    """A file in the chunks that its format has, or else in pieces."""
    if content.startswith(_PNG):
        ends = _ends(content, 8, 12, "big", 0)
    elif content.startswith(b"RIFF"):
        ends = _ends(content, 12, 8, "little", 4)
    elif content[4:8] == b"ftyp":
        ends = _ends(content, 0, 0, "big", 0)
    elif content.startswith(b"\xff\xd8"):
        ends = [found.start() for found in re.finditer(rb"\xff[\xc0-\xfe]", content)]
    elif content[:1] == content[188:189] == b"G":
        ends = range(188, len(content), 188)
    else:
        ends = sorted(rng.randrange(len(content)) for _ in range(12))
    return [content[a:b] for a, b in zip([0, *ends], [*ends, len(content)], strict=True)]


def _ends(content: bytes, start: int, more: int, order: str, at: int) -> list[int]:
    """Where chunks end that have their length `at` so many bytes from their beginnings; it leaves out `more`."""
    ends = [start]
    while ends[-1] + at + 4 <= len(content):
        length = int.from_bytes(content[ends[-1] + at : ends[-1] + at + 4], order)
        ends.append(ends[-1] + more + length + (length % 2 if order == "little" else 0))
    return ends


def _checked(content: bytes) -> bytes:
    """A PNG with right checksums, as far as its chunks can be told."""
    parts = _parts(content, Random())
    sums = (struct.pack(">I", zlib.crc32(part[4:-4])) for part in parts[1:])
    return parts[0] + b"".join(part[:-4] + right for part, right in zip(parts[1:], sums, strict=True) if part)


def _spliced(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """The beginning of one file and the end of another."""
    other = rng.choice(others)
    return content[: rng.randrange(len(content))] + other[rng.randrange(len(other)) :]


def _sized(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """Other sides, most of them enormous, in every header or one of them."""
    height, width = rng.choice(_SIDES), rng.choice(_SIDES)
    if rng.random() < 0.5:
        height = width
    found = [header for header in _SIZES.items() if re.search(header[0], content, re.S)]
    for pattern, pack in found if rng.random() < 0.5 else rng.sample(found, min(1, len(found))):
        content = re.sub(
            pattern, lambda match, pack=pack: match[1] + pack(match[0], height, width), content, flags=re.S
        )
    return content


def _packed(layout: str) -> Callable[[bytes, int, int], bytes]:
    """Two numbers, W and H in the order given."""

    def pack(_: bytes, height: int, width: int) -> bytes:
        limit = 256 ** struct.calcsize(layout[0] + layout[-1])
        sides = [{"H": height, "W": width}[letter] % limit for letter in layout[1:3]]
        return struct.pack(f"{layout[0]}2{layout[-1]}", *sides)

    return pack


def _webp_lossless(found: bytes, height: int, width: int) -> bytes:
    sides = (width - 1) % 2**14 | (height - 1) % 2**14 << 14
    return (int.from_bytes(found[-4:], "little") >> 28 << 28 | sides).to_bytes(4, "little")


def _webp_canvas(_: bytes, height: int, width: int) -> bytes:
    return b"".join(((side - 1) % 2**24).to_bytes(3, "little") for side in (width, height))


# What comes before the sides, and them -> others.
_SIZES: dict[bytes, Callable[[bytes, int, int], bytes]] = {
    rb"(IHDR).{8}": _packed(">WHI"),
    rb"^(GIF8.a).{4}": _packed("<WHH"),
    rb"(\xff[\xc0-\xc3].{3}).{4}": _packed(">HWH"),
    rb"(\x9d\x01\x2a).{4}": _packed("<WHH"),
    rb"(VP8L.{4}\x2f).{4}": _webp_lossless,
    rb"(VP8X.{8}).{6}": _webp_canvas,
    rb"(avih.{36}).{8}": _packed("<WHI"),
    rb"(strf.{4}\x28\x00\x00\x00).{8}": _packed("<WHI"),
    rb"(tkhd.{80}).{8}": lambda _, height, width: struct.pack(">2I", width % 2**16 << 16, height % 2**16 << 16),
    rb"((?:avc1|hvc1|mp4v|raw |png |apcn|rle ).{28}).{4}": _packed(">WHH"),
    rb"(\x00\x00\x01\xb3)...": lambda _, height, width: (width % 2**12 << 12 | height % 2**12).to_bytes(3, "big"),
    rb"(\xb0\x82)..(?=\xba\x82)": lambda _, height, width: struct.pack(">H", width % 2**16),
    rb"(\xba\x82)..": lambda _, height, width: struct.pack(">H", height % 2**16),
}


def _counted(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """Other times and counts in headers: films of years, indices of millions of frames, pixels as wide as a house."""
    found = [pattern for pattern in _NUMBERS if re.search(pattern, content, re.S)]
    for pattern in rng.sample(found, min(len(found), rng.choice((1, 1, 2, 3)))):
        number, order = rng.choice(_EXTREMES), _NUMBERS[pattern]
        content = re.sub(
            pattern,
            lambda match, number=number, order=order: (
                match[1] + (number % 256 ** len(match[2])).to_bytes(len(match[2]), order)
            ),
            content,
            count=rng.choice((0, 1)),
            flags=re.S,
        )
    return content


_NUMBERS = {
    rb"(m[vd]hd.{12})(.{4})": "big",  # ticks a second
    rb"(m[vd]hd.{16})(.{4})": "big",  # ticks
    rb"(stts.{8})(.{4})": "big",  # frames
    rb"(stts.{12})(.{4})": "big",  # ticks of each
    rb"(stsz.{4})(.{4})": "big",  # bytes of each
    rb"(stsz.{8})(.{4})": "big",  # frames
    rb"(stsc.{12})(.{4})": "big",  # frames of each chunk
    rb"(stsz.{4})(.{8})": "big",
    rb"(trun.{4})(.{4})": "big",  # frames
    rb"(elst.{4})(.{4})": "big",  # edits
    rb"(elst.{8})(.{4})": "big",  # ticks
    rb"(pasp)(.{4})": "big",  # a pixel's width
    rb"(pasp.{4})(.{4})": "big",  # a pixel's height
    rb"(avih.{4})(.{4})": "little",  # microseconds of a frame
    rb"(avih.{20})(.{4})": "little",  # frames
    rb"(strh.{24})(.{4})": "little",  # seconds of a frame, numerator
    rb"(strh.{28})(.{4})": "little",  # seconds of a frame, denominator
    rb"(strh.{36})(.{4})": "little",  # frames
    rb"(\x2a\xd7\xb1\x83)(.{3})": "big",  # nanoseconds of a tick
    rb"(\x23\xe3\x83\x84)(.{4})": "big",  # nanoseconds of a frame
    rb"(\x44\x89\x88)(.{8})": "big",  # ticks
    rb"(\xe7\x81)(.)": "big",  # ticks
    rb"(\x21\xf9\x04.)(.{2})": "little",  # hundredths of a second of a frame
    rb"(ANMF.{16})(.{3})": "little",  # milliseconds of a frame
    rb"(acTL)(.{4})": "big",  # frames
    rb"(fcTL.{20})(.{2})": "big",  # seconds of a frame, numerator
    rb"(fcTL.{22})(.{2})": "big",  # seconds of a frame, denominator
}


def _coded(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """Pixels said to be coded in another way than they are."""
    coding = rng.choice(_CODINGS)
    return re.sub(b"|".join(map(re.escape, _CODINGS)), lambda _: coding, content)


def _renamed(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    return content


def _noise(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    """Nothing but noise, some of it behind the first bytes of a file."""
    return content[: rng.choice((0, 0, 4, 12, 32))] + rng.randbytes(rng.choice((1, 100, 5000)))


def _text(content: bytes, rng: Random, others: list[bytes]) -> bytes:
    return rng.choice(_TEXTS) * rng.choice((1, 100))


# How often each, and what it does to a file, given all of them.
MUTATIONS: dict[str, tuple[int, Callable[[bytes, Random, list[bytes]], bytes]]] = {
    "struck": (15, _struck),
    "struck-head": (20, _struck_head),
    "extreme": (15, _extreme),
    "counted": (12, _counted),
    "sized": (12, _sized),
    "cut": (12, _cut),
    "shuffled": (12, _shuffled),
    "spliced": (5, _spliced),
    "coded": (4, _coded),
    "renamed": (3, _renamed),
    "noise": (3, _noise),
    "text": (1, _text),
    "empty": (1, _empty),
}
