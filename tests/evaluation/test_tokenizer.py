import json

import jax
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from ringworld.data.frames import ShapesConfig
from ringworld.errors import UserError
from ringworld.evaluation.tokenizer import TokenizerResult, beside, evaluate_tokenizer, psnr, reconstruct, sheet, ssim
from ringworld.mesh import MeshShape, build_mesh, named_sharding
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.images import write_image
from ringworld.tokens.video import read_video, video_info, write_video
from tokens.small_vqgan import SMALL, draw


def frames(count: int, size: int = 32, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3)).astype(float)
    return np.rint(ndimage.gaussian_filter(noise, (0, 2, 2, 0)) * 3 - 255).clip(0, 255).astype(np.uint8)


def test_psnr_is_that_of_its_definition():
    some = frames(3)
    others = some.copy()
    others[1] = np.clip(some[1].astype(int) + 5, 0, 255)
    others[2] = 255 - some[2]
    squared = ((some[1:].astype(float) - others[1:]) ** 2).mean((1, 2, 3))
    expected = 10 * np.log10(255**2 / squared)
    np.testing.assert_allclose(psnr(some, others), [100.0, *expected])


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Window by window, as the paper writes it."""
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    found = []
    for channel in range(3):
        for i in range(x.shape[0] - 10):
            for j in range(x.shape[1] - 10):
                a, b = (image[i : i + 11, j : j + 11, channel].astype(float) for image in (x, y))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                both = (window * (a - mean_a) * (b - mean_b)).sum()
                c, d = 2.55**2, 7.65**2
                found.append(
                    (2 * mean_a * mean_b + c) * (2 * both + d) / ((mean_a**2 + mean_b**2 + c) * (var_a + var_b + d))
                )
    return float(np.mean(found))


def test_ssim_is_that_of_its_definition():
    some, others = frames(2, 20), frames(2, 20, seed=1)
    others[0] = np.clip(some[0] * 0.7 + 20, 0, 255)
    np.testing.assert_allclose(ssim(some, others), [slow_ssim(*pair) for pair in zip(some, others, strict=True)])
    np.testing.assert_allclose(ssim(some, some), 1.0)


@pytest.fixture(scope="module")
def tokenizer():
    mesh = build_mesh(MeshShape(data=8))
    return FrameTokenizer(jax.device_put(draw(SMALL), named_sharding(mesh, ())), SMALL, mesh, batch=8)


def test_an_evaluation_writes_its_numbers_and_a_sheet(tokenizer, tmp_path):
    some = frames(35)
    result = evaluate_tokenizer(tokenizer, some, tmp_path, name="noise")
    codes = tokenizer.encode(some)
    decoded = tokenizer.decode(codes)
    assert result == TokenizerResult(**json.loads((tmp_path / "noise.json").read_text()))
    assert result.frames == 35
    assert result.psnr == pytest.approx(psnr(some, decoded).mean())
    assert result.worst_psnr == pytest.approx(psnr(some, decoded).min())
    assert result.ssim == pytest.approx(ssim(some, decoded).mean())
    assert result.codes_used == len(np.unique(codes)) / 64
    picture = np.asarray(Image.open(tmp_path / "noise.png"))
    assert picture.shape == (4 * (128 + 6), 8 * (256 + 6), 3)
    np.testing.assert_array_equal(picture[:128, :256], beside(some[0], decoded[0]))
    assert "read_rightly" in (tmp_path / "noise.json").read_text()
    assert result.read_rightly is None
    with pytest.raises(ValueError, match="no frames"):
        evaluate_tokenizer(tokenizer, [], tmp_path)
    with pytest.raises(UserError, match="frames must be 1 or more"):
        evaluate_tokenizer(tokenizer, some, tmp_path, frames=0)


def test_an_evaluation_of_many_frames_takes_some_from_all_over(tokenizer, tmp_path):
    some = frames(35)
    result = evaluate_tokenizer(tokenizer, some, tmp_path, frames=5)
    assert result.frames == 5
    assert result.psnr == pytest.approx(psnr(some[:35:7], tokenizer.decode(tokenizer.encode(some[:35:7]))).mean())


def test_frames_of_the_shapes_world_are_read(tokenizer, tmp_path, monkeypatch):
    """By a tokenizer that loses nothing, and by one that turns the first two frames of a batch into their negatives."""
    kept: list[np.ndarray] = []
    spoilt = 0

    def encode(self: FrameTokenizer, frames: np.ndarray) -> np.ndarray:
        kept[:] = [np.concatenate([255 - frames[:spoilt], frames[spoilt:]])]
        return np.zeros((len(frames), 1, 1), np.int32)

    monkeypatch.setattr(FrameTokenizer, "encode", encode)
    monkeypatch.setattr(FrameTokenizer, "decode", lambda self, codes: kept[0])
    shapes = ShapesConfig(least=1).build(64, 0, "all")
    result = evaluate_tokenizer(tokenizer, shapes, tmp_path, frames=16)
    assert (result.frames, result.psnr, result.read_rightly) == (16, 100.0, 1.0)
    spoilt = 2
    result = evaluate_tokenizer(tokenizer, shapes, tmp_path, frames=16)
    assert result.read_rightly == 12 / 16
    assert "75.0% of them read rightly" in str(result)


def test_a_picture_is_written_beside_what_became_of_it(tokenizer, tmp_path):
    (frame,) = frames(1)
    write_image(tmp_path / "a.png", frame)
    result = reconstruct(tokenizer, tmp_path / "a.png", tmp_path / "b.png")
    (decoded,) = tokenizer.decode(tokenizer.encode(frame[None]))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "b.png")), beside(frame, decoded))
    assert result.frames == 1
    assert result.psnr == result.worst_psnr == pytest.approx(psnr(frame[None], decoded[None])[0])


def test_a_film_is_written_beside_what_became_of_it(tokenizer, tmp_path):
    write_video(tmp_path / "a.gif", frames(10), 5)
    assert reconstruct(tokenizer, tmp_path / "a.gif", tmp_path / "b.gif").frames == 10
    info = video_info(tmp_path / "b.gif")
    assert (info.frames, info.height, info.width) == (10, 128, 256)
    assert info.seconds == pytest.approx(2.0)
    assert reconstruct(tokenizer, tmp_path / "a.gif", tmp_path / "c.mp4", fps=2).frames == 4
    assert len(list(read_video(tmp_path / "c.mp4", None))) == 4


def test_what_cannot_be_reconstructed_leaves_nothing_behind(tokenizer, tmp_path):
    write_image(tmp_path / "a.png", frames(1)[0])
    with pytest.raises(UserError, match=r"must end in one of \.png"):
        reconstruct(tokenizer, tmp_path / "a.png", tmp_path / "b.mp4")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    with pytest.raises(UserError, match=r"c\.png"):
        reconstruct(tokenizer, tmp_path / "c.png", tmp_path / "d.png")
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "c.png"}


def test_a_sheet_of_few_is_as_wide_as_they_are():
    pictures = [np.full((4, 5, 3), n, np.uint8) for n in range(10)]
    assert sheet(pictures[:3]).shape == (10, 33, 3)
    many = sheet(pictures)
    assert many.shape == (20, 88, 3)
    assert (many[10, 0, 0], many[10, 11, 0], many[10, 22, 0]) == (8, 9, 255)
