import jax
import numpy as np
import pytest

from ringworld.data.frames import FrameLoader, MomentsConfig, ShapesConfig, place_frames
from ringworld.data.loading import mix
from ringworld.mesh import MeshShape, build_mesh
from ringworld.worlds.world import World


class Numbers:
    """Frames that say their number."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.count = first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> np.ndarray:
        return np.full((2, 2, 3), self.first + index, np.uint8)


def loader(**settings) -> FrameLoader:
    return FrameLoader(mix([Numbers(0, 20), Numbers(100, 7)], [3.0, 1.0], seed=5), batch_size=4, **settings)


def numbers(batch: np.ndarray) -> list[int]:
    return batch[:, 0, 0, 0].tolist()


def taken(source: FrameLoader, count: int) -> list[list[int]]:
    return [numbers(next(source)) for _ in range(count)]


def test_batches_mix_sources_in_their_shares_each_pass_whole():
    source = loader()
    seen = [n for batch in taken(source, 5 * 27) for n in batch]
    assert sum(n >= 100 for n in seen) / len(seen) == pytest.approx(0.25, abs=0.03)
    first = [n for n in seen if n < 100][:20]
    assert sorted(first) == list(range(20)) != first
    source.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_stream_goes_on_where_it_was(workers):
    source, again = loader(workers=workers, prefetch=4), loader()
    before = taken(source, 6)
    state = source.get_state()
    after = taken(source, 5)
    again.set_state(state)
    assert taken(again, 5) == after != before[:5]
    source.set_state({"batch_size": 4, "batch": 0})
    assert taken(source, 6) == before
    with pytest.raises(ValueError, match="of batches of 8 frames, not 4"):
        source.set_state({"batch_size": 8, "batch": 0})
    source.close()
    again.close()


def test_a_process_builds_its_own_rows():
    whole, part = loader(), loader(rows=range(1, 3))
    assert [batch[1:3] for batch in taken(whole, 5)] == taken(part, 5)
    whole.close()
    part.close()


def test_shapes_are_pictures_of_their_part():
    train, heldout = (ShapesConfig().build(32, 3, part) for part in ("train", "heldout"))
    np.testing.assert_array_equal(train[9], World(3, "train", 0, 3).picture(9).frame(0, 32))
    assert train[9].shape == (32, 32, 3)
    assert any((train[i] != heldout[i]).any() for i in range(5))


def test_moments_are_of_scenes_of_their_part():
    train, heldout = (MomentsConfig().build(32, 3, part) for part in ("train", "heldout"))
    scene = World(3, "train").scene(9)
    shown = (scene.frame(seconds, 32).astype(int) for seconds in np.linspace(0, scene.seconds, 200))
    assert min(abs(frame - train[9]).max() for frame in shown) == 0  # things stand on a grid, for a while each
    np.testing.assert_array_equal(train[9], MomentsConfig().build(32, 3)[9])
    assert any((train[i] != heldout[i]).any() for i in range(5))
    begins = [World(3, "train").scene(i).frame(0, 32) for i in range(20)]
    assert sum((train[i] != begin).any() for i, begin in enumerate(begins)) > 10  # most of them have moved on


def test_frames_lie_over_the_devices():
    mesh = build_mesh(MeshShape(data=4, tensor=2))
    placed = place_frames(np.arange(8 * 12, dtype=np.uint8).reshape(8, 2, 2, 3), mesh)
    assert placed.sharding.shard_shape(placed.shape) == (2, 2, 2, 3)
    np.testing.assert_array_equal(placed, np.arange(8 * 12, dtype=np.uint8).reshape(8, 2, 2, 3))
    assert placed.dtype == jax.numpy.uint8
