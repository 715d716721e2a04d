import gc
import io
import struct
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice, pairwise
from math import ceil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ringworld.errors import UserError
from ringworld.tokens import films, images
from ringworld.tokens.video import VideoInfo, read_video, video_info, write_video
from tokens.filmed import filmed, grey, indices, saved

STAMPS = [0, 100, 250, 260, 900, 1000]
H264 = {"kind": "mp4", "codec": "libx264", "layout": "yuv420p", "options": {"qp": "0"}}
KINDS = {
    "mkv": {},
    "mp4": H264,
    "ts": H264 | {"kind": "mpegts"},
}


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Six grey frames at `STAMPS` milliseconds; it lasts 1.1 seconds."""
    return saved(tmp_path / "uneven", filmed([grey(i) for i in range(6)], STAMPS))


def on_screen(stamps: list[int], end: int, fps: Fraction) -> list[int]:
    """The rule as it is said: the last frame that has begun at k / fps seconds, for every k before the end."""
    times = [k / fps * 1000 for k in range(ceil(end * fps / 1000))]
    return [max(i for i, stamp in enumerate(stamps) if stamp <= time) for time in times]


def test_samples_of_a_film_whose_rate_varies(uneven: Path) -> None:
    assert indices(read_video(uneven, 1)) == [0, 5]
    assert indices(read_video(uneven, 2)) == [0, 3, 5]
    assert indices(read_video(uneven, 4)) == [0, 2, 3, 3, 5]
    assert indices(read_video(uneven, 10)) == [0, 1, 1, 3, 3, 3, 3, 3, 3, 4, 5]
    assert indices(read_video(uneven, 0.1)) == [0]
    assert indices(read_video(uneven, None)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("fps", [1, 2, 3, 4, 5, 7, 10, 16, 25, 40, 100, 0.5, 29.97, Fraction(30000, 1001)])
def test_samples_follow_the_rule(tmp_path: Path, name: str, fps: float | Fraction) -> None:
    path = saved(tmp_path / "film", filmed([grey(i) for i in range(6)], STAMPS, **KINDS[name]))
    expected = on_screen(STAMPS, 1100, Fraction(fps).limit_denominator(10_000))
    found = indices(read_video(path, fps))
    # How long the last frame lasts, a transport stream does not say.
    length = min(len(expected), len(found)) if name == "ts" else len(expected)
    assert found[:length] == expected[:length]
    assert abs(len(found) - len(expected)) <= (1 + fps * 0.06 if name == "ts" else 0)


def test_a_rate_is_what_was_meant_by_its_float(tmp_path: Path) -> None:
    # 0.1 as a float is a little more than a tenth, and 3 / 0.1 s a little less than 30 s.
    path = saved(tmp_path / "film", filmed([grey(i) for i in range(5)], [0, 10_000, 20_000, 30_000, 40_000]))
    assert indices(read_video(path, 0.1)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("fps", [1, 5, 10, 15, 30, 60])
def test_a_clock_of_milliseconds_does_not_disturb_the_rhythm(tmp_path: Path, fps: int) -> None:
    # 2/30 s is written as 0.067.
    path = saved(
        tmp_path / "film", filmed([grey(i) for i in range(60)], [round(i * 1000 / 30) for i in range(60)], rate=30)
    )
    frames = indices(read_video(path, fps))
    assert frames == [k * 30 // fps for k in range(len(frames))]
    assert len(frames) == fps * 2


def test_repeated_frames_are_one_array_that_cannot_be_written_to(uneven: Path) -> None:
    first, second, *_ = read_video(uneven, 20)
    assert first is second
    assert not first.flags.writeable


def test_a_clock_that_ticks_once_a_frame_is_taken_at_its_word(tmp_path: Path) -> None:
    film = {"kind": "avi", "base": Fraction(1, 10)}
    path = saved(tmp_path / "film", filmed([grey(i) for i in range(4)], range(4), **film))
    assert indices(read_video(path, 20)) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert indices(read_video(path, 12)) == [0, 0, 1, 2, 3]


@pytest.mark.parametrize(("stamps", "sampled"), [([0, 1, 100, 200], [1, 2, 3]), ([0, 100, 101, 200], [0, 2, 3])])
def test_every_frame_is_every_frame(tmp_path: Path, stamps: list[int], sampled: list[int]) -> None:
    """Two frames at the same time: one is never on screen, but it is a frame."""
    twice = next(b - 1 for a, b in pairwise(stamps) if b == a + 1)
    content = filmed([grey(i) for i in range(4)], stamps)
    same = content.replace(b"\x81\0" + bytes([twice + 1, 0]), b"\x81\0" + bytes([twice, 0]))
    assert same != content
    path = saved(tmp_path / "film", same)
    assert indices(read_video(path, None)) == [0, 1, 2, 3]
    assert indices(read_video(path, 10)) == sampled


def test_a_part_of_a_film(uneven: Path) -> None:
    assert indices(read_video(uneven, 10, start=0.2)) == [1, 3, 3, 3, 3, 3, 3, 4, 5]
    assert indices(read_video(uneven, 10, start=0.2, seconds=0.3)) == [1, 3, 3]
    assert indices(read_video(uneven, 4, start=0.25, seconds=0.5)) == [2, 3]
    assert indices(read_video(uneven, 10, seconds=0.25)) == [0, 1, 1]
    assert indices(read_video(uneven, None, start=0.2)) == [1, 2, 3, 4, 5]
    assert indices(read_video(uneven, None, start=0.25)) == [2, 3, 4, 5]
    assert indices(read_video(uneven, None, start=0.25, seconds=0.65)) == [2, 3]
    assert indices(read_video(uneven, None, start=0.3, seconds=0.01)) == [3]
    assert indices(read_video(uneven, None, seconds=100)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("fps", [None, 10])
def test_a_film_that_is_over_before_it_is_to_start(uneven: Path, fps: int | None) -> None:
    with pytest.raises(UserError, match=f"the film {uneven} is over before start, 2 s; begin earlier"):
        list(read_video(uneven, fps, start=2))


def test_frames_have_the_size_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "film", filmed([grey(20, 12, 30)], [0]))
    assert next(read_video(path, 1)).shape == (12, 30, 3)
    assert (next(read_video(path, 1, (5, 7))) == 80).all()
    padded = next(read_video(path, 1, (30, 30), fit="pad", colour=(1, 2, 3)))
    assert (padded[:9] == [1, 2, 3]).all()
    assert (padded[9:21] == 80).all()
    assert (padded[21:] == [1, 2, 3]).all()


def test_a_film_and_its_pictures_give_the_same_frames(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    film = saved(tmp_path / "film", filmed([noise], [0]))
    for size, fit in (((16, 16), "crop"), ((16, 16), "pad"), (None, "crop")):
        np.testing.assert_array_equal(
            next(read_video(film, 1, size, fit=fit)), images.read_image(tmp_path / "picture.png", size, fit=fit)
        )


class Files:
    """What `read_video` has opened, and how many frames it has decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[io.BufferedReader] = []
        self.decoded = 0
        open_film, decoded = films.open_film, films._decoded

        def opening(path: Path, file: io.BufferedReader):
            self.opened.append(file)
            return open_film(path, file)

        def decoding(*args: object) -> Iterator:
            for frame in decoded(*args):
                self.decoded += 1
                yield frame

        monkeypatch.setattr(films, "open_film", opening)
        monkeypatch.setattr(films, "_decoded", decoding)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    return Files(monkeypatch)


@pytest.fixture
def even(tmp_path: Path) -> Path:
    """Sixty frames, ten a second."""
    return saved(tmp_path / "even", filmed([grey(i) for i in range(60)], range(0, 6000, 100)))


def test_frames_are_read_as_they_are_asked_for(even: Path, files: Files) -> None:
    reading = read_video(even, 1)
    assert files.opened == []
    assert indices(islice(reading, 3)) == [0, 10, 20]
    assert files.decoded == 22
    assert not files.opened[0].closed


def test_a_file_is_closed_when_its_frames_are_not_wanted_any_more(even: Path, files: Files) -> None:
    reading = read_video(even, 1)
    next(reading)
    reading.close()
    dropped = read_video(even, None)
    next(dropped)
    del dropped
    gc.collect()
    assert len(list(read_video(even, 1))) == 6
    assert len(list(read_video(even, 1, seconds=2))) == 2
    assert [file.closed for file in files.opened] == [True] * 4


def test_the_part_asked_for_is_all_that_is_read(even: Path, files: Files) -> None:
    assert len(list(read_video(even, 10, seconds=1))) == 10
    assert files.decoded <= 12
    saved(even, filmed([grey(i) for i in range(60)], range(0, 6000, 100), **H264 | {"options": {"qp": "0", "g": "10"}}))
    files.decoded = 0
    assert indices(read_video(even, 10, start=4, seconds=1)) == list(range(40, 50))
    assert files.decoded <= 22


def test_damage_comes_after_all_that_was_whole(even: Path) -> None:
    content = even.read_bytes()
    saved(even, content[: len(content) * 2 // 3])
    whole = []
    with pytest.raises(UserError, match=r"is damaged or cut short after (\d\.\d)0 s") as error:
        whole.extend(read_video(even, None))
    length = len(whole)
    assert 30 < length < 50
    assert f"after {length / 10:.2f} s" in str(error.value)
    half = []
    with pytest.raises(UserError, match="is damaged or cut short"):
        half.extend(read_video(even, 20))
    assert indices(half) == [i // 2 for i in range(2 * length)]
    assert len(list(read_video(even, 10, seconds=length / 10))) == length


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_animations_follow_the_same_rule(tmp_path: Path, kind: str, options: dict) -> None:
    path = tmp_path / "film.mp4"
    first, *others = [Image.fromarray(grey(i)) for i in range(4)]
    first.save(path, kind, save_all=True, append_images=others, duration=[100, 200, 50, 1000], **options)
    assert indices(read_video(path, 20)) == [0, 0, 1, 1, 1, 1, 2] + [3] * 20
    assert indices(read_video(path, 4)) == [0, 1, 3, 3, 3, 3]
    assert indices(read_video(path, 10, start=0.1, seconds=0.3)) == [1, 1, 2]
    assert indices(read_video(path, None)) == [0, 1, 2, 3]
    info = video_info(path)
    assert (info.height, info.width, info.frames, info.seconds) == (16, 16, 4, pytest.approx(1.35))
    assert info.fps == pytest.approx(4 / 1.35)


@pytest.mark.parametrize("fps", [None, 0.01, 1, 24, 1000])
def test_a_still_picture_is_one_frame(tmp_path: Path, fps: float | None) -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        Image.fromarray(grey(5)).save(tmp_path / "still", kind)
        assert indices(read_video(tmp_path / "still", fps)) == [5]
        assert video_info(tmp_path / "still") == VideoInfo(16, 16, None, None, 1)


def test_what_a_file_says_of_its_film(tmp_path: Path, files: Files) -> None:
    shades = [grey(i, 32, 48) for i in range(20)]
    for film, count in ((H264, 20), ({}, None)):
        path = saved(tmp_path / "film", filmed(shades, range(0, 2000, 100), **film))
        assert video_info(path) == VideoInfo(32, 48, 2.0, 10.0, count)
    turned = H264 | {"prepare": lambda stream: stream.set_display_rotation(90)}
    assert video_info(saved(path, filmed(shades, range(0, 2000, 100), **turned))) == VideoInfo(48, 32, 2.0, 10.0, 20)
    assert files.decoded == 3


def test_what_cannot_be_is_not_said(tmp_path: Path) -> None:
    content = filmed([grey(i) for i in range(20)], range(0, 2000, 100))
    lasting = content.index(b"\x44\x89\x88") + 3
    for milliseconds in (1e12, -1e3):
        damaged = content[:lasting] + struct.pack(">d", milliseconds) + content[lasting + 8 :]
        assert video_info(saved(tmp_path / "film", damaged)) == VideoInfo(16, 16, None, 10.0, None)


BAD = [
    ({"fps": 0}, "fps must be 0.001 to 1000 frames a second, got 0"),
    ({"fps": -1}, "fps must be"),
    ({"fps": float("nan")}, "fps must be"),
    ({"fps": 1001}, "fps must be"),
    ({"size": (0, 1)}, "size must be"),
    ({"fit": "pad", "colour": (0, 0, -1)}, "colour must be"),
    ({"start": -1}, "start must be 0 or more and seconds above 0, got start -1 and seconds None"),
    ({"start": float("inf")}, "start must be"),
    ({"seconds": 0}, "start must be 0 or more and seconds above 0, got start 0 and seconds 0"),
    ({"seconds": float("nan")}, "seconds above 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_what_cannot_be_is_refused_at_once(uneven: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_video(uneven, **{"fps": 1} | options)


def test_files_that_are_no_film_are_named(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.mp4", "cannot read .*none.mp4: No such file or directory"),
        (tmp_path, "cannot read .*: Is a directory"),
        (saved(tmp_path / "empty.mp4", b""), "is empty"),
        (saved(tmp_path / "text.png", b"text " * 99), "is not a film"),
    ):
        with pytest.raises(UserError, match=message):
            next(read_video(path, 1))
        with pytest.raises(UserError, match=message):
            video_info(path)


def waves(count: int, height: int = 64, width: int = 64) -> Iterator[np.ndarray]:
    """A smooth film in colour."""
    y, x = np.mgrid[:height, :width]
    for t in range(count):
        parts = 100 * np.sin(x / 9 + t / 5), 90 * np.cos(y / 7 - t / 6), 80 * np.sin((x + y) / 11)
        yield np.stack([128 + part for part in parts], -1).astype(np.uint8)


def blocks(count: int) -> list[np.ndarray]:
    """Noise of few colours, the second frame the same as the first."""
    rng = np.random.default_rng(5)
    colours = rng.integers(0, 256, (count, 200, 3), np.uint8)
    frames = [shades[rng.integers(0, 200, (17, 23))] for shades in colours]
    return [frames[0], *frames[:-1]]


@pytest.mark.parametrize("fps", [10, 30, 24, 7, 100, 29.97, 0.5])
def test_a_gif_is_exact_and_its_times_add_up(tmp_path: Path, fps: float) -> None:
    frames = blocks(31)
    write_video(tmp_path / "a.GIF", iter(frames), fps)
    np.testing.assert_array_equal(list(read_video(tmp_path / "a.GIF", None)), frames)
    with Image.open(tmp_path / "a.GIF") as image:
        assert image.info["loop"] == 0
    info = video_info(tmp_path / "a.GIF")
    assert info.frames == 31
    assert info.seconds == pytest.approx(31 / fps, abs=0.005)
    np.testing.assert_array_equal(list(read_video(tmp_path / "a.GIF", fps)), frames)


def test_an_mp4_is_close(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.mp4"
    write_video(path, waves(30), 12)
    found = np.stack(list(read_video(path, 12)))
    expected = np.stack(list(waves(30)))
    assert found.shape == expected.shape
    errors = np.mean((found.astype(float) - expected) ** 2, (1, 2, 3))
    assert 10 * np.log10(255**2 / errors.max()) > 37
    assert video_info(path) == VideoInfo(64, 64, 2.5, 12.0, 30)
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("fps", [0.001, 1 / 3, 29.97, Fraction(30000, 1001), 1000])
def test_an_mp4_keeps_its_rate(tmp_path: Path, fps: float | Fraction) -> None:
    write_video(tmp_path / "a.mp4", [grey(i) for i in range(5)], fps)
    assert indices(read_video(tmp_path / "a.mp4", fps)) == [0, 1, 2, 3, 4]
    info = video_info(tmp_path / "a.mp4")
    assert (info.fps, info.seconds) == (pytest.approx(float(fps)), pytest.approx(5 / float(fps), rel=1e-4))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (15, 22), (22, 15), (33, 47)])
def test_an_odd_side_of_an_mp4_grows_by_a_pixel(tmp_path: Path, height: int, width: int) -> None:
    write_video(tmp_path / "a.mp4", waves(3, height, width), 10)
    for found, expected in zip(read_video(tmp_path / "a.mp4", None), waves(3, height, width), strict=True):
        assert found.shape == (height + height % 2, width + width % 2, 3)
        assert np.abs(found[:height, :width].astype(int) - expected).mean() < 6
        assert np.abs(found[-1].astype(int) - found[height - 1]).mean() < 6


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
def test_the_same_frames_are_the_same_bytes(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, waves(8), 10)
    first = (tmp_path / name).read_bytes()
    write_video(tmp_path / name, list(waves(8)), 10)
    assert (tmp_path / name).read_bytes() == first


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
@pytest.mark.parametrize("good", [0, 1, 3])
def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, name: str, good: int) -> None:
    def breaking() -> Iterator[np.ndarray]:
        yield from waves(good)
        raise KeyError("no more")

    for before in (None, b"what was there"):
        if before is not None:
            (tmp_path / name).write_bytes(before)
        with pytest.raises(KeyError, match="no more"):
            write_video(tmp_path / name, breaking(), 10)
        with pytest.raises(UserError, match="there are no frames to write; a film needs at least one"):
            write_video(tmp_path / name, [], 10)
        assert [path.read_bytes() for path in tmp_path.iterdir()] == ([] if before is None else [before])


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (grey(1, 16, 18), r"frame 1 is \[16, 18, 3\], but frame 0 is \[16, 16, 3\]; give frames of one size"),
        (
            grey(1).astype(np.float32),
            r"frame 1 of the film must be uint8 \[height, width, 3\] .* got float32 \[16, 16, 3\]",
        ),
        (grey(1)[..., 0], r"frame 1 of the film must be uint8 .* got uint8 \[16, 16\]"),
    ],
)
def test_frames_that_do_not_fit_are_refused(tmp_path: Path, name: str, frame: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_video(tmp_path / name, [grey(0), frame], 10)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "fps", "message"),
    [
        ("a.avi", 10, "must end in .gif or .mp4, which says what to write; rename it"),
        ("a", 10, "must end in .gif or .mp4"),
        ("a.gif", 101, "fps must be 0.002 to 100 frames a second, got 101"),
        ("a.gif", 0, "fps must be 0.002 to 100"),
        ("a.mp4", 0, "fps must be 0.001 to 1000"),
        ("a.mp4", 1001, "fps must be"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, name: str, fps: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_video(tmp_path / name, waves(1), fps)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
def test_frames_are_written_as_they_come(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.remove(1)

    def counting() -> Iterator[np.ndarray]:
        for frame in waves(40):
            alive.append(1)
            yield frame.view(Counted)
            assert len(alive) <= 4

    write_video(tmp_path / name, counting(), 10)
