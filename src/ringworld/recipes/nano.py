"""nano: text, pictures and films in one small model, from nothing; the one that is shipped (docs/nano.md).

It learns in this order: to find a number by a name in prose, and in a film that is told in words what passed when;
the same in a film that is shown, while pictures are described and drawn, and then films; and from there in films of
more minutes and more frames, to an hour of 60 frames a minute. Positions reach as far as an hour's long before rows do.
Nothing that was learned leaves the mix, and each stage is measured on what and when.
"""

import math
from dataclasses import replace
from pathlib import Path

from ringworld.data.passing import PassingConfig
from ringworld.data.sources import NeedleSourceConfig, ReachConfig, SourceConfig, TokenizerConfig
from ringworld.data.worlds import WorldSourceConfig
from ringworld.mesh import MeshShape
from ringworld.model.config import ModelConfig
from ringworld.recipes.data import takes_no_data
from ringworld.recipes.long_text import NANO_PRECISION, NANO_SHARPENED_FROM, NANO_THETA, NANO_VARIETY, hidden
from ringworld.recipes.vqgan import VQGAN_NANO, vqgan_nano
from ringworld.training.curriculum import Criterion
from ringworld.training.language import LanguageRecipe, LanguageStage
from ringworld.training.optimizer import OptimizerConfig
from ringworld.worlds.passing import Kind

CORPORA = ("essays",)
TOKENIZER = TokenizerConfig(size=1024, corpora=CORPORA, wording="chat", sentences=3000)
MODEL = ModelConfig(
    vocabulary_size=TOKENIZER.size + VQGAN_NANO.quantizer.codes + 2,
    dim=96,
    ffn=256,
    layers=4,
    heads=4,
    kv_heads=4,
    head_dim=32,
    tied=True,
    qk_norm=True,
    sharpened_from=NANO_SHARPENED_FROM,
)
OPTIMIZER = OptimizerConfig(kind="muon", weight_decay=0.0, muon_rate=5.0)
_FILMS = {"scattered": True, "heldout": "place"}
Mix = tuple[tuple[SourceConfig, float], ...]  # sources, and documents of each
Needles = tuple[tuple[NeedleSourceConfig, float], ...]

# Tokens, roughly, for shares of tokens are what is said here: of a frame, of the words around what is described or
# drawn, of a question about a film with its answer, and for each minute that it is about; and of a minute's words.
_FRAME, _DESCRIBED, _QUESTION, _ASKED, _TOLD = VQGAN_NANO.grid**2 + 1, 28, 10, 6, 3
_LONGEST = 65536  # as far as positions reach: an hour of film, a frame a second


def nano(seed: int = 0, data: Path | None = None) -> LanguageRecipe:
    """Its tokenizers first. What came of it: docs/nano.md; of what was tried before: docs/data.md."""
    takes_no_data("nano", data)
    return LanguageRecipe(
        name="nano",
        summary="1.0M parameters that read, answer, draw and film a small world, in hours of two cores",
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
    told = PassingConfig((5, 6), asked=1, together=(4, 6), kinds=("what",), told=1.0, **_FILMS)
    turned = replace(told, kinds=("when",))
    longer = replace(told, minutes=(6, 12), asked=2, together=(1, 6), kinds=("what", "when"))
    whole = replace(longer, minutes=(12, 60), asked=1)
    sixty = replace(whole, asked=3, kinds=("what", "what", "when"))
    order = replace(told, minutes=(2, 6), asked=2, kinds=("first",))
    # Minutes one after the other: which of two comes first is hard to say where they are near.
    near = replace(order, minutes=(2, 12), asked=6, scattered=False)
    # A minute's time keeps what its frames show, and that is learned soonest where it must go on to say it.
    few = PassingConfig((2, 4), asked=1, together=(1, 4), kinds=("what", "when"), narrated=0.4, **_FILMS)
    more = replace(few, minutes=(3, 7), asked=2, together=(1, 6))
    return (
        _stage(
            "recall-64",
            64,
            64,
            5000,
            (*_needles(64, 0.35), *_films((told, 0.3), (turned, 0.35))),
            ((told, 1.0), (turned, 1.0)),
            0.97,
            every=50,
        ),
        _stage(
            "pictures",
            128,
            32,
            2500,
            (*_needles(128, 0.1), *_world(1, 0.4), *_films((longer, 0.1), (order, 0.05), (few, 0.35))),
            ((replace(few, narrated=0.0), 1.0),),
            0.98,
        ),
        _stage(
            "films",
            256,
            16,
            4000,
            (
                *_needles(256, 0.08),
                *_world(1, 0.14),
                *_world(8, 0.33, 0.3),
                *_films(
                    (whole, 0.07),
                    (order, 0.04),
                    (more, 0.06),
                    (_passing((3, 7), 1, narrated=0.4), 0.13),
                    (_passing((2, 4), 2, narrated=0.4, scattered=False), 0.15),
                ),
            ),
            ((_timed((3, 7), 1), 1.0),),
            0.98,
        ),
        _stage(
            "minutes",
            512,
            8,
            3000,
            (
                *_needles(512, 0.1),
                *_world(1, 0.1),
                *_world(8, 0.25, 0.3),
                *_films(
                    (whole, 0.06),
                    (order, 0.04),
                    (_passing((4, 14), 1, 3, scattered=False), 0.17),
                    (_passing((3, 8), 2, 3, narrated=0.3), 0.12),
                    (_passing((2, 5), 4, 3, scattered=False), 0.08),
                    (_passing((1, 2), 12), 0.08),
                ),
            ),
            ((_timed((4, 14), 1, 3), 1.0),),
            0.99,
        ),
        _stage(
            "2k",
            2048,
            4,
            2000,
            (
                *_needles(2048, 0.08),
                *_far(_needles(2048, 0.08)),
                *_world(1, 0.08),
                *_world(8, 0.16, 0.3),
                *_films((sixty, 0.1), (_passing((3, 8), 2, 3, scattered=False), 0.05)),
                *_far(
                    _films(
                        (_passing((12, 30), 1, 6), 0.09),
                        (_passing((30, 60), 1, 8, scattered=False), 0.12),
                        (_passing((12, 30), 3, 6, scattered=False), 0.08),
                        (_passing((3, 7), 14, 3), 0.08),
                        (_passing((1, 1), 60), 0.08),
                    )
                ),
            ),
            ((sixty, 1.0), (_timed((12, 30), 1, 6), 1.0)),
            0.99,
        ),
        _stage(
            "4k",
            4096,
            2,
            800,
            (
                *_needles(4096, 0.06),
                *_far(_needles(4096, 0.06)),
                *_world(1, 0.06),
                *_world(8, 0.14, 0.3),
                *_films(
                    (sixty, 0.06),
                    (near, 0.03),
                    (_passing((3, 8), 2, 4, scattered=False), 0.04),
                    (_passing((2, 6), 4, 4), 0.05),
                ),
                *_far(
                    _films(
                        (_passing((30, 60), 1, 8, scattered=False), 0.05),
                        (_passing((16, 48), 4, 12, scattered=False), 0.13),
                        (_passing((6, 12), 14, 12, every=7), 0.08),
                        (_passing((3, 6), 30, 12, every=10, scattered=False), 0.11),
                        (_passing((2, 3), 60, 12, every=10), 0.15),
                    )
                ),
            ),
            ((_timed((16, 48), 4, 12), 1.0), (_timed((2, 3), 60, 12, every=10), 1.0)),
            0.98,
        ),
        _stage(
            "16k",
            16384,
            1,
            100,
            (
                *_needles(16384, 0.12),
                *_far(_needles(16384, 0.08)),
                *_world(1, 0.07),
                *_world(8, 0.12, 0.3),
                *_films((near, 0.03), (_passing((3, 8), 4, 8), 0.08)),
                *_far(
                    _films(
                        (_passing((30, 60), 1, 16, scattered=False), 0.05),
                        (_passing((30, 60), 4, 24, scattered=False), 0.1),
                        (_found((30, 54), 14, every=7), 0.12),
                        (_found((6, 13), 60, every=10), 0.23),
                    )
                ),
            ),
            ((_timed((6, 13), 60, 60, every=10), 1.0),),
            0.97,
        ),
        _stage(
            "32k",
            32768,
            1,
            40,
            (
                *_needles(32768, 0.1),
                *_far(_needles(16384, 0.05)),
                *_world(1, 0.06),
                *_world(8, 0.1, 0.3),
                *_films((near, 0.03), (_passing((3, 8), 4, 8), 0.06)),
                *_far(
                    _films(
                        (_passing((30, 60), 4, 24, scattered=False), 0.05),
                        (_found((30, 60), 14, every=7), 0.1),
                        (_found((30, 56), 30, every=10), 0.15),
                        (_found((14, 28), 60, every=10), 0.3),
                    )
                ),
            ),
            ((_timed((14, 28), 60, 60, every=10), 1.0),),
            0.96,
        ),
        _stage(
            "64k",
            65536,
            1,
            14,
            (
                *_needles(16384, 0.05),
                *_world(1, 0.05),
                *_world(8, 0.08, 0.3),
                *_films(
                    (near, 0.02),
                    (_passing((30, 60), 4, 24, scattered=False), 0.05),
                    (_found((45, 58), 60, 90, every=10), 0.75),
                ),
            ),
            ((_timed((45, 58), 60, 90, every=10), 1.0),),
            0.95,
        ),
    )


def _passing(
    minutes: tuple[int, int],
    frames: int,
    asked: int = 2,
    *,
    every: int = 0,
    narrated: float = 0.0,
    scattered: bool = True,
) -> PassingConfig:
    """Films of so many minutes of so many frames, the time behind each `every` of them, with so many questions.

    Of one frame nobody sees which way something goes, and of one minute nothing came first. Where and what take the
    most answers to learn: what is found by a time, and those are sixty that are much alike.
    """
    kinds: list[Kind] = ["what", "what", "what", "when", "when", "where", "where", "where", "where", "where"]
    if frames > 1:
        kinds.extend(("where", "way"))
    if minutes[0] > 1:
        kinds.append("first")
    together = (1, min(6, minutes[1]))
    return PassingConfig(
        minutes,
        frames,
        every,
        asked,
        together,
        tuple(kinds),
        narrated=narrated,
        scattered=scattered,
        heldout="place",
    )


def _found(minutes: tuple[int, int], frames: int, asked: int = 60, *, every: int) -> PassingConfig:
    """Long films, in which most questions are what a minute has to be found for. They are many: they cost next to
    nothing beside the frames."""
    passing = _passing(minutes, frames, asked, every=every, scattered=False)
    return replace(passing, kinds=("what", "what", "when", "first", "first", "where"))


def _timed(minutes: tuple[int, int], frames: int, asked: int = 2, *, every: int = 0) -> PassingConfig:
    """What a stage is asked in the end: what passed at a time, and when something did; of minutes in a row."""
    passing = _passing(minutes, frames, asked, every=every, scattered=False)
    return replace(passing, kinds=("what", "when"))


def _stage(
    name: str, length: int, rows: int, steps: int, mix: Mix, asked: Mix, value: float, *, every: int = 0
) -> LanguageStage:
    """A context length. It is learned when so much (`value`) of what is asked is answered rightly, token by token.

    Measured after its steps, over which the learning rate falls to 0; where it is not learned then, it takes a quarter
    more. Or every so many steps (`every`), until it is learned, at one rate.
    """
    return LanguageStage(
        name=name,
        sequence_length=length,
        batch_size=rows,
        steps=steps,
        more=0 if every else steps // 4,
        rope_theta=NANO_THETA * (length if length < 2048 else _LONGEST),
        learning_rate=2e-3 if every else 3e-3,
        warmup_steps=min(20, steps // 4),
        schedule="constant" if every else "cosine",
        mesh=MeshShape(sequence=-1) if length >= 8192 else None,
        sources=mix,
        packing="whole",
        # As in LWM: codes count for half. By examples, a film's would count an eighth of a picture's.
        normalization="modality",
        until=Criterion("accuracy", value, every or steps, rows=max(1, 16384 // length), sources=asked),
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


def _in_a_chat(source: NeedleSourceConfig) -> NeedleSourceConfig:
    """With as many needles as there is room for: a chat's words take more."""
    room = source.shortest or source.length or 0
    needles, asked = source.needles, source.asked or source.needles
    while needles > 1 and 22 + needles * (5 + source.digits) + asked * (13 + source.digits) > room:
        needles, asked = needles - 1, max(1, min(asked, asked * (needles - 1) // needles))
    return replace(source, needles=needles, asked=asked if source.asked else None, template="chat")


def _world(frames: int, share: float, without_words: float = 0.1) -> Mix:
    """Pictures, or films of so many frames, drawn twice as often as described: it takes longer to learn. Without words
    a film is drawn to be gone on with."""
    documents = share / 3 / (frames * _FRAME + _DESCRIBED)
    described = WorldSourceConfig("describe", frames=(frames, frames), heldout="place")
    drawn = replace(described, task="draw", without_words=without_words, briefly=0.5)
    return ((described, documents), (drawn, 2 * documents))


def _films(*shares: tuple[PassingConfig, float]) -> Mix:
    """Films that are asked about."""

    def tokens(film: PassingConfig) -> float:
        times = math.ceil(film.frames / (film.every or film.frames))
        minute = film.told * _TOLD + (1 - film.told) * (film.frames * _FRAME + 3 * times)
        asked = film.asked * (_QUESTION + sum(film.together) / 2 * _ASKED)
        return sum(film.minutes) / 2 * minute + asked

    return tuple((film, share / tokens(film)) for film, share in shares)


def _far(mix: Mix) -> Mix:
    """The same, with a gap in the positions that reaches as far as the longest rows."""
    return tuple((ReachConfig(source, _LONGEST), documents) for source, documents in mix)
