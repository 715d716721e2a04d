import numpy as np
import pytest
from scipy import ndimage

from ringworld.worlds.reader import read
from ringworld.worlds.shapes import Placed, Thing, draw
from ringworld.worlds.world import World


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_every_picture_is_read_rightly(part):
    world = World(7, part, least=1)
    for index in range(60):
        scene = world.picture(index)
        reading = read(scene.frame(0, 64))
        assert reading.agrees(scene.ground, scene.at(0), slack=0.005), (index, reading)


def test_soft_edges_and_noise_are_read_too():
    random = np.random.default_rng(0)
    wrong = 0
    for index in range(60):
        scene = World(8).picture(index)
        frame = ndimage.gaussian_filter(scene.frame(0, 64).astype(float), (0.8, 0.8, 0))
        frame = np.clip(frame + random.normal(0, 6, frame.shape), 0, 255).astype(np.uint8)
        wrong += not read(frame).agrees(scene.ground, scene.at(0))
    assert wrong <= 1


def test_a_reading_disagrees_with_whatever_is_not_there():
    placed = Placed(Thing("small", "red", "circle"), 0.2, 0.2)
    reading = read(draw("grey", [placed], 64))
    assert reading.agrees("grey", (placed,))
    assert not reading.agrees("sand", (placed,))
    assert not reading.agrees("grey", ())
    assert not reading.agrees("grey", (placed, placed))
    for thing in (
        Thing("large", "red", "circle"),
        Thing("small", "blue", "circle"),
        Thing("small", "red", "square"),
    ):
        assert not reading.agrees("grey", (Placed(thing, 0.2, 0.2),))
    assert not reading.agrees("grey", (Placed(placed.thing, 0.4, 0.2),))
    assert read(draw("sky", [], 64)).things == ()


def test_a_border_of_places_is_no_cliff():
    reading = read(draw("grey", [Placed(Thing("large", "red", "circle"), 1 / 3 + 0.01, 0.5)], 64))
    assert reading.things[0].place == "centre"
    assert reading.agrees("grey", (Placed(Thing("large", "red", "circle"), 1 / 3 - 0.01, 0.5),))
    assert not reading.agrees("grey", (Placed(Thing("large", "red", "circle"), 1 / 3 - 0.05, 0.5),))
