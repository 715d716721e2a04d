"""A small model of text, from 64 tokens to 64K."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from ringworld.data.needles import Form
from ringworld.data.sources import NeedleSourceConfig, ReachConfig, TokenizerConfig
from ringworld.mesh import MeshShape
from ringworld.model.config import ModelConfig
from ringworld.recipes.data import takes_no_data
from ringworld.training.curriculum import Criterion
from ringworld.training.language import LanguageRecipe, LanguageStage
from ringworld.training.optimizer import OptimizerConfig
from ringworld.training.step import Precision

# With two heads of 32 a layer, seeds took longer to learn whose number is asked for, or did not learn it in the steps
# they had (docs/results.md).
NANO = ModelConfig(
    vocabulary_size=1024, dim=64, ffn=160, layers=3, heads=4, kv_heads=4, head_dim=16, tied=True, qk_norm=True
)
NANO_OPTIMIZER = OptimizerConfig(kind="muon", weight_decay=0.0, muon_rate=10 / 3)
# On the CPU where it was measured, recomputing layers took a tenth to a third less time than keeping their activations.
NANO_PRECISION = Precision(remat="layer")
NANO_THETA = 1e4 / 64  # of RoPE, for each token of the context: theta grows with it
# Of models whose contexts grow far beyond it: among 64K tokens, what is looked for gets too little attention else.
NANO_SHARPENED_FROM = 2048
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
NANO_REACH = 131072  # positions of the stage that teaches distance: twice the longest rows, whose ends are rarely drawn
NANO_PROSE_WEIGHT = 0.02  # at 0.1 the noise of prose, which a small model cannot predict, hides what questions teach


def _needles(length: int) -> int:
    return NANO_NEEDLES[min(length, max(NANO_NEEDLES))]


def hidden(
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
    length: int,
    rows: int,
    steps: int,
    rate: float,
    corpora: tuple[str, ...],
    value: float | None = None,
    reach: int = 0,
) -> LanguageStage:
    """One doubling of the context. Six tokens of ten are in documents as long as the stage's rows; the others are in
    documents of all the shorter lengths, as many of each, so that none is forgotten.

    The stage is over when so much (`value`) of fresh answers is right in the longest documents of several needles,
    since one needle can be found without reading the question; without a value, after its steps, over which the
    learning rate falls to 0. Theta is that of the length, or of as many positions as were reached before.
    """
    alone = 0.2 if length in NANO_VARIETY else 0.5
    shorter = [64 << i for i in range((length // 64).bit_length() - 1)]
    longest = hidden(length, 0.6 / length, alone, corpora)
    others = [source for short in shorter for source in hidden(short, 0.4 / sum(shorter), alone, corpora)]
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
        rope_theta=NANO_THETA * max(length, reach),
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


def _reaching_stage(rows: int, steps: int, rate: float, corpora: tuple[str, ...]) -> LanguageStage:
    """Rows of 1K tokens in which six of ten are in documents with one gap in their positions, up to `NANO_REACH` wide:
    a needle and its question stand as far apart as in the longest rows, and a step takes a second (PoSE, arXiv
    2309.10400, has more and smaller gaps). Long rows alone show too few such distances (docs/results.md)."""
    stage = _nano_stage(1024, rows, steps, rate, corpora, reach=NANO_REACH)
    lengths = (256, 512, 1024)

    def documents(share: float) -> tuple[tuple[NeedleSourceConfig, float], ...]:
        return tuple(
            source for length in lengths for source in hidden(length, share / len(lengths) / length, 0.5, corpora)
        )

    far = tuple((ReachConfig(source, NANO_REACH), share) for source, share in documents(0.6))
    return replace(stage, name="reach", sources=(*far, *documents(0.4)))


def nano_text(seed: int = 0, data: Path | None = None) -> LanguageRecipe:
    """From 64 tokens to 8K: LWM's stage 1 at a size that a laptop trains. What came of it: docs/results.md."""
    takes_no_data("nano-text", data)
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
    """nano-text, and on to 64K. What came of it, and what it took: docs/results.md."""
    takes_no_data("nano-text-long", data)
    short, long = ("essays",), ("essays", "sotu")
    return LanguageRecipe(
        name="nano-text-long",
        summary="nano-text, then on to 64K tokens, in about an hour",
        model=replace(NANO, sharpened_from=NANO_SHARPENED_FROM),
        tokenizer=TokenizerConfig(size=NANO.vocabulary_size, corpora=short),
        optimizer=NANO_OPTIMIZER,
        stages=(
            *_nano_stages(short),
            _nano_stage(16384, 2, 50, 1.5e-3, long),
            _reaching_stage(8, 600, 1.5e-3, long),
            _nano_stage(32768, 2, 8, 5e-4, long, reach=NANO_REACH),
            _nano_stage(65536, 1, 8, 5e-4, long, reach=NANO_REACH),
        ),
        seed=seed,
        precision=NANO_PRECISION,
        mesh=MeshShape(data=-1),
    )
