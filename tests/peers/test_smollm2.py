"""A model that people have, here and in transformers, with the same weights: what it writes, and what it learns from.

The published file is quantised; both get the numbers that it stands for, in float32.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from networked import network
from ringworld.data.corpora import load_corpus
from ringworld.data.packing import Batch
from ringworld.generation.model import Model
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.rope import rope_frequencies
from ringworld.training.optimizer import OptimizerConfig
from ringworld.training.step import init_state, make_step
from ringworld.weights.hugging_face import write_hugging_face
from ringworld.weights.models import open_model
from ringworld.weights.named import fetch_model
from ringworld.weights.source import Source

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n",
    "Photosynthesis is the process by which",
    "1, 1, 2, 3, 5, 8,",
)
TOKENS = 64


@pytest.fixture(scope="module")
def source() -> Source:
    with network():
        return open_model(str(fetch_model("smollm2")))


@pytest.fixture(scope="module")
def theirs(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("smollm2") / "model"
    write_hugging_face(source, folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def ours(source: Source) -> Model:
    about, mesh = source.description, build_mesh(MeshShape(), jax.devices()[:1])
    return Model(
        source.load(mesh).weights, about.config, source.tokenizer, about.rope_theta, mesh, about.context_length
    )


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_theirs(prompt: str, ours: Model, theirs: Any) -> None:
    ids = ours.encode(prompt)
    (written,) = ours.generate_batch([ids], TOKENS)
    answer = theirs.generate(
        torch.from_numpy(ids[None]).long(),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=TOKENS,
        do_sample=False,
    )[0, len(ids) :].tolist()
    eos = ours.tokenizer.vocabulary.eos
    assert written.tolist() == (answer[: answer.index(eos)] if eos in answer else answer)
    assert len(written) > 8, "too little was written for this to show anything"


def test_the_first_step_of_training_has_their_loss(source: Source, ours: Model, theirs: Any) -> None:
    text = " ".join(text for _, text in load_corpus("tiny"))
    ids = np.array(source.tokenizer.encode(text)[:513], np.int32)[None]
    tokens, targets = ids[:, :-1], ids[:, 1:]
    assert tokens.shape == (1, 512)
    batch = Batch(
        tokens=tokens,
        targets=targets,
        segments=np.ones_like(tokens),
        positions=np.arange(tokens.shape[1], dtype=np.int32)[None],
        weights=np.ones(tokens.shape, np.float32),
    )
    about, optimizer = source.description, OptimizerConfig(kind="adamw")
    # A copy: the step gives the state's memory up.
    weights = jax.tree.map(jnp.copy, ours.weights)
    state = init_state(jax.random.key(0), about.config, optimizer, ours.mesh, weights)
    step = make_step(about.config, optimizer, ours.mesh, about.vocabulary.modalities)
    frequencies = rope_frequencies(about.rope_theta, about.config.head_dim, about.rope_scaling, tokens.shape[1])
    _, metrics = step(state, batch, frequencies, jnp.float32(0))
    whole = torch.from_numpy(ids).long()
    with torch.no_grad():
        expected = theirs(whole, labels=whole).loss
    assert metrics["loss"] == pytest.approx(float(expected), abs=1e-4)
