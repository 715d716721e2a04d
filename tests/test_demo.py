"""What a trained model shows, and how another begins to learn. The demo itself takes minutes, and is run by hand."""

from pathlib import Path

import pytest

from generation.models import seeing_model
from ringworld import recipes
from ringworld.demo import show_and_teach
from ringworld.errors import UserError
from ringworld.evaluation.prose import HeldOutProse
from ringworld.evaluation.showing import Plan
from ringworld.evaluation.shown import About
from ringworld.recipes.smoke import debug

PLAN = Plan(pictures=1, films=1, frames=2, minutes=2, minute_frames=1, kinds=("what",))
SHOWN = ("What is tiny about it", "Drawn from words", "Described in words", "A film of 2 minutes",
         "How a model begins to learn")  # fmt: skip


def show(out: Path, prose: HeldOutProse, lesson: str = "debug") -> str:
    """The report, after a single step of a lesson."""
    model = seeing_model()
    about, taught = About.of(model, "tiny"), recipes.build(lesson)
    path = show_and_teach(model, about, out, taught, debug(), plan=PLAN, prose=prose, lengths=(256,), seconds=1e-9)
    return path.read_text(encoding="utf-8")


def test_a_model_is_shown_and_another_begins_to_learn(tmp_path: Path) -> None:
    prose = HeldOutProse(seeing_model().tokenizer, ("tiny",))
    page = show(tmp_path, prose)
    for said in (*SHOWN, "A needle in a haystack"):
        assert said in page
    assert page.count("<video ") == 2
    results = [tmp_path / "shown.json", tmp_path / "needle.json", tmp_path / "debug" / "metrics.jsonl"]
    before = [file.read_bytes() for file in results]
    assert show(tmp_path, prose) == page
    assert [file.read_bytes() for file in results] == before


def test_without_prose_all_the_rest_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def offline(name: str) -> list[str]:
        raise UserError(f"could not fetch {name}: check the network")

    page = show(tmp_path, HeldOutProse(seeing_model().tokenizer, ("essays",), offline), "nano-text")
    for said in (*SHOWN, "of the recipe debug"):
        assert said in page
    assert "haystack" not in page
    said = "no needles are asked for, and debug is trained, not nano-text: could not fetch essays: check the network\n"
    assert said in capsys.readouterr().out
