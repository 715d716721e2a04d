"""Named runs, as plain typed functions: what `ringworld train NAME` trains.

A recipe is data (`training.curriculum.Recipe`): change a number here, or write a function of your own and hand its
result to `training.loop.train`.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from ringworld.data.frames import FrameSourceConfig, MomentsConfig, ShapesConfig, frames_of
from ringworld.data.needles import Form
from ringworld.data.sources import (
    CorpusConfig,
    JsonlConfig,
    NeedleSourceConfig,
    SourceConfig,
    TextFolderConfig,
    TokenizerConfig,
)
from ringworld.data.worlds import WorldSourceConfig
from ringworld.errors import UserError
from ringworld.mesh import MeshShape
from ringworld.model.config import ModelConfig
from ringworld.tokens.quantizers import QuantizerConfig
from ringworld.tokens.vqgan import LWM_VQGAN, VqganConfig
from ringworld.training.curriculum import Criterion, Recipe
from ringworld.training.language import LanguageRecipe, LanguageStage
from ringworld.training.optimizer import OptimizerConfig
from ringworld.training.step import Precision
from ringworld.training.vqgan import VqganLoss, VqganRecipe, VqganStage
from ringworld.weights.models import open_model

# LLaMA-2 7B, which LWM starts from.
LLAMA_7B = ModelConfig(vocabulary_size=32000, dim=4096, ffn=11008, layers=32, heads=32, kv_heads=32, head_dim=128)

# LWM's stage 1 (arXiv 2402.08268, table 1, and its README): sequence, theta, steps, warm-up, devices along tensor and
# sequence.
LWM_TEXT = {
    "32k": (32_768, 1e6, 1200, 100, 4, 1),
    "128k": (131_072, 1e7, 3000, 200, 8, 1),
    "256k": (262_144, 1e7, 3000, 200, 16, 1),
    "512k": (524_288, 2.5e7, 720, 50, 16, 2),
    "1m": (1_048_576, 5e7, 450, 25, 16, 4),
}
LWM_TOKENS_PER_STEP = 2**22

EXTEND = "extend"
EXTEND_CORPORA = ("essays", "sotu")
EXTEND_TOKENS = 2**18  # of a stage

# The demo's model. With two heads of 32 a layer, seeds took longer to learn whose number is asked for, or did not learn
# it in the steps they had (docs/results.md).
NANO = ModelConfig(
    vocabulary_size=1024, dim=64, ffn=160, layers=3, heads=4, kv_heads=4, head_dim=16, tied=True, qk_norm=True
)
NANO_OPTIMIZER = OptimizerConfig(kind="muon", weight_decay=0.0, muon_rate=10 / 3)
# On the CPU where it was measured, recomputing layers took a tenth to a third less time than keeping their activations.
NANO_PRECISION = Precision(remat="layer")
NANO_THETA = 1e4 / 64  # of RoPE, for each token of the context: theta grows with it
# How many needles a document of so many tokens hides, when it hides several; beyond the last, as many as that. Not all
# are asked for: the last one would be known by exclusion, without reading whose number it is.
NANO_NEEDLES = {64: 3, 128: 5, 256: 8, 512: 12, 1024: 16, 2048: 24, 4096: 32, 8192: 32, 16384: 64, 32768: 96}
NANO_ASKED = 0.4
# What else documents of the first lengths hide: needles, how many are asked for, digits of a number, and the share of
# such documents. Where numbers are short, more of an answer depends on the question; long ones teach to copy on from
# the right place; and of many kinds of documents none can be learned by the places where its needles lie.
NANO_VARIETY = {
    64: ((2, 1, 7, 0.25), (2, 1, 12, 0.1), (1, 1, 12, 0.05), (5, 2, 2, 0.1), (6, 2, 1, 0.15)),
    128: ((3, 1, 7, 0.1), (4, 1, 14, 0.1), (10, 4, 2, 0.1), (9, 3, 1, 0.1)),
    256: ((6, 2, 14, 0.2), (24, 9, 2, 0.2)),
}
NANO_PROSE_WEIGHT = 0.02  # at 0.1 the noise of prose, which a small model cannot predict, hides what questions teach

# 16 codes of a frame of 64x64. The encoder sees each code's own patch alone (kernel 1, norms by place), so that what is
# coded does not depend on what else is in the frame; the decoder sees all codes.
VQGAN_NANO = VqganConfig(
    frame_size=64,
    channels=(32, 64, 128),
    latent=32,
    quantizer=QuantizerConfig("ema", codes=4096, dim=8, decay=0.95, restart_after=200),
    patch=4,
    encoder_blocks=1,
    decoder_blocks=1,
    middle_blocks=0,
    kernel=1,
    norm="position",
    resample="patch",
)
VQGAN_FPS = 2.0  # of films to train on, so many frames a second can be drawn
FrameMix = tuple[tuple[FrameSourceConfig, float], ...]  # what a tokenizer trains on, and in which shares


def debug(seed: int = 0, data: Path | None = None) -> LanguageRecipe:
    """A few steps of two stages in seconds, without a network."""
    corpora = ("tiny",)
    prose: SourceConfig = CorpusConfig(corpora) if data is None else _texts(data)

    def stage(name: str, length: int, steps: int) -> LanguageStage:
        return LanguageStage(
            name=name,
            sequence_length=length,
            batch_size=2048 // length,
            steps=steps,
            rope_theta=NANO_THETA * length,
            learning_rate=6e-3,
            warmup_steps=4,
            sources=((prose, 0.5), (NeedleSourceConfig(corpora), 0.5)),
            normalization="example",
        )

    return LanguageRecipe(
        name="debug",
        summary="two short stages on made-up prose, in seconds and without a network",
        model=ModelConfig(
            vocabulary_size=512, dim=32, ffn=64, layers=2, heads=2, kv_heads=1, head_dim=16, tied=True, qk_norm=True
        ),
        tokenizer=TokenizerConfig(size=512, corpora=corpora),
        optimizer=NANO_OPTIMIZER,
        stages=(stage("64", 64, 12), stage("128", 128, 8)),
        seed=seed,
        mesh=MeshShape(data=-1),
    )


def debug_vision(seed: int = 0, data: Path | None = None) -> LanguageRecipe:
    """A few steps of pictures and films in a minute, without a network: what comes of it draws, but nothing one would
    know."""
    _takes_no_data("debug-vision", data)
    pictures, films = ((1, 1), 0.6), ((4, 4), 0.4)
    sources = tuple(
        (WorldSourceConfig(task, frames=frames, without_words=0.1, documents=512), share / 2)
        for task in ("describe", "draw")
        for frames, share in (pictures, films)
    )
    text = 512
    return LanguageRecipe(
        name="debug-vision",
        summary="a few steps of pictures and films of the shapes world, in a minute and without a network",
        model=ModelConfig(
            vocabulary_size=text + 4098,
            dim=32,
            ffn=64,
            layers=2,
            heads=2,
            kv_heads=1,
            head_dim=16,
            tied=True,
            qk_norm=True,
        ),
        tokenizer=TokenizerConfig(size=text, corpora=("tiny",), wording=False),
        optimizer=NANO_OPTIMIZER,
        stages=(
            LanguageStage(
                name="pictures",
                sequence_length=512,
                batch_size=4,
                steps=20,
                rope_theta=NANO_THETA * 512,
                learning_rate=6e-3,
                warmup_steps=4,
                sources=sources,
                packing="whole",
                normalization="example",
            ),
        ),
        seed=seed,
        mesh=MeshShape(data=-1),
        frames="nano",
    )


def _needles(length: int) -> int:
    return NANO_NEEDLES[min(length, max(NANO_NEEDLES))]


def _hidden(
    length: int, share: float, alone: float, corpora: tuple[str, ...]
) -> tuple[tuple[NeedleSourceConfig, float], ...]:
    """Documents of a length, `share` of them in all. So many (`alone`) hide one needle, as in the test; the others hide
    several, so that their names matter, and ask for some one after another or, where there is room for such a question,
    for two at once. Those of the first lengths are of more kinds, and up to an eighth shorter."""
    document = partial(
        NeedleSourceConfig,
        corpora,
        prose_weight=NANO_PROSE_WEIGHT,
        length=length,
        shortest=length * 7 // 8 if length <= 128 else None,
    )
    several = _needles(length)
    kinds = NANO_VARIETY.get(length, ())
    rest = 1 - sum(part for *_, part in kinds)
    documents = [
        (document(needles=needles, asked=asked, digits=digits), part) for needles, asked, digits, part in kinds
    ]
    documents.append((document(needles=1), rest * alone))
    forms: tuple[Form, ...] = ("turns", "multi") if length >= 128 else ("turns",)
    for form in forms:
        asked = 2 if form == "multi" else int(several * NANO_ASKED)
        documents.append((document(needles=several, asked=asked, form=form), rest * (1 - alone) / len(forms)))
    return tuple((source, share * part) for source, part in documents)


def _nano_stage(
    length: int, rows: int, steps: int, rate: float, corpora: tuple[str, ...], value: float | None = None
) -> LanguageStage:
    """One doubling of the context. Six tokens of ten are in documents as long as the stage's rows; the others are in
    documents of all the shorter lengths, as many of each, so that none is forgotten.

    The stage is over when so much (`value`) of fresh answers is right in the longest documents of several needles,
    since one needle can be found without reading the question; without a value, after its steps, over which the
    learning rate falls to 0.
    """
    alone = 0.2 if length in NANO_VARIETY else 0.5
    shorter = [64 << i for i in range((length // 64).bit_length() - 1)]
    longest = _hidden(length, 0.6 / length, alone, corpora)
    others = [source for short in shorter for source in _hidden(short, 0.4 / sum(shorter), alone, corpora)]
    until = None
    if value is not None:
        several = tuple((source, share) for source, share in longest if source.needles == _needles(length))
        until = Criterion(
            "accuracy", value, 25 if length <= 1024 else 10, rows=max(8, 16384 // length), sources=several
        )
    return LanguageStage(
        name=str(length) if length < 1024 else f"{length // 1024}k",
        sequence_length=length,
        batch_size=rows,
        steps=steps,
        rope_theta=NANO_THETA * length,
        learning_rate=rate,
        warmup_steps=min(20, steps // 4),
        schedule="cosine" if until is None else "constant",
        # Rows so long differ much in their work: each over all devices leaves none waiting.
        mesh=MeshShape(sequence=-1) if length >= 8192 else None,
        sources=(*longest, *others),
        packing="whole",
        normalization="example",
        until=until,
    )


def nano_text(seed: int = 0, data: Path | None = None) -> LanguageRecipe:
    """From 64 tokens to 8K: LWM's stage 1 at a size that a laptop trains. What came of it: docs/results.md."""
    _takes_no_data("nano-text", data)
    corpora = ("essays",)
    return LanguageRecipe(
        name="nano-text",
        summary="0.21M parameters learn to find needles, from 64 tokens to 8K, in minutes of two cores",
        model=NANO,
        tokenizer=TokenizerConfig(size=NANO.vocabulary_size, corpora=corpora),
        optimizer=NANO_OPTIMIZER,
        stages=_nano_stages(corpora),
        seed=seed,
        precision=NANO_PRECISION,
        mesh=MeshShape(data=-1),
    )


def _nano_stages(corpora: tuple[str, ...]) -> tuple[LanguageStage, ...]:
    return (
        _nano_stage(64, 32, 1500, 6e-3, corpora, 0.98),
        _nano_stage(128, 16, 2500, 6e-3, corpora, 0.98),
        _nano_stage(256, 16, 600, 5e-3, corpora, 0.98),
        _nano_stage(512, 8, 600, 4e-3, corpora, 0.98),
        _nano_stage(1024, 4, 400, 3e-3, corpora, 0.98),
        _nano_stage(2048, 4, 200, 3e-3, corpora, 0.98),
        _nano_stage(4096, 2, 200, 3e-3, corpora, 0.98),
        _nano_stage(8192, 2, 150, 3e-3, corpora),
    )


def nano_text_long(seed: int = 0, data: Path | None = None) -> LanguageRecipe:
    """nano-text, and on to 64K."""
    _takes_no_data("nano-text-long", data)
    short, long = ("essays",), ("essays", "sotu")
    return LanguageRecipe(
        name="nano-text-long",
        summary="nano-text, then on to 64K tokens, in hours of two cores",
        model=NANO,
        tokenizer=TokenizerConfig(size=NANO.vocabulary_size, corpora=short),
        optimizer=NANO_OPTIMIZER,
        stages=(
            *_nano_stages(short),
            _nano_stage(16384, 2, 50, 1.5e-3, long),
            _nano_stage(32768, 2, 48, 1e-3, long),
            _nano_stage(65536, 1, 160, 1e-3, long),
        ),
        seed=seed,
        precision=NANO_PRECISION,
        mesh=MeshShape(data=-1),
    )


def extend(init: str | None, lengths: tuple[int, ...], seed: int = 0, data: Path | None = None) -> LanguageRecipe:
    """A trained model, on to longer contexts: LWM's stage 1 with whatever can be stepped here.

    RoPE's theta grows with the square of the length, about as in LWM's table from 4K to 128K. Half of the tokens are in
    long texts, half in documents with needles to be found, in the model's own chat template where it has one.
    """
    if init is None or not lengths:
        raise UserError(
            f"{EXTEND} goes on from a trained model to longer contexts: name it with --init and their lengths with "
            "--stages, such as --init smollm2 --stages 8k,16k"
        )
    source = open_model(init)
    about = source.description
    texts = CorpusConfig(EXTEND_CORPORA) if data is None else _texts(data)
    template = "lwm" if source.tokenizer.chat_template is None else "chat"

    def needles(length: int) -> NeedleSourceConfig:
        """Several in a document, each asked for in its turn: a step at such lengths is too dear for one answer."""
        return NeedleSourceConfig(EXTEND_CORPORA, needles=min(8, max(1, length // 512)), template=template)

    stages = tuple(
        LanguageStage(
            name=str(length) if length % 1024 else f"{length // 1024}k",
            sequence_length=length,
            batch_size=1,
            steps=max(1, EXTEND_TOKENS // length),
            rope_theta=about.rope_theta * max(1, length / about.context_length) ** 2,
            learning_rate=4e-5,
            warmup_steps=4,
            sources=((texts, 0.5), (needles(length), 0.5)),
            mesh=MeshShape(sequence=-1),
            normalization="example",  # or the few tokens of an answer would not count beside a long text in their row
        )
        for length in lengths
    )
    return LanguageRecipe(
        name=EXTEND,
        summary=f"{init} on to contexts of {', '.join(stage.name for stage in stages)}",
        model=about.config,
        rope_scaling=about.rope_scaling,
        tokenizer=None,
        init=init,
        optimizer=OptimizerConfig(kind="adamw"),
        stages=stages,
        seed=seed,
        precision=Precision(remat="layer"),
        checkpoint_seconds=600.0,
    )


def _lwm_text(last: str) -> Callable[[int, Path | None], LanguageRecipe]:
    """LWM's stage 1 from the beginning to the length `last`."""

    def recipe(seed: int = 0, data: Path | None = None) -> LanguageRecipe:
        if data is None:
            raise UserError(
                f"text-{last} trains on your own long texts: name a folder of *.txt, or a .jsonl, with --data, and put "
                "the model's tokenizer.json beside them"
            )
        names = list(LWM_TEXT)
        stages = []
        for name in names[: names.index(last) + 1]:
            length, theta, steps, warmup, tensor, sequence = LWM_TEXT[name]
            stages.append(
                LanguageStage(
                    name=name,
                    sequence_length=length,
                    batch_size=LWM_TOKENS_PER_STEP // length,
                    steps=steps,
                    rope_theta=theta,
                    learning_rate=4e-5,
                    warmup_steps=warmup,
                    sources=((_texts(data), 1.0),),
                    mesh=MeshShape(fsdp=-1, tensor=tensor, sequence=sequence),
                    reset_optimizer=True,
                )
            )
        return LanguageRecipe(
            name=f"text-{last}",
            summary=f"LWM's stage 1 at 7B, up to {last.upper()} tokens, with the paper's numbers",
            model=LLAMA_7B,
            tokenizer=TokenizerConfig(
                size=LLAMA_7B.vocabulary_size, path=str((data if data.is_dir() else data.parent) / "tokenizer.json")
            ),
            optimizer=OptimizerConfig(kind="adamw"),
            stages=tuple(stages),
            seed=seed,
            precision=Precision(remat="layer"),
            checkpoint_seconds=1800.0,
        )

    return recipe


def vqgan_nano(seed: int = 0, data: Path | None = None) -> VqganRecipe:
    """The tokenizer of small frames, by default for the shapes world; what came of it: docs/tokenizer.md."""
    shapes = ((ShapesConfig(least=1, most=5), 0.75), (MomentsConfig(least=1, most=4), 0.25))
    frames = shapes if data is None else _frames(data)
    return _vqgan_nano("vqgan-nano", "16 codes of a 64x64 frame", VQGAN_NANO, frames, 7_000, seed)


def vqgan_emoji(seed: int = 0, data: Path | None = None) -> VqganRecipe:
    """The same with 64 codes, by default for pictures of emoji, which have more to them than shapes."""
    model = replace(VQGAN_NANO, channels=(64, 128))
    return _vqgan_nano("vqgan-emoji", "64 codes of a 64x64 frame", model, _frames(data or Path("emoji")), 2600, seed)


def _vqgan_nano(name: str, summary: str, model: VqganConfig, frames: FrameMix, steps: int, seed: int) -> VqganRecipe:
    stage = VqganStage(
        name="train",
        batch_size=32,  # so many pictures taught more in small batches than in few large ones
        steps=steps,
        learning_rate=3e-3,
        warmup_steps=100,
        schedule="cosine",
        sources=frames,
    )
    return VqganRecipe(
        name=name,
        summary=summary,
        model=model,
        # With AdamW alone the same loss took three times the steps.
        optimizer=OptimizerConfig(kind="muon", weight_decay=1e-4, muon_rate=6.0),
        stages=(stage,),
        loss=VqganLoss(l1=0.0, l2=4.0),  # PSNR is of squared errors
        seed=seed,
        mesh=MeshShape(data=-1),
    )


def vqgan_lwm(seed: int = 0, data: Path | None = None) -> VqganRecipe:
    """LWM's tokenizer, to the layer. Its training was not published: loss, rates and lengths are those of Esser et al.
    (arXiv 2012.09841) where they say them."""
    if data is None:
        raise UserError(
            "vqgan-lwm trains on your own pictures and films: name a folder, a film or a .jsonl of them with --data"
        )
    stage = VqganStage(
        name="train",
        batch_size=256,
        steps=250_000,
        learning_rate=1e-4,
        warmup_steps=5000,
        schedule="cosine",
        sources=_frames(data),
    )
    return VqganRecipe(
        name="vqgan-lwm",
        summary="LWM's tokenizer: 256 codes of a 256x256 frame; for accelerators",
        model=LWM_VQGAN,
        optimizer=OptimizerConfig(kind="adamw", weight_decay=1e-4),
        stages=(stage,),
        loss=VqganLoss(adversarial=0.1, adversarial_start=50_000),
        seed=seed,
        mesh=MeshShape(data=-1),
        checkpoint_seconds=1800.0,
    )


def _frames(data: Path) -> FrameMix:
    return ((frames_of(str(data), VQGAN_FPS), 1.0),)


def _texts(data: Path) -> SourceConfig:
    """A .jsonl of documents, or a folder of *.txt."""
    return JsonlConfig(str(data)) if data.suffix == ".jsonl" else TextFolderConfig(str(data))


def _takes_no_data(name: str, data: Path | None) -> None:
    if data is not None:
        raise UserError(
            f"{name} has data of its own and does not take --data {data}: leave it out, or train `debug` or "
            "`text-32k` on yours"
        )


RECIPES: Mapping[str, Callable[[int, Path | None], Recipe]] = {
    "debug": debug,
    "debug-vision": debug_vision,
    "nano-text": nano_text,
    "nano-text-long": nano_text_long,
    "vqgan-nano": vqgan_nano,
    "vqgan-emoji": vqgan_emoji,
    "vqgan-lwm": vqgan_lwm,
} | {f"text-{length}": _lwm_text(length) for length in LWM_TEXT}


def build(
    name: str,
    *,
    seed: int = 0,
    data: Path | None = None,
    init: str | None = None,
    lengths: tuple[int, ...] = (),
) -> Recipe:
    """The recipe of a name.

    Args:
        init: a model to begin with, whose shape and tokenizer it then has; for a tokenizer of frames another one of
            its shape.
        lengths: of the contexts of `extend`.

    Raises:
        UserError: an unknown name, with the nearest; data, a model to begin with, or lengths that the recipe does not
            take, or needs.
    """
    if name == EXTEND:
        return extend(init, lengths, seed, data)
    if lengths:
        raise UserError(f"{name} has stages of its own and does not take --stages: leave it out, or train {EXTEND}")
    if name not in RECIPES:
        near = difflib.get_close_matches(name, (*RECIPES, EXTEND), n=1, cutoff=0.3)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"there is no recipe {name!r}: {hint}The recipes are {', '.join((*RECIPES, EXTEND))}")
    recipe = RECIPES[name](seed, data)
    if init is not None and isinstance(recipe, LanguageRecipe):
        about = open_model(init).description
        return replace(recipe, init=init, model=about.config, rope_scaling=about.rope_scaling, tokenizer=None)
    return replace(recipe, init=init)
