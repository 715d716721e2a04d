from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from ringworld.worlds.film import Act, Event, Film, Scene
from ringworld.worlds.shapes import Thing
from ringworld.worlds.world import World

RED, BLUE = Thing("small", "red", "circle"), Thing("small", "blue", "square")
STILL = Act(RED, 0.5, 0.5, 0.0, 0.0, 0.0, 8.0)


def centre(scene: Scene, seconds: float, index: int = 0) -> tuple[float, float]:
    placed = scene.at(seconds)[index]
    return placed.x, placed.y


def test_what_moves_moves_evenly_and_turns_back_at_the_edges():
    scene = Scene("grey", (replace(STILL, dx=0.1),), 8.0)
    assert centre(scene, 0) == (0.5, 0.5)
    assert centre(scene, 1.5) == pytest.approx((0.65, 0.5))
    edge = 1 - RED.radius
    beyond = 0.5 + 0.1 * 6 - edge
    assert centre(scene, 6) == pytest.approx((edge - beyond, 0.5))
    assert max(centre(scene, t)[0] for t in np.arange(0, 8, 0.25)) <= edge + 1e-9


def test_things_that_meet_exchange_their_velocities():
    left, right = replace(STILL, x=0.3, dx=0.1), replace(STILL, thing=BLUE, x=0.7, dx=-0.1)
    scene = Scene("grey", (left, right), 8.0)
    event = scene.events[0]
    assert (event.happening, {event.thing, event.other}) == ("collides", {RED, BLUE})
    # They meet half-way, a radius before the middle each.
    assert event.seconds == pytest.approx((0.4 - 2 * RED.radius) / 0.2, abs=0.2)
    assert centre(scene, 3.0)[0] < 0.3 + 0.1 * event.seconds
    assert centre(scene, 3.0)[1] == 0.5
    # One that stays is set in motion by one that comes.
    scene = Scene("grey", (left, replace(right, dx=0.0)), 8.0)
    assert centre(scene, 3.0, 1)[0] > 0.75


def test_things_are_there_from_when_they_enter_to_when_they_leave():
    scene = Scene("grey", (replace(STILL, dx=0.1, enters=2.0, leaves=5.0),), 8.0)
    assert [len(scene.at(t)) for t in (0, 1.9, 2.0, 4.9, 5.0, 8.0)] == [0, 0, 1, 1, 0, 0]
    assert centre(scene, 2.0) == (0.5, 0.5)
    assert centre(scene, 4.0)[0] == pytest.approx(0.7)
    assert scene.events == (Event(2.0, "appears", RED), Event(5.0, "leaves", RED))
    assert Scene("grey", (STILL,), 8.0).events == ()


def test_what_passes_crosses_the_whole_frame_in_front():
    world = World(0)
    scenes = [scene for scene in map(world.scene, range(200)) if any(act.passes for act in scene.acts)]
    assert len(scenes) > 10
    for scene in scenes:
        act = next(act for act in scene.acts if act.passes)
        (event,) = [event for event in scene.events if event.happening == "passes"]
        assert event == Event(scene.seconds / 2, "passes", act.thing)
        ground = Scene(scene.ground, (act,), scene.seconds)
        empty = Scene(scene.ground, (), scene.seconds).frame(0, 64)
        for seconds in (act.enters, act.leaves - 1e-9):
            assert abs(ground.frame(seconds, 64).astype(int) - empty).max() < 128  # an antialiased touch at most
        assert (ground.frame(scene.seconds / 2, 64) != empty).any()
        assert scene.at(scene.seconds / 2)[-1].thing == act.thing


def test_a_film_is_as_long_as_asked_for_and_shows_its_scenes():
    film = World(0).film(1, 100.0)
    assert film.seconds == 100
    assert all(5 <= scene.seconds <= 15 for scene in film.scenes[:-1])
    assert sum(1 for _ in film.frames(8, 2)) == 200
    scene, within = film.scene_at(film.starts[2])
    assert (scene, within) == (film.scenes[2], 0.0)
    for index, frame in islice(enumerate(film.frames(32, 1)), 0, 100, 17):
        scene, within = film.scene_at(index)
        np.testing.assert_array_equal(frame, scene.frame(within, 32))


def test_events_of_a_film_are_in_its_time():
    film = Film((Scene("grey", (STILL,), 8.0), Scene("sky", (replace(STILL, enters=2.0),), 8.0)))
    assert film.events == (Event(10.0, "appears", RED),)
