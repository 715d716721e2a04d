import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from ringworld.errors import UserError
from ringworld.tokens import images
from ringworld.tokens.images import read_image, write_image

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (23, 37, 3), np.uint8)
FEW_COLOURS = RNG.integers(0, 256, (200, 3), np.uint8)[RNG.integers(0, 200, (23, 37))]
SMOOTH = np.stack((*np.meshgrid(np.linspace(0, 255, 90), np.linspace(255, 0, 60)), np.full((60, 90), 99.0)), -1).astype(
    np.uint8
)


def encoded(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, kind, **options)
    return stream.getvalue()


def saved(folder: Path, image: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> Path:
    """The suffix is never right: content must decide."""
    path = folder / "picture.mp4"
    path.write_bytes(encoded(image, kind, **options))
    return path


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Decibels; 100 where nothing differs."""
    return float(10 * np.log10(255**2 / max(np.mean((a.astype(float) - b) ** 2), 6.5e-6)))


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("GIF", {}), ("PNG", {"compress_level": 0})],
)
def test_formats_without_loss_are_exact(tmp_path: Path, kind: str, options: dict) -> None:
    frame = read_image(saved(tmp_path, FEW_COLOURS, kind, **options))
    np.testing.assert_array_equal(frame, FEW_COLOURS)
    assert (frame.dtype, frame.flags.writeable) == (np.uint8, False)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {"quality": 95}), ("JPEG", {"quality": 95, "progressive": True}), ("WEBP", {"quality": 95})],
)
def test_formats_with_loss_are_close(tmp_path: Path, kind: str, options: dict) -> None:
    assert psnr(read_image(saved(tmp_path, SMOOTH, kind, **options)), SMOOTH) > 38


def test_an_animation_is_its_first_picture(tmp_path: Path) -> None:
    others = [Image.fromarray(255 - FEW_COLOURS)]
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        path = saved(tmp_path, FEW_COLOURS, kind, save_all=True, append_images=others, **options)
        np.testing.assert_array_equal(read_image(path), FEW_COLOURS)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_set_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    stored = np.repeat(np.repeat(np.arange(10, 250, 40, dtype=np.uint8).reshape(2, 3), 16, 0), 16, 1)
    stored = np.stack([stored] * 3, -1)
    expected = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(stored, 1),
    }[orientation]
    exif = Image.Exif()
    exif[274] = orientation
    frame = read_image(saved(tmp_path, stored, kind, exif=exif, **{"lossless": True} if kind == "WEBP" else {}))
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0garbage!", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b"\xff" * 99]
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_exif_that_cannot_be_read_says_nothing(tmp_path: Path, kind: str, exif: bytes) -> None:
    assert psnr(read_image(saved(tmp_path, SMOOTH, kind, exif=exif)), SMOOTH) > 35


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colours * share + 255 * (1 - share)


def test_transparency_is_on_white(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 256, NOISE.shape[:2], np.uint8)
    alpha[:4], alpha[4:8] = 0, 255
    grey = NOISE[..., 0]
    for image, colours in (
        (Image.fromarray(np.dstack([NOISE, alpha])), NOISE),
        (Image.fromarray(np.dstack([grey, alpha])), np.stack([grey] * 3, -1)),
    ):
        for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
            frame = read_image(saved(tmp_path, image, kind, **options))
            assert np.abs(frame - on_white(colours, alpha)).max() <= 1
            np.testing.assert_array_equal(frame[4:8], colours[4:8])
            assert (frame[:4] == 255).all()


def test_transparency_and_depth_of_a_tall_picture(tmp_path: Path) -> None:
    """It is not dealt with as a whole."""
    colours = RNG.integers(0, 256, (600, 5, 4), np.uint8)
    frame = read_image(saved(tmp_path, colours))
    assert np.abs(frame - on_white(colours[..., :3], colours[..., 3])).max() <= 1
    deep = RNG.integers(0, 65536, (600, 5), np.uint16)
    frame = read_image(saved(tmp_path, deep))
    np.testing.assert_array_equal(frame, np.stack([np.rint(deep / 257)] * 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_entry_of_a_palette_is_white(tmp_path: Path, kind: str) -> None:
    indices = RNG.integers(0, 4, (20, 30), np.uint8)
    palette = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    expected = palette.copy()
    expected[2] = 255
    path = saved(tmp_path, image, kind, transparency=2)
    np.testing.assert_array_equal(read_image(path), expected[indices])


def test_transparency_of_each_palette_entry(tmp_path: Path) -> None:
    indices = RNG.integers(0, 4, (20, 30), np.uint8)
    palette = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    alphas = np.array([255, 0, 128, 64], np.uint8)
    frame = read_image(saved(tmp_path, image, transparency=alphas.tobytes()))
    assert np.abs(frame - on_white(palette[indices], alphas[indices])).max() <= 1


def test_a_transparent_colour_is_white(tmp_path: Path) -> None:
    grey = RNG.integers(0, 5, (20, 30), np.uint8) * 50
    frame = read_image(saved(tmp_path, grey, transparency=100))
    np.testing.assert_array_equal(frame[..., 1], np.where(grey == 100, 255, grey))
    colours = np.stack([grey, grey, grey // 2], -1)
    frame = read_image(saved(tmp_path, colours, transparency=(100, 100, 50)))
    np.testing.assert_array_equal(frame, np.where(grey[..., None] == 100, 255, colours))
    deep = grey.astype(np.uint16) * 256
    frame = read_image(saved(tmp_path, deep, transparency=25600))
    np.testing.assert_array_equal(frame[..., 1], np.where(grey == 100, 255, np.rint(deep / 257)))


def test_grey_of_16_bits_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.arange(0, 65536, 37, np.uint16)[:1750].reshape(35, 50)
    values[-1, -1] = 65535
    expected = np.stack([np.rint(values / 257)] * 3, -1)
    np.testing.assert_array_equal(read_image(saved(tmp_path, values)), expected)
    # As other versions of Pillow read it.
    np.testing.assert_array_equal(images.opaque(Image.fromarray(values.astype(np.int32))), expected)


def test_grey_and_black_and_white(tmp_path: Path) -> None:
    grey = NOISE[..., 0]
    np.testing.assert_array_equal(read_image(saved(tmp_path, grey)), np.stack([grey] * 3, -1))
    bits = Image.fromarray(grey > 100)
    assert bits.mode == "1"
    np.testing.assert_array_equal(read_image(saved(tmp_path, bits)), np.stack([(grey > 100) * 255] * 3, -1))


@pytest.mark.parametrize("colour", [(200, 60, 20), (10, 120, 250), (255, 255, 255), (0, 0, 0)])
def test_cmyk_and_ycck(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    inverse = [255 - part for part in colour]
    cmyk = Image.merge("CMYK", [Image.new("L", (16, 16), part) for part in (*inverse, 0)])
    frame = read_image(saved(tmp_path, cmyk, "JPEG", quality=100))
    assert np.abs(frame.astype(int) - colour).max() <= 2
    # YCCK holds the inverse colour's YCbCr. Pillow cannot write it, but what differs is one byte of a marker.
    planes = Image.new("RGB", (16, 16), tuple(inverse)).convert("YCbCr").split()
    ycck = Image.merge("CMYK", [*(plane.point(lambda part: 255 - part) for plane in planes), Image.new("L", (16, 16))])
    content = encoded(ycck, "JPEG", quality=100, subsampling="4:4:4")
    at = content.index(b"Adobe\0")
    path = tmp_path / "ycck.jpg"
    path.write_bytes(content[: at + 11] + b"\2" + content[at + 12 :])
    assert np.abs(read_image(path).astype(int) - colour).max() <= 3


def test_a_colour_profile_does_no_harm(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    np.testing.assert_array_equal(read_image(saved(tmp_path, NOISE, icc_profile=profile)), NOISE)


def test_the_size_of_the_picture_changes_nothing(tmp_path: Path) -> None:
    path = saved(tmp_path, NOISE)
    for fit in ("crop", "pad"):
        np.testing.assert_array_equal(read_image(path, (23, 37), fit=fit), NOISE)


def thirds(across: bool) -> np.ndarray:
    """Red, green and blue squares of 30 pixels, side by side or on top of each other."""
    colours = np.eye(3, dtype=np.uint8) * 255
    squares = np.repeat(np.repeat(colours[None], 30, 1), 30, 0)
    return squares if across else squares.swapaxes(0, 1)


@pytest.mark.parametrize("across", [True, False])
def test_a_crop_is_the_middle(tmp_path: Path, across: bool) -> None:
    path = saved(tmp_path, thirds(across))
    frame = read_image(path, (10, 10))
    assert frame.shape == (10, 10, 3)
    assert (frame[2:-2, 2:-2] == [0, 255, 0]).all()
    wide = read_image(path, (30, 60) if across else (60, 30))
    wide = wide if across else wide.swapaxes(0, 1)
    assert (wide[:, [0, 20, 40, -1]] == [[255, 0, 0], [0, 255, 0], [0, 255, 0], [0, 0, 255]]).all()


@pytest.mark.parametrize("across", [True, False])
def test_a_pad_shows_all_on_the_colour(tmp_path: Path, across: bool) -> None:
    frame = read_image(saved(tmp_path, thirds(across)), (46, 45), fit="pad", colour=(9, 8, 7))
    assert frame.shape == (46, 45, 3)
    if across:  # 90 x 30 -> 45 x 15, with 15 and 16 rows around it
        assert (frame[:15] == [9, 8, 7]).all()
        assert (frame[30:] == [9, 8, 7]).all()
        assert (frame[15:30, [2, 22, 42]] == thirds(True)[15, [2, 45, 80]]).all()
    else:  # 30 x 90 -> 15 x 46
        assert (frame[:, :15] == [9, 8, 7]).all()
        assert (frame[:, 30:] == [9, 8, 7]).all()
        assert (frame[[2, 22, 42], 16] == thirds(False)[[2, 45, 80], 15]).all()


def test_shrinking_is_antialiased(tmp_path: Path) -> None:
    board = np.indices((256, 256)).sum(0) % 2 * 255
    frame = read_image(saved(tmp_path, board.astype(np.uint8)), (16, 16))
    assert np.abs(frame.astype(float) - 127.5).max() < 3


def test_resizing_keeps_what_is_smooth(tmp_path: Path) -> None:
    frame = read_image(saved(tmp_path, SMOOTH), (30, 30))
    assert psnr(frame, SMOOTH[:, 15:75].reshape(30, 2, 30, 2, 3).mean((1, 3))) > 45


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("shape", [(1, 500), (500, 1), (1, 1), (3, 2)])
def test_any_shape_fits(tmp_path: Path, fit: str, shape: tuple[int, int]) -> None:
    path = saved(tmp_path, np.full((*shape, 3), 77, np.uint8))
    frame = read_image(path, (7, 5), fit=fit, colour=(77, 77, 77))
    assert frame.shape == (7, 5, 3)
    assert (frame == 77).all()


BAD_CONTENT = [
    (b"", "is empty; fetch or make it anew"),
    (b"This is a text that someone called a picture.\n", "is not a picture: it must be PNG, JPEG, WebP or GIF"),
    (b"BM" + b"\0" * 100, "is not a picture"),
    (b"\x89PNG\r\n\x1a\n", "is damaged or cut short"),
    (b"\x89PNG\r\n\x1a\n" + b"x" * 100, "is damaged or cut short"),
    (b"\xff\xd8\xff\xe0", "is damaged or cut short"),
    (b"GIF89a", "is damaged or cut short"),
    (b"RIFF\x10\0\0\0WEBPVP8 ", "is damaged or cut short"),
]


@pytest.mark.parametrize(("content", "message"), BAD_CONTENT)
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_image(path)
    assert str(error.value).startswith(str(path))
    assert str(error.value).count(str(path)) == 1


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"cannot read .*none.png: No such file or directory; name a file with a picture"
    ):
        read_image(tmp_path / "none.png")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
    ],
)
def test_a_picture_cut_short_is_refused_or_whole(tmp_path: Path, kind: str, options: dict) -> None:
    content = encoded(FEW_COLOURS, kind, **options)
    path = tmp_path / "picture"
    path.write_bytes(content)
    whole = read_image(path)
    refused = 0
    for length in range(3, len(content), 31):
        path.write_bytes(content[:length])
        try:
            np.testing.assert_array_equal(read_image(path), whole)
        except UserError:
            refused += 1
    assert refused > 0.95 * len(range(3, len(content), 31))


@pytest.mark.parametrize("sides", [(11, 10), (30, 30)])
def test_a_picture_too_large_to_be_safe_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sides: tuple[int, int]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = saved(tmp_path, np.zeros((*sides, 3), np.uint8))
    with pytest.raises(UserError, match="has more than the 100 pixels that are safe to decode; make it smaller"):
        read_image(path)
    assert read_image(saved(tmp_path, np.zeros((10, 10, 3), np.uint8))).shape == (10, 10, 3)
    # A WebP takes twice the memory.
    with pytest.raises(UserError, match="has more than the 50 pixels that are safe to decode"):
        read_image(saved(tmp_path, np.zeros((10, 6, 3), np.uint8), "WEBP"))
    assert read_image(saved(tmp_path, np.zeros((10, 5, 3), np.uint8), "WEBP")).shape == (10, 5, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0, 5)}, r"size must be \(height, width\), each 1 to 16383 pixels, got \(0, 5\)"),
        ({"size": (5, 16384)}, "size must be"),
        ({"size": (-1, -1)}, "size must be"),
        ({"colour": (0, 0, 256)}, r"colour must be \(red, green, blue\), each 0 to 255, got \(0, 0, 256\)"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_image(saved(tmp_path, NOISE), **options)


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(UserError, match="fit must be 'crop' or 'pad', got 'stretch'"):
        images.check_framing(None, "stretch", (0, 0, 0))


@pytest.mark.parametrize("name", ["a.png", "a.WEBP", "folder/a.Png"])
def test_writing_without_loss_is_exact(tmp_path: Path, name: str) -> None:
    write_image(tmp_path / name, NOISE)
    np.testing.assert_array_equal(read_image(tmp_path / name), NOISE)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o644
    first = (tmp_path / name).read_bytes()
    write_image(tmp_path / name, NOISE)
    assert (tmp_path / name).read_bytes() == first


def test_writing_jpeg_keeps_colours(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg", thirds(True))
    assert psnr(read_image(tmp_path / "a.jpg"), thirds(True)) > 30
    write_image(tmp_path / "a.jpeg", SMOOTH)
    assert psnr(read_image(tmp_path / "a.jpeg"), SMOOTH) > 40


@pytest.mark.parametrize("name", ["a.bmp", "a.gif", "a", "png"])
def test_only_known_suffixes_are_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"must end in one of .png, .jpg, .jpeg, .webp, which says what to write"):
        write_image(tmp_path / name, NOISE)


@pytest.mark.parametrize(
    ("frame", "got"),
    [
        (NOISE.astype(np.float32), r"float32 \[23, 37, 3\]"),
        (NOISE[..., 0], r"uint8 \[23, 37\]"),
        (NOISE[..., :1], r"uint8 \[23, 37, 1\]"),
        (NOISE[:0], r"uint8 \[0, 37, 3\]"),
        (np.broadcast_to(NOISE[:1, :1], (1, 16384, 3)), r"uint8 \[1, 16384, 3\]"),
    ],
)
def test_only_frames_are_written(tmp_path: Path, frame: np.ndarray, got: str) -> None:
    with pytest.raises(UserError, match=rf"the picture must be uint8 \[height, width, 3\] .* got {got}; convert"):
        write_image(tmp_path / "a.png", frame)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write_image(path, NOISE)
    monkeypatch.setattr(images.os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_image(path, SMOOTH)
    assert [found.name for found in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(read_image(path), NOISE)


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "a.png", tmp_path / "folder.png"):
        with pytest.raises(UserError, match=f"cannot write {path}: .*; give another name or folder"):
            write_image(path, NOISE)
