"""Model folders of transformers: read as transformers reads them, written so that it reads them.

What transformers computed is in tests/golden/hugging_face.safetensors, made by make_hugging_face.py beside it; the live
comparison is in tests/peers.
"""

import errno
import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, processors

from ringworld.errors import UserError
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.config import ModelConfig
from ringworld.model.rope import RopeScaling, rope_frequencies
from ringworld.model.transformer import declare, forward, head, rms_norm
from ringworld.parameters import abstract
from ringworld.tokens.text import TextTokenizer, train_tokenizer
from ringworld.tokens.vocabulary import Vocabulary
from ringworld.weights.checkpoint import Description, SavedModel, named
from ringworld.weights.hugging_face import open_hugging_face, write_hugging_face
from ringworld.weights.source import Source

GOLDEN = Path(__file__).parents[1] / "golden" / "hugging_face.safetensors"
SCALED = ("linear", "dynamic", "llama3", "yarn", "yarn attention_factor", "yarn mscale")
CASES = ("mha", "gqa", "tied", "qwen3", "mistral", *SCALED)


@cache
def golden() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with safe_open(GOLDEN, framework="numpy") as file:
        return json.loads(file.metadata()["cases"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def mesh() -> Mesh:
    return build_mesh(MeshShape(), jax.devices()[:1])


def small_tokenizer(bos: bool = True) -> Tokenizer:
    """Words of one letter: <pad> <s> </s> <unk> a b c d."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "a", "b", "c", "d"]
    tokenizer = Tokenizer.from_str(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [
                    {"id": id, "content": word, "special": True, "single_word": False, "lstrip": False,
                     "rstrip": False, "normalized": False}
                    for id, word in enumerate(words[:4])
                ],
                "pre_tokenizer": {"type": "Whitespace"},
                "model": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {w: i for i, w in enumerate(words)}},
            }
        )
    )  # fmt: skip
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # type: ignore[assignment]
    return tokenizer


SETTINGS = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "<pad>"}


def folder_of(case: str, folder: Path, **changes: Any) -> Path:
    """The folder that transformers wrote of a golden case, fields of its config.json changed; None takes one away."""
    cases, arrays = golden()
    config = {k: v for k, v in {**cases[case]["config"], **changes}.items() if v is not None}
    prefix = f"weights/{cases[case]['weights']}/"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}, folder / "model.safetensors"
    )
    small_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    return folder


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


run = jax.jit(forward, static_argnames=("config", "mesh"))


def hidden(model: SavedModel, ids: np.ndarray) -> jax.Array:
    """The final hidden states of whole rows."""
    about, positions = model.description, np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    frequencies = rope_frequencies(about.rope_theta, about.config.head_dim, about.rope_scaling, ids.shape[1])
    return run(
        model.weights, jnp.asarray(ids), jnp.ones_like(ids), jnp.asarray(positions),
        config=about.config, frequencies=frequencies, mesh=model.mesh,
    )  # fmt: skip


def logits(model: SavedModel, ids: np.ndarray) -> np.ndarray:
    return np.asarray(hidden(model, ids) @ head(model.weights))


# Reading


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case, tmp_path):
    _, arrays = golden()
    model = open_hugging_face(folder_of(case, tmp_path)).load(mesh())
    np.testing.assert_allclose(logits(model, arrays["ids"]), arrays[f"logits/{case}"], atol=1e-4)


def test_every_scaling_is_seen_in_the_logits():
    _, arrays = golden()
    results = [arrays[f"logits/{case}"] for case in ("gqa", *SCALED)]
    assert all(np.abs(a - b).max() > 0.05 for i, a in enumerate(results) for b in results[:i])


def test_hidden_states_are_those_of_transformers_layer_by_layer(tmp_path):
    _, arrays = golden()
    model = open_hugging_face(folder_of("gqa", tmp_path)).load(mesh())
    about = model.description
    for depth in range(1, about.config.layers + 1):
        weights = replace(model.weights, layers=jax.tree.map(lambda x, depth=depth: x[:depth], model.weights.layers))
        config = replace(about.config, layers=depth)
        ours = hidden(replace(model, weights=weights, description=replace(about, config=config)), arrays["ids"])
        theirs = arrays[f"hidden/{depth}"]
        if depth < about.config.layers:  # transformers gives the last one with its norm, the others without
            theirs = rms_norm(jnp.asarray(theirs), model.weights.final_norm, config.norm_eps)
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_a_description_is_read(tmp_path):
    about = open_hugging_face(folder_of("gqa", tmp_path)).description
    assert about.config == ModelConfig(56, 32, 48, 2, 4, 2, 16)
    assert about.vocabulary == Vocabulary(text_size=56, bos=1, eos=2, pad=0)
    assert (about.context_length, about.rope_theta, about.rope_scaling) == (16, 1000.0, None)
    assert open_hugging_face(folder_of("tied", tmp_path)).description.config.tied
    assert open_hugging_face(folder_of("qwen3", tmp_path)).description.config.qk_norm


@pytest.mark.parametrize("form", ["rope_scaling", "rope_parameters"])
def test_scalings_are_read_in_both_forms(form, tmp_path):
    def read(given: dict[str, Any], **fields: Any) -> RopeScaling | None:
        named = {"rope_type": given["type"]} if form == "rope_parameters" else {}
        both = {"rope_parameters": None, "rope_scaling": None, form: given | named}
        return open_hugging_face(folder_of("gqa", tmp_path, **both, **fields)).description.rope_scaling

    assert read({"type": "default"}) is None
    assert read({"type": "linear", "factor": 4.0}) == RopeScaling("linear", 4.0, 4)
    assert read({"type": "dynamic", "factor": 4.0}) == RopeScaling("dynamic", 4.0, 16)
    yarn = {"type": "yarn", "factor": 4.0}
    assert read(yarn) == RopeScaling("yarn", 4.0, 16)
    assert read({**yarn, "factor": None, "original_max_position_embeddings": 8}) == RopeScaling("yarn", 2.0, 8)
    assert read(yarn, original_max_position_embeddings=8) == RopeScaling("yarn", 4.0, 8)
    llama3 = {"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert read(llama3) == RopeScaling("llama3", 8.0, 16, 1.0, 4.0)


def test_theta_is_read_in_both_forms(tmp_path):
    def theta(**fields: Any) -> float:
        return open_hugging_face(
            folder_of("gqa", tmp_path, **{"rope_parameters": None, **fields})
        ).description.rope_theta

    assert theta(rope_theta=5e5) == 5e5
    assert theta(rope_theta=5e5, rope_parameters={"rope_type": "default", "rope_theta": 3e5}) == 3e5
    assert theta() == 1e4


def test_weights_keep_their_type(tmp_path):
    kept = {name: array.dtype for name, array in open_hugging_face(folder_of("mha", tmp_path)).arrays()}
    assert set(kept.values()) == {np.dtype(jnp.bfloat16)}
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name].astype(np.float32)}, tmp_path / "model.safetensors")
    read = open_hugging_face(tmp_path).read
    assert (read("layers/up").dtype, read("layers/gate").dtype) == (np.float32, np.dtype(jnp.bfloat16))
    np.testing.assert_array_equal(read("layers/up")[0], tensors["model.layers.0.mlp.up_proj.weight"].T)


def test_a_head_that_is_not_there_is_the_embedding(tmp_path):
    tensors = load_file(folder_of("gqa", tmp_path) / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "lm_head.weight"}, tmp_path / "model.safetensors")
    assert open_hugging_face(tmp_path).description.config.tied
    save_file(tensors, tmp_path / "model.safetensors")
    change(tmp_path / "config.json", tie_word_embeddings=True)  # then a head in the file says nothing
    assert open_hugging_face(tmp_path).description.config.tied


def test_tables_of_rope_that_were_saved_once_are_passed_over(tmp_path):
    path = folder_of("gqa", tmp_path) / "model.safetensors"
    save_file({**load_file(path), "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)}, path)
    assert open_hugging_face(tmp_path).read("embedding").shape == (56, 32)


# Tokenizers


def vocabulary(folder: Path) -> Vocabulary:
    return open_hugging_face(folder).tokenizer.vocabulary


def test_bos_is_what_the_tokenizer_puts_before_a_text(tmp_path):
    assert vocabulary(folder_of("gqa", tmp_path)).bos == 1
    small_tokenizer(bos=False).save(str(tmp_path / "tokenizer.json"))
    change(tmp_path / "tokenizer_config.json", add_bos_token=True)  # as in transformers 5, tokenizer.json decides
    assert vocabulary(tmp_path).bos is None
    both = small_tokenizer()
    both.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])  # type: ignore[assignment]
    both.save(str(tmp_path / "tokenizer.json"))
    assert vocabulary(tmp_path).bos == 1
    both.post_processor = processors.TemplateProcessing(single="<s> <s> $A", special_tokens=[("<s>", 1)])  # type: ignore[assignment]
    both.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"puts the ids \[1, 1\] before a text"):
        open_hugging_face(tmp_path)


def test_eos_is_an_id_that_ends_texts(tmp_path):
    folder_of("gqa", tmp_path, eos_token_id=7)
    assert vocabulary(tmp_path).eos == 7  # the tokenizer's </s> ends no text of this model
    change(tmp_path / "config.json", eos_token_id=[7, 2])
    assert vocabulary(tmp_path).eos == 2
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert vocabulary(tmp_path).eos == 5
    (tmp_path / "generation_config.json").unlink()
    change(tmp_path / "config.json", eos_token_id=None)
    assert vocabulary(tmp_path).eos == 2
    change(tmp_path / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UserError, match=r"neither eos_token in tokenizer_config.json nor eos_token_id in config.json"):
        open_hugging_face(tmp_path)


def test_pad_falls_back_to_eos(tmp_path):
    folder_of("gqa", tmp_path)
    change(tmp_path / "tokenizer_config.json", pad_token=None)
    assert vocabulary(tmp_path).pad == 2
    change(tmp_path / "config.json", pad_token_id=-1)
    assert vocabulary(tmp_path).pad == 2
    change(tmp_path / "config.json", pad_token_id=3)
    assert vocabulary(tmp_path).pad == 3


def test_a_tokenizer_saved_for_training_does_not_cut_texts(tmp_path):
    folder_of("gqa", tmp_path)
    cutting = small_tokenizer()
    cutting.enable_truncation(3)
    cutting.enable_padding(length=5)
    cutting.save(str(tmp_path / "tokenizer.json"))
    tokenizer = open_hugging_face(tmp_path).tokenizer
    assert tokenizer.encode("a b c d a b") == [4, 5, 6, 7, 4, 5]
    assert tokenizer.encode("a") == [4]


def test_the_chat_template_is_found(tmp_path):
    folder_of("gqa", tmp_path)
    assert open_hugging_face(tmp_path).tokenizer.chat_template is None
    templates = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "one"}]
    change(tmp_path / "tokenizer_config.json", chat_template=templates)
    assert open_hugging_face(tmp_path).tokenizer.chat_template == "one"
    change(tmp_path / "tokenizer_config.json", chat_template="two")
    assert open_hugging_face(tmp_path).tokenizer.chat_template == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert open_hugging_face(tmp_path).tokenizer.chat_template == "three"


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path):
    folder_of("gqa", tmp_path)
    large = small_tokenizer()
    large.add_tokens([f"word{i}" for i in range(50)])
    large.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"does not fit the model \(the tokenizer has 58 ids, more than .* 56\)"):
        open_hugging_face(tmp_path)


# What is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, "architecture GemmaForCausalLM, .* LlamaForCausalLM, Mistral"),
        ({"architectures": None}, r"architecture \(none\)"),
        ({"attention_bias": True}, "attention_bias = true, and ringworld reads only models with attention_bias = f"),
        ({"mlp_bias": True}, "mlp_bias = true"),
        ({"hidden_act": "gelu"}, 'hidden_act = "gelu".*hidden_act = "silu"'),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = {\"bits\": 4}"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, 'rope_type = "longrope" in rope_scaling.*yarn, llama3'),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0, "truncate": False}}, "truncate = false"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope_parameters of their own for full_"),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, r"does not describe a model \(KeyError\('low_freq"),
        ({"hidden_size": None}, r"does not describe a model \(KeyError\('hidden_size'\)\)"),
        ({"num_hidden_layers": "two"}, "layers of at least 1"),
    ],
)  # fmt: skip
def test_what_ours_has_not_is_refused_by_its_name(fields, message, tmp_path):
    with pytest.raises(UserError, match=message):
        open_hugging_face(folder_of("gqa", tmp_path, **fields))


def test_a_window_shorter_than_the_context_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"sliding_window = 8, shorter than its max_position_embeddings = 16.*to 8$"):
        open_hugging_face(folder_of("mistral", tmp_path, sliding_window=8))
    with pytest.raises(UserError, match="sliding_window = 4096, shorter than its max_position_embeddings = 8192"):
        open_hugging_face(folder_of("mistral", tmp_path, sliding_window=None, max_position_embeddings=8192))
    with pytest.raises(UserError, match="sliding_window = 8"):
        open_hugging_face(folder_of("qwen3", tmp_path, sliding_window=8, use_sliding_window=True))
    open_hugging_face(folder_of("qwen3", tmp_path, sliding_window=8))
    open_hugging_face(folder_of("mistral", tmp_path, sliding_window=16))


# What is damaged


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no config.json in .*: give the folder"):
        open_hugging_face(tmp_path)
    (folder_of("gqa", tmp_path) / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"there is no tokenizer.json in "):
        open_hugging_face(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no weights in .*: ringworld reads model.safetensors, or shards [^(]*; fetch"):
        open_hugging_face(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(UserError, match=r"no weights in .*\.bin files may run code"):
        open_hugging_face(tmp_path)


def test_damaged_files_are_named(tmp_path):
    weights = folder_of("gqa", tmp_path) / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"cannot read .*model.safetensors .*damaged"):
        open_hugging_face(tmp_path)
    weights.write_bytes(whole)
    (tmp_path / "tokenizer.json").write_text('{"model": 1}')
    with pytest.raises(UserError, match=r"cannot read .*tokenizer.json"):
        open_hugging_face(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*config.json"):
        open_hugging_face(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config.json must hold a JSON object \(it holds a list\)"):
        open_hugging_face(tmp_path)


def test_tensors_that_are_not_those_of_the_model_are_named(tmp_path):
    path = folder_of("gqa", tmp_path) / "model.safetensors"
    tensors = load_file(path)

    def raises(message: str, saved: dict[str, np.ndarray]) -> None:
        save_file(saved, path)
        with pytest.raises(UserError, match=message):
            open_hugging_face(tmp_path)

    name = "model.layers.1.self_attn.k_proj.weight"
    rest = {k: v for k, v in tensors.items() if k != name}
    raises(rf"the tensor {name} \[32, 32\] is missing in {tmp_path} \(1 of 21 are\)", rest)
    raises(rf"the tensor {name} \[32, 32\] is missing", {**rest, "k": tensors[name]})
    raises(
        rf"{name} is \[16, 32\] in {path} and \[32, 32\] in the model", {**tensors, name: tensors[name][:16].copy()}
    )  # fmt: skip
    bias = "model.layers.0.self_attn.q_proj.bias"
    raises(rf"the tensor {bias} in {path} is no part of the model", {**tensors, bias: np.zeros(64, np.float32)})
    raises(rf"{name} is kept as I8 in {path}.*F32, F16, BF16", {**tensors, name: tensors[name].astype(np.int8)})


def test_damaged_shards_are_named(tmp_path):
    source = open_hugging_face(folder_of("gqa", tmp_path / "one"))
    write_hugging_face(source, tmp_path / "many", shard_bytes=20_000)
    index = tmp_path / "many" / "model.safetensors.index.json"
    shards = json.loads(index.read_text())["weight_map"]
    first, name = tmp_path / "many" / min(shards.values()), "model.norm.weight"
    change(index, weight_map={**shards, name: first.name})
    with pytest.raises(UserError, match=f"the tensor {name} is missing in {first}, where model.safetensors.index"):
        open_hugging_face(tmp_path / "many")
    change(index, weight_map=shards)
    first.unlink()
    with pytest.raises(UserError, match=rf"cannot read {first} .*missing or damaged"):
        open_hugging_face(tmp_path / "many")
    index.write_text("{}")
    with pytest.raises(UserError, match="has no weight_map"):
        open_hugging_face(tmp_path / "many")


# Writing


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_comes_back(case, tmp_path):
    read = open_hugging_face(folder_of(case, tmp_path / "theirs"))
    write_hugging_face(read, tmp_path / "ours")
    again = open_hugging_face(tmp_path / "ours")
    assert again.description == read.description
    assert again.tokenizer.to_json() == read.tokenizer.to_json()
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        np.testing.assert_array_equal(ours[name], tensor)


def source_of(config: ModelConfig, tokenizer: TextTokenizer, place: Path, scaling: RopeScaling | None = None) -> Source:
    """A model of ours, of no file: every weight another number."""
    about = Description(config, tokenizer.vocabulary, 64, 1e4, scaling)
    shapes = {name: leaf.shape for name, leaf in named(abstract(declare(config))).items()}
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return Source(place, about, tokenizer, weights.__getitem__)


def test_a_model_of_ours_comes_back(tmp_path):
    tokenizer = train_tokenizer(["some text to learn from, and 12 numbers"], 280)
    tokenizer.chat_template = "{{ messages }}"
    config = ModelConfig(280, 24, 40, 2, 2, 1, 8, tied=True, qk_norm=True, norm_eps=1e-5)
    source = source_of(config, tokenizer, tmp_path, RopeScaling("yarn", 2.0, 32, 2.0, 16.0, 0.9))
    write_hugging_face(source, tmp_path / "model")
    again = open_hugging_face(tmp_path / "model")
    assert again.description == source.description
    assert again.tokenizer.chat_template == "{{ messages }}"
    assert again.tokenizer.encode("some <eos> text 34") == tokenizer.encode("some <eos> text 34")
    for name, array in again.arrays():
        np.testing.assert_array_equal(array, source.read(name))
    theirs = Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json"))  # as transformers encodes
    assert theirs.encode("some text").ids == [tokenizer.vocabulary.bos, *tokenizer.encode("some text")]
    assert theirs.encode("some", "text").ids == [1, *tokenizer.encode("some"), 1, *tokenizer.encode("text")]


def test_dynamic_scaling_keeps_the_length_that_it_counts_from(tmp_path):
    scaling = RopeScaling("dynamic", 2.0, 16)
    source = source_of(ModelConfig(270, 16, 16, 1, 2, 2, 8), train_tokenizer(["a text"], 270), tmp_path, scaling)
    assert source.description.context_length == 64
    write_hugging_face(source, tmp_path / "model")
    assert open_hugging_face(tmp_path / "model").description.rope_scaling == scaling


def test_a_model_that_transformers_has_not_is_not_written(tmp_path):
    config = ModelConfig(270, 16, 16, 1, 2, 2, 8, sharpened_from=64)
    with pytest.raises(UserError, match="no model whose queries grow with their position, as this one's do beyond 64"):
        write_hugging_face(source_of(config, train_tokenizer(["a text"], 270), tmp_path), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_that_opens_texts_with_nothing_is_written_so(tmp_path):
    trained = json.loads(train_tokenizer(["a text"], 270).to_json())
    trained["vocabulary"]["bos"] = None
    trained["tokenizer"]["post_processor"] = json.loads(small_tokenizer().to_str())["post_processor"]
    tokenizer = TextTokenizer.from_json(json.dumps(trained))
    write_hugging_face(source_of(ModelConfig(270, 16, 16, 1, 2, 2, 8), tokenizer, tmp_path), tmp_path / "model")
    assert open_hugging_face(tmp_path / "model").description.vocabulary == tokenizer.vocabulary
    assert json.loads((tmp_path / "model" / "config.json").read_text())["bos_token_id"] is None


def test_a_model_with_vision_says_which_ids_are_which(tmp_path):
    text = json.loads(train_tokenizer(["a text"], 270).to_json())
    vision = {"codes": 30, "vision_size": 34, "vision_start": [5, 6], "vision_end": [7],
              "frame_height": 2, "frame_width": 3}  # fmt: skip
    tokenizer = TextTokenizer.from_json(json.dumps({**text, "vocabulary": {**text["vocabulary"], **vision}}))
    write_hugging_face(source_of(ModelConfig(304, 16, 16, 1, 2, 2, 8), tokenizer, tmp_path), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["vocab_size"] == 304
    ours = config["ringworld"]
    assert (ours["slices"], ours["eof"], ours["eov"]) == ({"text": [0, 270], "vision": [270, 304]}, 300, 301)
    assert open_hugging_face(tmp_path / "model").description.vocabulary == tokenizer.vocabulary
    change(tmp_path / "model" / "config.json", ringworld={"vocabulary": {**ours["vocabulary"], "vision_size": 40}})
    with pytest.raises(UserError, match=r"does not fit the model \(the vocabulary has 310 ids, more than .* 304\)"):
        open_hugging_face(tmp_path / "model")


@settings(max_examples=25, deadline=None)
@given(
    config=st.builds(
        lambda multiple, heads, **sizes: ModelConfig(300, multiple * heads, heads=heads, **sizes),
        multiple=st.integers(1, 5), heads=st.sampled_from([2, 4]), kv_heads=st.sampled_from([1, 2]),
        head_dim=st.sampled_from([2, 4, 6]), ffn=st.integers(1, 9), layers=st.integers(1, 3),
        tied=st.booleans(), qk_norm=st.booleans(),
    ),
    dtype=st.sampled_from([np.float32, np.float16, jnp.bfloat16]),
    shard_bytes=st.integers(1, 50_000),
)  # fmt: skip
def test_any_model_comes_back_bit_by_bit(config, dtype, shard_bytes):
    like = source_of(config, train_tokenizer(["a text"], 300), Path("ours"))
    arrays = {name: array.astype(dtype) for name, array in like.arrays()}
    with TemporaryDirectory() as folder:
        write_hugging_face(replace(like, read=arrays.__getitem__), Path(folder), shard_bytes=shard_bytes)
        again = open_hugging_face(Path(folder))
        assert again.description == like.description
        for name, array in again.arrays():
            assert array.dtype == dtype
            np.testing.assert_array_equal(array, arrays[name], name)


def test_shards_hold_every_tensor_once(tmp_path):
    read = open_hugging_face(folder_of("gqa", tmp_path / "one"))
    write_hugging_face(read, tmp_path / "many", shard_bytes=20_000)
    whole = load_file(tmp_path / "one" / "model.safetensors")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    shards = {name: load_file(tmp_path / "many" / name) for name in sorted(set(index["weight_map"].values()))}
    assert list(shards) == [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    assert all(sum(tensor.nbytes for tensor in shard.values()) <= 20_000 for shard in shards.values())
    held = [name for shard in shards.values() for name in shard]
    assert sorted(held) == sorted(whole)
    for name, file in index["weight_map"].items():
        np.testing.assert_array_equal(shards[file][name], whole[name])
    for (name, one), (_, other) in zip(read.arrays(), open_hugging_face(tmp_path / "many").arrays(), strict=True):
        np.testing.assert_array_equal(one, other, name)


def test_one_tensor_may_be_larger_than_a_shard(tmp_path):
    read = open_hugging_face(folder_of("mha", tmp_path / "one"))
    write_hugging_face(read, tmp_path / "many", shard_bytes=1)
    assert len(list((tmp_path / "many").glob("model-*.safetensors"))) == len(
        load_file(tmp_path / "one/model.safetensors")
    )
    np.testing.assert_array_equal(open_hugging_face(tmp_path / "many").read("head"), read.read("head"))


def test_only_an_empty_folder_is_written_into(tmp_path):
    read = open_hugging_face(folder_of("gqa", tmp_path / "theirs"))
    (tmp_path / "empty").mkdir()
    write_hugging_face(read, tmp_path / "empty")
    before = sorted(tmp_path.rglob("*"))
    for taken in (tmp_path / "empty", tmp_path / "theirs" / "config.json"):
        with pytest.raises(UserError, match=f"{taken} exists already, and is not an empty folder: name another"):
            write_hugging_face(read, taken)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    read = open_hugging_face(folder_of("gqa", tmp_path / "theirs"))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for broken in ("safetensors_files.os.fsync", "hugging_face.write_atomically"):
        with monkeypatch.context() as patched:
            patched.setattr(f"ringworld.weights.{broken}", full)
            with pytest.raises(UserError, match=r"could not write the model .*ours .*No space left.*nothing is left"):
                write_hugging_face(read, tmp_path / "ours")
        assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_a_source_that_breaks_leaves_nothing(tmp_path):
    whole = open_hugging_face(folder_of("gqa", tmp_path / "theirs"))

    def read(name: str) -> np.ndarray:
        if name == "final_norm":
            raise UserError("damaged")
        return whole.read(name)

    with pytest.raises(UserError, match="damaged"):
        write_hugging_face(replace(whole, read=read), tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_what_transformers_would_not_open_is_not_written(tmp_path):
    tokenizer = train_tokenizer(["a text"], 270)
    with pytest.raises(UserError, match="this model has 20 and 3 heads"):
        write_hugging_face(source_of(ModelConfig(270, 20, 16, 1, 3, 3, 8), tokenizer, tmp_path), tmp_path / "model")
    parts = json.loads(tokenizer.to_json())
    parts["vocabulary"] |= {"text_size": 300, "pad": 290}
    source = source_of(ModelConfig(300, 16, 16, 1, 2, 2, 8), TextTokenizer.from_json(json.dumps(parts)), tmp_path)
    with pytest.raises(UserError, match="has no token for pad_token 290"):
        write_hugging_face(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()
