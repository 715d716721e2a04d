"""Model folders as Hugging Face's transformers reads and writes them: config.json, safetensors, tokenizer.json.

What their configurations can say and ours cannot is refused by the name of its field: a model is opened as what it is,
or not at all.
"""

import json
from collections.abc import Mapping
from itertools import takewhile
from math import log
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ringworld.errors import UserError
from ringworld.files import write_atomically
from ringworld.model.config import ModelConfig
from ringworld.model.rope import RopeScaling
from ringworld.model.transformer import declare
from ringworld.parameters import abstract
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vocabulary import Vocabulary
from ringworld.weights.checkpoint import Description, named
from ringworld.weights.hugging_face_tensors import (
    CONFIG,
    HEAD,
    find_tensors,
    open_tensors,
    read_object,
    write_tensors,
)
from ringworld.weights.safetensors_files import appearing
from ringworld.weights.source import Source

GENERATION = "generation_config.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"

# Whether an architecture has norms of queries and keys, which nothing in its config.json says.
QK_NORM = {"LlamaForCausalLM": False, "MistralForCausalLM": False, "Qwen3ForCausalLM": True}
MODEL_TYPES = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}

# Fields that would change the forward pass, and the values of which ours is; the first is meant where one is missing.
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
}
_ALLOWED_IN_ROPE: dict[str, tuple[Any, ...]] = {"partial_rotary_factor": (1.0, None), "truncate": (True, None)}


def open_hugging_face(folder: Path) -> Source:
    """The model of a folder, of which the configuration, the tokenizer and the tensors' shapes are read.

    The text that a document opens with is what the folder's own tokenizer puts before every text, so ids are those of
    transformers. Of several ids that end a text the one is taken that the tokenizer names, else the first.

    Args:
        folder: holds config.json, tokenizer.json and model.safetensors, or its shards with their index. What is in
            tokenizer_config.json, chat_template.jinja and generation_config.json is used where there are such files.

    Raises:
        UserError: a file or a tensor is missing, damaged or of another shape, or the model has a part that ours has
            not.
    """
    config = read_object(folder / CONFIG)
    tensors = find_tensors(folder)
    try:
        architecture = _architecture(config, folder / CONFIG)
        theta, scaling = _rope(config, folder / CONFIG)
        shape = _model_config(config, QK_NORM[architecture], tied=HEAD not in tensors)
        context = config["max_position_embeddings"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG} does not describe a model ({error!r}): fetch it again") from error
    tokenizer = _text_tokenizer(folder, config, shape.vocabulary_size)
    description = Description(shape, tokenizer.vocabulary, context, theta, scaling)
    shapes = {name: leaf.shape for name, leaf in named(abstract(declare(shape))).items()}
    return Source(folder, description, tokenizer, open_tensors(tensors, shapes, folder))


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_object(path) if path.exists() else {}


# The configuration


def _architecture(config: Mapping[str, Any], file: Path) -> str:
    """The name of the model's architecture, once nothing in its configuration asks for what ours has not."""
    architecture = (config.get("architectures") or ["(none)"])[0]
    if architecture not in QK_NORM:
        raise UserError(
            f"{file} has the architecture {architecture}, which is not one that ringworld reads: {', '.join(QK_NORM)}"
        )
    _require(config, _ALLOWED, file)
    # Where Mistral's configuration says nothing, transformers takes a window of 4096.
    windowed = architecture == "MistralForCausalLM" or config.get("use_sliding_window")
    window, context = config.get("sliding_window", 4096) if windowed else None, config["max_position_embeddings"]
    if window is not None and window < context:
        raise UserError(
            f"{file} has sliding_window = {window}, shorter than its max_position_embeddings = {context}, and "
            f"ringworld has no attention with a window: where texts of {window} tokens are enough, set "
            f"max_position_embeddings to {window}"
        )
    return architecture


def _require(values: Mapping[str, Any], allowed: Mapping[str, tuple[Any, ...]], file: Path) -> None:
    for field, fitting in allowed.items():
        if values.get(field, fitting[0]) not in fitting:
            raise UserError(
                f"{file} has {field} = {json.dumps(values[field])}, and ringworld reads only models with {field} = "
                f"{json.dumps(fitting[0])}: choose another model"
            )


def _model_config(config: Mapping[str, Any], qk_norm: bool, tied: bool) -> ModelConfig:
    heads = config["num_attention_heads"]
    return ModelConfig(
        vocabulary_size=config["vocab_size"],
        dim=config["hidden_size"],
        ffn=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        tied=bool(config.get("tie_word_embeddings")) or tied,
        qk_norm=qk_norm,
        norm_eps=config.get("rms_norm_eps", 1e-6),
    )


def _rope(config: Mapping[str, Any], file: Path) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, of `rope_scaling` (transformers 4) or `rope_parameters` (5)."""
    field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = config.get(field) or {}
    kind = given.get("rope_type", given.get("type", "default"))
    context = config["max_position_embeddings"]
    original = config.get("original_max_position_embeddings") or given.get("original_max_position_embeddings")
    _require(given, _ALLOWED_IN_ROPE, file)
    if nested := [name for name, value in given.items() if isinstance(value, dict)]:
        raise UserError(
            f"{file} has {field} of their own for {', '.join(nested)}, and in ringworld's models all layers have the "
            "same: choose another model"
        )
    match kind:
        case "default":
            scaling = None
        case "linear":
            scaling = RopeScaling("linear", given["factor"], original or max(1, round(context / given["factor"])))
        case "dynamic":  # counts from max_position_embeddings, whatever else is given
            scaling = RopeScaling("dynamic", given["factor"], context)
        case "llama3":
            bounds = given["low_freq_factor"], given["high_freq_factor"]
            scaling = RopeScaling("llama3", given["factor"], original or context, *bounds)
        case "yarn":
            factor = given.get("factor") or context / original
            bounds = given.get("beta_slow") or 1.0, given.get("beta_fast") or 32.0
            scaling = RopeScaling("yarn", factor, original or context, *bounds, _magnitude(given, factor))
        case _:
            raise UserError(
                f"{file} has rope_type = {json.dumps(kind)} in {field}, which is not one that ringworld knows: "
                "default, linear, dynamic, yarn, llama3"
            )
    return given.get("rope_theta") or config.get("rope_theta") or 10_000.0, scaling


def _magnitude(given: Mapping[str, Any], factor: float) -> float | None:
    """What yarn multiplies queries and keys by; None: as its paper has it."""

    def by(scale: float) -> float:
        return 0.1 * scale * log(max(factor, 1.0)) + 1

    if given.get("attention_factor") is not None:
        return given["attention_factor"]
    numerator, denominator = given.get("mscale"), given.get("mscale_all_dim")
    return by(numerator) / by(denominator) if numerator and denominator else None


# The tokenizer


def _text_tokenizer(folder: Path, config: Mapping[str, Any], size: int) -> TextTokenizer:
    settings = _read_if_there(folder / TOKENIZER_CONFIG)
    generation = _read_if_there(folder / GENERATION)
    text = json.dumps(read_object(folder / TOKENIZER), ensure_ascii=False)
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # `tokenizers` raises bare Exception
        raise UserError(f"cannot read {folder / TOKENIZER} ({error}): fetch it again") from error
    tokenizer.no_truncation()  # some are saved with the settings of a training: texts here are long
    tokenizer.no_padding()
    try:
        if ours := config.get("ringworld"):
            vocabulary = Vocabulary.from_dict(ours["vocabulary"])
        else:
            vocabulary = _vocabulary(tokenizer, size, settings, {**config, **generation})
        if vocabulary.size > size:
            raise ValueError(f"the vocabulary has {vocabulary.size} ids, more than the model's {size}")
        return TextTokenizer(tokenizer, vocabulary, _chat_template(folder, settings))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the tokenizer in {folder} does not fit the model ({error}): use the files that belong together"
        ) from error


def _vocabulary(tokenizer: Tokenizer, size: int, settings: Mapping[str, Any], config: Mapping[str, Any]) -> Vocabulary:
    """The special ids that tokenizer_config.json names, or else the configuration."""

    def id_of(role: str) -> int | None:
        token = settings.get(role)
        token = token.get("content") if isinstance(token, dict) else token
        return None if token is None else tokenizer.token_to_id(token)

    ends = config.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    eos, pad = id_of("eos_token"), id_of("pad_token")
    if eos is None or (ends and eos not in ends):
        if not ends:
            raise ValueError(f"neither eos_token in {TOKENIZER_CONFIG} nor eos_token_id in {CONFIG} says how texts end")
        eos = ends[0]
    if pad is None:
        pad = config.get("pad_token_id")
    if pad is None or pad < 0:  # LLaMA's first configurations had -1
        pad = eos
    return Vocabulary(text_size=size, bos=_opening(tokenizer), eos=eos, pad=pad)


def _opening(tokenizer: Tokenizer) -> int | None:
    """The id that the tokenizer puts before a text. (`add_bos_token` says nothing: transformers 5 reads it no more.)"""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    opening = encoding.ids[: len(list(takewhile(bool, encoding.special_tokens_mask)))]
    if len(opening) > 1:
        raise ValueError(f"it puts the ids {opening} before a text: ringworld opens documents with one or none")
    return opening[0] if opening else None


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    if (folder / CHAT_TEMPLATE).exists():
        return (folder / CHAT_TEMPLATE).read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


# Writing


def write_hugging_face(source: Source, folder: Path, *, shard_bytes: int = 2**30) -> None:
    """Writes a folder that transformers' AutoModelForCausalLM and AutoTokenizer open, whole or not at all.

    It is a LlamaForCausalLM, or with norms of queries and keys a Qwen3ForCausalLM. Of a model with vision the ids of
    the vision follow those of the text, and `ringworld` in config.json says which they are.

    Args:
        folder: that does not exist, or is empty.
        shard_bytes: a file of tensors ends before it grows beyond this; one tensor alone may.

    Raises:
        UserError: the folder has something in it, cannot be written, the source is damaged, or transformers has no such
            model.
    """
    model = source.description.config
    if model.dim % model.heads and not model.qk_norm:
        raise UserError(
            f"a LlamaForCausalLM must have a width that its heads divide, and this model has {model.dim} and "
            f"{model.heads} heads: transformers would not open it"
        )
    if model.sharpened_from is not None:
        raise UserError(
            f"transformers has no model whose queries grow with their position, as this one's do beyond "
            f"{model.sharpened_from} tokens: convert it to ringworld's own format"
        )
    with appearing(folder) as made:
        dtype = write_tensors(source, made, shard_bytes)
        _write_json(made / CONFIG, _config(source.description, dtype))
        tokenizer, settings = _tokenizer_files(source)
        _write_json(made / TOKENIZER, tokenizer)
        _write_json(made / TOKENIZER_CONFIG, settings)


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def _config(description: Description, dtype: np.dtype) -> dict[str, Any]:
    model, vocabulary, scaling = description.config, description.vocabulary, description.rope_scaling
    architecture = "Qwen3ForCausalLM" if model.qk_norm else "LlamaForCausalLM"
    # "dynamic" counts from max_position_embeddings.
    length = scaling.original_length if scaling and scaling.kind == "dynamic" else description.context_length
    config = {
        "architectures": [architecture],
        "model_type": MODEL_TYPES[architecture],
        "vocab_size": model.vocabulary_size,
        "hidden_size": model.dim,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": model.norm_eps,
        "max_position_embeddings": length,
        "rope_theta": description.rope_theta,
        "rope_scaling": _rope_scaling(scaling) if scaling else None,
        "tie_word_embeddings": model.tied,
        "torch_dtype": dtype.name,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
        "pad_token_id": vocabulary.pad,
    }
    if vocabulary.vision_size:
        text, vision = ([part.start, part.stop] for part in vocabulary.modalities)
        config["ringworld"] = {
            "slices": {"text": text, "vision": vision},
            "eof": vocabulary.eof,
            "eov": vocabulary.eov,
            "vocabulary": vocabulary.to_dict(),
        }
    return config


def _rope_scaling(scaling: RopeScaling) -> dict[str, Any]:
    given: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn"):
        low, high = ("low_freq_factor", "high_freq_factor") if scaling.kind == "llama3" else ("beta_slow", "beta_fast")
        given |= {low: scaling.low, high: scaling.high, "original_max_position_embeddings": scaling.original_length}
    if scaling.magnitude is not None:
        given["attention_factor"] = scaling.magnitude
    return given


def _tokenizer_files(source: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    """tokenizer.json, which puts bos before a text where documents open with one, and tokenizer_config.json."""
    vocabulary, about = source.tokenizer.vocabulary, json.loads(source.tokenizer.to_json())
    tokenizer = Tokenizer.from_str(json.dumps(about["tokenizer"]))
    roles = {"bos_token": vocabulary.bos, "eos_token": vocabulary.eos, "pad_token": vocabulary.pad}
    tokens = {role: None if id is None else tokenizer.id_to_token(id) for role, id in roles.items()}
    if nameless := [f"{role} {roles[role]}" for role in roles if roles[role] is not None and tokens[role] is None]:
        raise UserError(
            f"the tokenizer in {source.place} has no token for {', '.join(nameless)}: transformers could not name it"
        )
    if _opening(tokenizer) != vocabulary.bos:
        about["tokenizer"]["post_processor"] = _opened_by(tokens["bos_token"], vocabulary.bos)
    settings = {
        # The class that takes tokenizer.json as it is; LLaMA's own would replace how it splits words.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": source.description.context_length,
        "clean_up_tokenization_spaces": False,
        **tokens,
    }
    if source.tokenizer.chat_template is not None:
        settings["chat_template"] = source.tokenizer.chat_template
    return about["tokenizer"], settings


def _opened_by(token: str | None, id: int | None) -> dict[str, Any] | None:
    """The `tokenizers` processor that puts this token before every text."""
    if token is None:
        return None

    def text(sequence: str, kind: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": token, "type_id": kind}}, {"Sequence": {"id": sequence, "type_id": kind}}]

    return {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }
