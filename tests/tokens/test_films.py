import gc
import io
import struct
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from ringworld.errors import UserError
from ringworld.tokens import films
from ringworld.tokens.films import Moment, moments
from ringworld.tokens.images import framed
from ringworld.tokens.video import read_video
from tokens.filmed import filmed, grey, indices, photographed, saved

H264 = {"kind": "mp4", "codec": "libx264", "layout": "yuv420p", "options": {"qp": "0"}}
# A picture whose eight orientations differ.
CORNERS = np.kron(np.array([[10, 80, 150], [220, 40, 110]], np.uint8), np.ones((16, 16), np.uint8))
CORNERS = np.stack([CORNERS] * 3, -1)


def read(path: Path, start: Fraction = Fraction(0)) -> list[Moment]:
    with path.open("rb") as file:
        return list(moments(path, file, start))


def frames(path: Path) -> list[np.ndarray]:
    return [framed(*moment.render()) for moment in read(path)]


def times(path: Path) -> list[float]:
    return [float(moment.time) for moment in read(path)]


@pytest.mark.parametrize(
    "film",
    [
        {},
        {"kind": "webm", "codec": "libvpx-vp9", "layout": "yuv420p", "options": {"lossless": "1"}},
        H264,
        H264 | {"kind": "mov"},
        H264 | {"kind": "mpegts"},
        H264 | {"kind": "flv"},
    ],
)
@pytest.mark.parametrize("offset", [0, 5000])
def test_every_container_tells_when_frames_are_shown(tmp_path: Path, film: dict, offset: int) -> None:
    stamps = [0, 100, 250, 260, 900, 1000]
    # Always under a suffix that is not its own.
    path = saved(tmp_path / "film.png", filmed([grey(i) for i in range(6)], [t + offset for t in stamps], **film))
    assert times(path) == pytest.approx([t / 1000 for t in stamps], abs=1e-9)
    assert indices(frames(path)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("kind", "codec", "options"),
    [("asf", "wmv2", {"qmax": "2"}), ("mpeg", "mpeg2video", {"qmax": "2"}), ("ogg", "libvpx", {"crf": "4", "b": "1M"})],
)
def test_older_containers(tmp_path: Path, kind: str, codec: str, options: dict) -> None:
    film = {"kind": kind, "codec": codec, "layout": "yuv420p", "options": options, "base": Fraction(1, 25), "rate": 25}
    # Some libraries would take it for what its name says.
    path = saved(tmp_path / "film.jpg", filmed([grey(4 * i) for i in range(12)], range(12), **film))
    assert times(path) == pytest.approx([i / 25 for i in range(12)], abs=0.001)
    assert indices(frames(path)) == pytest.approx([4 * i for i in range(12)], abs=1)


def test_what_an_edit_list_cuts_off_is_not_shown(tmp_path: Path) -> None:
    # Of frames before time 0, MP4 says that they are not to be seen.
    path = saved(tmp_path / "film", filmed([grey(i) for i in range(4)], [-300, -200, 0, 50], **H264))
    assert times(path) == [0.0, 0.05]
    assert indices(frames(path)) == [2, 3]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("kind", ["mp4", "matroska", "mpegts", "avi"])
def test_frames_that_are_coded_out_of_order_are_shown_in_order(tmp_path: Path, kind: str, codec: str) -> None:
    noise = np.arange(0, 120, 10)[:, None, None, None] + np.random.default_rng(0).integers(0, 100, (32, 32, 3))
    film = {
        "codec": codec,
        "layout": "yuv420p",
        "options": {"bf": "3", "qmax": "4"},
        "kind": kind,
        "base": Fraction(1, 10),
    }
    path = saved(tmp_path / "film", filmed(noise.astype(np.uint8), range(12), **film))
    assert times(path) == pytest.approx([i / 10 for i in range(12)])
    assert all(a.mean() < b.mean() for a, b in pairwise(frames(path)))


def test_a_film_of_dropped_frames_is_not_cut_short(tmp_path: Path) -> None:
    """AVI counts frames; those that its header counts and that are not there were dropped."""
    content = filmed([grey(i) for i in (0, 1, 2)], [0, 2, 5], base=Fraction(1, 10), kind="avi", codec="ffv1")
    assert times(saved(tmp_path / "film", content)) == [0.0, 0.2, 0.5]


def stamped(*stamps: int | None) -> list[float]:
    shown = [SimpleNamespace(pts=stamp, time_base=Fraction(1, 10)) for stamp in stamps]
    return [float(time) for time, _ in films._timed(iter(shown), Fraction(1, 5))]


def test_times_without_or_with_bad_timestamps() -> None:
    assert stamped(3, 4, 9) == [0.0, 0.1, 0.6]
    assert stamped(-3, -2, 0, 1) == [0.0, 0.1, 0.3, 0.4]
    assert stamped(None, None, None) == [0.0, 0.2, 0.4]
    assert stamped(None, 50, 51) == [0.0, 0.2, 0.3]
    assert stamped(0, None, 3, None) == [0.0, 0.2, 0.3, 0.5]
    # Two at once: the first of them is never seen.
    assert stamped(0, 1, 1, 2) == [0.0, 0.1, 0.1, 0.2]
    # A frame that claims to come before its predecessor, and a film whose clock begins anew.
    assert stamped(0, 10, 5, 11, 20) == [0.0, 1.0, 1.2, 1.4, 2.0]
    assert stamped(0, 1, 2, 0, 1, 2, 3) == [0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0]


def matrix(a: int, b: int, c: int, d: int) -> list[int]:
    """As it is written, not quite exactly."""
    return [(a << 16) - 3, (b << 16) + 2, 0, (c << 16) - 1, (d << 16) + 1, 0, 0, 0, 1 << 30]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((1, 0, 0, 1), CORNERS),
        ((-1, 0, 0, 1), CORNERS[:, ::-1]),
        ((-1, 0, 0, -1), CORNERS[::-1, ::-1]),
        ((1, 0, 0, -1), CORNERS[::-1]),
        ((0, 1, 1, 0), CORNERS.swapaxes(0, 1)),
        ((0, 1, -1, 0), np.rot90(CORNERS, -1)),
        ((0, -1, -1, 0), CORNERS[::-1, ::-1].swapaxes(0, 1)),
        ((0, -1, 1, 0), np.rot90(CORNERS, 1)),
    ],
)
def test_a_display_matrix_turns_the_film(tmp_path: Path, parts: tuple[int, ...], expected: np.ndarray) -> None:
    content = filmed([CORNERS] * 2, [0, 100], **H264, prepare=lambda stream: stream.set_display_matrix(matrix(*parts)))
    for frame in frames(saved(tmp_path / "film", content)):
        assert frame.shape == expected.shape
        assert np.abs(frame.astype(int) - expected).max() <= 2


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
def test_a_rotation_turns_counterclockwise(tmp_path: Path, degrees: int) -> None:
    content = filmed([CORNERS], [0], **H264, prepare=lambda stream: stream.set_display_rotation(degrees))
    frame = frames(saved(tmp_path / "film", content))[0]
    expected = np.rot90(CORNERS, degrees // 90)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).max() <= 2


def test_photographs_say_how_the_camera_was_held(tmp_path: Path) -> None:
    """PyAV has no name for what else is said in them."""
    exif = Image.Exif()
    exif[274], exif[271] = 6, "a camera"
    stream = io.BytesIO()
    Image.fromarray(CORNERS).save(stream, "JPEG", quality=95, exif=exif)
    for frame in frames(saved(tmp_path / "film", photographed([stream.getvalue()] * 3))):
        assert frame.shape == (48, 32, 3)
        assert np.abs(frame.astype(int) - np.rot90(CORNERS, -1)).max() <= 8


def test_frames_are_not_kept(tmp_path: Path) -> None:
    film = filmed([grey(i) for i in range(20)], range(0, 2000, 100), **H264)
    for content in (film, film[:-1000], animated("GIF", [100] * 5)[:-9]):
        path = saved(tmp_path / "film", content)
        gc.collect()
        gc.disable()
        try:
            with suppress(UserError):
                list(read_video(path, None))
            kept = [each for each in gc.get_objects() if isinstance(each, av.VideoFrame | Image.Image)]
        finally:
            gc.enable()
        assert all(frame.width == 1 for frame in kept)


def stretched(numerator: int, denominator: int, degrees: int = 0) -> dict:
    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(numerator, denominator)
        stream.sample_aspect_ratio = Fraction(numerator, denominator)
        stream.set_display_rotation(degrees)

    return H264 | {"prepare": prepare}


def test_pixels_that_are_not_square_are_made_square(tmp_path: Path) -> None:
    path = saved(tmp_path / "film", filmed([CORNERS], [0], **stretched(2, 1)))
    frame = frames(path)[0]
    assert frame.shape == (32, 96, 3)
    assert np.abs(frame[8, 16::32].astype(int) - CORNERS[8, 8::16]).max() <= 2
    path = saved(tmp_path / "film", filmed([CORNERS], [0], **stretched(2, 1, 90)))
    assert frames(path)[0].shape == (96, 32, 3)
    path = saved(tmp_path / "film", filmed([CORNERS], [0], **stretched(1, 2)))
    assert frames(path)[0].shape == (64, 48, 3)
    path = saved(tmp_path / "film", filmed([CORNERS], [0], **stretched(128, 117)))
    assert frames(path)[0].shape == (32, 53, 3)
    # 48 pixels are 52.5 wide, of which 32 are kept; thirds of 17.5 meet at 7.25 and 24.75.
    square = framed(*read(path)[0].render(), (32, 32))
    assert np.abs(square[4, [4, 10, 16, 22, 28], 0] - [10.0, 80, 80, 80, 150]).max() <= 2


@pytest.mark.parametrize("shape", [(17, 23), (1, 1), (64, 33), (35, 64), (2, 301)])
def test_odd_sizes_are_exact(tmp_path: Path, shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    np.testing.assert_array_equal(frames(saved(tmp_path / "film", filmed([noise], [0])))[0], noise)


@pytest.mark.parametrize("shape", [(16, 16), (17, 16), (16, 17), (17, 17)])
@pytest.mark.parametrize("layout", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "gray"])
def test_flat_colours_are_exact_in_every_layout(tmp_path: Path, layout: str, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    colours = rng.integers(0, 256, (6, 1, 1, 1 if layout == "gray" else 3), np.uint8)
    flat = [np.broadcast_to(colour, (*shape, 3)).copy() for colour in colours]
    path = saved(tmp_path / "film", filmed(flat, range(0, 600, 100), layout=layout))
    assert np.abs(np.stack(frames(path)).astype(int) - np.stack(flat)).max() <= 2


def test_transparency_is_on_white(tmp_path: Path) -> None:
    colours = np.random.default_rng(3).integers(0, 256, (16, 16, 4), np.uint8)
    colours[:4, :, 3], colours[4:, :, 3] = 0, 255
    frame = frames(saved(tmp_path / "film", filmed([colours], [0], kind="mov", codec="png", layout="rgba")))[0]
    assert (frame[:4] == 255).all()
    np.testing.assert_array_equal(frame[4:], colours[4:, :, :3])


GROUPS = {"options": {"x264-params": "open-gop=1:keyint=10:min-keyint=10:scenecut=0:bframes=2:b-adapt=0", "qp": "4"}}
LATE = {
    "mp4": H264 | GROUPS,
    "mkv": H264 | GROUPS | {"kind": "matroska"},
    "ts": H264 | GROUPS | {"kind": "mpegts"},
    "flv": H264 | GROUPS | {"kind": "flv"},
    "avi": {"kind": "avi", "codec": "mpeg4", "layout": "yuv420p", "options": {"bf": "2", "g": "10", "qmax": "3"}},
    "mpeg": {
        "kind": "mpeg",
        "codec": "mpeg2video",
        "layout": "yuv420p",
        "options": {"bf": "2", "g": "10", "qmax": "3"},
    },
}


@pytest.fixture(params=list(LATE))
def late(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Sixty frames, 25 a second, with a key frame every ten, from which others before it are coded, too."""
    noise = np.arange(0, 120, 2)[:, None, None, None] + np.random.default_rng(6).integers(0, 100, (16, 16, 3))
    film = LATE[request.param] | {"base": Fraction(1, 25), "rate": 25}
    return saved(tmp_path / f"film.{request.param}", filmed(noise.astype(np.uint8), range(7, 67), **film))


STARTS = [
    Fraction(1, 1000),
    Fraction(9, 25),
    Fraction(2, 5),
    Fraction(1),
    Fraction(31, 20),
    Fraction(59, 25),
    Fraction(9),
]


def test_starting_late_shows_what_is_shown_then(late: Path) -> None:
    whole = read(late)
    pictures = [framed(*moment.render()) for moment in whole]
    assert len(whole) == 60
    fewest = 60
    for start in STARTS:
        found = read(late, start)
        assert [moment.time for moment in found] == [moment.time for moment in whole[-len(found) :]]
        assert found[0].time <= start
        for moment, picture in zip(found, pictures[-len(found) :], strict=True):
            np.testing.assert_array_equal(framed(*moment.render()), picture)
        fewest = min(fewest, len(found))
    assert (fewest < 20) == (late.suffix in (".mp4", ".mkv", ".avi"))


def test_an_index_that_leads_too_far_is_not_followed(late: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(late)
    monkeypatch.setattr(films, "floor", lambda time: int(time * 2))
    for start in STARTS:
        found = read(late, start)
        assert found[0].time <= start
        assert [moment.time for moment in found] == [moment.time for moment in whole[-len(found) :]]


def animated(kind: str, durations: list[float], height: int = 16, width: int = 16, **options: object) -> bytes:
    stream = io.BytesIO()
    first, *others = [Image.fromarray(grey(i, height, width)) for i in range(len(durations))]
    first.save(stream, kind, save_all=True, append_images=others, duration=durations, **options)
    return stream.getvalue()


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_animations_are_films(tmp_path: Path, kind: str, options: dict) -> None:
    path = saved(tmp_path / "film.mp4", animated(kind, [100, 200, 50, 1000], **options))
    assert times(path) == pytest.approx([0.0, 0.1, 0.3, 0.35])
    assert [float(moment.seconds) for moment in read(path)] == pytest.approx([0.1, 0.2, 0.05, 1.0])
    assert indices(frames(path)) == [0, 1, 2, 3]


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_a_frame_without_a_time_stays_a_tenth_of_a_second(tmp_path: Path, kind: str, options: dict) -> None:
    path = saved(tmp_path / "film", animated(kind, [0, 0, 20], **options))
    assert times(path) == [0.0, 0.1, 0.2]


def test_frames_of_an_animation_lie_on_each_other(tmp_path: Path) -> None:
    ground = Image.new("RGBA", (8, 8), (0, 0, 255, 255))
    patch = Image.new("RGBA", (8, 8))
    patch.paste((255, 0, 0, 255), (2, 2, 5, 5))
    stream = io.BytesIO()
    ground.save(stream, "PNG", save_all=True, append_images=[patch], duration=100, blend=1, disposal=0)
    _, second = frames(saved(tmp_path / "film", stream.getvalue()))
    assert (second[2:5, 2:5] == [255, 0, 0]).all()
    assert (second[0] == [0, 0, 255]).all()


def test_the_picture_before_an_animation_is_not_in_it(tmp_path: Path) -> None:
    stream = io.BytesIO()
    first, *others = [Image.fromarray(grey(i)) for i in range(3)]
    first.save(stream, "PNG", save_all=True, append_images=others, duration=[100, 300], default_image=True)
    path = saved(tmp_path / "film", stream.getvalue())
    assert indices(frames(path)) == [1, 2]
    assert times(path) == [0.0, 0.1]


def test_an_orientation_turns_an_animation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    stream = io.BytesIO()
    Image.fromarray(CORNERS).save(
        stream, "PNG", save_all=True, append_images=[Image.fromarray(255 - CORNERS)], exif=exif
    )
    first, second = frames(saved(tmp_path / "film", stream.getvalue()))
    np.testing.assert_array_equal(first, np.rot90(CORNERS, -1))
    np.testing.assert_array_equal(second, 255 - np.rot90(CORNERS, -1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "MPO"])
def test_a_still_picture_is_one_frame(tmp_path: Path, kind: str) -> None:
    stream = io.BytesIO()
    more = {"save_all": True, "append_images": [Image.fromarray(grey(9))]} if kind == "MPO" else {}
    Image.fromarray(grey(5)).save(stream, kind, **more)
    assert indices(frames(saved(tmp_path / "film", stream.getvalue()))) == [5]


def noise(count: int = 20) -> list[np.ndarray]:
    return list(np.random.default_rng(4).integers(0, 256, (count, 32, 32, 3), np.uint8))


def shown(path: Path) -> tuple[int, str]:
    """How many frames came before the error, and the error."""
    seen = 0
    with path.open("rb") as file:
        try:
            for moment in moments(path, file):
                moment.render()
                seen += 1
        except UserError as error:
            return seen, str(error)
    raise AssertionError(f"{path} was read to its end")


CUTTABLE = {
    "mkv": {},
    "webm": {"kind": "webm", "codec": "libvpx-vp9", "layout": "yuv420p"},
    "avi": {"kind": "avi", "base": Fraction(1, 10)},
    "mp4": H264 | {"container_options": {"movflags": "faststart"}},
    "fragmented mp4": H264 | {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "options": {"g": "4"}},
    "flv": H264 | {"kind": "flv"},
}


@pytest.mark.parametrize("name", list(CUTTABLE))
def test_a_film_cut_short_says_so_after_what_is_whole(tmp_path: Path, name: str) -> None:
    film = CUTTABLE[name]
    step = 1 if "base" in film else 100
    content = filmed(noise(), range(0, 20 * step, step), **film)
    whole = frames(saved(tmp_path / "film", content))
    assert len(whole) == 20
    lengths = range(len(content) // 2, len(content) - 100, len(content) // 9)
    for length in lengths:
        path = saved(tmp_path / "film", content[:length])
        seen, error = shown(path)
        assert 5 <= seen <= 19
        assert f"the film {path} is damaged or cut short after {seen / 10:.2f} s; fetch or make it anew" in error


def test_a_film_cut_short_in_its_sound_says_so(tmp_path: Path) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="flv") as container:
        pictures = container.add_stream("libx264", rate=10, options={"tune": "zerolatency"})
        pictures.height = pictures.width = 16
        pictures.pix_fmt = "yuv420p"
        sounds = container.add_stream("pcm_s16le", rate=44100, layout="mono")
        for number in range(10):
            picture = av.VideoFrame.from_ndarray(grey(number))
            picture.pts, picture.time_base = number, Fraction(1, 10)
            container.mux(pictures.encode(picture))
            sound = av.AudioFrame(format="s16", layout="mono", samples=4410)
            sound.sample_rate, sound.pts = 44100, 4410 * number
            container.mux(sounds.encode(sound))
    content = file.getvalue()
    assert len(read(saved(tmp_path / "film", content))) == 10
    seen, error = shown(saved(tmp_path / "film", content[:-3000]))
    assert 5 <= seen <= 10
    assert "is damaged or cut short" in error


def test_an_mp4_cut_short_before_its_index_cannot_be_read(tmp_path: Path) -> None:
    content = filmed(noise(), range(0, 2000, 100), **H264)
    seen, error = shown(saved(tmp_path / "film", content[: len(content) // 2]))
    assert (seen, "is cut short and cannot be read; fetch or make it anew" in error) == (0, True)


def test_an_animation_cut_short_says_so(tmp_path: Path) -> None:
    pictures = [Image.fromarray(frame) for frame in noise(5)]
    for kind in ("GIF", "PNG", "WEBP"):
        stream = io.BytesIO()
        pictures[0].save(stream, kind, save_all=True, append_images=pictures[1:], duration=100)
        content = stream.getvalue()
        for length in range(20, len(content) - 16, 197 if kind == "GIF" else 607):
            seen, error = shown(saved(tmp_path / "film", content[:length]))
            assert seen < 5
            assert "cut short" in error


def test_a_gif_cut_between_its_frames_says_so(tmp_path: Path) -> None:
    content = animated("GIF", [100, 200, 300])
    seen, error = shown(saved(tmp_path / "film", content[: content.rindex(b"!\xf9")]))
    assert seen == 2
    assert "is damaged or cut short after 0.30 s" in error
    # What programs append is not missed.
    assert len(read(saved(tmp_path / "film", content + b"\0\0made by hand"))) == 3


@pytest.mark.parametrize(
    "film", [H264, {"kind": "avi", "codec": "mpeg4", "layout": "yuv420p", "base": Fraction(1, 10)}]
)
def test_damage_is_not_skipped(tmp_path: Path, film: dict) -> None:
    step = 1 if "base" in film else 100
    content = bytearray(filmed(noise(), range(0, 20 * step, step), **film))
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path = saved(tmp_path / "film", bytes(content))
    seen, error = shown(path)
    assert 1 <= seen <= 15
    assert f"is damaged or cut short after {seen / 10:.2f} s" in error


@pytest.mark.parametrize("last", [-1, -2])
def test_damage_at_the_very_end_is_not_skipped(tmp_path: Path, last: int) -> None:
    content = bytearray(filmed(noise(), range(0, 2000, 100), **H264))
    with av.open(saved(tmp_path / "film", bytes(content))) as container:
        packets = sorted((packet.pos or 0, packet.size) for packet in container.demux() if packet.size)
    position, size = packets[last]
    content[position : position + size] = bytes(size)
    seen, error = shown(saved(tmp_path / "film", bytes(content)))
    assert 15 <= seen < 20
    assert f"is damaged or cut short after {seen / 10:.2f} s" in error


BAD_CONTENT = [
    (b"This is a text that someone called a film.\n" * 100, "is not a film: it must be MP4, MOV, MKV"),
    (b"\0" * 5000, "is not a film"),
    (b"BM" + b"\0" * 5000, "is not a film"),
    (b"RIFF\0\0\1\0AVI LIST", "is cut short and cannot be read"),
    (b"\x1aE\xdf\xa3", "is not a film"),
    (b"\x1aE\xdf\xa3" + b"\0" + b"\xff" * 100, "is not a film"),
    (b"\0\0\0\x18ftypmp42\0\0\0\0mp42mp42", "is not a film"),
    (b"\0\0\0\x10ftypmp42\0\0\0\0\0\0\0\1mdat" + b"\xff" * 100, "is cut short and cannot be read"),
]


@pytest.mark.parametrize(("content", "message"), BAD_CONTENT)
@pytest.mark.parametrize("name", ["film.mp4", "film.txt", "film"])
def test_what_is_no_film_is_named(tmp_path: Path, content: bytes, message: str, name: str) -> None:
    seen, error = shown(saved(tmp_path / name, content))
    assert seen == 0
    assert message in error
    assert str(tmp_path / name) in error


def test_a_list_of_other_files_is_not_opened(tmp_path: Path) -> None:
    other = saved(tmp_path / "other.ts", filmed([grey(1)] * 5, range(0, 500, 100), **H264 | {"kind": "mpegts"}))
    for name, text in (
        ("a.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{other}\n#EXT-X-ENDLIST\n"),
        ("a.ffconcat", "ffconcat version 1.0\nfile other.ts\n"),
    ):
        _, error = shown(saved(tmp_path / name, text.encode()))
        assert "is not a film" in error


@pytest.mark.parametrize("cover", [False, True])
def test_sound_alone_is_no_film(tmp_path: Path, cover: bool) -> None:
    file, picture = io.BytesIO(), io.BytesIO()
    Image.fromarray(grey(5)).save(picture, "PNG")
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("mp2", rate=48000)
        if cover:
            container.add_attachment("cover.png", "image/png", picture.getvalue())
        sound = av.AudioFrame(format="s16", layout="stereo", samples=1152)
        sound.sample_rate, sound.pts = 48000, 0
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    path = saved(tmp_path / "film", file.getvalue())
    streams = "audio, video" if cover else "audio"
    with av.open(path) as container:
        assert ", ".join(sorted(stream.type for stream in container.streams)) == streams
    assert shown(path)[1] == f"{path} has no film in it (streams: {streams}); name a file with a film"


def test_a_film_too_large_to_be_safe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    for content in (
        filmed([grey(1, 40, 60)] * 2, [0, 100], **H264),
        filmed([CORNERS] * 2, [0, 100], **stretched(2, 1)),
        animated("GIF", [100, 100], 40, 60),
    ):
        seen, error = shown(saved(tmp_path / "film", content))
        assert seen == 0
        assert "has more than the 2,000 pixels that are safe to decode; make it smaller" in error
    assert len(read(saved(tmp_path / "film", filmed([CORNERS] * 2, [0, 100], **H264)))) == 2
    assert len(read(saved(tmp_path / "film", animated("GIF", [100, 100], 32, 48)))) == 2


def test_a_frame_that_stays_for_more_than_a_day_is_damage(tmp_path: Path) -> None:
    day = 24 * 60 * 60 * 1000
    stamps = [0, 100, 100 + day, 101 + 2 * day]
    seen, error = shown(saved(tmp_path / "film", filmed([grey(i) for i in range(4)], stamps)))
    assert seen == 3
    assert "is damaged: after 86400.10 s, a frame stays for more than a day; fetch or make it anew" in error
    content = filmed([grey(1)] * 3, range(3), base=Fraction(1, 10), kind="avi")
    seconds = content.replace(struct.pack("<2I", 1, 10), struct.pack("<2I", 2**31, 1), 1)
    assert seconds != content
    seen, error = shown(saved(tmp_path / "film", seconds))
    assert (seen, "after 0.00 s, a frame stays for more than a day" in error) == (0, True)


def test_an_unknown_coding_of_colours_is_named(tmp_path: Path) -> None:
    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.colorspace = 14  # ICtCp

    content = filmed([grey(1)] * 3, [0, 100, 200], **H264 | {"prepare": prepare})
    _, error = shown(saved(tmp_path / "film", content))
    assert "is coded in a way that is not known here; convert it to H.264" in error


def test_a_place_before_the_beginning_is_no_error_of_pythons(tmp_path: Path) -> None:
    with saved(tmp_path / "film", b"film").open("rb") as file:
        nameless = films._Nameless(file)
        assert nameless.seek(1) == 1
        assert nameless.seek(-1) < 0
        assert nameless.read(2) == b"il"


def test_an_unknown_coding_is_named(tmp_path: Path) -> None:
    content = filmed([grey(1)] * 3, [0, 100, 200], **H264).replace(b"avc1", b"zzzz")
    _, error = shown(saved(tmp_path / "film", content))
    assert "is coded in a way that is not known here; convert it to H.264" in error


def empty(kind: str) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height = stream.width = 16
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    return file.getvalue()


def test_a_film_without_frames_is_refused(tmp_path: Path) -> None:
    assert "has no film in it (streams: none)" in shown(saved(tmp_path / "film", empty("mp4")))[1]
    assert "is damaged or cut short after 0.00 s" in shown(saved(tmp_path / "film", empty("avi")))[1]
