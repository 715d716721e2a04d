from itertools import product
from typing import get_args

import numpy as np
import pytest

from ringworld.worlds.captions import Said, Told, read_caption
from ringworld.worlds.film import Act, Scene
from ringworld.worlds.language import caption
from ringworld.worlds.shapes import COLOURS, GROUNDS, KINDS, PLACES, SIZES, place
from ringworld.worlds.world import HeldOut, Part, World


def what_is_said(act: Act, *, moving: bool) -> Said:
    if act.passes:
        motion = f"passes {act.direction}"
    else:
        motion = f"moves {act.direction}" if act.direction else "stays"
    thing = act.thing
    where = None if act.passes else place(act.x, act.y)
    return Said(thing.size, thing.colour, thing.kind, motion if moving else None, where)


def scenes(count: int) -> list[Scene]:
    worlds = [
        World(5, part, things, things, heldout=heldout)
        for part, heldout, things in product(get_args(Part), get_args(HeldOut), range(1, 5))
    ]
    return [one for world in worlds for index in range(count) for one in (world.picture(index), world.scene(index, 6))]


def test_what_is_read_in_a_caption_is_what_the_scene_is() -> None:
    seen: set[str | None] = set()
    for scene in scenes(8):
        things = tuple(what_is_said(act, moving=scene.seconds > 0) for act in scene.acts)
        assert read_caption(caption(scene)) == Told(scene.ground, things), caption(scene)
        seen |= {scene.ground, *(word for thing in things for word in vars(thing).values())}
    ways = {f"{verb} {way}" for verb in ("moves", "passes") for way in ("left", "right", "up", "down")}
    assert seen == {None, "stays", *ways, *GROUNDS, *SIZES, *COLOURS, *KINDS, *PLACES}


def test_what_a_caption_leaves_out_is_not_read() -> None:
    random = np.random.default_rng(0)
    for scene in scenes(2):
        whole, brief = read_caption(caption(scene)), read_caption(caption(scene, random))
        assert brief.ground in (None, whole.ground)
        for thing, said in zip(whole.things, brief.things, strict=True):
            assert (said.colour, said.kind, said.motion) == (thing.colour, thing.kind, thing.motion)
            assert said.size in (None, thing.size)
            assert said.place in (None, thing.place)


RED_RING = Said(colour="red", kind="ring")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", Told(None, ())),
        ("no idea", Told(None, ())),
        ("nothing on a sky ground", Told("sky", ())),
        ("  A red RING\non a  sky ground. ", Told("sky", (RED_RING,))),
        ("I see a red ring, and a blue one", Told(None, (RED_RING, Said(colour="blue")))),
        ("a redder ring at top left on a skyground", Told(None, (Said(kind="ring"),))),
        ("a red blue ring on a sky ground on a sand ground", Told(None, (Said(kind="ring"),))),
        ("a red red ring", Told(None, (RED_RING,))),
        (
            "a ring moves left from the top left",
            Told(None, (Said(kind="ring", motion="moves left", place="top left"),)),
        ),
        ("a ring moves top at the up", Told(None, (Said(kind="ring"),))),
        ("a ring moves", Told(None, (Said(kind="ring"),))),
    ],
)
def test_of_what_is_no_caption_it_is_read_what_can_be(words: str, told: Told) -> None:
    assert read_caption(words) == told
