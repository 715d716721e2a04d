"""Chunked cross-entropy against the one line that it stands for, in values and gradients, on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.mesh import MeshShape, build_mesh
from ringworld.training.loss import cross_entropy

ROWS, LENGTH, WIDTH, VOCABULARY = 4, 24, 16, 44
JOINT = (slice(0, VOCABULARY),)
TWO = (slice(0, 30), slice(30, 44))


def mesh_of(shape: MeshShape):
    return build_mesh(shape, jax.devices()[: int(np.prod(shape.sizes))])


def case(seed: int = 0, trained: float = 0.7):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
    head = rng.normal(size=(WIDTH, VOCABULARY)).astype(np.float32)
    targets = rng.integers(0, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    weights = (rng.random((ROWS, LENGTH)) * (rng.random((ROWS, LENGTH)) < trained)).astype(np.float32)
    return tuple(jnp.asarray(x) for x in (hidden, head, targets, weights))


def plain(hidden, head, targets, weights, slices, z_loss=0.0):
    """Loss and accuracy: a softmax over each target's own slice."""
    logits = hidden @ head
    nll, correct = 0.0, 0.0
    for part in slices:
        mine = (targets >= part.start) & (targets < part.stop)
        local = jnp.where(mine, targets - part.start, 0)
        log_p = jax.nn.log_softmax(logits[..., part])
        nll += jnp.sum(weights * mine * -jnp.take_along_axis(log_p, local[..., None], -1)[..., 0])
        log_z = jax.nn.logsumexp(logits[..., part], axis=-1)
        nll += jnp.sum(weights * mine * z_loss * log_z**2)
        correct += jnp.sum(weights * mine * (log_p.argmax(-1) == local))
    return nll / weights.sum(), correct / weights.sum()


def ours(hidden, head, targets, weights, slices, mesh, tokens=1024, z_loss=0.0):
    sums = cross_entropy(hidden, head, targets, weights, slices=slices, mesh=mesh, z_loss=z_loss, tokens=tokens)
    return sums.nll / sums.weight, sums.correct / sums.weight


def check(loss, reference, operands) -> None:
    (value, accuracy), gradients = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*operands)
    (expected, expected_accuracy), expected_gradients = jax.value_and_grad(reference, (0, 1), has_aux=True)(*operands)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(accuracy, expected_accuracy, rtol=1e-5)
    for a, b in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("slices", [JOINT, TWO], ids=["joint", "by modality"])
@pytest.mark.parametrize(
    "shape",
    [MeshShape(), MeshShape(data=2, sequence=4), MeshShape(fsdp=2, tensor=2, sequence=2), MeshShape(tensor=8)],
    ids=str,
)
def test_values_and_gradients(shape, slices):
    mesh = mesh_of(shape)
    check(lambda *x: ours(*x, slices, mesh), lambda *x: plain(*x, slices), case())


@pytest.mark.parametrize("tokens", [1, 7, 96])
def test_any_size_of_chunk(tokens):
    mesh = mesh_of(MeshShape())
    check(lambda *x: ours(*x, TWO, mesh, tokens), lambda *x: plain(*x, TWO), case())


@pytest.mark.parametrize("slices", [JOINT, TWO], ids=["joint", "by modality"])
@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(fsdp=2, tensor=2, sequence=2)], ids=str)
def test_z_loss(shape, slices):
    mesh = mesh_of(shape)
    check(lambda *x: ours(*x, slices, mesh, 7, z_loss=0.1), lambda *x: plain(*x, slices, 0.1), case())


def test_no_z_loss_costs_nothing_and_changes_no_bit():
    mesh = mesh_of(MeshShape())
    without, zero, some = (
        jax.make_jaxpr(jax.grad(lambda *x, z=z: cross_entropy(*x, slices=TWO, mesh=mesh, **z).nll, (0, 1)))(*case())
        for z in ({}, {"z_loss": 0.0}, {"z_loss": 1e-4})
    )
    assert str(zero) == str(without) != str(some)
    assert "integer_pow" in str(some)
    assert "integer_pow" not in str(zero)


@pytest.mark.parametrize("z_loss", [-1e-4, float("nan"), float("inf")])
def test_a_z_loss_below_zero_or_without_end_is_refused(z_loss):
    with pytest.raises(ValueError, match=f"z_loss must be a number from 0 up, got {z_loss}"):
        ours(*case(), JOINT, mesh_of(MeshShape()), z_loss=z_loss)


def test_a_device_without_a_trained_token_is_no_mean_of_its_own():
    """The last quarter of every row lies on one device and has no weight."""
    hidden, head, targets, weights = case()
    operands = hidden, head, targets, weights.at[:, 18:].set(0.0)
    mesh = mesh_of(MeshShape(sequence=4))
    check(lambda *x: ours(*x, JOINT, mesh), lambda *x: plain(*x, JOINT), operands)


def test_a_token_that_weighs_nothing_can_be_as_wrong_as_it_likes():
    hidden, head, targets, weights = case()
    hidden = hidden.at[0, 0].set(jnp.inf)
    weights = weights.at[0, 0].set(0.0)
    loss, _ = ours(hidden, head, targets, weights, JOINT, mesh_of(MeshShape()))
    assert np.isfinite(loss)


def test_loss_by_modality_is_blind_to_the_other_modality():
    hidden, head, targets, weights = case()
    targets = jnp.minimum(targets, 29)
    changed = head.at[:, 30:].add(100.0)
    one, other = (ours(hidden, h, targets, weights, TWO, mesh_of(MeshShape()))[0] for h in (head, changed))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_no_array_of_all_logits():
    """At 64K tokens and 32,000 ids the logits would be 8 GB; nothing in the compiled program is near it."""
    mesh = mesh_of(MeshShape())
    operands = (
        jax.ShapeDtypeStruct((1, 65_536, 64), jnp.float32),
        jax.ShapeDtypeStruct((64, 32_000), jnp.float32),
        jax.ShapeDtypeStruct((1, 65_536), jnp.int32),
        jax.ShapeDtypeStruct((1, 65_536), jnp.float32),
    )
    gradient = jax.jit(jax.grad(lambda *x: ours(*x, (slice(0, 32_000),), mesh)[0], (0, 1)))
    memory = gradient.lower(*operands).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1e9
