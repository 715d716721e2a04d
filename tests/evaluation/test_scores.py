from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from evaluation.filmed import SIZE, filmed, wrong
from ringworld.evaluation.scores import readable_scenes, score_continuation, score_film, score_picture
from ringworld.worlds.film import Act, Scene
from ringworld.worlds.language import caption
from ringworld.worlds.shapes import Placed, Thing, draw
from ringworld.worlds.world import World

RED_RING = Thing("small", "red", "ring")
BLUE_CROSS = Thing("large", "blue", "cross")


def still(*things: tuple[Thing, float, float], ground: str = "sand") -> Scene:
    return Scene(ground, tuple(Act(thing, x, y, 0.0, 0.0, 0.0, np.inf) for thing, x, y in things), 0.0, 8)


def drawn(*things: tuple[Thing, float, float], ground: str = "sand") -> np.ndarray:
    return draw(ground, [Placed(*thing) for thing in things], SIZE)


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_the_worlds_own_pictures_are_right(part):
    world = World(3, part)
    for index in range(40):
        scene = world.picture(index)
        assert wrong(score_picture(scene.frame(0, SIZE), scene)) == set(), index


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_the_worlds_own_films_are_right(part):
    world = World(3, part, 1, 1)
    for index in range(12):
        scene = world.scene(index, 8)
        score = score_film(filmed(scene), scene)
        assert wrong(score) == set(), (index, caption(scene))
        assert "motion" in score


def test_films_of_several_things_are_right_where_none_hides_another():
    worlds = World(6), World(6, "heldout")
    films = [world.scene(index, seconds) for world in worlds for seconds in (4, 8) for index in range(7)]
    scores = [score_film(filmed(scene, int(scene.seconds)), scene) for scene in films]
    assert sum(bool(wrong(score)) for score in scores) <= 1


SWAPPED = ((Thing("small", "blue", "ring"), 0.25, 0.25), (Thing("large", "red", "cross"), 0.75, 0.625))
TWO = ((RED_RING, 0.25, 0.25), (BLUE_CROSS, 0.75, 0.625))


@pytest.mark.parametrize(
    ("things", "ground", "mistakes"),
    [
        (TWO, "sand", set()),
        (TWO[::-1], "sand", set()),
        (TWO, "sky", {"ground"}),
        ((TWO[0],), "sand", {"count", "colour", "kind", "size", "place"}),  # one is not there at all
        ((*TWO, (Thing("small", "green", "circle"), 0.25, 0.75)), "sand", {"count"}),
        (((replace(RED_RING, colour="green"), 0.25, 0.25), TWO[1]), "sand", {"colour"}),
        (((replace(RED_RING, kind="square"), 0.25, 0.25), TWO[1]), "sand", {"kind"}),
        (((replace(RED_RING, size="large"), 0.25, 0.25), TWO[1]), "sand", {"size"}),
        (((RED_RING, 0.25, 0.75), TWO[1]), "sand", {"place"}),
        (((RED_RING, 0.35, 0.25), TWO[1]), "sand", set()),  # a pixel beyond its ninth
        (((RED_RING, 0.40, 0.25), TWO[1]), "sand", {"place"}),
        # Whose colour, and whose place?
        (SWAPPED, "sand", {"colour"}),
        (((RED_RING, 0.75, 0.625), (BLUE_CROSS, 0.25, 0.25)), "sand", {"place"}),
        ((), "sand", {"count", "colour", "kind", "size", "place"}),
    ],
)  # fmt: skip
def test_every_mistake_in_a_picture_is_seen(things, ground, mistakes):
    assert wrong(score_picture(drawn(*things, ground=ground), still(*TWO))) == mistakes


def moving(thing: Thing = RED_RING, *, x: float = 0.25, dx: float = 0.125, ground: str = "sand") -> Scene:
    return Scene(ground, (Act(thing, x, 0.5, dx, 0.0, 0.0, 8.0),), 8.0, 8)


@pytest.mark.parametrize(
    ("film", "mistakes"),
    [
        (moving(), set()),
        (moving(dx=0.25), set()),  # the caption does not say how fast
        (moving(ground="sky"), {"ground"}),
        (moving(replace(RED_RING, colour="green")), {"colour", "object"}),
        (moving(replace(RED_RING, kind="square")), {"kind", "object"}),
        (moving(replace(RED_RING, size="large")), {"size"}),
        (moving(x=0.75, dx=-0.125), {"place", "motion"}),
        (moving(dx=-0.125), {"motion"}),
        (moving(dx=0.0), {"motion"}),
        (Scene("sand", (Act(RED_RING, 0.25, 0.5, 0.0, -0.125, 0.0, 8.0),), 8.0, 8), {"motion"}),
        (Scene("sand", (Act(RED_RING, 0.25, 0.5, 0.125, 0.0, 0.0, 4.0),), 8.0, 8), {"object"}),  # gone by half
        (Scene("sand", (), 8.0, 8), {"colour", "kind", "size", "place", "object", "motion"}),
    ],
)
def test_every_mistake_in_a_film_is_seen(film, mistakes):
    assert wrong(score_film(filmed(film), moving())) == mistakes


def test_a_thing_that_should_stay():
    scene = moving(dx=0.0)
    assert wrong(score_film(filmed(scene), scene)) == set()
    assert wrong(score_film(filmed(moving()), scene)) == {"motion"}


def test_a_thing_that_is_half_outside_may_look_like_another():
    scene = World(5, "heldout").scene(8, 8)
    assert "passes" in caption(scene)
    assert wrong(score_film(filmed(scene), scene)) == set()


def test_a_first_frame_with_another_thing_does_not_say_where_this_one_begins():
    scene = moving(dx=0.0)
    frames = filmed(scene)
    frames[0] = drawn((replace(RED_RING, kind="square"), 0.75, 0.75))
    assert wrong(score_film(frames, scene)) == set()


def test_a_wrong_frame_among_many_does_not_count():
    scene = moving()
    frames = filmed(scene)
    frames[4] = drawn((BLUE_CROSS, 0.5, 0.5), ground="sky")
    assert wrong(score_film(frames, scene)) == set()
    frames[3:] = frames[4]
    assert wrong(score_film(frames, scene)) >= {"ground", "object"}


def test_what_others_hit_at_once_is_not_asked_for_its_way():
    acts = (Act(RED_RING, 0.25, 0.5, 0.25, 0.0, 0.0, 4.0), Act(BLUE_CROSS, 0.625, 0.5, -0.25, 0.0, 0.0, 4.0))
    scene = Scene("sand", acts, 4.0, 8)
    assert "motion" not in score_film(filmed(scene, 4), scene)


def gone_on(begun: Scene, scene: Scene, since: float = 3.0) -> np.ndarray:
    """Three frames of one scene, and five of another from a time of it on."""
    rest = [scene.frame(since + number, SIZE) for number in range(5)]
    return np.concatenate([filmed(begun, 3), np.stack(rest)])


@pytest.mark.parametrize(
    ("film", "mistakes"),
    [
        (gone_on(moving(), moving()), set()),  # it turns at the edge
        (gone_on(moving(dx=0.0, ground="sky"), moving()), set()),  # what is given is not judged
        (gone_on(moving(), moving(ground="sky")), {"ground"}),
        (gone_on(moving(), moving(replace(RED_RING, colour="green"))), {"colour", "object"}),
        (gone_on(moving(), moving(replace(RED_RING, kind="square"))), {"kind", "object"}),
        (gone_on(moving(), moving(replace(RED_RING, size="large"))), {"size", "motion"}),  # the edge turns it earlier
        (gone_on(moving(), moving(x=0.5, dx=0.0)), {"motion"}),  # it stands
        (gone_on(moving(), moving(x=0.5, dx=-0.125), 1.0), {"motion"}),  # it goes back
        (gone_on(moving(), moving(x=0.5, dx=0.25), 1.0), {"motion"}),  # it goes too fast
        (gone_on(moving(), moving(), 4.0), {"motion"}),  # it leaps ahead
        (gone_on(moving(), Scene("sand", (Act(RED_RING, 0.25, 0.5, 0.125, 0.0, 0.0, 5.0),), 8.0, 8)),
         {"object", "motion"}),  # it is gone
        (gone_on(moving(), Scene("sand", (*moving().acts, Act(BLUE_CROSS, 0.5, 0.1875, 0.0, 0.0, 0.0, 8.0)), 8.0, 8)),
         {"count"}),
        (gone_on(moving(), Scene("sand", (), 8.0, 8)), {"colour", "kind", "size", "object", "motion"}),
    ],
)  # fmt: skip
def test_every_mistake_in_how_a_film_goes_on_is_seen(film, mistakes):
    assert wrong(score_continuation(film, moving(), 3)) == mistakes


def test_what_has_left_before_is_not_looked_for_when_a_film_goes_on():
    acts = (*moving(dx=0.0).acts, Act(BLUE_CROSS, 0.75, 0.5, 0.0, 0.0, 0.0, 2.0))
    scene = Scene("sand", acts, 8.0, 8)
    assert wrong(score_continuation(filmed(scene), scene, 3)) == set()
    assert wrong(score_continuation(filmed(scene), scene, 2)) == {"colour", "kind", "size", "object", "motion"}


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_the_worlds_own_films_go_on_rightly(part):
    world = World(3, part, 1, 1)
    for index in range(8):
        scene = world.scene(index, 6)
        assert wrong(score_continuation(filmed(scene, 6), scene, 3)) == set(), index


@pytest.mark.parametrize(("most", "frames", "given"), [(1, 4, 3), (2, 6, 4)])
def test_films_are_given_that_tell_how_they_go_on(most, frames, given):
    """Whatever is there in the last two given frames stays there, alone on its way; and a film that stands is wrong."""
    found = [*islice(readable_scenes(World(4, "train", most, most), frames, given), 6)]
    assert [index for index, _ in found] != [*range(6)]
    for _, scene in found:
        for event in scene.events:
            assert event.happening in ("appears", "leaves")
            assert event.seconds <= given - 2
        film = filmed(scene, frames)
        film[given:] = film[given - 1]
        assert wrong(score_continuation(film, scene, given)) == {"motion"}


def test_noise_is_read_and_wrong():
    frame = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8)
    assert "kind" in wrong(score_picture(frame, still(*TWO)))
    assert "object" in wrong(score_film(np.stack([frame] * 4), moving()))
