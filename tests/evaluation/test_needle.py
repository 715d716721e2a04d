import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from generation.models import random_model, tokenizer
from ringworld.data.needle_words import CITIES
from ringworld.errors import UserError
from ringworld.evaluation.needle import (
    NEEDLE_METRIC,
    Case,
    NeedleCheck,
    NeedleResult,
    Task,
    answer_cases,
    case_grid,
    depth_grid,
    evaluate_needle,
)
from ringworld.evaluation.prose import HeldOutProse
from ringworld.generation.model import Model


class Oracle(Model):
    """Reads the prompt as a person would: the cities of the question, then their numbers. Lost beyond `memory`."""

    memory = 10**9

    def generate_batch(self, prompts: Sequence[np.ndarray], max_tokens: int = 128, **settings: Any) -> list[np.ndarray]:
        assert settings == {}, "greedy"
        batches.append([len(prompt) for prompt in prompts])
        return [self._answer(prompt, max_tokens) for prompt in prompts]

    def _answer(self, prompt: np.ndarray, max_tokens: int) -> np.ndarray:
        text = self.tokenizer.decode(prompt.tolist())
        context, _, question = text.rpartition("What ")
        assert text.endswith("ASSISTANT: ")
        numbers = dict(re.findall(r"\nThe special magic ([A-Z][\w ]+?) number is: (\d{7})\n", context))
        asked = [city for city in CITIES if re.search(rf"\b{city}\b", question)]
        said = ", ".join(f"{city}: {numbers[city]}" for city in asked)
        if len(prompt) > self.memory:
            said = "I do not know."
        ids = self.tokenizer.encode(said)
        assert len(ids) <= max_tokens
        return np.array(ids, np.int32)


@dataclass(frozen=True, eq=False)
class Forgetful(Oracle):
    """Knows nothing of prompts over 300 tokens."""

    memory = 300


batches: list[list[int]] = []


@pytest.fixture(autouse=True)
def _no_batches() -> None:
    batches.clear()


def oracle(kind: type[Oracle] = Oracle) -> Oracle:
    return kind(**vars(random_model()))


def prose() -> HeldOutProse:
    return HeldOutProse(tokenizer(), ["tiny"])


def run(out: Path, model: Model | None = None, **changes: Any) -> NeedleResult:
    settings: dict[str, Any] = {"lengths": [256, 512], "depths": 3, "rounds": 2, "console": Console(quiet=True)}
    return evaluate_needle(model or oracle(), prose(), out=out, **(settings | changes))


def test_every_case_is_recorded(tmp_path: Path) -> None:
    result = run(tmp_path)
    content = json.loads((tmp_path / "needle.json").read_text())
    assert len(content["cases"]) == 2 * 3 * 2
    assert {(c["length"], c["depth"], c["round"]) for c in content["cases"]} == {
        (n, d, r) for n in (256, 512) for d in (0.0, 0.5, 1.0) for r in (0, 1)
    }
    for case in content["cases"]:
        assert list(case) == ["length", "depth", "round", "tokens", "cities", "expected", "answer", "correct"]
        assert case["cities"][0] in CITIES
        assert re.fullmatch(r"\d{7}", case["expected"][0])
        assert case["answer"] == f"{case['cities'][0]}: {case['expected'][0]}"
        assert case["correct"] == [True]
        # The context's length counts the answer: seven digits and eos.
        assert 0 < case["length"] - case["tokens"] < 50  # what is left is for the answer
    assert content["summary"] == {
        "cases": 12,
        "accuracy": 1.0,
        "by_length": {"256": 1.0, "512": 1.0},
        "by_depth": {"0.0": 1.0, "0.5": 1.0, "1.0": 1.0},
    }
    assert content["settings"]["seed"] == 0
    assert (tmp_path / "needle.png").read_bytes().startswith(b"\x89PNG")
    assert NeedleResult.read(tmp_path / "needle.json") == result


def test_rounds_and_seeds_differ_and_repeat(tmp_path: Path) -> None:
    def said(seed: int, name: str) -> list[tuple[str, ...]]:
        return [answer.cities + answer.expected for answer in run(tmp_path / name, seed=seed, lengths=[256]).answers]

    first = said(0, "a")
    assert len(set(first)) == 6
    assert said(0, "b") == first
    assert set(said(1, "c")).isdisjoint(first)


def test_a_wrong_answer_is_marked_wrong(tmp_path: Path) -> None:
    result = run(tmp_path, oracle(Forgetful))
    assert result.accuracy == 0.5
    values, lengths, depths = result.matrix()
    assert (lengths, depths) == ([256, 512], [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(values, [[1, 0]] * 3)
    assert result.answers[-1].text == "I do not know."


def test_the_heat_map_says_how_many_questions_a_cell_has(tmp_path: Path) -> None:
    result = run(tmp_path)
    rounds = 1 + max(answer.case.round for answer in result.answers)
    assert result.questions_a_cell == str(rounds)
    fewer = tuple(answer for answer in result.answers if answer.case.length == 256 or answer.case.round == 0)
    assert replace(result, answers=fewer).questions_a_cell == f"1 to {rounds}"


def test_several_needles_get_a_mark_each(tmp_path: Path) -> None:
    result = run(tmp_path, lengths=[512, 1024], kind="multi-needle", needles=4, asked=2)
    assert (tmp_path / "multi-needle.json").exists()
    assert (tmp_path / "multi-needle.png").exists()
    for answer in result.answers:
        assert len(set(answer.cities)) == 2
        assert answer.correct == (True, True)
    half = replace(result.answers[0], correct=(True, False))
    assert NeedleResult(result.settings, (half,)).accuracy == 0.5


def test_a_stopped_evaluation_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    asked = sum(map(len, batches))
    batches.clear()

    class Killed(Exception):
        pass

    class Dying(Oracle):
        def generate_batch(self, prompts: Sequence[np.ndarray], max_tokens: int = 128, **rest: Any) -> list[np.ndarray]:
            if len(batches) == 3:
                raise Killed
            return super().generate_batch(prompts, max_tokens, **rest)

    with pytest.raises(Killed):
        run(tmp_path / "cut", oracle(Dying), batch_tokens=512)
    assert len(NeedleResult.read(tmp_path / "cut" / "needle.json").answers) == sum(map(len, batches)) == 6
    assert not (tmp_path / "cut" / "needle.png").exists()
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["needle.json"]
    assert run(tmp_path / "cut", batch_tokens=512) == whole
    assert sum(map(len, batches)) == asked
    assert run(tmp_path / "cut") == whole  # nothing is left to ask
    assert sum(map(len, batches)) == asked
    assert (tmp_path / "cut" / "needle.json").read_bytes() == (tmp_path / "whole" / "needle.json").read_bytes()


def test_a_grid_can_be_extended(tmp_path: Path) -> None:
    run(tmp_path, lengths=[256], rounds=1)
    batches.clear()
    assert run(tmp_path) == run(tmp_path / "at once")
    assert sum(map(len, batches)) == 9 + 12


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed 0 there, 1 now"),
        ({"model": Oracle(**vars(random_model(seed=1)))}, r"model \w{16} there, \w{16} now"),
    ],
)
def test_results_of_another_evaluation_are_not_mixed_in(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    run(tmp_path, lengths=[256], rounds=1)
    before = (tmp_path / "needle.json").read_bytes()
    with pytest.raises(UserError, match=said):
        run(tmp_path, **changes)
    assert (tmp_path / "needle.json").read_bytes() == before


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "needle.json").write_text('{"cases"')
    with pytest.raises(UserError, match=r"cannot read the results in .*needle\.json"):
        run(tmp_path)
    (tmp_path / "needle.json").write_text("{}")
    with pytest.raises(UserError, match="does not hold needle results"):
        run(tmp_path)


def test_batches_are_bound_by_tokens_and_of_one_size() -> None:
    cases = case_grid([256, 512], depth_grid(5), 2)
    answered = [
        answer for batch in answer_cases(oracle(), prose(), Task(), cases, batch_tokens=2048) for answer in batch
    ]
    assert [answer.case for answer in answered] == cases
    assert [len(batch) for batch in batches] == [5, 5, 4, 4, 2]  # at most 8 of 256, at most 4 of 512
    batches.clear()
    list(answer_cases(oracle(), prose(), Task(), cases[:2], batch_tokens=1))
    assert [len(batch) for batch in batches] == [1, 1]


def test_a_prompt_does_not_depend_on_the_grid_around_it() -> None:
    case = Case(512, 0.5, 1)
    ((alone,),) = answer_cases(oracle(), prose(), Task(), [case])
    among = [
        a for batch in answer_cases(oracle(), prose(), Task(), case_grid([256, 512], (0.0, 0.5), 2)) for a in batch
    ]
    assert alone in among


def test_depth_grid() -> None:
    assert depth_grid(1) == (0.5,)
    assert depth_grid(5) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert depth_grid(4) == (0.0, 0.333333, 0.666667, 1.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"depths": 0}, "0 depths"),
        ({"rounds": 0}, "0 rounds"),
        ({"lengths": []}, "context lengths are"),
        ({"lengths": [512, -1]}, "context lengths are"),
        ({"lengths": [20]}, "a row of 20 tokens has no room"),
        ({"lengths": [10**6]}, r"a context of 1,000,000 tokens .* the held-out prose \(tiny\) has [\d,]+ tokens"),
        ({"needles": 2}, "one needle, not 2"),
        ({"kind": "multi-needle", "needles": 2, "asked": 3}, "3 of 2 needles"),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(tmp_path, **changes)
    assert not (tmp_path / "needle.json").exists()


def test_the_check_after_a_stage_asks_up_to_twice_its_length() -> None:
    @dataclass
    class Stage:
        sequence_length: int

    check = NeedleCheck(prose(), (240, 300, 600, 1024), cases=4)
    assert list(check(Stage(300), oracle(Forgetful))) == [
        (f"{NEEDLE_METRIC}240", 1.0), (f"{NEEDLE_METRIC}300", 1.0), (f"{NEEDLE_METRIC}600", 0.0)
    ]  # fmt: skip


def test_a_real_model_is_asked_and_answers_something(tmp_path: Path) -> None:
    result = run(tmp_path, random_model(), lengths=[256], depths=2, rounds=1)
    assert result.accuracy == 0.0
    assert all(answer.text for answer in result.answers)
