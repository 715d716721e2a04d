"""Models that go to transformers and come from it, live: its logits and its ids, and ours."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drawn import draw
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.config import ModelConfig
from ringworld.model.rope import RopeScaling, rope_frequencies
from ringworld.model.transformer import forward, head
from ringworld.tokens.text import TextTokenizer, train_tokenizer
from ringworld.weights.checkpoint import Description, SavedModel, named
from ringworld.weights.hugging_face import open_hugging_face, write_hugging_face
from ringworld.weights.source import Source

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONTEXT, LENGTH = 16, 40
TEXT = "The ring goes round, 12 hosts and 345 chips; <eos> is text."
MODELS = {
    "mha": ModelConfig(300, 32, 32, 2, 4, 4, 8),
    "gqa": ModelConfig(300, 32, 48, 2, 4, 2, 16),
    "tied": ModelConfig(300, 24, 40, 2, 3, 1, 8, tied=True),
    "qk_norm": ModelConfig(300, 24, 40, 2, 4, 2, 16, qk_norm=True, norm_eps=1e-5),
}
SCALINGS = {
    "linear": RopeScaling("linear", 3.0, CONTEXT),
    "dynamic": RopeScaling("dynamic", 3.0, CONTEXT),
    "llama3": RopeScaling("llama3", 8.0, CONTEXT, 0.25, 2.0),
    "yarn": RopeScaling("yarn", 4.0, CONTEXT, 1.0, 4.0),
    "yarn with a magnitude": RopeScaling("yarn", 4.0, CONTEXT, 1.0, 4.0, 1.5),
}
CASES = [(name, None) for name in MODELS] + [("gqa", name) for name in SCALINGS] + [("qk_norm", "yarn")]

run = jax.jit(forward, static_argnames=("config", "mesh"))


def ids(size: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, size, (2, LENGTH)).astype(np.int32)


def our_logits(model: SavedModel) -> np.ndarray:
    about, tokens = model.description, ids(model.description.config.vocabulary_size)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    frequencies = rope_frequencies(about.rope_theta, about.config.head_dim, about.rope_scaling, LENGTH)
    hidden = run(
        model.weights, jnp.asarray(tokens), jnp.ones_like(tokens), jnp.asarray(positions),
        config=about.config, frequencies=frequencies, mesh=model.mesh,
    )  # fmt: skip
    return np.asarray(hidden @ head(model.weights))


def their_logits(folder: Path) -> np.ndarray:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report  # no tensor is missing, and none too many
    with torch.no_grad():
        return model(torch.from_numpy(ids(model.config.vocab_size)).long()).logits.numpy()


def tokenizer(**vision: Any) -> TextTokenizer:
    trained = train_tokenizer([TEXT] * 3, 300)
    trained.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    parts = json.loads(trained.to_json())
    return TextTokenizer.from_json(json.dumps({**parts, "vocabulary": {**parts["vocabulary"], **vision}}))


def ours(config: ModelConfig, text: TextTokenizer, scaling: RopeScaling | None = None) -> tuple[Source, SavedModel]:
    mesh = build_mesh(MeshShape(), jax.devices()[:1])
    weights = draw(0, config, mesh)
    about = Description(config, text.vocabulary, CONTEXT, 1e3, scaling)
    read = named(jax.tree.map(np.asarray, weights)).__getitem__
    return Source(Path("ours"), about, text, read), SavedModel(Path("ours"), about, text, weights, mesh)


@pytest.mark.parametrize(("name", "scaling"), CASES)
def test_transformers_opens_ours_and_we_open_what_it_saves(name, scaling, tmp_path):
    source, model = ours(MODELS[name], tokenizer(), SCALINGS.get(scaling))
    write_hugging_face(source, tmp_path / "ours", shard_bytes=30_000)
    expected = our_logits(model)
    np.testing.assert_allclose(their_logits(tmp_path / "ours"), expected, atol=1e-4)

    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = open_hugging_face(tmp_path / "theirs")
    assert again.description.config == source.description.config
    assert again.description.vocabulary == source.description.vocabulary
    np.testing.assert_array_equal(our_logits(again.load(model.mesh)), expected)


def test_bfloat16_stays_bfloat16_there_and_back(tmp_path):
    source, _ = ours(MODELS["gqa"], tokenizer())
    halved = {name: array.astype(jnp.bfloat16) for name, array in source.arrays()}
    write_hugging_face(replace(source, read=halved.__getitem__), tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert theirs.dtype == torch.bfloat16
    theirs.save_pretrained(tmp_path / "theirs")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    for name, array in open_hugging_face(tmp_path / "theirs").arrays():
        assert array.dtype == jnp.bfloat16
        np.testing.assert_array_equal(array, halved[name], name)


def test_a_model_with_vision_opens_there(tmp_path):
    vision = {"codes": 30, "vision_size": 34, "vision_start": [5, 6], "vision_end": [7],
              "frame_height": 2, "frame_width": 3}  # fmt: skip
    text = tokenizer(**vision)
    source, model = ours(ModelConfig(334, 32, 48, 2, 4, 2, 16), text)
    write_hugging_face(source, tmp_path / "ours")
    np.testing.assert_allclose(their_logits(tmp_path / "ours"), our_logits(model), atol=1e-4)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert config.ringworld["slices"] == {"text": [0, 300], "vision": [300, 334]}
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert open_hugging_face(tmp_path / "theirs").description.vocabulary == text.vocabulary


@pytest.mark.parametrize("name", ["gqa", "qk_norm"])
@pytest.mark.parametrize("bos", [1, None])
def test_ids_are_those_of_transformers(name, bos, tmp_path):
    text = tokenizer(bos=bos)
    write_hugging_face(ours(MODELS[name], text)[0], tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    plain = TEXT.replace("<eos>", "that")
    assert theirs.encode(plain) == [*text.vocabulary.opening, *text.encode(plain)]
    assert theirs.encode(TEXT, add_special_tokens=False, split_special_tokens=True) == text.encode(TEXT)
    assert theirs.decode(theirs.encode(plain, add_special_tokens=False)) == plain
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (bos, 2, 0)
    assert theirs.chat_template == text.chat_template


@pytest.mark.parametrize("added", [True, False])
def test_add_bos_token_decides_nothing_there_either(added, tmp_path):
    """Where there is a tokenizer.json, its own processor alone says what a text opens with."""
    write_hugging_face(ours(MODELS["gqa"], tokenizer())[0], tmp_path / "ours")
    settings = tmp_path / "ours" / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "add_bos_token": added}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    text = open_hugging_face(tmp_path / "ours").tokenizer
    assert theirs.encode("a ring") == [*text.vocabulary.opening, *text.encode("a ring")]
