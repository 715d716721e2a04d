"""Seconds, without a network: does it run here?"""

from pathlib import Path

from ringworld.data.sources import CorpusConfig, NeedleSourceConfig, SourceConfig, TokenizerConfig
from ringworld.data.worlds import WorldSourceConfig
from ringworld.mesh import MeshShape
from ringworld.model.config import ModelConfig
from ringworld.recipes.data import takes_no_data, texts
from ringworld.recipes.long_text import NANO_OPTIMIZER, NANO_THETA
from ringworld.training.language import LanguageRecipe, LanguageStage


def debug(seed: int = 0, data: Path | None = None) -> LanguageRecipe:
    """A few steps of two stages in seconds, without a network."""
    corpora = ("tiny",)
    prose: SourceConfig = CorpusConfig(corpora) if data is None else texts(data)

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
    takes_no_data("debug-vision", data)
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
