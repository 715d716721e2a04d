"""LWM's own runs at 7B, with the paper's numbers."""

from collections.abc import Callable
from pathlib import Path

from ringworld.data.sources import TokenizerConfig
from ringworld.errors import UserError
from ringworld.mesh import MeshShape
from ringworld.model.config import ModelConfig
from ringworld.recipes.data import texts
from ringworld.training.language import LanguageRecipe, LanguageStage
from ringworld.training.optimizer import OptimizerConfig
from ringworld.training.step import Precision

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


def lwm_text(last: str) -> Callable[[int, Path | None], LanguageRecipe]:
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
                    sources=((texts(data), 1.0),),
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
