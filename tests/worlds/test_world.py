from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from ringworld.worlds.film import VELOCITIES, Act, Scene
from ringworld.worlds.shapes import COLOURS, GROUNDS, KINDS, PLACES, SIZES, Placed, Thing, place
from ringworld.worlds.world import World, is_new, is_new_at


def test_a_number_makes_the_same_again_and_another_number_another():
    world = World(3)
    assert world.scene(5) == World(3).scene(5) != world.scene(6)
    assert world.picture(5) == World(3).picture(5)
    assert World(4).scene(5) != world.scene(5)
    assert world.film(2, 60) == World(3).film(2, 60)
    np.testing.assert_array_equal(world.scene(5).frame(2.5, 32), World(3).scene(5).frame(2.5, 32))


def test_frames_of_a_fixed_seed_are_what_they_were():
    # A change of these numbers is a change of every tokenizer's data and of every evaluation.
    picture = World(0).picture(0)
    assert (picture.ground, [(str(act.thing), act.x, act.y) for act in picture.acts]) == (
        "grey",
        [("large red triangle", 0.375, 0.5), ("large orange cross", 0.75, 0.25)],
    )


def test_things_stand_on_the_grid_of_their_world_or_anywhere():
    for grid in (8, 10):
        world = World(4, grid=grid)
        for index in range(30):
            scene = world.scene(index)
            for seconds in (0, 1.5, 3, 4.7):
                for thing in scene.at(seconds):
                    assert all(v * grid == pytest.approx(round(v * grid)) for v in (thing.x, thing.y))
    # At whole seconds nothing that moves has to be put right: it goes the same way every second.
    scene = World(5, most=1).scene(0)
    assert replace(scene, grid=None).at(1) == scene.at(1)
    spots = [World(4, grid=None).picture(index).at(0)[0].x * 8 for index in range(30)]
    assert sum(abs(spot - round(spot)) > 0.01 for spot in spots) > 20


def test_a_grid_without_a_middle_is_refused():
    with pytest.raises(ValueError, match="2 or more steps a side, or is None; got 1"):
        World(grid=1)


def test_what_is_held_out_is_never_in_training():
    for index in range(300):
        for make in (World(1).picture, World(1).scene):
            scene = make(index)
            assert not any(is_new(act.thing, scene.ground) for act in scene.acts)
        film = World(1).film(index, 20)
        assert not any(is_new(act.thing, scene.ground) for scene in film.scenes for act in scene.acts)
        heldout = World(1, "heldout").scene(index)
        assert is_new(heldout.acts[0].thing, heldout.ground)


def test_of_what_is_held_out_any_two_are_seen_together():
    combinations = [(ground, colour, kind) for ground in GROUNDS for colour in COLOURS for kind in KINDS]
    for size in SIZES:
        trained = {c for c in combinations if not is_new(Thing(size, c[1], c[2]), c[0])}
        assert len(trained) == len(combinations) * 7 / 8
        for left_out in range(3):
            pairs, seen = ({c[:left_out] + c[left_out + 1 :] for c in some} for some in (combinations, trained))
            assert pairs == seen


PAIRS = [(Thing("small", colour, kind), word) for colour in COLOURS for kind in KINDS for word in PLACES]


def test_of_things_at_places_a_ninth_is_held_out_and_any_two_words_are_seen_together():
    trained = [(thing.colour, thing.kind, word) for thing, word in PAIRS if not is_new_at(thing, word)]
    assert len(trained) == len(PAIRS) * 8 / 9
    for left_out in range(3):
        pairs, seen = (
            {c[:left_out] + c[left_out + 1 :] for c in some}
            for some in ([(thing.colour, thing.kind, word) for thing, word in PAIRS], trained)
        )
        assert pairs == seen
    heldout = [(thing, word) for thing, word in PAIRS if is_new_at(thing, word)]
    assert {thing for thing, _ in heldout} == {thing for thing, _ in PAIRS}
    assert {word for _, word in heldout} == {*PLACES} - {"centre"}


def test_each_thing_has_two_rows_and_two_columns_to_go_to_and_fro_in():
    for colour in COLOURS:
        for kind in KINDS:
            new = np.reshape([is_new_at(Thing("small", colour, kind), word) for word in PLACES], (3, 3))
            assert (~new).all(0).sum() == 2
            assert (~new).all(1).sum() == 2


def test_a_patch_shows_nothing_at_a_place_held_out_that_it_does_not_show_elsewhere():
    # Two steps of the grid are a patch: what of a thing lies in it depends on whether its steps are even.
    for size in SIZES:
        steps = [
            step
            for step in range(9)
            if Thing(size, "red", "ring").radius * 8 <= step <= 8 - Thing(size, "red", "ring").radius * 8
        ]
        for colour in COLOURS:
            for kind in KINDS:
                ways = {True: set(), False: set()}
                for x in steps:
                    for y in steps:
                        ways[is_new_at(Thing(size, colour, kind), place(x / 8, y / 8))].add((x % 2, y % 2))
                assert ways[True] <= ways[False]


def always(scene: Scene) -> list[Placed]:
    """What is in a scene, at and between the moments at which its motion is worked out."""
    return [one for tick in range(int(5 * scene.seconds) + 1) for one in scene.at(tick / 5)]


@pytest.mark.parametrize("grid", [8, 10, None])
def test_in_training_nothing_is_ever_at_a_place_that_is_held_out_for_it(grid):
    world = World(1, grid=grid, heldout="place")
    seen: set[tuple[str, str, str]] = set()
    moved = 0
    for index in range(40):
        scenes = [world.picture(index), world.scene(index), *world.film(index, 20).scenes]
        for scene in scenes:
            assert world.admits(scene)
            moved += any(act.direction for act in scene.acts)
            for one in always(scene):
                assert not is_new_at(one.thing, one.place), (index, one)
                seen.add((one.thing.colour, one.thing.kind, one.place))
    assert moved > 60
    assert len(seen) > 0.7 * sum(not is_new_at(*pair) for pair in PAIRS)  # and all else is there


@pytest.mark.parametrize("grid", [8, 10, None])
def test_what_is_held_out_begins_at_a_place_where_training_never_has_it(grid):
    world = World(2, "heldout", grid=grid, heldout="place")
    seen: set[tuple[str, str, str]] = set()
    for index in range(100):
        for scene in (world.picture(index), world.scene(index, 4 + index % 9)):
            first = scene.acts[0]
            assert world.admits(scene)
            assert not World(2, heldout="place").admits(scene)
            word = place(first.x, first.y)
            assert is_new_at(first.thing, word)
            assert first.thing in {one.thing for one in scene.at(0)}
            seen.add((first.thing.colour, first.thing.kind, word))
            for one in always(scene):
                assert one.thing == first.thing or not is_new_at(one.thing, one.place)
    assert len(seen) > 0.7 * sum(is_new_at(*pair) for pair in PAIRS)


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_scenes_are_as_lively_whatever_is_held_out(part):
    def shares(world: World) -> np.ndarray:
        acts = [act for index in range(150) for act in world.scene(index, 10).acts]
        stays = [act.direction is None for act in acts]
        return np.array([len(acts) / 150, np.mean(stays), np.mean([act.passes for act in acts])])

    ground, where = shares(World(3, part)), shares(World(3, part, heldout="place"))
    np.testing.assert_allclose(ground, where, atol=0.1)


def test_a_scene_of_one_thing_always_has_it():
    for part in ("train", "heldout"):
        world = World(6, part, 1, 1, heldout="place")
        assert all(len(world.scene(index, seconds).acts) == 1 for index in range(60) for seconds in (1, 4, 30))


def test_a_film_is_drawn_few_times_where_places_are_held_out(monkeypatch):
    """An hour is made about as fast as it is drawn: what things meet is worked out a few times a scene."""
    worked_out = []
    motion = Scene._motion.func

    def counted(scene: Scene):
        worked_out.append(scene)
        return motion(scene)

    monkeypatch.setattr(Scene._motion, "func", counted)
    film = World(0, heldout="place").film(0, 600)
    made = len(worked_out)
    assert made < 5 * len(film.scenes)
    for scene in film.scenes:
        scene.at(0)
    assert len(worked_out) == made  # and not again when it is drawn


def test_scenes_are_of_a_part_by_what_they_show():
    red = Thing("small", "red", "ring")
    new = next(word for word in PLACES if is_new_at(red, word))
    x, y = ((PLACES.index(new) % 3) + 0.5) / 3, (PLACES.index(new) // 3 + 0.5) / 3
    there = Scene("sand", (Act(red, x, y, 0.0, 0.0, 0.0, 4.0),), 4.0)
    centre = Scene("sand", (replace(there.acts[0], x=0.5, y=0.5),), 4.0)
    worlds = World(0, "train", heldout="place"), World(0, "heldout", heldout="place")
    assert [[world.admits(scene) for scene in (there, centre)] for world in worlds] == [[False, True], [True, False]]
    # Of things that are only on their way, too: from the centre it goes there and back.
    passing = Scene("sand", (replace(centre.acts[0], dx=x - 0.5, dy=y - 0.5),), 4.0)
    assert not worlds[0].admits(passing)
    assert World(0).admits(passing) != is_new(red, "sand")


def test_where_places_are_held_out_a_thing_has_one_place_in_each_ninth():
    world = World(3, least=1, most=1, heldout="place")
    spots = {(act.x, act.y) for index in range(200) for act in world.picture(index).acts}
    assert spots == {(x, y) for x in (0.25, 0.5, 0.75) for y in (0.25, 0.5, 0.75)}
    assert World(3, heldout="place", grid=8).steps == World(3).steps == 8
    assert World(3, heldout="place", grid=None).steps is None


@pytest.mark.parametrize(("changes", "said"), [
    ({"grid": 6}, "each third of a side, such as 4; got 6"),
    ({"grid": 2}, "each third of a side, such as 4; got 2"),
])  # fmt: skip
def test_a_grid_on_which_things_cannot_stand_in_each_third_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        World(heldout="place", **changes)
    assert World(**changes).picture(0).acts


def test_what_cannot_be_held_out_is_refused():
    with pytest.raises(ValueError, match="a world holds out ground or place, got 'places'"):
        World(heldout="places")


def test_pictures_hold_whole_things_apart_from_each_other():
    counts = set()
    for index in range(200):
        scene = World(2, least=0).picture(index)
        things = scene.at(0)
        counts.add(len(things))
        assert len({one.thing.kind for one in things}) == len({one.thing.colour for one in things}) == len(things)
        for one in things:
            assert all(one.thing.radius <= v <= 1 - one.thing.radius for v in (one.x, one.y))
        for one, other in combinations(things, 2):
            assert np.hypot(one.x - other.x, one.y - other.y) > one.thing.radius + other.thing.radius
    assert counts == {0, 1, 2, 3}


def test_what_is_said_to_move_a_way_moves_that_way_for_a_second():
    for index in range(100):
        scene = World(5, most=1).scene(index)
        (act,) = scene.acts
        if act.direction is None:
            continue
        (before,), (after,) = scene.at(0), scene.at(1)
        x, y = after.x - before.x, after.y - before.y
        way = VELOCITIES[act.direction]
        assert (x * way[0] + y * way[1]) > 0.07
        assert abs(x * way[1]) < 1e-9 > abs(y * way[0])
