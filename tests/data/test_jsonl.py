import json
import logging
from pathlib import Path

import numpy as np
import pytest

from ringworld.data.jsonl import read_jsonl
from ringworld.data.media import _of_line
from ringworld.errors import UserError
from ringworld.tokens.chat import LWM_TEMPLATE, ChatTemplate, Message
from ringworld.tokens.text import TextTokenizer, train_tokenizer
from ringworld.tokens.vision import vision_ids
from ringworld.tokens.vocabulary import LWM

TOKENIZER = train_tokenizer(["one two three"], 280)


def write(path: Path, *lines: object) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def test_raw_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"text": "one"},
        "",
        {"spans": [{"text": "one "}, {"text": "two", "trained": True}, {"text": "\u2028"}]},
        {"spans": [{"text": "one", "trained": 0.25}, {"text": "", "trained": False}]},
        {"text": "three", "trained": False},
    )
    documents = read_jsonl(path, TOKENIZER)
    assert (len(documents), documents.skipped) == (4, ())
    assert documents[0].tokens.tolist() == TOKENIZER.encode("one")
    assert documents[0].weights.tolist() == [1.0] * len(documents[0])
    assert [span.weight for span in documents[1].spans] == [0.0, 1.0, 0.0]
    assert TOKENIZER.decode(documents[1].tokens) == "one two\u2028"
    assert [span.weight for span in documents[2].spans] == [0.25, 0.0]
    assert set(documents[3].weights.tolist()) == {0.0}


def test_tokenised_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", {"spans": [{"modality": "text", "ids": [1, 5, 279]}, {"ids": [], "trained": True}]}
    )
    document = read_jsonl(path, TOKENIZER)[0]
    assert document.tokens.tolist() == [1, 5, 279]
    assert document.weights.tolist() == [0.0, 0.0, 0.0]


BAD = [
    ("{", "not JSON"),
    ("[1]", "must be a JSON object, got list"),
    ("{}", 'must have "text", "messages" or a list "spans" that is not empty'),
    ({"spans": []}, 'must have "text", "messages" or a list "spans" that is not empty'),
    ({"spans": ["a"]}, "every span must be a JSON object"),
    ({"spans": [{"image": "a.png"}]}, r"a span must have \"text\", or \"modality\" and \"ids\", got \['image'\]"),
    ({"text": 3}, '"text" must be a string, got int'),
    ('{"text": "\\ud800"}', "half a surrogate pair at 0"),
    ({"text": "a", "trained": "yes"}, "\"trained\" must be true, false or a number from 0 up, got 'yes'"),
    ({"text": "a", "trained": -1}, "got -1"),
    ('{"text": "a", "trained": NaN}', "got nan"),
    ('{"text": "a", "trained": 1e999}', "got inf"),
    ('{"text": "a", "trained": 1%s}' % ("0" * 400), "from 0 up, got 1000"),
    ({"spans": [{"ids": [1, 2.5]}]}, '"ids" must be a list of integers'),
    ({"spans": [{"ids": [280]}]}, '"ids" of text must be 0 to 279, got 280'),
    ({"spans": [{"modality": "vision", "ids": [1]}]}, "\"modality\" must be one of text, got 'vision'"),
    ({"messages": "hello"}, '"messages" must be a list of objects with "role" and "content"'),
    ({"messages": [{"role": "root", "content": "a"}]}, 'a message must have a "role", one of system, user, assistant'),
    ({"messages": [{"role": "user", "content": 3}]}, 'must have "content", a string or a list of spans, got 3'),
    ({"messages": [{"role": "user", "content": "a"}]}, "must have an answer, what an assistant says or shows"),
    ({"messages": [{"role": "assistant", "content": [{"text": "a", "trained": True}]}]}, "the answers are trained on"),
    ({"messages": [{"role": "assistant", "content": [{"image": "a"}]}]}, r"must have \"text\", or \"modality\" and"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_malformed_lines_name_file_and_line(tmp_path: Path, line: object, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", {"text": "one"}, "", line, {"text": "two"})
    with pytest.raises(
        UserError, match=f"1 of 3 lines of {path} are malformed .{path}:3: .*{reason}.*more than the 1.00%"
    ):
        read_jsonl(path, TOKENIZER)
    documents = read_jsonl(path, TOKENIZER, bad_share=0.5)
    assert [TOKENIZER.decode(documents[i].tokens) for i in range(len(documents))] == ["one", "two"]
    assert len(documents.skipped) == 1


def test_a_run_says_how_many_lines_it_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.jsonl", *[{"text": "one"}] * 95, *["{"] * 5)
    with caplog.at_level(logging.WARNING, "ringworld"):
        documents = read_jsonl(path, TOKENIZER, bad_share=0.05)
    assert len(documents) == 95
    assert f"5 of 100 lines of {path} are malformed ({path}:96: " in caplog.text
    assert f"{path}:98: " in caplog.text
    assert f"{path}:99: " not in caplog.text
    assert documents.skipped[4].startswith(f"{path}:100: not JSON")


def test_bytes_that_are_no_text_are_a_malformed_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n\xff\xfe\n')
    with pytest.raises(UserError, match=f"{path}:2: not JSON"):
        read_jsonl(path, TOKENIZER)


def test_files_without_documents(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no line"):
        read_jsonl(write(tmp_path / "empty.jsonl"), TOKENIZER)
    with pytest.raises(UserError, match=r"cannot read .*missing.jsonl: No such file"):
        read_jsonl(tmp_path / "missing.jsonl", TOKENIZER)
    with pytest.raises(UserError, match="1 of 1 lines"):
        read_jsonl(write(tmp_path / "bad.jsonl", "{"), TOKENIZER, bad_share=1.0)


def test_vision_ids_are_in_the_one_id_space(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["one"], 260)
    tokenizer._vocabulary = LWM
    path = write(
        tmp_path / "a.jsonl",
        {"spans": [{"modality": "vision", "ids": [32000, 40193], "trained": True}]},
        {"spans": [{"modality": "vision", "ids": [31999]}]},
    )
    documents = read_jsonl(path, tokenizer, bad_share=0.5)
    assert documents[0].tokens.tolist() == [32000, 40193]
    assert documents.skipped[0].endswith('"ids" of vision must be 32000 to 40447, got 31999')


def test_conversations_are_laid_out_by_the_template_and_their_answers_trained(tmp_path: Path) -> None:
    turns = [("user", "one?"), ("assistant", "two"), ("user", "and?"), ("assistant", "three")]
    messages = [{"role": role, "content": content} for role, content in turns]
    path = write(tmp_path / "a.jsonl", {"text": "one"}, {"messages": messages})
    document = read_jsonl(path, TOKENIZER)[1]
    template = ChatTemplate(TOKENIZER)
    asked: list[Message] = [{"role": "user", "content": "one?"}]
    whole: list[Message] = [*asked, {"role": "assistant", "content": "two"}, {"role": "user", "content": "and?"}]
    assert document.tokens.tolist() == template.encode([*whole, {"role": "assistant", "content": "three"}])
    trained = document.tokens[document.weights > 0]
    assert TOKENIZER.decode(trained) == " two three"
    assert document.weights.sum() == pytest.approx(2)
    assert document.weights[: len(template.encode(asked, add_generation_prompt=True))].tolist() == [0] * len(
        template.encode(asked, add_generation_prompt=True)
    )


def test_conversations_hold_what_is_shown_as_ids(tmp_path: Path) -> None:
    vocabulary = TOKENIZER.vocabulary.seeing(16, 2, 2, (270, 271), (272,))
    sees = TOKENIZER.of(vocabulary)
    ids = vision_ids(np.arange(4).reshape(1, 2, 2), vocabulary)
    codes = ids[(ids >= 280) & (ids < 296)]
    content = [
        {"text": "one "}, {"ids": [270, 271]}, {"modality": "vision", "ids": [*codes.tolist(), 297]}, {"ids": [272]}
    ]  # fmt: skip
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "two"}]
    document = read_jsonl(write(tmp_path / "a.jsonl", {"messages": messages}), sees)[0]
    said: list[Message] = [
        {"role": "user", "content": ["one ", ids]},
        {"role": "assistant", "content": "two"},
    ]
    assert document.tokens.tolist() == ChatTemplate(sees).encode(said)
    assert [span.modality for span in document.spans].count("vision") == 1


def test_a_conversation_that_cannot_be_laid_out_names_its_file(tmp_path: Path) -> None:
    joining = train_tokenizer(["a"], 300, [" ASSISTANT: "])
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tokenizer = TextTokenizer(joining.inner, joining.vocabulary, LWM_TEMPLATE)
    documents = read_jsonl(write(tmp_path / "a.jsonl", {"messages": messages}), tokenizer)
    with pytest.raises(
        UserError, match=r"document 0 of .*a\.jsonl: the beginning of a conversation is written in other"
    ):
        documents[0]


def test_the_lines_shown_in_the_documentation_are_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    path = tmp_path / "a.jsonl"
    path.write_text(page.split("```json\n")[1].split("```")[0], encoding="utf-8")
    documents = read_jsonl(path, TOKENIZER)
    assert (len(documents), documents.skipped) == (5, ())
    assert [span.weight for span in documents[1].spans] == [0.0, 1.0]
    assert documents[3].tokens.tolist() == [17, 4, 203]
    assert TOKENIZER.decode(documents[4].tokens[documents[4].weights > 0]) == " Deep."


def test_the_raw_documents_shown_in_the_documentation_are_some() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    for line in page.split("```json\n")[2].split("```")[0].splitlines():
        document = _of_line(line.encode(), Path("a.jsonl"), "a.jsonl:1", 1.0)
        assert document.wrong is None
        assert len(document.spans) >= 2
