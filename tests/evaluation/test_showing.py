import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from generation.models import seeing_model
from ringworld.data.passing import before_questions
from ringworld.errors import UserError
from ringworld.evaluation.asking import Footage, Turn
from ringworld.evaluation.showing import Plan, Prompt, show
from ringworld.evaluation.shown import SHOWN, About, Shown
from ringworld.generation.answering import Answering
from ringworld.generation.drawing import Brush, Drawing
from ringworld.tokens.images import read_image
from ringworld.tokens.video import read_video, video_info
from ringworld.worlds.language import caption
from ringworld.worlds.reader import read

SIZE = 64
ABOUT = About("tiny", None, 1000, 2048, SIZE, 16, 4096)
PLAN = Plan(pictures=2, films=1, frames=4, minutes=4, minute_frames=3, every=2, heldout="place")


@dataclass
class Eyes:
    """Sees what is in a picture, and what passed at a time in a film; of nothing else has it an idea."""

    fingerprint: str = "eyes"
    context_length: int = 1000
    frame_size: int = SIZE
    tokens_per_frame: int = 17
    ahead: list[Sequence[Turn]] = field(default_factory=list)
    asked: list[list[str | Footage]] = field(default_factory=list)

    def read(self, turns: Sequence[Turn]) -> int:
        self.ahead.append(turns)
        return sum(self.tokens_per_frame * len([*part]) for part in turns[0]["content"] if not isinstance(part, str))

    def answer(self, conversations: Sequence[Sequence[Turn]], max_tokens: int) -> list[str]:
        self.asked += [turn["content"] for (turn,) in conversations]
        return [self._answer(turn["content"]) for (turn,) in conversations]

    def _answer(self, content: Sequence[str | Footage]) -> str:
        question = str(content[-1])
        if question == " What is in the picture?":
            (frame,) = [frame for part in content if not isinstance(part, str) for frame in part]
            seen = read(frame)
            return f" A {seen.things[0].thing} at the {seen.things[0].place} on a {seen.ground} ground. "
        if found := re.fullmatch(r"What passed at (\d+:00)\?", question):
            _, middle = content[content.index(f" {found[1]}") - 1]  # of three, the first two
            return f"{found[1]} {read(np.asarray(middle)).things[0].thing}."
        return "no idea"


@dataclass
class Hand:
    """Draws the scenes of a plan as they are, or only the first of them."""

    plan: Plan = PLAN
    blind: bool = False
    calls: list[tuple[int, Brush]] = field(default_factory=list)
    fingerprint: str = "eyes"
    frame_size: int = SIZE

    def draw(self, prompts: Sequence[str], frames: int, brush: Brush) -> list[np.ndarray]:
        self.calls.append((frames, brush))
        scenes = {prompt.words: prompt.scene for prompt in self.plan.prompts() if prompt.frames == frames}
        drawn = [*scenes.values()][:1] * len(prompts) if self.blind else [scenes[words] for words in prompts]
        return [np.stack([scene.frame(number, SIZE) for number in range(frames)]) for scene in drawn if scene]

    def go_on(self, films: np.ndarray, frames: int, brush: Brush) -> list[np.ndarray]:
        raise AssertionError("nobody gives it frames")


def run(out: Path, eyes: Eyes | None = None, hand: Hand | None = None, plan: Plan = PLAN, **changes: Any) -> Shown:
    return show(eyes or Eyes(), hand or Hand(), ABOUT, out, plan, console=Console(quiet=True), **changes)


def test_what_is_drawn_lies_there_and_is_judged(tmp_path: Path) -> None:
    plan = replace(PLAN, guidance=2.0, temperature=0.5, seed=3)
    hand = Hand(plan)
    run(tmp_path, hand=hand, plan=plan)
    assert hand.calls == [(frames, Brush(temperature=0.5, guidance=2.0, seed=3)) for frames in (1, 4)]
    shown = run(tmp_path / "right")
    assert [(one.frames, one.words) for one in shown.drawn] == [(one.frames, one.words) for one in PLAN.prompts()]
    assert all(one.score and all(one.score.values()) for one in shown.drawn)
    for one, prompt in zip(shown.drawn, PLAN.prompts(), strict=True):
        path = tmp_path / "right" / one.file
        assert prompt.scene is not None
        if one.frames == 1:
            np.testing.assert_array_equal(read_image(path), prompt.scene.frame(0, SIZE))
        else:
            assert (video_info(path).frames, video_info(path).fps, video_info(path).height) == (4, 1.0, 256)
            for number, frame in enumerate(read_video(path, 1.0, (SIZE, SIZE))):
                assert read(frame).agrees(prompt.scene.ground, prompt.scene.at(number))
    blind = run(tmp_path / "blind", hand=Hand(blind=True)).drawn
    assert [all((one.score or {"nobody": False}).values()) for one in blind] == [True, False, True]


def test_ones_own_words_are_drawn_and_nobody_judges(tmp_path: Path) -> None:
    class Anything(Hand):
        def draw(self, prompts: Sequence[str], frames: int, brush: Brush) -> list[np.ndarray]:
            return [np.zeros((frames, SIZE, SIZE, 3), np.uint8) for _ in prompts]

    prompts = [Prompt("a film of nothing", 3), Prompt("nothing"), Prompt("a longer film", 5)]
    shown = run(tmp_path, hand=Anything(), prompts=prompts)
    assert [(one.frames, one.words, one.score) for one in shown.drawn] == [
        (1, "nothing", None),
        (3, "a film of nothing", None),
        (5, "a longer film", None),
    ]
    with pytest.raises(UserError, match="prompts"):
        run(tmp_path, hand=Anything(), prompts=prompts[:2])


def test_what_is_described_is_what_is_held_out(tmp_path: Path) -> None:
    eyes = Eyes()
    described = run(tmp_path, eyes).described
    scenes = [(frames, scene) for frames in (1, 4) for scene in PLAN.scenes("heldout", frames)]
    assert [(one.frames, one.caption) for one in described] == [(frames, caption(scene)) for frames, scene in scenes]
    assert [one.right for one in described] == [True, True, False]
    assert described[2].answer == "no idea"
    film = eyes.asked[2]
    assert film[1:] == [" What happens in the video?"]
    np.testing.assert_array_equal([*film[0]], [scenes[2][1].frame(number, SIZE) for number in range(4)])
    np.testing.assert_array_equal(read_image(tmp_path / described[0].file), scenes[0][1].frame(0, SIZE))


def test_the_long_film_is_read_once_and_asked_about_as_in_training(tmp_path: Path) -> None:
    eyes, film = Eyes(), PLAN.long_film()
    long_film = run(tmp_path, eyes).long_film
    assert long_film is not None
    assert (long_film.frames, long_film.tokens) == (12, 12 * 17)
    assert long_film.times == tuple(minute.time for minute in film)
    questions = eyes.asked[3:]
    ((ahead,),) = eyes.ahead
    assert [content[:-1] for content in questions] == [ahead["content"]] * 5, "the same footage, to be encoded once"
    as_trained = before_questions(film, lambda minute: minute.parts(PLAN.minute_frames, PLAN.every))
    assert [part for part in ahead["content"] if isinstance(part, str)] == [
        part for part in as_trained if isinstance(part, str)
    ]
    assert len({one.question for one in long_film.asked}) == len(long_film.asked) == 5
    assert [one.right for one in long_film.asked] == [one.question.startswith("What") for one in long_film.asked]
    assert sum(one.right for one in long_film.asked) == 2
    strip = np.split(read_image(tmp_path / long_film.file), 4, axis=1)
    for frame, minute in zip(strip, film, strict=True):
        assert [seen.thing for seen in read(frame).things] == [minute.thing]


def test_an_hour_has_its_sixty_minutes() -> None:
    for heldout in ("ground", "place"):
        plan = Plan(heldout=heldout)
        assert [minute.number for minute in plan.long_film()] == [*range(60)]
        assert len([*plan.questions()]) == 5


def test_what_was_stopped_goes_on_part_by_part(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Dying(Eyes):
        def read(self, turns: Sequence[Turn]) -> int:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path, Dying())
    begun = Shown.read(tmp_path)
    assert (len(begun.drawn), len(begun.described), begun.long_film) == (3, 3, None)
    eyes, hand = Eyes(), Hand()
    whole = run(tmp_path, eyes, hand)
    assert (hand.calls, len(eyes.asked), len(eyes.ahead)) == ([], 5, 1)
    assert (whole.drawn, whole.described) == (begun.drawn, begun.described)
    before = (tmp_path / SHOWN).read_bytes()
    eyes, hand = Eyes(), Hand()
    assert run(tmp_path, eyes, hand) == whole
    assert (hand.calls, eyes.asked, eyes.ahead) == ([], [], [])
    assert (tmp_path / SHOWN).read_bytes() == before


def test_what_has_lost_its_file_is_made_anew(tmp_path: Path) -> None:
    whole = run(tmp_path)
    assert whole.long_film is not None
    lost = [whole.drawn[0].file, whole.described[2].file]
    for file in lost:
        (tmp_path / file).unlink()
    eyes, hand = Eyes(), Hand()
    assert run(tmp_path, eyes, hand) == whole
    assert [frames for frames, _ in hand.calls] == [1]
    assert (len(eyes.asked), eyes.ahead) == (1, [])
    assert all((tmp_path / file).is_file() for file in lost)


@pytest.mark.parametrize(
    ("eyes", "plan", "said"),
    [
        (Eyes("other"), PLAN, "model eyes there, other now"),
        (Eyes(), replace(PLAN, minutes=5), "minutes 4 there, 5 now"),
    ],
)
def test_what_another_model_showed_stays(tmp_path: Path, eyes: Eyes, plan: Plan, said: str) -> None:
    run(tmp_path)
    with pytest.raises(UserError, match=said):
        run(tmp_path, eyes, Hand(plan), plan)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pictures": 0}, "got 0, 2 of 8 frames, 60 with the time behind every 10, and 5"),
        ({"frames": 1}, "films of 2 or more frames"),
        ({"every": -1}, "the time behind every -1"),
        ({"kinds": ()}, "and 0"),
        ({"things": (2, 1)}, r"1 to 4 things, the smaller number first; got \(2, 1\)"),
        ({"minutes": 61}, "1 to 60 minutes.*got 61"),
        ({"minutes": 1}, "2 or more where it is asked what came first"),
        ({"kinds": ("why",)}, "no question of the kind 'why'; there are what, when, where, way, first"),
    ],
)
def test_impossible_plans_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Plan(**changes)


def test_a_model_shows_what_it_can(tmp_path: Path) -> None:
    model = seeing_model()
    plan = Plan(pictures=1, films=1, frames=2, minutes=2, minute_frames=1, kinds=("what", "first"))
    about = About.of(model, "tiny")
    shown = show(Answering(model), Drawing(model), about, tmp_path, plan, console=Console(quiet=True))
    assert Shown.read(tmp_path) == shown == shown.there(tmp_path)
    assert shown.long_film is not None
    assert shown.long_film.tokens > 2 * Answering(model).tokens_per_frame
    assert [one.frames for one in shown.drawn] == [one.frames for one in shown.described] == [1, 2]
