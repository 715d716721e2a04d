"""What a trained model shows without being trained first. The demo that trains takes minutes, and is run by hand."""

from pathlib import Path

from generation.models import seeing_model
from ringworld import recipes
from ringworld.demo import show_and_teach
from ringworld.evaluation.prose import HeldOutProse
from ringworld.evaluation.showing import Plan
from ringworld.evaluation.shown import About
from ringworld.training.language import LanguageRecipe


def test_a_model_is_shown_and_another_begins_to_learn(tmp_path: Path) -> None:
    model, lesson = seeing_model(), recipes.build("debug")
    assert isinstance(lesson, LanguageRecipe)
    plan = Plan(pictures=1, films=1, frames=2, minutes=2, minute_frames=1, kinds=("what",))

    def shown() -> str:
        prose = HeldOutProse(model.tokenizer, ("tiny",))
        about = About.of(model, "tiny")
        path = show_and_teach(model, about, tmp_path, lesson, plan=plan, prose=prose, lengths=(256,), seconds=1e-9)
        return path.read_text(encoding="utf-8")

    page = shown()
    for said in ("What is tiny about it", "Drawn from words", "Described in words", "A film of 2 minutes",
                 "A needle in a haystack", "How a model begins to learn"):  # fmt: skip
        assert said in page
    assert page.count("<video ") == 2
    results = [tmp_path / "shown.json", tmp_path / "needle.json", tmp_path / "lesson" / "metrics.jsonl"]
    before = [file.read_bytes() for file in results]
    assert shown() == page
    assert [file.read_bytes() for file in results] == before
