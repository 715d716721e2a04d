import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from evaluation.filmed import SIZE, filmed, wrong
from evaluation.inks import inks
from ringworld.errors import UserError
from ringworld.evaluation.drawn import Drawing, DrawnResult, evaluate_drawn
from ringworld.evaluation.scores import score_film
from ringworld.generation.drawing import Brush
from ringworld.worlds.film import Scene
from ringworld.worlds.language import caption
from ringworld.worlds.shapes import place
from ringworld.worlds.world import HeldOut, World, is_new_at


@dataclass
class Painter:
    """Draws the picture or film of which a caption tells, always on a sand ground if it is told so, or if its guidance
    is not among the `faithful`.
    """

    fingerprint: str = "painter"
    sand: bool = False
    faithful: tuple[float, ...] = (2.0,)
    seed: int = 0
    things: tuple[int, int] = (1, 1)
    heldout: HeldOut = "ground"
    frame_size: int = SIZE
    calls: list[tuple[int, int]] = field(default_factory=list)
    prompts: dict[float, list[str]] = field(default_factory=dict)

    def draw(self, prompts: Sequence[str], frames: int, brush: Brush) -> list[np.ndarray]:
        assert brush.temperature == 0.5
        self.calls.append((len(prompts), brush.seed))
        self.prompts.setdefault(brush.guidance, []).extend(prompts)
        return [self._film(prompt, frames, self.sand or brush.guidance not in self.faithful) for prompt in prompts]

    def go_on(self, films: np.ndarray, frames: int, brush: Brush) -> list[np.ndarray]:
        """As the scene does that begins so; if it is not faithful, the last frame again and again."""
        assert brush.guidance == 1.0
        self.calls.append((len(films), brush.seed))
        own = [filmed(scene, frames) for scene in self._scenes(frames)]
        whole = [next(film for film in own if (film[: len(given)] == given).all()) for given in films]
        last = frames if self.faithful else len(films[0])
        return [film[np.minimum(np.arange(frames), last - 1)] for film in whole]

    def _film(self, words: str, frames: int, sand: bool) -> np.ndarray:
        scene = next(scene for scene in self._scenes(frames) if caption(scene) == words)
        return filmed(replace(scene, ground="sand") if sand else scene, frames)

    def _scenes(self, frames: int) -> Iterator[Scene]:
        for part in ("train", "heldout"):
            world = World(self.seed, part, *self.things, heldout=self.heldout)
            yield from (world.picture(index) if frames == 1 else world.scene(index, frames) for index in range(40))


def run(out: Path, model: Painter, **changes: Any) -> DrawnResult:
    settings = {"count": 5, "batch": 2, "guidance": [2.0], "temperature": 0.5, "console": Console(quiet=True)}
    return evaluate_drawn(model, out, **(settings | changes))


@pytest.mark.parametrize("frames", [1, 6])
def test_an_evaluation_writes_scores_drawings_and_a_sheet(tmp_path, frames):
    name = "generation" if frames == 1 else "generation-film"
    model = Painter()
    result = run(tmp_path, model, frames=frames)
    assert [count for count, _ in model.calls] == [2, 2, 1, 2, 2, 1]
    assert len({seed for _, seed in model.calls[:3]}) == 3
    assert result.share(2.0, "train", "all") == result.share(2.0, "heldout", "all") == 1.0
    content = json.loads((tmp_path / f"{name}.json").read_text())
    shares = content["summary"]["by_guidance"]["2"]
    assert [shares[part]["drawings"] for part in ("seen", "held out")] == [5, 5]
    assert ("object" in shares["seen"]) == ("motion" in shares["seen"]) == (frames > 1)
    assert len(content["cases"]) == 10
    (first, *_) = sorted((tmp_path / name / "guidance-2").glob("seen-*.png"))
    world = World(0, "train", 1, 1)
    scene = world.picture(0) if frames == 1 else world.scene(0, frames)
    np.testing.assert_array_equal(np.asarray(Image.open(first)), np.concatenate([*filmed(scene, frames)], axis=1))
    sheet = np.asarray(Image.open(tmp_path / f"{name}-2.png"))
    assert inks(sheet) == {"right"}
    for line in str(result).splitlines()[3:]:
        assert line.split()[1:] == ["100.0%", "100.0%"]


def test_films_that_are_given_go_on_beside_those_that_are_drawn(tmp_path):
    asked = {"count": 3, "frames": 5, "guidance": [1.0]}
    drawn = run(tmp_path, Painter(), **asked)
    before = {path: path.read_bytes() for path in tmp_path.glob("generation-film*.*")}
    assert "given" not in drawn.settings, "results from before there was such a setting go on"
    model = Painter()
    result = run(tmp_path, model, **asked, given=3)
    assert [count for count, _ in model.calls] == [2, 1, 2, 1]
    assert result.settings == drawn.settings | {"given": 3}
    assert result.summary()["by_guidance"]["1"]["seen"] == {
        "drawings": 3, "all": 1.0, "ground": 1.0, "count": 1.0, "colour": 1.0, "kind": 1.0, "size": 1.0, "object": 1.0,
        "motion": 1.0,
    }  # fmt: skip
    assert all(path.read_bytes() == content for path, content in before.items())
    name = "generation-film-given3"
    first = result.drawings[0]
    film = filmed(World(0, "train", 1, 1).scene(first.index, 5), 5)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / name / first.file)), np.concatenate([*film], axis=1))
    sheet = np.asarray(Image.open(tmp_path / f"{name}-1.png"))
    assert ((sheet == np.array((34, 48, 60))).all(-1).sum(1) == 3 * 128).any(), "what is given is underlined"
    assert run(tmp_path, model, **asked, given=3) == result
    still = run(tmp_path, Painter("still", faithful=()), **asked, given=2)
    assert {what: still.share(1.0, "train", what) for what in ("all", "object", "motion")} == {
        "all": 0.0, "object": 1.0, "motion": 0.0
    }  # fmt: skip


def test_several_guidances_draw_the_same_captions_and_stand_side_by_side(tmp_path):
    model = Painter(faithful=(2.5, 4.0))
    result = run(tmp_path, model, guidance=[4.0, 1.0, 2.5])
    assert model.prompts[1.0] == model.prompts[2.5] == model.prompts[4.0]
    assert result.guidances == [1.0, 2.5, 4.0]
    assert result.best == 2.5  # the smaller of two that are equally good
    grounds = [result.share(guidance, "train", "ground") for guidance in result.guidances]
    assert grounds[0] != 1.0
    assert grounds[1:] == [1.0, 1.0]
    head, parts, *_ = str(result).splitlines()
    assert head.split() == [f"{word}" for guidance in ("1", "2.5", "4") for word in ("guidance", guidance) * 2]
    assert parts.split() == ["seen", "held", "out"] * 3
    assert {path.name for path in tmp_path.iterdir()} == {
        "generation.json", "generation", "generation-1.png", "generation-2.5.png", "generation-4.png"
    }  # fmt: skip
    assert {path.name: len([*path.iterdir()]) for path in (tmp_path / "generation").iterdir()} == {
        "guidance-1": 10, "guidance-2.5": 10, "guidance-4": 10
    }  # fmt: skip
    content = json.loads((tmp_path / "generation.json").read_text())
    assert content["summary"]["best_guidance"] == 2.5
    assert [*content["summary"]["by_guidance"]] == ["1", "2.5", "4"]
    assert content["cases"][0]["guidance"] == 1.0


def test_another_guidance_is_added_to_what_is_there(tmp_path):
    at_once = run(tmp_path / "once", Painter(), guidance=[1.0, 2.0])
    run(tmp_path / "later", Painter())
    model = Painter()
    assert run(tmp_path / "later", model, guidance=[1.0]) == at_once
    assert [*model.prompts] == [1.0]
    name = "generation.json"
    assert (tmp_path / "later" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()


def test_scenes_in_which_things_hide_each_other_are_not_asked_for(tmp_path):
    own = World(17, "train", 3, 3).scene(0, 4)
    assert wrong(score_film(filmed(own, 4), own))
    result = run(tmp_path, Painter(seed=17, things=(3, 3)), count=2, frames=4, seed=17, things=(3, 3))
    assert [(d.part, d.index) for d in result.drawings] == [("train", 1), ("train", 2), ("heldout", 0), ("heldout", 1)]
    assert all(drawing.right for drawing in result.drawings)


def test_what_is_held_out_can_be_things_at_places(tmp_path):
    result = run(tmp_path, Painter(heldout="place"), heldout="place")
    assert result.share(2.0, "heldout", "all") == 1.0
    for drawing in result.drawings:
        act = World(0, drawing.part, 1, 1, heldout="place").picture(drawing.index).acts[0]
        assert is_new_at(act.thing, place(act.x, act.y)) == (drawing.part == "heldout")
        assert place(act.x, act.y) in drawing.caption
    with pytest.raises(UserError, match="heldout place there, ground now"):
        run(tmp_path, Painter())


def test_what_is_drawn_wrongly_is_told_in_the_table_and_the_sheet(tmp_path):
    result = run(tmp_path, Painter(sand=True))
    assert result.share(2.0, "train", "kind") == 1.0
    assert result.share(2.0, "train", "ground") == result.share(2.0, "train", "all")
    assert result.share(2.0, "train", "all") in (0.0, 0.2, 0.4, 0.6, 0.8)
    assert inks(np.asarray(Image.open(tmp_path / "generation-2.png"))) >= {"wrong"}


def test_a_stopped_evaluation_goes_on_and_can_be_extended(tmp_path):
    whole = run(tmp_path / "whole", Painter())

    class Killed(Exception):
        pass

    class Dying(Painter):
        def draw(self, prompts: Sequence[str], frames: int, brush: Brush) -> list[np.ndarray]:
            if len(self.calls) == 4:
                raise Killed
            return super().draw(prompts, frames, brush)

    with pytest.raises(Killed):
        run(tmp_path / "cut", Dying())
    model = Painter()
    assert run(tmp_path / "cut", model) == whole
    assert [count for count, _ in model.calls] == [2, 1]
    for name in ("generation.json", "generation-2.png"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    model = Painter()
    assert len(run(tmp_path / "cut", model, count=6).drawings) == 12
    assert [count for count, _ in model.calls] == [1, 1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": Painter("other")}, "model painter there, other now"),
        ({"things": (1, 2)}, r"things \[1, 1\] there, \[1, 2\] now"),
        ({"count": 0}, "count, frames and batch must be 1 or more"),
        ({"guidance": []}, "guidance at least one number"),
        ({"things": (0, 2)}, "things from 1 to 4, got .* 0 to 2"),
        ({"frames": 4, "given": 1}, "at least 2, as one frame shows no motion, .* got 1 of 4"),
        ({"frames": 4, "given": 4}, "smaller than frames, got 4 of 4"),
        ({"frames": 4, "given": 3, "guidance": [1.0, 2.0]}, r"take 1, got \[1.0, 2.0\]"),
    ],
)
def test_what_cannot_be_asked(tmp_path, changes, said):
    run(tmp_path, Painter(), count=1)
    with pytest.raises(UserError, match=said):
        run(tmp_path, **({"model": Painter()} | changes))


def test_damaged_results_are_named(tmp_path):
    run(tmp_path, Painter(), count=1)
    content = json.loads((tmp_path / "generation.json").read_text())
    content["cases"] = [{"part": "train"}]
    (tmp_path / "generation.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not hold drawings"):
        run(tmp_path, Painter())


def test_the_table_has_only_what_was_judged():
    drawings = (
        Drawing(1.0, "train", 0, "", {"ground": True, "motion": True}),
        Drawing(1.0, "train", 1, "", {"ground": False}),
    )
    result = DrawnResult({}, drawings)
    assert result.summary() == {
        "best_guidance": 1.0,
        "by_guidance": {"1": {"seen": {"drawings": 2, "all": 0.5, "ground": 0.5, "motion": 1.0}}},
    }
    assert str(result).split() == [
        "guidance", "1", "seen", "drawings", "2", "all", "50.0%", "ground", "50.0%", "motion", "100.0%"
    ]  # fmt: skip
