from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.mesh import MeshShape, build_mesh
from ringworld.parameters import Parameter, init
from ringworld.tokens.quantizers import QuantizerConfig
from ringworld.tokens.vqgan import (
    LWM_VQGAN,
    VqganConfig,
    declare,
    decode,
    encode,
    from_bytes,
    from_patches,
    to_bytes,
    to_codes,
    to_frames,
    to_patches,
)
from tokens.small_vqgan import SMALL, draw

# One level, kernels of 1 and a norm of each place: a code is of its own patch alone.
LOCAL = VqganConfig(
    frame_size=32,
    channels=(16,),
    latent=8,
    quantizer=QuantizerConfig("ema", codes=32, dim=4),
    patch=8,
    kernel=1,
    norm="position",
)
HALVED = replace(LOCAL, channels=(12, 16), patch=4, resample="patch")


def weights(config: VqganConfig):
    return jax.tree.map(jnp.asarray, draw(config))


def noise(*shape: int) -> jnp.ndarray:
    return jnp.array(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)


def test_lwms_tokenizer_makes_256_codes_of_a_frame():
    assert (LWM_VQGAN.grid**2, LWM_VQGAN.reduction, LWM_VQGAN.quantizer.codes) == (256, 16, 8192)
    abstract = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32),
        declare(LWM_VQGAN),
        is_leaf=lambda x: isinstance(x, Parameter),
    )
    frames = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    codes = jax.eval_shape(lambda w, x: to_codes(w, x, LWM_VQGAN), abstract, frames)
    assert (codes.shape, codes.dtype) == ((1, 16, 16), jnp.int32)
    assert jax.eval_shape(lambda w, c: to_frames(w, c, LWM_VQGAN), abstract, codes).shape == (1, 256, 256, 3)


@pytest.mark.parametrize("config", [SMALL, LOCAL, HALVED])
def test_frames_become_a_grid_of_codes_and_codes_frames(config):
    own = weights(config)
    codes = to_codes(own, noise(2, 32, 32, 3), config)
    assert codes.shape == (2, config.grid, config.grid)
    frames = to_frames(own, codes, config)
    assert frames.shape == (2, 32, 32, 3)
    assert np.abs(frames).max() <= 1


@pytest.mark.parametrize("config", [LOCAL, HALVED])
def test_a_local_encoder_sees_one_patch_alone(config):
    own, frames = weights(config), noise(1, 32, 32, 3)
    changed = frames.at[:, 8:16, 16:24].multiply(-1)
    moved = jnp.abs(encode(own, frames, config) - encode(own, changed, config)).max(-1)[0] > 1e-6
    expected = np.zeros((4, 4), bool)
    expected[1, 2] = True
    np.testing.assert_array_equal(moved, expected)


def test_a_convolutional_encoder_sees_more():
    own, frames = weights(SMALL), noise(1, 32, 32, 3)
    changed = frames.at[:, 8:12, 16:20].multiply(-1)
    assert (jnp.abs(encode(own, frames, SMALL) - encode(own, changed, SMALL)).max(-1) > 1e-6).sum() > 9


def test_patches_and_back():
    frames = noise(2, 8, 12, 3)
    patches = to_patches(frames, 4)
    assert patches.shape == (2, 2, 3, 48)
    np.testing.assert_array_equal(patches[1, 1, 2].reshape(4, 4, 3), frames[1, 4:8, 8:12])
    np.testing.assert_array_equal(from_patches(patches, 4), frames)
    assert to_patches(frames, 1) is frames


def test_bytes_and_back():
    values = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    wide = from_bytes(values)
    assert (float(wide.min()), float(wide.max())) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_bytes(wide), values)


@pytest.mark.parametrize("config", [SMALL, HALVED])
def test_a_fresh_block_adds_nothing(config):
    fresh = init(jax.random.key(0), declare(config), build_mesh(MeshShape(), jax.devices()[:1]))
    without = replace(fresh, decoder=replace(fresh.decoder, middle=()))
    vectors = noise(1, config.grid, config.grid, config.quantizer.dim)
    compiled = jax.jit(decode, static_argnames="config")
    frames = (compiled(weights, vectors, config=config) for weights in (fresh, without))
    np.testing.assert_array_equal(*frames)


def test_a_configuration_comes_back_from_json():
    fsq = replace(LOCAL, quantizer=QuantizerConfig("fsq", codes=20, dim=2, levels=(4, 5)))
    for config in (SMALL, LOCAL, fsq, LWM_VQGAN):
        assert VqganConfig.from_dict(config.to_dict()) == config
    assert declare(fsq).codebook is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"frame_size": 33}, "frames of 33 pixels do not divide into codes of 4"),
        ({"channels": (8, 18)}, r"channels \(8, 18\) do not divide into 4 groups"),
        ({"channels": ()}, "one or more levels and sizes from 1 up"),
        ({"patch": 0}, "one or more levels and sizes from 1 up"),
        ({"middle_blocks": -1}, "numbers of blocks are 0 or more"),
        ({"channels": (8, 16), "decoder_blocks": 0}, r"from one width to another of channels \(8, 16\)"),
    ],
)
def test_impossible_shapes_are_refused(change, says):
    with pytest.raises(UserError, match=says):
        replace(SMALL, **change)
