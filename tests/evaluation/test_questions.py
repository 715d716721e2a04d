import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringworld.errors import UserError
from ringworld.evaluation.questions import accuracy_by_kind, chosen_letter, normalise, read_questions

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


def test_accuracy_by_kind():
    assert accuracy_by_kind([("b", True), (None, False), ("a", False), ("b", False)]) == {
        "questions": 4,
        "accuracy": 0.25,
        "by_kind": {"a": {"questions": 1, "accuracy": 0.0}, "b": {"questions": 2, "accuracy": 0.5}},
    }
    assert [*accuracy_by_kind([("b", True), ("a", True)])["by_kind"]] == ["a", "b"]
