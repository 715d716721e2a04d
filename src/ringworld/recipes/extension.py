"""A trained model, on to longer contexts."""

from pathlib import Path

from ringworld.data.sources import CorpusConfig, NeedleSourceConfig
from ringworld.errors import UserError
from ringworld.mesh import MeshShape
from ringworld.recipes.data import texts
from ringworld.training.language import LanguageRecipe, LanguageStage
from ringworld.training.optimizer import OptimizerConfig
from ringworld.training.step import Precision
from ringworld.weights.models import open_model

EXTEND = "extend"
EXTEND_CORPORA = ("essays", "sotu")
EXTEND_TOKENS = 2**18  # of a stage


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
    prose = CorpusConfig(EXTEND_CORPORA) if data is None else texts(data)
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
            sources=((prose, 0.5), (needles(length), 0.5)),
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
