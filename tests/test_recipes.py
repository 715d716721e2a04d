"""Named runs: what they say, and that LWM's 7B ones hold together by shape."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generation.models import tokenizer
from ringworld import recipes
from ringworld.data.documents import Given
from ringworld.data.packing import Batch, frame
from ringworld.data.passing import PassingConfig
from ringworld.data.sources import JsonlConfig, NeedleSourceConfig, ReachConfig, ShardsConfig, TokenizerConfig
from ringworld.data.tokenized import TextSpan, TokenizedDocument, TokenizedSpan, VisionSpan, shard_name, write_shard
from ringworld.errors import UserError
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.rope import rope_frequencies
from ringworld.recipes.nano import TOKENIZER, nano
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.vocabulary import LWM
from ringworld.training.curriculum import Recipe
from ringworld.training.language import LanguageRecipe
from ringworld.training.loop import train
from ringworld.training.step import abstract_state, make_step
from ringworld.weights.hugging_face import write_hugging_face
from ringworld.weights.models import open_model
from ringworld.weights.portable import write_portable
from ringworld.worlds.film import Scene
from weights import made

PAPER = {  # LWM, stage 1: tokens in a row, theta, steps, warm-up, tokens in all (billions)
    "text-32k": (32_768, 1e6, 1200, 100, 4.8),
    "text-128k": (131_072, 1e7, 3000, 200, 12),
    "text-256k": (262_144, 1e7, 3000, 200, 12),
    "text-512k": (524_288, 2.5e7, 720, 50, 3),
    "text-1m": (1_048_576, 5e7, 450, 25, 1.8),
}


@pytest.mark.parametrize("name", PAPER)
def test_lwms_stages_have_the_papers_numbers(name):
    recipe = recipes.build(name, data=Path("books"))
    stage = recipe.stages[-1]
    length, theta, steps, warmup, billions = PAPER[name]
    assert (stage.sequence_length, stage.rope_theta, stage.steps, stage.warmup_steps) == (length, theta, steps, warmup)
    assert stage.units_per_step == 2**22
    assert stage.steps * stage.units_per_step / 1e9 == pytest.approx(billions, rel=0.06)
    assert stage.learning_rate == 4e-5
    assert [f"text-{s.name}" for s in recipe.stages] == list(PAPER)[: len(recipe.stages)]
    assert recipe.model.parameters == pytest.approx(6.74e9, rel=1e-3)


@pytest.mark.parametrize("name", PAPER)
def test_a_7b_step_of_every_length_has_a_shape(name):
    """The whole step, traced without a number: weights sharded, rows of up to a million tokens, no array of [S, S]."""
    assert_step_has_a_shape(recipes.build(name, data=Path("books")), (slice(0, 32_000),))


def assert_step_has_a_shape(recipe: Recipe, slices: tuple[slice, ...]) -> None:
    """Of the last stage."""
    stage = recipe.stages[-1]
    mesh = build_mesh(MeshShape(fsdp=-1, tensor=2, sequence=2 if stage.mesh and stage.mesh.sequence > 1 else 1))
    state = abstract_state(recipe.model, recipe.optimizer, mesh)
    rows = jax.ShapeDtypeStruct((stage.batch_size, stage.sequence_length), jnp.int32)
    batch = Batch(rows, rows, rows, rows, jax.ShapeDtypeStruct(rows.shape, jnp.float32))
    step = make_step(recipe.model, recipe.optimizer, mesh, slices, recipe.precision)
    frequencies = rope_frequencies(stage.rope_theta, recipe.model.head_dim)
    after, metrics = jax.eval_shape(step, state, batch, frequencies, np.float32(4e-5))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {name: x.shape for name, x in metrics.items()} == {
        "loss": (), "accuracy": (), "gradient_norm": (), "skipped": ()
    }  # fmt: skip


VISION = {  # LWM, stage 2: tokens in a row, steps, warm-up, tokens in all (billions), tensor, sequence
    "vision-1k": (1024, 45_000, 1000, 363, 1, 1),
    "vision-8k": (8192, 14_000, 500, 107, 1, 1),
    "vision-32k": (32_768, 1200, 100, 10, 4, 1),
    "vision-128k": (131_072, 450, 50, 3.5, 8, 1),
    "vision-1m": (1_048_576, 50, 5, 0.4, 16, 4),
}
CHATS = ("image-generation", "image-understanding", "video-generation", "video-understanding")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("image-text", "video-text", "text", *CHATS):
        (tmp_path / "data" / name).mkdir(parents=True)
    return tmp_path / "data"


@pytest.mark.parametrize("name", VISION)
def test_lwms_stages_of_vision_have_the_papers_numbers(name: str, data: Path) -> None:
    recipe = recipes.build(name, data=data)
    stage = recipe.stages[-1]
    length, steps, warmup, billions, tensor, sequence = VISION[name]
    assert (stage.sequence_length, stage.steps, stage.warmup_steps) == (length, steps, warmup)
    assert (stage.rope_theta, stage.units_per_step) == (5e7, 2**23)
    assert stage.steps * stage.units_per_step / 1e9 == pytest.approx(billions, rel=0.1)
    assert stage.mesh == MeshShape(fsdp=-1, tensor=tensor, sequence=sequence)
    pairs = name in ("vision-1k", "vision-8k")
    rates = [stage.learning_rate_at(step) for step in (warmup - 1, steps - 1)]
    assert rates == pytest.approx([6e-4, 6e-5] if pairs else [8e-5, 8e-5])
    assert [f"vision-{s.name}" for s in recipe.stages] == list(VISION)[: len(recipe.stages)]
    assert (recipe.model.vocabulary_size, recipe.softmax) == (40_448, "modality")
    shares = {Path(source.path).name: share for source, share in stage.sources}
    if pairs:
        assert shares["text"] == 0.16
        assert sum(shares.values()) == pytest.approx(1)
        assert all(0 < source.swap < 1 for source, _ in stage.sources if isinstance(source, ShardsConfig))
    else:
        assert shares == dict.fromkeys(CHATS, 0.25)
    assert (stage.mixing, stage.normalization) == ("rows", "modality")


@pytest.mark.parametrize("name", VISION)
def test_a_7b_step_of_vision_of_every_length_has_a_shape(name: str, data: Path) -> None:
    assert_step_has_a_shape(recipes.build(name, data=data), LWM.modalities)


def test_what_the_data_of_vision_lack_is_said(data: Path) -> None:
    with pytest.raises(
        UserError, match="vision-1k trains on pictures, films and texts of your own: name a folder with"
    ):
        recipes.build("vision-1k")
    for name in ("text", "video-text", "video-generation"):
        (data / name).rmdir()
    with pytest.raises(UserError, match=r"vision-1k trains on image-text, text, and there is no .*data/text: docs"):
        recipes.build("vision-1k", data=data)
    (data / "text.jsonl").touch()
    first = recipes.build("vision-1k", data=data).stages[0]
    assert first.sources[-1] == (JsonlConfig(str(data / "text.jsonl")), 0.16)
    with pytest.raises(UserError, match=r"there is no .*data/video-text, .*data/video-generation: docs/data.md"):
        recipes.build("vision-1m", data=data)


def test_a_model_of_text_is_given_lwms_vision(data: Path, tmp_path: Path) -> None:
    given = tokenizer()
    start = made.source(given.vocabulary, np.float32, made.config(given.vocabulary))
    write_hugging_face(replace(start, tokenizer=given), tmp_path / "given")
    recipe = recipes.build("vision-1k", data=data, init=str(tmp_path / "given"))
    assert recipe.model == replace(start.description.config, vocabulary_size=400 + 8448)
    assert (recipe.tokenizer, recipe.frames) == (None, str(data / "vqgan"))
    with pytest.raises(UserError, match=r"there is no tokenizer .*data/vqgan: give .* LWM's vqgan, or the name"):
        recipe.learner(tmp_path / "run")
    (data / "frames.safetensors").touch()
    assert recipes.build("vision-1k", data=data).frames == str(data / "frames.safetensors")
    # One that sees keeps its ids, and its own tokenizer of frames, which stands beside its weights.
    sees = replace(start, tokenizer=given.of(given.vocabulary.seeing(4, 2, 2, (3,), (4,))))
    about = replace(
        start.description, vocabulary=sees.tokenizer.vocabulary, config=made.config(sees.tokenizer.vocabulary)
    )
    seeing = made.source(sees.tokenizer.vocabulary, np.float32)
    write_portable(replace(seeing, tokenizer=sees.tokenizer, frames=data / "frames.safetensors"), tmp_path / "seeing")
    again = recipes.build("vision-1k", data=data, init=str(tmp_path / "seeing"))
    assert (again.model, again.tokenizer, again.frames) == (about.config, None, None)


@pytest.mark.slow
def test_all_kinds_of_data_of_vision_are_trained_on(data: Path, tmp_path: Path) -> None:
    """The recipe as it is but for its sizes, and with the small tokenizer of frames."""
    codes = np.random.default_rng(0).integers(0, 4096, (3, 4, 4)).astype(np.int32)
    picture, film = VisionSpan(codes[:1]), VisionSpan(codes, 4.0)
    for shown, kind in ((picture, "image"), (film, "video")):
        asked, answered = replace(shown, role="user"), replace(shown, role="assistant")
        documents: dict[str, tuple[TokenizedSpan, ...]] = {
            f"{kind}-text": (TextSpan("a circle"), shown),
            f"{kind}-generation": (TextSpan("Generate a circle", role="user"), answered),
            f"{kind}-understanding": (TextSpan("What?\n", role="user"), asked, TextSpan("A circle", role="assistant")),
        }
        for name, spans in documents.items():
            write_shard(data / name / shard_name(0), [TokenizedDocument("made", spans)] * 10)
    for number in range(10):
        (data / "text" / f"{number}.txt").write_text("The keeper counted the lamps. " * 100)
    given = tokenizer()
    start = made.source(given.vocabulary, np.float32, made.config(given.vocabulary))
    write_hugging_face(replace(start, tokenizer=given), tmp_path / "given")
    recipe = recipes.build("vision-32k", data=data, init=str(tmp_path / "given"))
    stages = tuple(
        replace(stage, sequence_length=256, batch_size=8, steps=2, warmup_steps=1, mesh=None) for stage in recipe.stages
    )
    train(
        replace(recipe, stages=stages, frames="nano", mesh=MeshShape(data=8)), tmp_path / "run", log=lambda line: None
    )
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["stage"] for record in records] == ["1k", "1k", "8k", "8k", "32k", "32k"]
    assert all(np.isfinite(record["loss"]) and not record["skipped"] for record in records)
    about = open_model(tmp_path / "run").description
    assert (about.vocabulary.vision_size, about.draws_unasked, about.rope_theta) == (8448, True, 5e7)


def test_the_nano_curriculum_doubles_length_and_theta():
    short, long = (recipes.build(name).stages for name in ("nano-text", "nano-text-long"))
    assert [stage.sequence_length for stage in short] == [64 * 2**i for i in range(8)]
    *doubling, reach, long_rows, longest = long
    assert [stage.sequence_length for stage in doubling] == [64 * 2**i for i in range(9)]
    assert all(stage.rope_theta / stage.sequence_length == 1e4 / 64 for stage in doubling)
    assert long[: len(short)] == short
    assert [stage.name for stage in (reach, long_rows, longest)] == ["reach", "32k", "64k"]
    assert (long_rows.sequence_length, longest.sequence_length) == (32768, 65536)
    assert {stage.rope_theta for stage in (reach, long_rows, longest)} == {1e4 / 64 * 131072}
    # A stage ends when it is learned, or with a learning rate of 0.
    assert all((stage.until is None) == (stage.learning_rate_at(stage.steps - 1) == 0) for stage in long)


def test_nano_stages_train_all_lengths_so_far_and_measure_the_longest():
    for stage in recipes.build("nano-text-long").stages:
        if stage.name == "reach":
            continue
        tokens: dict[int, float] = {}
        for source, share in stage.sources:
            assert source.length is not None
            tokens[source.length] = tokens.get(source.length, 0) + share * source.length
        assert list(tokens) == [stage.sequence_length, *(2**i for i in range(6, 17) if 2**i < stage.sequence_length)]
        assert tokens[stage.sequence_length] / sum(tokens.values()) == pytest.approx(0.6 if len(tokens) > 1 else 1)
        if stage.until is not None:
            measured = [source for source, _ in stage.data("validation")]
            assert {source.length for source in measured} == {stage.sequence_length}
            assert all(source.needles > 1 and source.digits == 7 for source in measured)


def test_the_stage_that_teaches_distance_reaches_beyond_the_longest_rows():
    """Six tokens of ten are in documents that are as short as its rows, and whose positions are not."""
    *_, reach, _, longest = recipes.build("nano-text-long").stages
    far = near = 0.0
    tokenizer = TokenizerConfig(512, ("tiny",)).build()
    for source, share in reach.sources:
        if isinstance(source, ReachConfig):
            inner = source.source
            assert isinstance(inner, NeedleSourceConfig)
            far += share * (inner.length or 0)
            built = replace(source, source=replace(inner, corpora=("tiny",))).build(Given(tokenizer, 1024, seed=0))
            positions = [built[i].positions for i in range(40)]
            assert all(p is not None and (np.diff(p) > 1).sum() <= 1 for p in positions)
            assert max(p[-1] for p in positions if p is not None) > longest.sequence_length
        else:
            assert isinstance(source, NeedleSourceConfig)
            near += share * (source.length or 0)
    assert far / (far + near) == pytest.approx(0.6)


def test_nano_documents_have_room_for_what_they_hide():
    tokenizer = TokenizerConfig(512, ("tiny",)).build()
    for stage in recipes.build("nano-text-long").stages[:5]:
        for source, _ in stage.sources:
            assert isinstance(source, NeedleSourceConfig)
            replace(source, corpora=("tiny",)).build(Given(tokenizer, stage.sequence_length, seed=0))


def test_what_nano_learns_has_room_in_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # How long a document is does not depend on what its frames show.
    monkeypatch.setattr(Scene, "frame", lambda self, seconds, size: np.zeros((size, size, 3), np.uint8))
    monkeypatch.setattr(FrameTokenizer, "encode", lambda self, frames: np.zeros((len(frames), 4, 4), np.int32))
    recipe = replace(nano(), frames="nano", tokenizer=replace(TOKENIZER, corpora=("tiny",)))
    learner = recipe.learner(tmp_path)
    vocabulary, seen = learner.tokenizer.vocabulary, set()
    for stage in recipe.stages:
        assert stage.until is not None  # each is measured
        assert stage.until.sources
        for source, _ in (*stage.sources, *stage.until.sources):
            if source in seen:
                continue
            seen.add(source)
            source = source.source if isinstance(source, ReachConfig) else source
            if isinstance(source, NeedleSourceConfig):
                source = replace(source, corpora=("tiny",))
            built = source.build(Given(learner.tokenizer, stage.sequence_length, 0, "train", learner.frames))
            longest = range(500 if isinstance(source, PassingConfig) and source.told else 1)
            assert max(len(frame(built[number], vocabulary)) for number in longest) <= stage.sequence_length
        tasks = [type(source) for source, _ in stage.sources]
        assert {NeedleSourceConfig, PassingConfig} <= {*tasks}  # what came first stays to the end


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match=r"there is no recipe 'nano-txt': did you mean 'nano-text'\?"):
        recipes.build("nano-txt")


def test_recipes_that_need_data_say_so_and_those_that_do_not_too():
    with pytest.raises(UserError, match="text-1m trains on your own long texts"):
        recipes.build("text-1m")
    with pytest.raises(UserError, match="nano-text has data of its own"):
        recipes.build("nano-text", data=Path("books"))


def test_extend_goes_on_from_a_trained_model_in_another_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringworld.recipes.extension.EXTEND_CORPORA", ("tiny",))
    given = tokenizer()
    start = made.source(given.vocabulary, np.float32, made.config(given.vocabulary))
    write_hugging_face(replace(start, tokenizer=given), tmp_path / "given")
    recipe = recipes.build("extend", init=str(tmp_path / "given"), lengths=(512, 1024))
    about = start.description
    assert [stage.rope_theta for stage in recipe.stages] == [about.rope_theta * 64, about.rope_theta * 256]
    first = replace(recipe.stages[0], steps=2, warmup_steps=1)
    train(replace(recipe, stages=(first,)), tmp_path / "run")
    saved = open_model(tmp_path / "run")
    assert (saved.description.context_length, saved.description.rope_theta) == (512, about.rope_theta * 64)
    assert saved.tokenizer.encode("some words") == given.encode("some words")
    moved = abs(saved.read("layers/query") - start.read("layers/query"))
    assert 0 < moved.max() < 1e-3  # it began there

    larger = replace(recipe, model=replace(recipe.model, ffn=24), stages=(first,))
    with pytest.raises(UserError, match=r"extend cannot begin with the weights of .*given, of another shape: ffn"):
        train(larger, tmp_path / "larger")


def test_a_model_to_begin_with_gives_a_recipe_its_shape(tmp_path: Path) -> None:
    given = tokenizer()
    start = made.source(given.vocabulary, np.float32, made.config(given.vocabulary))
    write_hugging_face(replace(start, tokenizer=given), tmp_path / "given")
    recipe = recipes.build("debug", init=str(tmp_path / "given"))
    assert (recipe.model, recipe.tokenizer) == (start.description.config, None)
    # Whose own first embeddings are not wanted then.
    seeing = recipes.build("nano", init=str(tmp_path / "given"))
    assert isinstance(seeing, LanguageRecipe)
    assert seeing.codebook_share == 0
