"""Reading and writing text: ringworld against transformers, with the same float32 weights and as many threads.

    make peers  # once: an environment with torch and transformers
    .venv-peers/bin/python benchmarks/inference.py [--model smollm2] [--lengths 1024 4096] [--runs 5]

Runs alternate, so that a machine whose speed drifts slows both alike; the figure to quote is the median of the ratios
of pairs. Peak memory is that of a process that does nothing else than to read the longest prompt and write; it is
measured first, since a process begins with the peak of the one that starts it.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from ringworld.generation import decode
from ringworld.generation.grammar import Grammar, Place
from ringworld.generation.sampling import Sampler
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.rope import rope_frequencies
from ringworld.weights.hugging_face import write_hugging_face
from ringworld.weights.models import open_model

try:
    import torch
    import transformers
except ImportError:
    print("skipped: this compares with transformers, which is not installed here (make peers)")
    raise SystemExit from None


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2"
    lengths: tuple[int, ...] = (1024, 4096)
    tokens: int = 32
    runs: int = 5
    alone: Literal["ringworld", "transformers"] | None = None  # do one of them once, and say its peak memory


Run = Callable[[np.ndarray, int], tuple[float, float, list[int]]]
"""(prompt [S], tokens) -> seconds to the first token, seconds for all others, the tokens."""


def ringworld_run(model: str) -> Run:
    mesh = build_mesh(MeshShape(), jax.devices()[:1])
    saved = open_model(model).load(mesh)
    about = saved.description
    text = np.ones(about.config.vocabulary_size, bool)
    sampler = Sampler.build(Grammar.build(text, about.vocabulary))
    place = Place(jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    stop = jnp.int32(-1)
    frequencies = rope_frequencies(about.rope_theta, about.config.head_dim, about.rope_scaling)

    def run(prompt: np.ndarray, tokens: int) -> tuple[float, float, list[int]]:
        began = time.perf_counter()
        capacity = len(prompt) + decode.bucket(tokens)
        lengths = jnp.array([len(prompt)], jnp.int32)
        state = decode.start(
            saved.weights, jnp.asarray(prompt[None]), lengths, place, sampler, stop, frequencies,
            capacity=capacity, config=about.config, mesh=mesh,
        )  # fmt: skip
        made = [int(state.token[0])]
        first = time.perf_counter()
        for _ in range(tokens - 1):
            state = decode.step(saved.weights, state, sampler, stop, frequencies, config=about.config, mesh=mesh)
            made.append(int(state.token[0]))
        return first - began, time.perf_counter() - first, made

    return run


def transformers_run(model: str) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        write_hugging_face(open_model(model), Path(folder) / "model")
        network: Any = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "model", dtype=torch.float32)
    network.eval()

    @torch.inference_mode()
    def run(prompt: np.ndarray, tokens: int) -> tuple[float, float, list[int]]:
        began = time.perf_counter()
        out = network(torch.from_numpy(prompt[None]).long(), use_cache=True, logits_to_keep=1)
        made = [int(out.logits[0, -1].argmax())]
        first = time.perf_counter()
        for _ in range(tokens - 1):
            out = network(torch.tensor([[made[-1]]]), past_key_values=out.past_key_values, use_cache=True)
            made.append(int(out.logits[0, -1].argmax()))
        return first - began, time.perf_counter() - first, made

    return run


RUNS = {"ringworld": ringworld_run, "transformers": transformers_run}


def peak_gigabytes(settings: Settings, name: str) -> float:
    words = [sys.executable, __file__, "--model", settings.model, "--alone", name, "--tokens", "8"]
    words += ["--lengths", str(max(settings.lengths))]
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1])


def main(settings: Settings) -> None:
    random = np.random.default_rng(0)
    vocabulary = open_model(settings.model).tokenizer.vocabulary
    prompts = {
        length: random.integers(100, vocabulary.text_size, length).astype(np.int32) for length in settings.lengths
    }
    if settings.alone is not None:
        RUNS[settings.alone](settings.model)(prompts[settings.lengths[0]], settings.tokens)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)
        return
    peaks = [peak_gigabytes(settings, name) for name in RUNS]
    print(f"{settings.model}; jax {jax.__version__}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    runs = {name: make(settings.model) for name, make in RUNS.items()}
    print("| prompt | | ringworld | transformers | ringworld / transformers (median of pairs) | equal tokens |")
    print("|---|---|---|---|---|---|")
    for length, prompt in prompts.items():
        for run in runs.values():
            run(prompt, 2)  # compiles
        pairs = [[run(prompt, settings.tokens) for run in runs.values()] for _ in range(settings.runs)]
        same = np.mean([ours[2] == theirs[2] for ours, theirs in pairs])
        reading = [[length / pair[i][0] for pair in pairs] for i in range(2)]
        writing = [[(settings.tokens - 1) / pair[i][1] for pair in pairs] for i in range(2)]
        for what, speeds in (("read", reading), ("written", writing)):
            ratio = statistics.median(a / b for a, b in zip(*speeds, strict=True))
            medians = " | ".join(f"{statistics.median(speed):.1f}" for speed in speeds)
            print(f"| {length} | tokens {what} a second | {medians} | {ratio:.2f} | {same:.0%} |", flush=True)
        firsts = [statistics.median(pair[i][0] for pair in pairs) for i in range(2)]
        print(f"| {length} | seconds to the first token | {firsts[0]:.2f} | {firsts[1]:.2f} | | |", flush=True)
    print(f"| {max(settings.lengths)} | peak memory, GB | {peaks[0]:.2f} | {peaks[1]:.2f} | | |")


if __name__ == "__main__":
    main(tyro.cli(Settings))
