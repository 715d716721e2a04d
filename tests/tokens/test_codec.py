import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.mesh import MeshShape, build_mesh, named_sharding
from ringworld.tokens import codec
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.vqgan import from_bytes, to_codes
from tokens.small_vqgan import SMALL, draw


def tokenizer(batch: int, **shape: int) -> FrameTokenizer:
    mesh = build_mesh(MeshShape(**shape), jax.devices()[: int(np.prod(list(shape.values()) or [1]))])
    weights = jax.device_put(draw(SMALL), named_sharding(mesh, ()))
    return FrameTokenizer(weights, SMALL, mesh, batch)


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


@pytest.mark.parametrize(("batch", "shape"), [(4, {}), (8, {"data": 4}), (8, {"data": 2, "fsdp": 2, "tensor": 2})])
def test_many_frames_are_encoded_as_one_at_a_time(batch, shape):
    ours, some = tokenizer(batch, **shape), frames(11)
    codes = ours.encode(some)
    weights = jax.tree.map(jnp.asarray, draw(SMALL))
    one_by_one = np.concatenate([to_codes(weights, from_bytes(jnp.array(f[None])), SMALL) for f in some])
    np.testing.assert_array_equal(codes, one_by_one)
    np.testing.assert_array_equal(codes, np.stack(list(ours.encode_all(iter(some)))))
    assert codes.dtype == np.int32
    decoded = ours.decode(codes)
    assert (decoded.shape, decoded.dtype) == ((11, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(decoded[10:], ours.decode(codes[10:]))


def test_a_stream_is_read_a_batch_at_a_time():
    taken = []

    def stream():
        for index, frame in enumerate(frames(10)):
            taken.append(index)
            yield frame

    codes = tokenizer(4).encode_all(stream())
    next(codes)
    assert taken == [0, 1, 2, 3]
    assert sum(1 for _ in codes) == 9


def test_one_program_serves_every_number_of_frames():
    ours = tokenizer(4)
    ours.encode(frames(4))
    before = codec._encode._cache_size()  # pyright: ignore[reportFunctionMemberAccess]
    for count in (0, 1, 5, 9):
        assert len(ours.encode(frames(count))) == count
    assert codec._encode._cache_size() == before  # pyright: ignore[reportFunctionMemberAccess]


def test_what_cannot_be_is_said():
    ours = tokenizer(4)
    with pytest.raises(UserError, match="takes frames of 32x32 pixels, got 16x16: resize"):
        ours.encode(frames(2)[:, :16, :16])
    with pytest.raises(UserError, match="frames have 8x8 codes, got 4x4"):
        ours.decode(np.zeros((1, 4, 4), np.int32))
    with pytest.raises(UserError, match="codes must be 0 to 63, got 0 to 64"):
        ours.decode(np.full((1, 8, 8), [0, 64] * 4, np.int32))
    with pytest.raises(UserError, match="a batch of 6 frames does not divide over 4 devices"):
        tokenizer(6, data=4)
