import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evaluation.exhibits import write_shown
from ringworld.errors import UserError
from ringworld.evaluation.files import write_json
from ringworld.evaluation.needle import Answer, Case, NeedleResult
from ringworld.evaluation.perplexity import PerplexityResult, PositionRange
from ringworld.evaluation.report import write_report

STAGES = ("64", "128", "<256>")


def write_run(run: Path) -> Path:
    """A run of three stages as training leaves it, the last of them stopped in the middle of a line."""
    lengths = [64, 128, 256]
    model = {"type": "ModelConfig", "vocabulary_size": 1024, "dim": 64, "ffn": 160, "layers": 3, "heads": 2}
    recipe = {
        "type": "Recipe",
        "name": "nano & text",
        "summary": "A test <of> reports.",
        "model": model | {"kv_heads": 2, "head_dim": 32, "tied": True},
        "stages": [
            {"name": name, "sequence_length": length, "steps": 50, "rope_theta": 1e4 * length / 64}
            for name, length in zip(STAGES, lengths, strict=True)
        ],
    }
    write_json(run / "recipe.json", recipe)
    records: list[dict[str, Any]] = []
    step = 0
    for number, name in enumerate(STAGES):
        for stage_step in range(1, 41):
            step += 1
            records.append({
                "kind": "step", "stage": name, "stage_step": stage_step, "step": step, "tokens": 2048 * step,
                "seconds": 0.5 * step, "loss": None if step == 7 else 5.0 / stage_step + 0.3,
                "accuracy": stage_step / 40, "learning_rate": 1e-3, "gradient_norm": 1.0, "skipped": 0,
            })  # fmt: skip
        here = {"stage": name, "stage_step": 40, "step": step}
        check = {"metric": "accuracy", "value": 0.98, "wanted": 0.97, "reached": number != 1}
        records.append({"kind": "check", **here, **check})
        found = {f"needle/{length}": 1.0 if length <= lengths[number] else 0.35 for length in lengths[: number + 2]}
        records.append({"kind": "evaluation", **here, "results": found})
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"kind": "st')
    return run


def write_results(folder: Path, kind: str = "needle", asked: int = 1) -> None:
    answers = [
        Answer(Case(length, depth, 0), length - 8, ("Oslo",) * asked, ("1234567",) * asked, text, (right,) * asked)
        for length in (256, 512)
        for depth in (0.0, 1.0)
        for text, right in [("1234567", True) if length == 256 or depth else ("<b>no</b>", False)]
    ]
    settings = {"kind": kind, "needles": 4 if asked > 1 else 1, "asked": asked, "context_length": 256}
    NeedleResult(settings, tuple(answers)).write(folder / f"{kind}.json")


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers the words and the attributes that could load something."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.sources: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data.strip())


def test_the_report_holds_everything_and_loads_nothing(tmp_path: Path) -> None:
    run, results = write_run(tmp_path / "run"), tmp_path / "results"
    write_results(results)
    write_results(results, "multi-needle", asked=2)
    perplexity = PerplexityResult(
        {"data": "tiny", "context_length": 64}, (PositionRange(0, 16, 10, 4.0), PositionRange(16, 128, 10, 3.0))
    )
    write_json(results / "perplexity.json", perplexity.to_dict())
    path = write_report(run, results=results)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert len(page.sources) == 5  # the loss, two heat-maps, the stages, the perplexity
    for source in page.sources:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert not re.search(r"https?://|@import|url\(", text)
    words = "\n".join(page.words)
    for said in (
        "nano & text", "A test <of> reports.", "How it learned", "A needle in a haystack",
        "Several needles in a haystack", "What each stage bought", "Perplexity by position", "Settings",
        "75%", "of 4 needles found", "<b>no</b>", "missed", "1 min 0 s",
        "The special magic Oslo number is: 1234567", "What is the special magic Oslo number?",
    ):  # fmt: skip
        assert said in words, said
    assert words.count("learned\n") >= 2
    assert "steps ran out" in words
    assert len(text) < 400_000


def test_a_report_needs_nothing_but_the_run(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path), path=tmp_path / "elsewhere" / "page.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.sources) == 2
    assert "A needle in a haystack" not in page.words


MEDIA = {"data:image/png;base64": b"\x89PNG", "data:video/mp4;base64": b"ftyp"}


def test_what_a_model_showed_is_there_to_be_seen(tmp_path: Path) -> None:
    write_shown(tmp_path)
    write_results(tmp_path)
    page = Page(write_report(tmp_path, lesson=write_run(tmp_path / "lesson")).read_text(encoding="utf-8"))
    assert page.open == []
    assert "script" not in page.tags
    kinds = [source.partition(",")[0] for source in page.sources]
    assert kinds.count("data:video/mp4;base64") == 1
    assert kinds.count("data:image/png;base64") == 2 + 3 + 1 + 1  # a strip of three minutes, a heat-map, the lesson
    for source, kind in zip(page.sources, kinds, strict=True):
        assert MEDIA[kind] in base64.b64decode(source.partition(",")[2])[:16]
    words = "\n".join(page.words)
    for said in (
        "What is <nano> about it", "<nano> has 1.43M parameters; LWM, the large", "has 7B", "64x64 pixels",
        "16 codes out of 4,096", "trained on films of shapes", "4,096 tokens, about 240 frames",
        "less than the long film", "0 of 1 are right in everything", "guidance 2", "a <small> red ring",
        "wrong in place, size", "whatever I like", "of things at places where training never showed them",
        "0 of 1 are described", "a large <b>blue</b> cross",
        "A film of 3 minutes, and 2 questions", "180 frames", "12,288 tokens in 1 min 15 s, 3 times the longest rows",
        "1 of 2 answers are right", "ring 1:00. 2:00", "2:00 2:0…", "1.2", "1 of 2", "answers right about 3 minutes",
        "How a model begins to learn", "of the recipe nano & text", "for 1 min 0 s of steps",
        "the loss on its training rows went from 5.30 to 0.43", "recipe.json of nano & text",
    ):  # fmt: skip
        assert said in words, said
    for unsaid in ("How it learned", "What each stage bought", "the same recipe on the same mesh"):
        assert unsaid not in words


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    shown = write_shown(tmp_path)
    replace(shown, drawn=(), long_film=None, about=replace(shown.about, trained_on=None)).write(tmp_path)
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    words = "\n".join(page.words)
    assert "Described in words" in words
    for unsaid in ("Drawn from words", "A film of", "answers right", "less than", "trained on films", "needles"):
        assert unsaid not in words


def test_a_run_and_what_its_model_showed(tmp_path: Path) -> None:
    write_shown(write_run(tmp_path))
    words = Page(write_report(tmp_path).read_text(encoding="utf-8")).words
    for said in ("nano & text", "How it learned", "Drawn from words", "What each stage bought"):
        assert said in words, said


def test_a_strip_of_another_film_is_refused(tmp_path: Path) -> None:
    shown = write_shown(tmp_path)
    assert shown.long_film is not None
    longer = replace(shown.long_film, times=("0:00",) * 5, told=("nothing",) * 5)
    replace(shown, long_film=longer).write(tmp_path)
    with pytest.raises(UserError, match=r"long-film\.png does not hold a frame of each of 5 minutes"):
        write_report(tmp_path)


def test_a_run_of_no_step_yet(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    assert Page(write_report(tmp_path).read_text(encoding="utf-8")).sources == []


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run in"):
        write_report(tmp_path)
    write_run(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{\n{}\n")
    with pytest.raises(UserError, match=r"cannot read .*metrics\.jsonl .*damaged"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match=r"there is no .*metrics\.jsonl"):
        write_report(tmp_path)
