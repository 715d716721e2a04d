from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from ringworld.errors import UserError
from ringworld.mesh import MeshShape, build_mesh
from ringworld.tokens.text import train_tokenizer
from ringworld.weights import models
from ringworld.weights.models import WRITERS, load, open_model
from ringworld.weights.source import Source
from weights.made import config, same, source


@pytest.fixture
def speaking() -> Source:
    """With a tokenizer that names its special tokens, as transformers wants it."""
    tokenizer = train_tokenizer(["some words, and some more words"], 270)
    made = source(tokenizer.vocabulary, np.float32, config(tokenizer.vocabulary))
    return replace(made, tokenizer=tokenizer)


@pytest.mark.parametrize("format", ["ringworld", "hugging-face"])
def test_a_written_folder_is_opened_by_what_is_in_it(format: models.Format, speaking: Source, tmp_path: Path) -> None:
    WRITERS[format](speaking, tmp_path / "model")
    opened = open_model(tmp_path / "model")
    for (name, array), (_, other) in zip(speaking.arrays(), opened.arrays(), strict=True):
        np.testing.assert_array_equal(array, other, err_msg=name)
    loaded = load(tmp_path / "model", build_mesh(MeshShape(), jax.devices()[:1]))
    np.testing.assert_array_equal(loaded.weights.layers.query, speaking.read("layers/query"))
    assert loaded.description.config == speaking.description.config
    assert loaded.tokenizer.encode("some words") == speaking.tokenizer.encode("some words")


def test_from_one_format_to_another_and_back_nothing_changes(speaking: Source, tmp_path: Path) -> None:
    WRITERS["hugging-face"](speaking, tmp_path / "one")
    WRITERS["ringworld"](open_model(tmp_path / "one"), tmp_path / "two")
    WRITERS["hugging-face"](open_model(tmp_path / "two"), tmp_path / "three")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "three" / file.name).read_bytes(), file.name
    same(open_model(tmp_path / "two"), open_model(tmp_path / "three"))


def test_an_lwm_file_gets_llamas_tokenizer_and_vision_where_it_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ringworld.tokens.vocabulary import LWM, Vocabulary
    from weights.made import tokenizer

    text = Vocabulary(text_size=32000, bos=1, eos=2, pad=0)
    monkeypatch.setattr(models, "fetch_llama_tokenizer", lambda: tokenizer(text))
    for vocabulary in (text, LWM):
        written = source(vocabulary, model=config(vocabulary, dim=128, heads=1, kv_heads=1, head_dim=128, layers=1))
        path = tmp_path / f"params-{vocabulary.size}"
        WRITERS["lwm"](written, path)
        opened = models.open_lwm_model(path, 5e7, 2**20)
        assert opened.description.vocabulary == vocabulary
        assert (opened.description.rope_theta, opened.description.context_length) == (5e7, 2**20)
        np.testing.assert_array_equal(
            opened.read("layers/query").view(np.uint16), written.read("layers/query").view(np.uint16)
        )
        with pytest.raises(UserError, match=r"is no \.gguf file; if it is one of LWM's.*--rope-theta X"):
            open_model(path)


def test_what_is_no_model_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"there is no model nowhere: give a folder .* or one of .*smollm2"):
        open_model("nowhere")
    with pytest.raises(UserError, match="holds no weights"):
        open_model(tmp_path)

    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection\nand much more")

    monkeypatch.setattr(models, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"no path some/body, and Hugging Face did not give .* \(no connection\)"):
        open_model("some/body")
