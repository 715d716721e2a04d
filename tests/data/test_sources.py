import json
from pathlib import Path

import pytest

from ringworld.data.corpora import Part, load_corpus, split
from ringworld.data.documents import Given, Source
from ringworld.data.sources import (
    CorpusConfig,
    JsonlConfig,
    NeedleSourceConfig,
    ShardsConfig,
    TextFolderConfig,
    TokenizerConfig,
    draws_unasked,
)
from ringworld.data.worlds import WorldSourceConfig
from ringworld.errors import UserError

TOKENIZER = TokenizerConfig(450, ("tiny",)).build()


def texts(source: Source) -> list[str]:
    return [TOKENIZER.decode(source[i].tokens) for i in range(len(source))]


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_corpora(part: Part) -> None:
    source = CorpusConfig(("tiny",)).build(Given(TOKENIZER, 64, 0, part))
    assert texts(source) == [text for _, text in split(load_corpus("tiny"), part)]


def test_needles_of_a_part_stand_in_the_prose_of_that_part() -> None:
    parts: tuple[Part, Part] = ("train", "heldout")
    for part in parts:
        source = NeedleSourceConfig(("tiny",), needles=2).build(Given(TOKENIZER, 128, 7, part))
        lines = {line for _, text in split(load_corpus("tiny"), part) for line in text.splitlines()}
        prose = TOKENIZER.decode(source[3].tokens).split("USER: ")[1].split("\n")
        whole = [line.strip() for line in prose if line.strip().endswith(".")]
        assert whole
        assert {line for line in whole if line not in lines} <= {whole[0]}
        assert len(source[0]) == 128


def test_sources_of_the_same_prose_encode_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = TOKENIZER.encode_batch

    def counted(texts: list[str]) -> list[list[int]]:
        encoded.append(len(texts))
        return encode(texts)

    tokenizer = TokenizerConfig(450, ("tiny",)).build()
    monkeypatch.setattr(tokenizer, "encode_batch", counted)
    for length in (64, 128, 256):
        NeedleSourceConfig(("tiny",), length=length).build(Given(tokenizer, 256, 0))
    assert len(encoded) == 1
    NeedleSourceConfig(("tiny",)).build(Given(tokenizer, 256, 0, "heldout"))
    assert len(encoded) == 2


def test_a_text_folder_holds_out_by_name(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text(f"tale {number}")
    config = TextFolderConfig(str(tmp_path))
    train, heldout = (texts(config.build(Given(TOKENIZER, 64, 0, part))) for part in ("train", "heldout"))
    assert (len(train), len(heldout)) == (8, 2)
    assert sorted(train + heldout) == [f"tale {number}" for number in range(10)]


def test_json_lines_hold_out_by_number(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"tale {number}"}) + "\n" for number in range(10)))
    train, heldout = (
        texts(JsonlConfig(str(path)).build(Given(TOKENIZER, 64, 0, part))) for part in ("train", "heldout")
    )
    assert (len(train), len(heldout)) == (8, 2)
    assert sorted(train + heldout) == [f"tale {number}" for number in range(10)]
    with path.open("a") as file:
        file.write("{\n")
    assert len(JsonlConfig(str(path), bad_share=0.2).build(Given(TOKENIZER, 64, 0, "train"))) == 8
    with pytest.raises(UserError, match=f"{path}:11: not JSON"):
        JsonlConfig(str(path)).build(Given(TOKENIZER, 64, 0, "train"))


def test_who_knows_of_pictures_that_no_words_ask_for() -> None:
    sources = {
        ShardsConfig("a", swap=0.5): True,
        ShardsConfig("a", drop_text=0.1): True,
        WorldSourceConfig("draw", without_words=0.1): True,
        WorldSourceConfig("draw"): False,
        WorldSourceConfig("describe", without_words=0.1): False,
        NeedleSourceConfig(): False,
        CorpusConfig(): False,
        TextFolderConfig("a"): False,
        ShardsConfig("a"): None,
        JsonlConfig("a"): None,
        "another": None,
    }
    assert {source: draws_unasked(source) for source in sources} == sources


def test_too_little_to_hold_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    assert len(TextFolderConfig(str(tmp_path)).build(Given(TOKENIZER, 64, 0, "train"))) == 1
    with pytest.raises(UserError, match=r"of the 1 documents of .* none is small enough to be held out"):
        TextFolderConfig(str(tmp_path)).build(Given(TOKENIZER, 64, 0, "heldout"))


def test_tokenizers(tmp_path: Path) -> None:
    assert TokenizerConfig(450, ("tiny",)).build().to_json() == TOKENIZER.to_json()
    assert len(TOKENIZER.encode(" What is the special magic Kuala Lumpur number?")) == 3
    assert len(TokenizerConfig(450, ("tiny",), wording=False).build().encode(" What is the special magic")) > 5
    TOKENIZER.save(tmp_path / "tokenizer.json")
    assert TokenizerConfig(path=str(tmp_path / "tokenizer.json")).build().to_json() == TOKENIZER.to_json()
