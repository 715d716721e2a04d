"""nano: text, pictures and films in one small model, from nothing; the one that is to be shipped.

It learns in this order: to find a number by a name in prose, and in a film that is told in words what passed when;
the same in a film that is shown; and from there in films of more minutes and more frames, up to an hour at a frame a
second. From the first frames on, pictures are described and drawn, and then films. Nothing that was learned leaves the
mix.
"""

from dataclasses import replace
from pathlib import Path

from ringworld.data.passing import PassingConfig
from ringworld.data.sources import NeedleSourceConfig, ReachConfig, SourceConfig, TokenizerConfig
from ringworld.data.worlds import WorldSourceConfig
from ringworld.mesh import MeshShape
from ringworld.model.config import ModelConfig
from ringworld.recipes.data import takes_no_data
from ringworld.recipes.long_text import NANO_PRECISION, NANO_THETA, NANO_VARIETY, hidden
from ringworld.recipes.vqgan import VQGAN_NANO, vqgan_nano
from ringworld.training.curriculum import Criterion
from ringworld.training.language import LanguageRecipe, LanguageStage
from ringworld.training.optimizer import OptimizerConfig

CORPORA = ("essays",)
TOKENIZER = TokenizerConfig(size=1024, corpora=CORPORA, wording="chat", sentences=3000)
MODEL = ModelConfig(
    vocabulary_size=TOKENIZER.size + VQGAN_NANO.quantizer.codes + 2,
    dim=128,
    ffn=320,
    layers=4,
    heads=8,
    kv_heads=8,
    head_dim=16,
    tied=True,
    qk_norm=True,
)
OPTIMIZER = OptimizerConfig(kind="muon", weight_decay=0.0, muon_rate=5.0)
_FILMS = {"scattered": True, "heldout": "place"}
Mix = tuple[tuple[SourceConfig, float], ...]  # sources, and documents of each
Needles = tuple[tuple[NeedleSourceConfig, float], ...]

# Tokens, roughly, for shares of tokens are what is said here: of a frame, of the words around what is described or
# drawn, of a question about a film with its answer, and for each minute that it is about; and of a minute's words.
_FRAME, _DESCRIBED, _QUESTION, _ASKED, _TOLD = VQGAN_NANO.grid**2 + 1, 28, 10, 6, 3
_LONGEST = 65536


def nano(seed: int = 0, data: Path | None = None) -> LanguageRecipe:
    """Its tokenizers first. It was not trained as a whole yet; what trials of its first stages gave: docs/data.md."""
    takes_no_data("nano", data)
    return LanguageRecipe(
        name="nano",
        summary="1.4M parameters that read, answer, draw and film a small world, in hours of two cores",
        model=MODEL,
        tokenizer=TOKENIZER,
        optimizer=OPTIMIZER,
        stages=_stages(),
        frames=vqgan_nano(seed),
        codebook_share=0.8,
        seed=seed,
        precision=NANO_PRECISION,
        mesh=MeshShape(data=-1),
        checkpoint_seconds=120.0,
    )


def _stages() -> tuple[LanguageStage, ...]:
    # So many answers to the token as can be: to find what stands beside a key is learned in a number of answers.
    told = PassingConfig((5, 6), asked=1, together=(4, 6), kinds=("what", "when"), told=1.0, **_FILMS)
    longer = replace(told, minutes=(6, 12), asked=2, together=(1, 6))
    few = PassingConfig((2, 4), asked=1, together=(1, 4), kinds=("what", "when"), **_FILMS)
    more = replace(few, minutes=(3, 8), asked=2, together=(1, 6))
    some = PassingConfig((4, 14), asked=3, together=(1, 8), **_FILMS)
    pairs = replace(some, minutes=(3, 8), frames=2, together=(1, 5))
    many = replace(some, minutes=(12, 30), asked=6)
    hour = replace(some, minutes=(30, 60), asked=8, scattered=False)
    whole = replace(hour, minutes=(50, 60), frames=60, asked=20)  # a frame a second
    return (
        _stage("recall-64", 64, 64, 1500, (*_needles(64, 0.35), *_films((told, 0.65))), ((told, 1.0),), 0.97),
        _stage(
            "recall-128",
            128,
            32,
            2000,
            (*_needles(128, 0.2), *_world(1, 0.2), *_films((longer, 0.2), (few, 0.4))),
            ((few, 1.0),),
            0.98,
        ),
        _stage(
            "shown",
            256,
            16,
            3000,
            (*_needles(256, 0.15), *_world(1, 0.25), *_world(8, 0.1), *_films((longer, 0.1), (more, 0.4))),
            ((more, 1.0),),
            0.98,
        ),
        _stage(
            "minutes",
            512,
            8,
            3000,
            (
                *_needles(512, 0.15),
                *_world(1, 0.15),
                *_world(8, 0.2),
                *_films((longer, 0.05), (some, 0.25), (pairs, 0.2)),
            ),
            ((some, 1.0),),
            0.98,
        ),
        _stage(
            "2k",
            2048,
            4,
            1500,
            (
                *_needles(2048, 0.1),
                *_far(_needles(2048, 0.1)),
                *_world(1, 0.1),
                *_world(8, 0.2),
                *_films((some, 0.1), (pairs, 0.1)),
                *_far(_films((many, 0.1), (hour, 0.1), (replace(many, frames=3), 0.1))),
            ),
            ((hour, 1.0),),
            0.98,
        ),
        _stage(
            "16k",
            16384,
            1,
            200,
            (
                *_needles(16384, 0.3),
                *_world(1, 0.1),
                *_world(8, 0.15),
                *_films((some, 0.05), (hour, 0.1)),
                *_far(_films((replace(hour, frames=4), 0.1), (replace(hour, frames=14), 0.2))),
            ),
            ((replace(hour, frames=14), 1.0),),
            0.98,
        ),
        _stage(
            "64k",
            _LONGEST,
            1,
            40,
            (
                *_needles(16384, 0.2),
                *_world(1, 0.1),
                *_world(8, 0.15),
                *_films((hour, 0.05), (replace(hour, frames=14), 0.1), (whole, 0.4)),
            ),
        ),
    )


def _stage(
    name: str,
    length: int,
    rows: int,
    steps: int,
    mix: Mix,
    asked: Mix = (),
    value: float = 0.0,
) -> LanguageStage:
    """A context length. It is over when so much (`value`) of what is asked is answered rightly, token by token; where
    nothing is asked, after its steps, over which the learning rate falls to 0."""
    return LanguageStage(
        name=name,
        sequence_length=length,
        batch_size=rows,
        steps=steps,
        rope_theta=NANO_THETA * (length if length < 2048 else _LONGEST),
        learning_rate=4e-3 if length < 2048 else 3e-3,
        warmup_steps=min(20, steps // 4),
        schedule="constant" if asked else "cosine",
        mesh=MeshShape(sequence=-1) if length >= 8192 else None,
        sources=mix,
        packing="whole",
        normalization="example",
        until=Criterion("accuracy", value, 50, rows=max(4, 16384 // length), sources=asked) if asked else None,
    )


def _needles(length: int, share: float) -> Needles:
    """Numbers to find in prose of this length and of the shorter ones, in the chat's words."""
    shorter = [64 << i for i in range((length // 64).bit_length() - 1)]
    longest = 0.6 * share / length if shorter else share / length
    mixed = [hidden(length, longest, _alone(length), CORPORA)]
    mixed += [hidden(short, 0.4 * share / sum(shorter), _alone(short), CORPORA) for short in shorter]
    return tuple((_in_a_chat(source), documents) for some in mixed for source, documents in some)


def _alone(length: int) -> float:
    """The share of documents with one needle."""
    return 0.2 if length in NANO_VARIETY else 0.5


def _several(length: int) -> Needles:
    """Of the needles those that many are hidden of: one can be found without reading the question."""
    found = [(source, share) for source, share in _needles(length, 1.0) if source.length == length]
    most = max(source.needles for source, _ in found if source.digits == NeedleSourceConfig.digits)
    return tuple((source, share) for source, share in found if source.needles == most)


def _in_a_chat(source: NeedleSourceConfig) -> NeedleSourceConfig:
    """With as many needles as there is room for: a chat's words take more."""
    room = source.shortest or source.length or 0
    needles, asked = source.needles, source.asked or source.needles
    while needles > 1 and 22 + needles * (5 + source.digits) + asked * (13 + source.digits) > room:
        needles, asked = needles - 1, max(1, min(asked, asked * (needles - 1) // needles))
    return replace(source, needles=needles, asked=asked if source.asked else None, template="chat")


def _world(frames: int, share: float) -> Mix:
    """Pictures, or films of so many frames, described as often as drawn."""
    documents = share / 2 / (frames * _FRAME + _DESCRIBED)
    described = WorldSourceConfig("describe", frames=(frames, frames), heldout="place")
    return ((described, documents), (replace(described, task="draw", without_words=0.1, briefly=0.25), documents))


def _films(*shares: tuple[PassingConfig, float]) -> Mix:
    """Films that are asked about."""

    def tokens(film: PassingConfig) -> float:
        minute = film.told * _TOLD + (1 - film.told) * (film.frames * _FRAME + 3)
        asked = film.asked * (_QUESTION + sum(film.together) / 2 * _ASKED)
        return sum(film.minutes) / 2 * minute + asked

    return tuple((film, share / tokens(film)) for film, share in shares)


def _far(mix: Mix) -> Mix:
    """The same, with gaps in the positions that reach as far as the longest rows."""
    return tuple((ReachConfig(source, _LONGEST), documents) for source, documents in mix)
