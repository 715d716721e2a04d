import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ringworld.errors import UserError
from ringworld.evaluation.vqa import (
    MediaFile,
    Turn,
    chosen_letter,
    conversation,
    evaluate_vqa,
    normalise,
    read_cases,
    read_questions,
    write_cases,
)
from ringworld.tokens.images import write_image
from ringworld.tokens.video import write_video

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}
SIZE = 16


def plain(colour: str) -> np.ndarray:
    return np.tile(np.array(COLOURS[colour], np.uint8), (SIZE, SIZE, 1))


@dataclass
class Seer:
    """Answers with the colours that it was shown, in their order, and remembers what it was asked."""

    fingerprint: str = "seer"
    context_length: int = 1024
    frame_size: int = SIZE
    tokens_per_frame: int = 10
    calls: list[list[str]] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)

    def answer(self, conversations: Sequence[Sequence[Turn]], max_tokens: int) -> list[str]:
        self.calls.append([self._words(turns) for turns in conversations])
        return [f" The {' '.join(self._colours(turns))}. " for turns in conversations]

    def _words(self, turns: Sequence[Turn]) -> str:
        return "".join(part for part in turns[0]["content"] if isinstance(part, str)).strip()

    def _colours(self, turns: Sequence[Turn]) -> list[str]:
        colours = []
        for part in turns[0]["content"]:
            if not isinstance(part, str):
                frames = [*part]
                self.shown.append(len(frames))
                colours += [list(COLOURS)[int(frame.mean((0, 1)).argmax())] for frame in frames]
        return [colour for before, colour in zip([None, *colours], colours, strict=False) if colour != before]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for colour in COLOURS:
        write_image(tmp_path / f"{colour}.png", plain(colour))
    write_video(tmp_path / "film.gif", [plain("red")] * 4 + [plain("blue")] * 4, 2)
    return tmp_path


def ask(folder: Path, records: Sequence[Any], model: Seer | None = None, **settings: Any):
    path = folder / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    return evaluate_vqa(model or Seer(), path, folder / "out", console=Console(quiet=True), **settings)


ALL = [
    {"media": "red.png", "question": "Which colour?", "answer": "red", "kind": "colour"},
    {"media": "blue.png", "question": "Which colour?", "answer": ["navy", "Blue"], "kind": "colour"},
    {"media": "film.gif", "fps": 2, "question": "What happens?", "answer": "red, blue", "kind": "film"},
    {"media": "red.png", "question": "Which shape?", "answer": "a square", "kind": "shape"},
    {"media": ["red.png", "green.png"], "question": "Which two?", "answer": "B",
     "options": {"A": "red", "B": "red green"}},
    {"media": "film.gif", "fps": 2, "question": "Which comes first?", "answer": "blue"},
]  # fmt: skip


def test_answers_are_marked_and_written(folder):
    model = Seer()
    result = ask(folder, ALL, model)
    assert [answer.correct for answer in result.answers] == [True, True, True, False, True, False]
    content = json.loads((folder / "out" / "vqa.json").read_text())
    assert content["summary"] == {
        "questions": 6,
        "accuracy": 4 / 6,
        "by_kind": {
            "colour": {"questions": 2, "accuracy": 1.0},
            "film": {"questions": 1, "accuracy": 1.0},
            "shape": {"questions": 1, "accuracy": 0.0},
        },
        "unreadable": {},
    }
    assert content["cases"][0] == {"line": 1, "kind": "colour", "answer": "The red.", "correct": True}
    assert content["cases"][5] == {"line": 6, "answer": "The red blue.", "correct": False}
    assert sorted(model.shown) == [1, 1, 1, 1, 1, 8, 8]  # 4 seconds at 2 a second


def test_questions_about_one_film_are_asked_together(folder):
    model = Seer()
    ask(folder, ALL, model, batch_tokens=100, instructed=False)
    assert model.calls == [
        ["Which colour?", "Which shape?"],  # more than the room there is, but about one picture
        ["Which colour?"],
        ["What happens?", "Which comes first?"],
        ["Which two?\nA. red\nB. red green"],
    ]
    model.calls.clear()
    (folder / "out" / "vqa.json").unlink()
    ask(folder, ALL, model, batch_tokens=10**6)
    assert len(model.calls) == 1


def test_equal_media_are_equal_and_can_be_read_again():
    one, other = MediaFile(Path("a"), 1.0, 8, 2), MediaFile(Path("a"), 1.0, 8, 2)
    assert one == other
    assert len({one, other, MediaFile(Path("a"), 2.0, 8, 2)}) == 2


@pytest.mark.parametrize(("max_frames", "shown"), [(None, 4), (4, 4), (2, 2), (1, 1)])
def test_long_films_are_thinned_out(folder, max_frames, shown):
    model = Seer()
    result = ask(folder, [ALL[2] | {"fps": 1}], model, max_frames=max_frames)
    assert model.shown == [shown]
    assert result.answers[0].correct == (shown > 1)  # both halves are seen, as long as there are two frames


def test_words_around_a_question(folder):
    path = folder / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, [ALL[0], ALL[4]])))
    open_one, choice = read_questions(path)
    assert conversation(open_one, [[plain("red")]])[0]["content"][1] == (
        "\nWhich colour?\nAnswer the question using a single word or phrase."
    )
    first, _ = conversation(open_one, [[plain("red")]], layout="question first", instructed=False)[0]["content"]
    assert first == "Which colour?\n"
    assert conversation(choice, [])[0]["content"] == [
        "\nWhich two?\nA. red\nB. red green\nAnswer with the option's letter from the given choices directly."
    ]


def test_a_stopped_evaluation_goes_on_where_it_was(folder):
    whole = ask(folder, ALL)
    written = (folder / "out" / "vqa.json").read_bytes()
    (folder / "out" / "vqa.json").unlink()

    class Killed(Exception):
        pass

    class Dying(Seer):
        def answer(self, conversations: Sequence[Sequence[Turn]], max_tokens: int) -> list[str]:
            if len(self.calls) == 2:
                raise Killed
            return super().answer(conversations, max_tokens)

    with pytest.raises(Killed):
        ask(folder, ALL, Dying(), batch_tokens=100)
    assert len(json.loads((folder / "out" / "vqa.json").read_text())["cases"]) == 3
    model = Seer()
    assert ask(folder, ALL, model) == whole
    assert sum(map(len, model.calls)) == 3
    assert (folder / "out" / "vqa.json").read_bytes() == written
    for path in [*folder.glob("*.png"), *folder.glob("*.gif")]:
        path.unlink()
    assert ask(folder, ALL, model) == whole  # nothing is left to ask, nor to read
    assert sum(map(len, model.calls)) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": Seer("other")}, "model seer there, other now"),
        ({"records": ALL[:3]}, "sha256"),
        ({"layout": "question first"}, "layout media first there, question first now"),
    ],
)
def test_results_of_another_evaluation_are_not_mixed_in(folder, change, said):
    ask(folder, ALL)
    with pytest.raises(UserError, match=said):
        ask(folder, **({"records": ALL} | change))


def test_what_cannot_be_read_is_listed_up_to_a_share(folder):
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    records = [*ALL, {"media": "bad.png", "question": "What?", "answer": "red"}]
    with pytest.raises(UserError, match=r"1 of the pictures and films cannot be read \(.*bad\.png.*0\.05 allowed"):
        ask(folder, records)
    assert not (folder / "out").exists()
    result = ask(folder, records, bad_share=0.5)
    assert len(result.answers) == 6
    (name,) = result.summary()["unreadable"]
    assert name.endswith("bad.png")
    assert json.loads((folder / "out" / "vqa.json").read_text())["summary"]["unreadable"] == result.unreadable
    write_image(folder / "bad.png", plain("red"))  # mended
    assert len(ask(folder, records, bad_share=0.5).answers) == 7


def test_a_film_that_fails_amid_its_frames_takes_no_others_with_it(folder):
    class Losing(Seer):
        def answer(self, conversations: Sequence[Sequence[Turn]], max_tokens: int) -> list[str]:
            (folder / "film.gif").unlink(missing_ok=True)
            return super().answer(conversations, max_tokens)

    with pytest.raises(UserError, match=r"cannot be read \(.*film\.gif"):
        ask(folder, ALL, Losing())
    write_video(folder / "film.gif", [plain("red")] * 2, 2)
    result = ask(folder, ALL, Losing(), bad_share=0.5)
    assert [answer.line for answer in result.answers] == [1, 2, 4, 5]
    assert [*result.unreadable] == [str(folder / "film.gif")]


def test_none_that_can_be_read(folder):
    with pytest.raises(UserError, match="none of the media"):
        ask(folder, [ALL[0] | {"media": "no.png"}], bad_share=1.0)


GOOD = {"media": "a.png", "question": "What?", "answer": "x"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"q\.jsonl:3: .*Expecting"),
        ("[]", r"q\.jsonl:3: must be a JSON object, got list"),
        (json.dumps(GOOD | {"media": []}), r'q\.jsonl:3: "media" must be a string that is not empty or a list of them'),
        (json.dumps(GOOD | {"media": 3}), '"media"'),
        (json.dumps(GOOD | {"question": ["What?"]}), '"question" must be a string that is not empty, got'),
        (json.dumps(GOOD | {"answer": ["x", 2]}), '"answer"'),
        (json.dumps(GOOD | {"fps": 0}), '"fps" must be 0.001 to 1000 frames a second, got 0'),
        (json.dumps(GOOD | {"kind": 1}), '"kind"'),
        (json.dumps(GOOD | {"options": {"first": "x"}}), '"options" must be such as'),
        (json.dumps(GOOD | {"options": {"A": "x"}}), r"one of the letters A, got 'x'"),
    ],
)
def test_malformed_lines_are_named(tmp_path, line, said):
    path = tmp_path / "q.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(UserError, match=said) as caught:
        read_questions(path)
    assert "1 of 2 questions are malformed" in str(caught.value)


def test_files_that_hold_no_question(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        read_questions(tmp_path / "no.jsonl")
    (tmp_path / "q.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no question"):
        read_questions(tmp_path / "q.jsonl")
    with pytest.raises(UserError, match="max_frames must be 1 or more, got 0"):
        evaluate_vqa(Seer(), tmp_path / "q.jsonl", tmp_path, max_frames=0)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("A red Bus.", "red bus"),
        ("the Two dogs", "2 dogs"),
        ("1,000 people!", "1000 people"),
        ("at 1:15.", "at 1:15"),
        ("3.5 m", "3.5 m"),
        ("don\u2019t know", "dont know"),
        ("**Yes**", "yes"),
        ("A", "a"),
        ("None", "0"),
        ("t-shirt/jeans", "t shirt jeans"),
        ("", ""),
    ],
)  # fmt: skip
def test_normalised_answers(answer, normal):
    assert normalise(answer) == normal


WORDS = st.lists(st.sampled_from(["red", "bus", "2", "1:15", "été"]), min_size=1, max_size=5)
DRESSING = st.tuples(st.sampled_from(["", "a ", "The ", "AN  ", "("]), st.sampled_from(["", ".", "!", ",", ")", "?"]))


@given(st.data(), WORDS)
def test_case_articles_and_punctuation_do_not_count(data, words):
    dressed = []
    for word in words:
        before, after = data.draw(DRESSING)
        dressed.append(f"{before}{data.draw(st.sampled_from([word, word.upper()]))}{after}")
    assert normalise(" ".join(dressed)) == " ".join(words)


OPTIONS = (("A", "a car"), ("B", "A bus"), ("C", "none"))


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("b", "B"), ("(B)", "B"), ("B. A bus", "B"), (" **C**", "C"), ("b)", "B"), ("A because", "A"),
        ("A bus", "B"), ("the car.", "A"), ("a bus stop", None), ("D", None), ("Bus", "B"), ("Because", None),
        ("", None), ("It is B", None), ("C's", None), ("None", "C"),
    ],
)  # fmt: skip
def test_chosen_letters(answer, letter):
    assert chosen_letter(answer, OPTIONS) == letter


def test_damaged_results_are_named(tmp_path):
    path = tmp_path / "r.json"
    assert read_cases(path, {}) == []
    write_cases(path, {"a": [1]}, {"x": 0.5}, [{"n": 1}, {"n": 2}])
    assert read_cases(path, {"a": [1]}) == [{"n": 1}, {"n": 2}]
    with pytest.raises(UserError, match=r"a \[1\] there, \[2\] now"):
        read_cases(path, {"a": [2]})
    path.write_text("[]")
    with pytest.raises(UserError, match="does not hold results"):
        read_cases(path, {})
