"""The model that comes with the package: what its recipe makes, small, and able to do what it is there for.

How often it is right is measured (docs/nano.md); here it must be so for one of each kind.
"""

import itertools
from pathlib import Path

import pytest

import ringworld
from ringworld.generation.model import Model
from ringworld.recipes.nano import nano as recipe
from ringworld.tokens.images import to_png
from ringworld.weights.models import SHIPPED, open_model
from ringworld.worlds.language import caption
from ringworld.worlds.reader import read
from ringworld.worlds.world import World


@pytest.fixture(scope="module")
def model() -> Model:
    return ringworld.load("nano")


def test_it_is_small_and_what_the_recipe_makes() -> None:
    assert sum(path.stat().st_size for path in SHIPPED["nano"].iterdir()) < 20e6
    about, made = open_model("nano").description, recipe()
    assert about.config == made.model
    assert about.rope_theta == made.stages[-1].rope_theta
    assert about.context_length == max(stage.sequence_length for stage in made.stages)


def test_it_draws_what_it_is_asked_for(model: Model) -> None:
    (thing,) = read(model.draw("a red circle")).things  # as `generate image` does
    assert (thing.thing.colour, thing.thing.kind) == ("red", "circle")


def test_it_films_what_it_is_asked_for(model: Model) -> None:
    frames = [read(frame) for frame in model.film("a blue square moves left", 8)]  # as `generate video` does
    shown = [thing for frame in frames for thing in frame.things]
    assert {(one.thing.colour, one.thing.kind) for one in shown} == {("blue", "square")}
    places = [frame.things[0].x for frame in frames if frame.things]
    assert all(after <= before for before, after in itertools.pairwise(places[:3]))
    assert places[0] > min(places)


def test_it_says_what_it_sees_where_training_never_showed_it(model: Model, tmp_path: Path) -> None:
    scene = World(7, "heldout", 1, 1, heldout="place").picture(3)
    (tmp_path / "a.png").write_bytes(to_png(scene.frame(0, 64)))
    assert caption(scene) in model.ask(tmp_path / "a.png", "What is in the picture?")
