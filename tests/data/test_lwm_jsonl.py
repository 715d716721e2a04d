import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringworld.data.documents import Document
from ringworld.data.jsonl import read_jsonl
from ringworld.data.lwm_jsonl import (
    Field,
    InLine,
    LwmDocuments,
    convert_lwm_jsonl,
    parse_fields,
    read_lwm_jsonl,
    shards_of_lwm_jsonl,
)
from ringworld.data.multimodal import ShardDocuments
from ringworld.data.packing import frame
from ringworld.errors import UserError
from ringworld.tokens.text import train_tokenizer
from ringworld.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    text_size=280, bos=1, eos=2, pad=0, codes=16, vision_size=20, vision_start=(270, 271), vision_end=(272,),
    frame_height=1, frame_width=3,
)  # fmt: skip
TEXT = train_tokenizer(["a red circle"], 280)
TOKENIZER = TEXT.of(VOCABULARY)
EOF, EOV = 16, 17  # as files count them
PAIR = {"caption": "red", "title": "a", "empty": "", "vision": [1, 2, 3, 4, 5, 6]}
FRAMES = [270, 271, 281, 282, 283, 296, 284, 285, 286, 297, 272]


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "a.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def pairs(document: Document) -> list[tuple[int, float]]:
    framed = frame(document, VOCABULARY)
    return list(zip(framed.tokens.tolist(), framed.weights.tolist(), strict=True))


def expected(*parts: tuple[str | list[int], float]) -> list[tuple[int, float]]:
    ids = [(part if isinstance(part, list) else TOKENIZER.encode(part), weight) for part, weight in parts]
    return [(1, 0.0), *((one, weight) for part, weight in ids for one in part), (2, 1.0)]


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ("[caption],vision", [("red", 0.0), (FRAMES, 1.0)]),
        ("[vision],caption", [(FRAMES, 0.0), ("red", 1.0)]),
        ("[title+caption]", [("a red", 0.0)]),
        ("[title],empty", [("a", 0.0)]),
        ("caption,[vision]", [("red", 1.0), (FRAMES, 0.0)]),
        ("title,[<|eos|>],<|bos|>,caption", [("a", 1.0), ([2], 0.0), ([1], 1.0), ("red", 1.0)]),
    ],
)
def test_a_spec_makes_the_tokens_and_the_loss_mask_of_lwm(tmp_path: Path, fields: str, parts: Any) -> None:
    documents = read_lwm_jsonl(write(tmp_path, PAIR), fields, TOKENIZER)
    assert pairs(documents[0]) == expected(*parts)
    assert (len(documents), documents.lines.skipped, documents.lines.warnings) == (1, (), ())


def test_modalities_are_those_of_the_ids(tmp_path: Path) -> None:
    document = read_lwm_jsonl(write(tmp_path, PAIR), "caption,vision", TOKENIZER)[0]
    assert [span.modality for span in document.spans] == ["text", "text", "vision", "text"]


def test_codes_with_their_terminators_are_the_same_vision(tmp_path: Path) -> None:
    path = write(tmp_path, {"vision": [1, 2, 3, EOF, 4, 5, 6, EOV]}, "", {"vision": [1, 2, 3]})
    documents = read_lwm_jsonl(path, "vision", TOKENIZER)
    assert pairs(documents[0]) == expected((FRAMES, 1.0))
    assert pairs(documents[1]) == expected(([*FRAMES[:5], 297, 272], 1.0))
    assert documents.lines.sizes.tolist() == [len(line) for line in path.read_bytes().splitlines(True) if line.strip()]


def test_the_spec_in_the_line(tmp_path: Path) -> None:
    specs = ["[caption],vision", "[vision],caption"]
    lines = [{**PAIR, "fields": specs, "one": "caption"} for _ in range(40)]
    path = write(tmp_path, *lines[:20], "", *lines[20:])
    drawn = read_lwm_jsonl(path, InLine(), TOKENIZER)
    orders = [expected(("red", 0.0), (FRAMES, 1.0)), expected((FRAMES, 0.0), ("red", 1.0))]
    numbers = [*range(20), *range(21, 41)]  # from 0, the empty line counted
    chosen = [random.Random(number).choice([0, 1]) for number in numbers]
    assert [pairs(drawn[index]) for index in range(40)] == [orders[one] for one in chosen]
    assert len(set(chosen)) == 2
    assert pairs(read_lwm_jsonl(path, InLine(index=1), TOKENIZER)[7]) == orders[1]
    assert pairs(read_lwm_jsonl(path, InLine("one"), TOKENIZER)[7]) == expected(("red", 1.0))


BAD = [
    ("{", "not JSON"),
    ([1], "must be a JSON object, got list"),
    ({"caption": "red"}, "has no field 'vision', which the fields name; it has caption"),
    ({"vision": [1, 2, 3]}, "has no field 'caption', which the fields name; it has vision"),
    ({**PAIR, "caption": None}, "'caption' must be a text, got NoneType"),
    ({**PAIR, "caption": [1]}, "'caption' must be a text, got list"),
    ('{"caption": "\\ud800", "vision": [1, 2, 3]}', "'caption' is not Unicode: half a surrogate pair at 0"),
    ({**PAIR, "vision": "seen"}, "'vision' is a text: a field with \"vision\" in its name holds codes"),
    ({**PAIR, "vision": []}, "'vision' must be a list of codes, numbers from 0 to 15"),
    ({**PAIR, "vision": [1, 2.5, 3]}, "'vision' must be a list of codes"),
    ({**PAIR, "vision": [[1, 2, 3]]}, "'vision' must be a list of codes"),
    ({**PAIR, "vision": [[1], [2, 3]]}, "'vision' must be a list of codes"),
    ({**PAIR, "vision": [1, 2, 2**70]}, "'vision' must be a list of codes"),
    ({**PAIR, "vision": {"a": 1}}, "'vision' must be a list of codes"),
    ({**PAIR, "vision": [1, 2, 3, 18, 5, 6]}, "'vision' has 18 at 3: codes are 0 to 15, with 16 and 17"),
    ({**PAIR, "vision": [1, -1, 3]}, "'vision' has -1 at 1: codes are 0 to 15"),
    ({**PAIR, "vision": [1, 2, 3, 4]}, "'vision' has 4 numbers, and a frame of codes has 3: 1 are left over"),
    ({**PAIR, "vision": [1, 2, 3, EOF, 4]}, "has 5 numbers, and a frame with eof or eov has 4: 1 are left over"),
    ({**PAIR, "vision": [1, 2, 3, EOF, 4, 5, 6, 7]}, r"has 7 at 7, where eov \(17\) must stand"),
    ({**PAIR, "vision": [1, 2, 3, EOF]}, r"has 16 at 3, where eov \(17\) must stand"),
    ({**PAIR, "vision": [1, 2, 3, EOV, 4, 5, 6, EOV]}, r"has 17 at 3, where eof \(16\) must stand"),
    ({**PAIR, "vision": [1, 2, 3, 9, 4, 5, 6, EOV]}, r"has 9 at 3, where eof \(16\) must stand"),
    ({**PAIR, "vision": [1, EOF, 3, EOV]}, "has 16 at 1, where a code must stand"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_malformed_lines_name_file_and_line(tmp_path: Path, line: Any, reason: str) -> None:
    path = write(tmp_path, PAIR, "", line, PAIR)
    with pytest.raises(
        UserError, match=f"1 of 3 lines of {path} are malformed .{path}:3: .*{reason}.*more than the 1.00%"
    ):
        read_lwm_jsonl(path, "caption,vision", TOKENIZER)
    documents = read_lwm_jsonl(path, "caption,vision", TOKENIZER, bad_share=0.5)
    assert [pairs(documents[index]) for index in range(2)] == [expected(("red", 1.0), (FRAMES, 1.0))] * 2
    assert (len(documents), len(documents.lines.skipped)) == (2, 1)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ("caption,<|pad|>", "of such tokens there are <|bos|> and <|eos|>"),
        ("[<|pad|>]", "of such tokens there are <|bos|> and <|eos|>"),
        ("[caption], vision", "without spaces around them"),
        ("title + caption", "without spaces around them"),
        ("caption,,vision", "there must be a name"),
        ("", "there must be a name"),
        ("[]", "there must be a name"),
        ("title+", "there must be a name"),
        ("[caption,vision", "[ and ] stand around a whole part"),
        ("[title]+caption", "[ and ] stand around a whole part"),
        ("caption+vision", "only texts can be joined by +"),
        ("vision+caption", "only texts can be joined by +"),
        ("caption+<|eos|>", "only texts can be joined by +"),
    ],
)
def test_specs_that_lwm_would_not_take_or_take_wrongly(tmp_path: Path, fields: str, reason: str) -> None:
    path = write(tmp_path, PAIR, {**PAIR, "fields": fields})
    with pytest.raises(UserError) as error:
        read_lwm_jsonl(path, fields, TOKENIZER)
    assert str(error.value).startswith(f"the fields {fields!r} have ")
    assert reason in str(error.value)
    with pytest.raises(UserError) as error:
        read_lwm_jsonl(path, InLine(), TOKENIZER)
    assert f"{path}:1: 'fields' must be a spec of fields or a list of them, got none" in str(error.value)
    assert f"{path}:2: the fields {fields!r} have " in str(error.value)


def test_specs_that_the_line_does_not_have(tmp_path: Path) -> None:
    path = write(tmp_path, {**PAIR, "fields": ["caption", "vision"]}, {**PAIR, "fields": []}, {**PAIR, "fields": [3]})
    with pytest.raises(UserError) as error:
        read_lwm_jsonl(path, InLine(index=2), TOKENIZER)
    assert f"{path}:1: 'fields' has 2 specs, 0 to 1, so none 2" in str(error.value)
    assert f"{path}:2: 'fields' must be a spec of fields or a list of them, got list" in str(error.value)
    assert f"{path}:3: 'fields' has 1 specs" in str(error.value)


def test_parts_of_a_spec() -> None:
    assert parse_fields("[a+b],my_vision,<|eos|>") == (
        Field(("a", "b"), False),
        Field(("my_vision",), True),
        Field(("<|eos|>",), True),
    )
    assert [field.is_vision for field in parse_fields("a,my_vision")] == [False, True]


def test_a_bos_or_eos_that_the_spec_has_stands_once_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, PAIR, PAIR)
    with caplog.at_level(logging.WARNING, "ringworld"):
        documents = read_lwm_jsonl(path, "<|bos|>,caption,<|eos|>", TOKENIZER)
    assert pairs(documents[1])[1:] == expected(("red", 1.0))[1:]
    assert [token for token, _ in pairs(documents[1])].count(1) == 1
    (warning,) = documents.lines.warnings
    assert warning == (
        f"{path}:1: its fields begin with <|bos|>, which LWM writes twice; "
        "its fields end with <|eos|>, which LWM writes twice"
    )
    assert f"read otherwise than by LWM: {path}:1: " in caplog.text
    lines = write(tmp_path, *({**PAIR, "fields": spec} for spec in ("caption", "caption,<|eos|>", "<|bos|>,title")))
    assert [one.split(": ")[0] for one in read_lwm_jsonl(lines, InLine(), TOKENIZER).lines.warnings] == [
        f"{lines}:2",
        f"{lines}:3",
    ]


def test_vocabularies_that_have_less(tmp_path: Path) -> None:
    path = write(tmp_path, PAIR)
    assert len(read_lwm_jsonl(path, "caption", TEXT)) == 1
    with pytest.raises(UserError, match="'vision' is vision, and the vocabulary has none"):
        read_lwm_jsonl(path, "caption,vision", TEXT)
    no_bos = TEXT.of(Vocabulary(text_size=280, bos=None, eos=2, pad=0))
    with pytest.raises(UserError, match=r"the fields have <\|bos\|>, and the vocabulary has no bos"):
        read_lwm_jsonl(path, "caption,<|bos|>,title", no_bos)


def test_files_without_documents(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no line"):
        read_lwm_jsonl(write(tmp_path), "caption", TOKENIZER)
    with pytest.raises(UserError, match=r"cannot read .*missing.jsonl: No such file"):
        read_lwm_jsonl(tmp_path / "missing.jsonl", "caption", TOKENIZER)


def test_converted_files_are_read_as_the_same_documents(tmp_path: Path) -> None:
    path = write(tmp_path, *[{**PAIR, "fields": ["[caption],vision", "[vision],title+caption"]}] * 9, "{")
    out = tmp_path / "out.jsonl"
    lines = convert_lwm_jsonl(path, out, InLine(), TOKENIZER, bad_share=0.1)
    ours, theirs = LwmDocuments(lines, TOKENIZER), read_jsonl(out, TOKENIZER)
    assert (len(ours), len(theirs), len(lines.skipped), theirs.skipped) == (9, 9, 1, ())
    for index in range(9):
        assert pairs(ours[index]) == pairs(theirs[index])
        for one, other in zip(ours[index].spans, theirs[index].spans, strict=True):
            assert (one.modality, one.weight) == (other.modality, other.weight)
            np.testing.assert_array_equal(one.ids, other.ids)
    with pytest.raises(UserError, match=r"out\.jsonl is there already: remove it"):
        convert_lwm_jsonl(path, out, InLine(), TOKENIZER, bad_share=0.1)
    with pytest.raises(UserError, match=f"cannot write {path / 'b'}"):
        convert_lwm_jsonl(path, path / "b", InLine(), TOKENIZER, bad_share=0.1)
    bad = tmp_path / "bad.jsonl"
    with pytest.raises(UserError, match="malformed"):
        convert_lwm_jsonl(path, bad, InLine(), TOKENIZER)
    assert not bad.exists()


SPECS = [
    "[caption],vision",
    "[vision],title+caption",
    "caption,[vision]",
    "[title],caption,<|eos|>,[title],caption",
    "title,[<|eos|>],<|bos|>,caption",
    "<|bos|>,title,[<|eos|>]",
    "[title],empty",
]


def test_shards_hold_the_same_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringworld.data.lwm_jsonl.SHARD", 8)
    path = write(tmp_path, *[{**PAIR, "fields": spec} for spec in SPECS for _ in range(2)], "{", "")
    done: list[tuple[int, int]] = []
    lines = shards_of_lwm_jsonl(
        path, tmp_path / "out", InLine(), VOCABULARY, bad_share=0.1, progress=lambda *n: done.append(n)
    )
    assert (len(lines), done) == (14, [(8, 14), (14, 14)])
    ours, shards = read_lwm_jsonl(path, InLine(), TOKENIZER, bad_share=0.1), ShardDocuments(tmp_path / "out", TOKENIZER)
    assert [pairs(shards[index]) for index in range(len(shards))] == [pairs(ours[index]) for index in range(14)]
    (bad,) = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    assert bad["source"] == "a.jsonl:15"
    assert bad["reason"].startswith("not JSON (")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "bad.jsonl",
        "documents-00000.array_record",
        "documents-00001.array_record",
    ]


def test_pairs_can_be_swapped_and_texts_dropped_once_they_are_shards(tmp_path: Path) -> None:
    path = write(tmp_path, *[PAIR] * 5)
    shards_of_lwm_jsonl(path, tmp_path / "out", "[caption],vision", VOCABULARY)
    swapped = ShardDocuments(tmp_path / "out", TOKENIZER, swap=1.0)[0]
    assert pairs(swapped) == expected((FRAMES, 0.0), ("red", 1.0))
    assert pairs(ShardDocuments(tmp_path / "out", TOKENIZER, drop_text=1.0)[0]) == expected((FRAMES, 1.0))


def test_shards_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, PAIR)
    with pytest.raises(UserError, match="malformed"):
        shards_of_lwm_jsonl(write(tmp_path, "{"), tmp_path / "out", "caption", VOCABULARY)
    write(tmp_path, PAIR)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ringworld.data.lwm_jsonl.write_shard", full)
        with pytest.raises(UserError, match=r"cannot write .*out: No space left on device"):
            shards_of_lwm_jsonl(path, tmp_path / "out", "caption", VOCABULARY)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
    shards_of_lwm_jsonl(path, tmp_path / "out", "caption", VOCABULARY)
    with pytest.raises(UserError, match=r"out is there already, and is not an empty folder"):
        shards_of_lwm_jsonl(path, tmp_path / "out", "caption", VOCABULARY)
