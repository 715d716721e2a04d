"""Makes hugging_face.safetensors and rope_scaling.json: what transformers computes of tiny random models.

Run it where `make peers` has put transformers: .venv-peers/bin/python tests/golden/make_hugging_face.py

hugging_face.safetensors holds, for every set of weights, its tensors ("weights/gqa/model.norm.weight"), and for every
case the logits ("logits/yarn") of the same ids ("ids"); for one also the hidden states between its layers ("hidden/0").
Its metadata holds the cases: the set of weights, and the config.json that transformers read.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file, save_file
from transformers import (  # pyright: ignore[reportMissingImports]
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen3Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # pyright: ignore[reportMissingImports]

HERE = Path(__file__).parent
CONTEXT, LENGTH = 16, 40  # tokens: what the models were made for, and what they are given

SMALL = {"vocab_size": 56, "num_hidden_layers": 2, "max_position_embeddings": CONTEXT, "rope_theta": 1000.0}
GQA = {
    **SMALL,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
# Every matrix is square, so that one that is not transposed has the right shape.
MHA = {**SMALL, "vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4}
MQA = {**SMALL, "hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 3, "num_key_value_heads": 1}
QWEN = {**GQA, "hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT, "beta_fast": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "original_max_position_embeddings": CONTEXT,
    "low_freq_factor": 0.25,
    "high_freq_factor": 2.0,
}

# case: (weights, configuration)
CASES: dict[str, tuple[str, PretrainedConfig]] = {
    "mha": ("mha", LlamaConfig(**MHA, dtype="bfloat16")),
    "gqa": ("gqa", LlamaConfig(**GQA)),
    "tied": ("tied", LlamaConfig(**MQA, tie_word_embeddings=True)),
    "qwen3": ("qwen3", Qwen3Config(**QWEN)),
    "mistral": ("gqa", MistralConfig(**GQA, sliding_window=None)),
    "linear": ("gqa", LlamaConfig(**GQA, rope_scaling={"rope_type": "linear", "factor": 3.0})),
    "dynamic": ("gqa", LlamaConfig(**GQA, rope_scaling={"rope_type": "dynamic", "factor": 3.0})),
    "llama3": ("gqa", LlamaConfig(**GQA, rope_scaling=LLAMA3)),
    "yarn": ("gqa", LlamaConfig(**GQA, rope_scaling=YARN)),
    "yarn attention_factor": ("gqa", LlamaConfig(**GQA, rope_scaling={**YARN, "attention_factor": 1.5})),
    "yarn mscale": ("gqa", LlamaConfig(**GQA, rope_scaling={**YARN, "mscale": 2.0, "mscale_all_dim": 0.5})),
}

# Frequencies of models of full size: (theta, head_dim, scaling as ours has it, length of the text, configuration).
FREQUENCIES: dict[str, tuple[float, int, dict[str, Any], int, dict[str, Any]]] = {
    "linear": (1e4, 128, {"factor": 8.0, "original_length": 4096}, 9000, {"factor": 8.0}),
    "dynamic within": (1e4, 128, {"factor": 2.0, "original_length": 4096}, 4000, {"factor": 2.0}),
    "dynamic beyond": (1e4, 128, {"factor": 2.0, "original_length": 4096}, 13000, {"factor": 2.0}),
    "llama3": (
        5e5,
        128,
        {"factor": 8.0, "original_length": 8192, "low": 1.0, "high": 4.0},
        9000,
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    ),
    "yarn": (
        1e6,
        128,
        {"factor": 4.0, "original_length": 32768},
        9000,
        {"factor": 4.0, "original_max_position_embeddings": 32768},
    ),
    "yarn small heads": (
        1e4,
        32,
        {"factor": 32.0, "original_length": 2048, "low": 2.0, "high": 16.0, "magnitude": 0.75},
        9000,
        {
            "factor": 32.0,
            "original_max_position_embeddings": 2048,
            "beta_slow": 2.0,
            "beta_fast": 16.0,
            "attention_factor": 0.75,
        },
    ),
}


def random_model(config: PretrainedConfig) -> torch.nn.Module:
    """A model in which every weight matters: gains are not 1, and scores are far from equal."""
    kept = config.dtype or torch.float32
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
    return model.to(kept)


def old_form(saved: dict[str, Any]) -> dict[str, Any]:
    """A config.json as transformers 4 wrote it."""
    scaling = dict(saved.pop("rope_parameters"))
    theta, kind = scaling.pop("rope_theta"), scaling.pop("rope_type")
    return {**saved, "rope_theta": theta, "rope_scaling": {"type": kind, **scaling}}


def main() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 32, (1, LENGTH), dtype=torch.int32)
    weights, results, cases = {}, {"ids": ids}, {}
    for case, (name, config) in CASES.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            random_model(config).save_pretrained(folder)
            tensors = weights.setdefault(name, load_file(folder / "model.safetensors"))
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
            saved = json.loads((folder / "config.json").read_text())
            if case in ("linear", "llama3"):
                saved = old_form(saved)
                (folder / "config.json").write_text(json.dumps(saved))
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
            with torch.no_grad():
                out = model(ids.long(), output_hidden_states=case == "gqa")
        results[f"logits/{case}"] = out.logits.contiguous()
        results |= {f"hidden/{depth}": hidden.contiguous() for depth, hidden in enumerate(out.hidden_states or ())}
        cases[case] = {"weights": name, "config": saved}
    results |= {f"weights/{name}/{key}": value for name, tensors in weights.items() for key, value in tensors.items()}
    save_file(results, HERE / "hugging_face.safetensors", {"cases": json.dumps(cases)})

    frequencies = {}
    for case, (theta, head_dim, ours, length, given) in FREQUENCIES.items():
        kind = case.split()[0]
        size = {"hidden_size": head_dim, "num_attention_heads": 1, "max_position_embeddings": ours["original_length"]}
        config = LlamaConfig(**size, rope_theta=theta, rope_scaling={"rope_type": kind, **given})
        angles, magnitude = ROPE_INIT_FUNCTIONS[kind](config, seq_len=length)
        frequencies[case] = {
            "theta": theta,
            "head_dim": head_dim,
            "scaling": {"kind": kind, **ours},
            "length": length,
            "frequencies": angles.tolist(),
            "magnitude": magnitude,
        }
    (HERE / "rope_scaling.json").write_text(json.dumps(frequencies, indent=1) + "\n")


if __name__ == "__main__":
    main()
