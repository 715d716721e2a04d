from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.data.frames import ShapesConfig
from ringworld.errors import UserError
from ringworld.mesh import MeshShape, build_mesh
from ringworld.tokens.quantizers import QuantizerConfig
from ringworld.tokens.vqgan import VqganConfig
from ringworld.training.checkpoint import Checkpoints
from ringworld.training.curriculum import Criterion
from ringworld.training.loop import train
from ringworld.training.metrics import read_metrics
from ringworld.training.optimizer import OptimizerConfig
from ringworld.training.vqgan import Usage, VqganLearner, VqganLoss, VqganRecipe, VqganStage, VqganState, psnr
from ringworld.training.vqgan import _update_codebook as update_codebook
from ringworld.weights.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("programs")

EMA = QuantizerConfig("ema", codes=16, dim=4, restart_after=3)
MODEL = VqganConfig(
    frame_size=16,
    channels=(16,),
    latent=8,
    quantizer=EMA,
    patch=8,
    encoder_blocks=1,
    decoder_blocks=1,
    middle_blocks=0,
    kernel=1,
    norm="position",
)
STAGE = VqganStage(
    name="first", batch_size=16, steps=6, learning_rate=3e-3, sources=((ShapesConfig(), 1.0),), warmup_steps=2
)
RECIPE = VqganRecipe(
    name="tiny-vqgan",
    summary="a few steps",
    model=MODEL,
    optimizer=OptimizerConfig(weight_decay=0.0),
    stages=(STAGE, replace(STAGE, name="second", steps=4, schedule="cosine")),
    mesh=MeshShape(data=4, tensor=2),
    checkpoint_seconds=1e9,
)
QUIET = {"log": lambda line: None}
KINDS = {
    "ema": EMA,
    "gradient": replace(EMA, kind="gradient"),
    "normalized": replace(EMA, kind="gradient", normalized=True),
    "fsq": QuantizerConfig("fsq", codes=16, dim=2, levels=(4, 4)),
}


def with_quantizer(name: str) -> VqganRecipe:
    return replace(RECIPE, model=replace(MODEL, quantizer=KINDS[name]))


def final(run: Path, recipe: VqganRecipe, mesh: MeshShape | None = None) -> VqganState:
    learner = VqganLearner(recipe)
    with Checkpoints(run, keep=3, files=learner.files(0)) as checkpoints:
        return checkpoints.state(learner.abstract(build_mesh(mesh or recipe.mesh)))


def steps(run: Path) -> list[dict]:
    return [r | {"seconds": 0} for r in read_metrics(run / "metrics.jsonl") if r["kind"] == "step"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, programs) -> Path:
    return train(RECIPE, tmp_path_factory.mktemp("vqgan") / "whole", **QUIET)


def test_a_run_that_was_stopped_is_one_that_was_not(whole, tmp_path):
    for limit in (3, 6, 8, None):
        train(RECIPE, tmp_path / "run", steps=limit, **QUIET)
    assert steps(tmp_path / "run") == steps(whole)
    jax.tree.map(np.testing.assert_array_equal, final(tmp_path / "run", RECIPE), final(whole, RECIPE))


def test_another_mesh_gives_the_same(whole, tmp_path):
    train(RECIPE, tmp_path, mesh=MeshShape(fsdp=2, sequence=4), **QUIET)
    losses = [[record["loss"] for record in steps(run)] for run in (whole, tmp_path)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_a_run_says_what_it_measures(whole, capsys):
    records = steps(whole)
    assert records[-1]["frames"] == 160
    assert {"loss", "psnr", "codes", "gradient_norm", "skipped"} <= records[-1].keys()
    assert 0 < records[-1]["codes"] <= 1


def test_what_is_kept_is_a_tokenizer(whole):
    tokenizer = load_tokenizer(whole, build_mesh(MeshShape(data=8)))
    state = final(whole, RECIPE)
    jax.tree.map(np.testing.assert_array_equal, tokenizer.weights, state.weights)
    frames = np.stack([ShapesConfig().build(16, 0)[i] for i in range(5)])
    assert tokenizer.decode(tokenizer.encode(frames)).shape == frames.shape


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_quantiser_learns(name, tmp_path):
    recipe = replace(with_quantizer(name), stages=(replace(STAGE, steps=60, warmup_steps=5),), average=0.9)
    train(recipe, tmp_path, **QUIET)
    losses = [record["loss"] for record in steps(tmp_path)]
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:3])
    state = final(tmp_path, recipe)
    # The kept weights are an average of the trained ones: near them, and not the same.
    kernels = [weights.encoder.first.kernel for weights in (state.weights, state.trained.generator)]
    assert 0 < np.abs(kernels[0] - kernels[1]).max() < 0.1


def test_the_average_is_that_of_the_weights_so_far(tmp_path):
    recipe = replace(RECIPE, stages=(STAGE,), average=0.5)
    wanted = None
    for step in range(1, 5):
        train(recipe, tmp_path, steps=step, **QUIET)
        trained = np.asarray(final(tmp_path, recipe).trained.generator.decoder.first.kernel)
        if wanted is None:
            wanted = np.asarray(
                VqganLearner(recipe).init(jax.random.key(0), build_mesh(recipe.mesh)).weights.decoder.first.kernel
            )
        memory = min(0.5, step / (9 + step))
        wanted = memory * wanted + (1 - memory) * trained
    np.testing.assert_allclose(final(tmp_path, recipe).weights.decoder.first.kernel, wanted, atol=1e-6)


def test_moving_averages_make_the_codebook():
    config = QuantizerConfig("ema", codes=3, dim=2, decay=0.75)
    vectors = jnp.array([[[[1.0, 0.0], [3.0, 0.0]], [[0.0, 8.0], [1.0, 2.0]]]])
    codes = jnp.array([[[0, 0], [1, 0]]])
    usage = Usage(jnp.array([4.0, 1.0, 2.0]), jnp.array([[4.0, 4.0], [0.0, 4.0], [2.0, 2.0]]), jnp.array([5, 0, 1]))
    after, codebook = update_codebook(usage, jnp.zeros((3, 2)), vectors, codes, config, jax.random.key(0))
    np.testing.assert_allclose(after.counts, [0.75 * 4 + 0.25 * 3, 0.75 + 0.25, 0.75 * 2])
    np.testing.assert_allclose(after.sums, [[3 + 1.25, 3 + 0.5], [0, 3 + 2], [1.5, 1.5]])
    np.testing.assert_allclose(codebook, after.sums / after.counts[:, None])
    np.testing.assert_array_equal(after.idle, [0, 0, 2])


def test_a_code_that_nothing_chooses_starts_again_at_a_vector():
    config = QuantizerConfig("gradient", codes=3, dim=2, restart_after=2)
    vectors = jnp.array([[[[7.0, 7.0], [7.0, 7.0]]]])
    usage = Usage(jnp.ones(3), jnp.ones((3, 2)), jnp.array([0, 1, 0]))
    book = jnp.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    after, codebook = update_codebook(usage, book, vectors, jnp.array([[[0, 0]]]), config, jax.random.key(0))
    np.testing.assert_array_equal(codebook, [[1.0, 1.0], [7.0, 7.0], [3.0, 3.0]])
    np.testing.assert_array_equal(after.idle, [0, 0, 1])


def test_a_codebook_begins_at_the_first_batch(tmp_path):
    recipe = replace(with_quantizer("gradient"), stages=(replace(STAGE, learning_rate=0.0),))
    train(recipe, tmp_path, steps=1, **QUIET)
    tokenizer = load_tokenizer(tmp_path, build_mesh(MeshShape(data=8)))
    # Nothing was learned, yet codes lie where frames are: more than one is used at once.
    frames = np.stack([ShapesConfig().build(16, 1)[i] for i in range(32)])
    assert len(np.unique(tokenizer.encode(frames))) >= 4


def test_a_run_may_begin_with_the_weights_of_another(whole, tmp_path):
    given = load_tokenizer(whole, build_mesh(RECIPE.mesh))
    recipe = replace(RECIPE, init=str(whole))
    state = VqganLearner(recipe).init(jax.random.key(0), build_mesh(RECIPE.mesh))
    for weights in (state.weights, state.trained.generator):
        jax.tree.map(np.testing.assert_array_equal, weights, given.weights)
    still = replace(STAGE, learning_rate=0.0, warmup_steps=0, steps=1)
    run = train(replace(recipe, stages=(still,), model=MODEL), tmp_path / "run", **QUIET)
    codebook = final(run, recipe).trained.generator.codebook
    moved = np.abs(codebook - given.weights.codebook).max(-1)
    assert 0 < np.median(moved) < 0.05 * np.abs(given.weights.codebook).max()  # by averages, not drawn anew
    other = replace(recipe, model=replace(MODEL, latent=16))
    with pytest.raises(UserError, match=r"tiny-vqgan cannot begin with .*of another shape: latent: 8 before, 16 now"):
        train(other, tmp_path / "other", **QUIET)


@pytest.mark.slow
def test_the_discriminator_learns_and_moves_the_generator_once_it_begins(tmp_path):
    loss = VqganLoss(adversarial=0.5, adversarial_start=2, discriminator=(8, 16))
    recipe = replace(RECIPE, loss=loss, stages=(STAGE,))
    plain = replace(RECIPE, stages=(STAGE,))
    runs = {}
    for limit in (2, 5):
        for name, which in (("with", recipe), ("without", plain)):
            train(which, tmp_path / name, steps=limit, **QUIET)
            runs[name, limit] = final(tmp_path / name, which)
    generators = {key: state.trained.generator.decoder.last.kernel for key, state in runs.items()}
    np.testing.assert_allclose(generators["with", 2], generators["without", 2], atol=1e-6)
    assert np.abs(generators["with", 5] - generators["without", 5]).max() > 1e-5
    fresh = VqganLearner(recipe).init(jax.random.key(0), build_mesh(recipe.mesh)).trained.discriminator
    assert np.abs(runs["with", 5].trained.discriminator[0].kernel - fresh[0].kernel).max() > 1e-4


@pytest.mark.parametrize("side", ["generator", "discriminator"])
def test_each_loss_is_kept_from_the_weights_that_it_is_not_for(side):
    loss = VqganLoss(adversarial=0.7, adversarial_start=0, discriminator=(8,))
    learner = VqganLearner(replace(RECIPE, loss=loss))
    state = learner.init(jax.random.key(1), build_mesh(MeshShape(), jax.devices()[:1]))
    frames = jnp.array(np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)), jnp.float32)
    total = jax.grad(lambda t: learner._loss(t, frames, jnp.int32(1))[0])(state.trained)
    if side == "discriminator":
        # Its gradient is that of the hinge loss alone, whatever the generator's terms weigh.
        heavier = VqganLearner(replace(RECIPE, loss=replace(loss, adversarial=7.0, l1=3.0)))
        other = jax.grad(lambda t: heavier._loss(t, frames, jnp.int32(1))[0])(state.trained)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
            total.discriminator,
            other.discriminator,
        )
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(total.discriminator)) > 0
    else:
        # The generator wants to be taken for real: at its last layer as strongly as to be exact, times the weight.
        plain = VqganLearner(replace(RECIPE, loss=replace(loss, adversarial=0.0)))
        bare = replace(state.trained, discriminator=())
        errors = jax.grad(lambda t: plain._loss(t, frames, jnp.int32(1))[0])(bare).generator.decoder.last.kernel
        pull = total.generator.decoder.last.kernel - errors
        assert np.linalg.norm(pull) == pytest.approx(0.7 * np.linalg.norm(errors), rel=0.02)


@dataclass(frozen=True)
class Brightness:
    """A stand-in for a perceptual distance."""

    scale: float = 1.0

    def build(self) -> Callable[[jax.Array, jax.Array], jax.Array]:
        return lambda frames, painted: self.scale * (frames.mean((1, 2, 3)) - painted.mean((1, 2, 3))).__abs__().mean()


def test_a_perceptual_distance_of_ones_own_takes_part(tmp_path):
    losses = []
    for perceptual in (None, Brightness(), Brightness(100.0)):
        recipe = replace(RECIPE, loss=VqganLoss(perceptual=perceptual, perceptual_weight=0.5), stages=(STAGE,))
        run = train(recipe, tmp_path / str(len(losses)), steps=1, **QUIET)
        losses.append(steps(run)[0]["loss"])
    assert losses[2] - losses[0] == pytest.approx(100 * (losses[1] - losses[0]), rel=1e-3)
    assert losses[1] > losses[0]


def test_a_criterion_may_ask_for_psnr(tmp_path):
    stage = replace(STAGE, steps=5, until=Criterion("psnr", 1.0, check_every=2, rows=16))
    train(replace(RECIPE, stages=(stage,)), tmp_path, **QUIET)
    assert len(steps(tmp_path)) == 2


def test_peak_signal_to_noise_ratio():
    frames = jnp.zeros((3, 4, 4, 3))
    painted = jnp.stack([frames[0], frames[0] + 0.02, frames[0] + 2.0])
    np.testing.assert_allclose(psnr(frames, painted), [100.0, 40.0, 10 * np.log10(4.0)], rtol=1e-4)
