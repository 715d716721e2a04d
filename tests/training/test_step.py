"""One step: packed equals alone, the mesh changes nothing, and a bad step changes nothing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drawn import draw
from ringworld.data.documents import Document, Span
from ringworld.data.loading import place
from ringworld.data.packing import Batch, frame, pack_row
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.config import ModelConfig
from ringworld.model.rope import rope_frequencies
from ringworld.model.transformer import forward, head
from ringworld.tokens.vocabulary import Vocabulary
from ringworld.training.loss import cross_entropy
from ringworld.training.optimizer import OptimizerConfig
from ringworld.training.step import Precision, abstract_state, init_state, make_evaluation, make_step, reset_optimizer

VOCABULARY = Vocabulary(text_size=64, bos=1, eos=2, pad=0)
CONFIG = ModelConfig(
    vocabulary_size=64, dim=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8, tied=True, qk_norm=True
)
FREQUENCIES = rope_frequencies(1e4, CONFIG.head_dim)
MUON = OptimizerConfig(kind="muon", weight_decay=0.01)
ADAMW = OptimizerConfig(kind="adamw")
RATE = jnp.float32(1e-3)


def mesh_of(shape: MeshShape):
    return build_mesh(shape, jax.devices()[: int(np.prod(shape.sizes))])


def documents(count: int, seed: int = 0) -> list[Document]:
    """Each of a question that is not trained on, and an answer that is."""
    rng = np.random.default_rng(seed)

    def span(weight: float) -> Span:
        return Span("text", rng.integers(3, 64, int(rng.integers(3, 9))).astype(np.int32), weight)

    return [Document((span(0.0), span(1.0))) for _ in range(count)]


def batch_of(rows: list[list[Document]], length: int, normalization="token") -> Batch:
    packed = [pack_row([(frame(d, VOCABULARY), 0) for d in row], length, VOCABULARY, normalization) for row in rows]
    return Batch(*(np.stack(column) for column in zip(*packed, strict=True)))


def loss_and_gradients(batch: Batch, shape: MeshShape = MeshShape()):
    mesh = mesh_of(shape)
    weights = draw(0, CONFIG, mesh)
    placed = place(batch, mesh, "zigzag")

    def loss(weights):
        hidden = forward(
            weights, placed.tokens, placed.segments, placed.positions, config=CONFIG, frequencies=FREQUENCIES, mesh=mesh
        )
        sums = cross_entropy(
            hidden, head(weights), placed.targets, placed.weights, slices=VOCABULARY.modalities, mesh=mesh
        )
        return sums.nll / sums.weight

    return jax.jit(jax.value_and_grad(loss))(weights)


def assert_equal(ours, theirs, tolerance=2e-6) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=1e-4), ours, theirs)


@pytest.mark.parametrize("normalization", ["token", "example"])
def test_packed_equals_each_document_alone(normalization):
    """Loss and gradients, also where each document counts the same however long it is."""
    some = documents(8)
    together = batch_of([some[:3], some[3:5], some[5:8], []], 64, normalization)
    alone = batch_of([[document] for document in some], 64, normalization)
    assert_equal(loss_and_gradients(together), loss_and_gradients(alone))


def test_padding_changes_nothing():
    some = documents(4)
    assert_equal(loss_and_gradients(batch_of([some], 80)), loss_and_gradients(batch_of([some], 128)))


@pytest.mark.parametrize(
    "shape", [MeshShape(data=2, sequence=4), MeshShape(fsdp=2, tensor=2, sequence=2), MeshShape(sequence=8)], ids=str
)
def test_gradients_do_not_depend_on_the_mesh(shape):
    """Not the loss alone: a gradient scaled by the number of devices would leave that as it is."""
    some = documents(12)
    batch = batch_of([some[:4], some[4:5], some[5:9], some[9:]], 64)  # rows differ in how much is trained
    assert_equal(loss_and_gradients(batch, shape), loss_and_gradients(batch), tolerance=1e-5)


def run(optimizer: OptimizerConfig, shape: MeshShape, steps: int, precision: Precision = Precision()):
    mesh = mesh_of(shape)
    state = init_state(jax.random.key(0), CONFIG, optimizer, mesh)
    step = make_step(CONFIG, optimizer, mesh, VOCABULARY.modalities, precision)
    some = documents(8)
    batch = place(batch_of([some[:2], some[2:4], some[4:6], some[6:]], 64), mesh, "zigzag")
    losses = []
    for _ in range(steps):
        state, metrics = step(state, batch, FREQUENCIES, RATE)
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.mark.parametrize("optimizer", [MUON, ADAMW], ids=["muon", "adamw"])
def test_training_learns_and_the_mesh_does_not_matter(optimizer):
    _, one = run(optimizer, MeshShape(), 8)
    state, many = run(optimizer, MeshShape(fsdp=2, tensor=2, sequence=2), 8)
    assert one[-1] < one[0] - 0.05
    np.testing.assert_allclose(one, many, rtol=1e-5)
    assert int(state.step) == 8


def test_remat_changes_nothing():
    np.testing.assert_allclose(
        run(MUON, MeshShape(), 3, Precision(remat="layer"))[1], run(MUON, MeshShape(), 3)[1], rtol=1e-6
    )


def test_moments_lie_where_their_weights_lie():
    mesh = mesh_of(MeshShape(fsdp=2, tensor=2, sequence=2))
    for optimizer in (MUON, ADAMW):
        state = init_state(jax.random.key(0), CONFIG, optimizer, mesh)
        like = abstract_state(CONFIG, optimizer, mesh)
        assert all(
            jax.tree.leaves(jax.tree.map(lambda x, a: x.sharding.is_equivalent_to(a.sharding, x.ndim), state, like))
        )
        shape = state.weights.layers.gate.sharding.shard_shape(state.weights.layers.gate.shape)
        moments = [x for x in jax.tree.leaves(state.optimizer_state) if x.shape == state.weights.layers.gate.shape]
        assert moments
        assert all(x.sharding.shard_shape(x.shape) == shape for x in moments)


def one_step(change, steps_before: int = 0, spike: float = 10.0):
    """A step with batch or state changed by `change`, after some good ones: state before and after, metrics."""
    mesh = mesh_of(MeshShape())
    optimizer = replace(ADAMW, spike=spike)
    state = init_state(jax.random.key(0), CONFIG, optimizer, mesh)
    step = make_step(CONFIG, optimizer, mesh, VOCABULARY.modalities)
    batch = place(batch_of([documents(4)], 64), mesh, "zigzag")
    for _ in range(steps_before):
        state, _ = step(state, batch, FREQUENCIES, RATE)
    state, batch = change(state, batch)
    before = jax.tree.map(np.array, state)
    after, metrics = step(state, batch, FREQUENCIES, RATE)
    return before, jax.tree.map(np.array, after), metrics


def test_a_loss_that_is_not_finite_leaves_everything_as_it_was():
    before, after, metrics = one_step(lambda state, batch: (state, replace(batch, weights=batch.weights * jnp.nan)))
    assert float(metrics["skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_a_spike_is_skipped_and_a_lasting_one_is_not_forever():
    def shrink_the_mean(state, batch):
        return replace(state, gradient_norm=state.gradient_norm / 1000), batch

    before, after, metrics = one_step(shrink_the_mean, steps_before=20)
    assert float(metrics["skipped"]) == 1
    jax.tree.map(np.testing.assert_array_equal, after.weights, before.weights)
    assert after.gradient_norm == pytest.approx(before.gradient_norm * (0.95 + 0.05 * 10), rel=1e-5)


def test_a_good_step_is_not_skipped():
    before, after, metrics = one_step(lambda state, batch: (state, batch), steps_before=20)
    assert float(metrics["skipped"]) == 0
    assert int(after.step) == int(before.step) + 1


def test_reset_keeps_weights_and_forgets_moments():
    state, _ = run(MUON, MeshShape(), 2)
    kept = jax.tree.map(np.array, state.weights)
    fresh = reset_optimizer(state, CONFIG, MUON, mesh_of(MeshShape()))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.array, fresh.weights), kept)
    assert int(fresh.step) == 0


def test_theta_and_rate_do_not_compile_again():
    mesh = mesh_of(MeshShape())
    state = init_state(jax.random.key(0), CONFIG, ADAMW, mesh)
    step = make_step(CONFIG, ADAMW, mesh, VOCABULARY.modalities)
    batch = place(batch_of([documents(4)], 64), mesh, "zigzag")
    for theta, rate in ((1e4, 1e-3), (1e6, 1e-4)):
        state, _ = step(state, batch, rope_frequencies(theta, CONFIG.head_dim), jnp.float32(rate))
    assert step._cache_size() == 1


def test_evaluation_gives_the_loss_of_the_step():
    mesh = mesh_of(MeshShape())
    state = init_state(jax.random.key(0), CONFIG, ADAMW, mesh)
    batch = place(batch_of([documents(4)], 64), mesh, "zigzag")
    measured = make_evaluation(CONFIG, mesh, VOCABULARY.modalities)(state.weights, batch, FREQUENCIES)
    _, metrics = make_step(CONFIG, ADAMW, mesh, VOCABULARY.modalities)(state, batch, FREQUENCIES, RATE)
    assert float(measured["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-6)
    assert float(measured["accuracy"]) == pytest.approx(float(metrics["accuracy"]))
