"""A recipe that trains in seconds, for the tests of this room; also a program, for those that kill one."""

import sys
from dataclasses import replace
from pathlib import Path

from ringworld.data.sources import CorpusConfig, NeedleSourceConfig, TokenizerConfig
from ringworld.mesh import MeshShape, use_cpu_devices
from ringworld.model.config import ModelConfig
from ringworld.training.language import LanguageRecipe, LanguageStage
from ringworld.training.loop import train
from ringworld.training.optimizer import OptimizerConfig

STAGE = LanguageStage(
    name="short",
    sequence_length=64,
    batch_size=8,
    steps=4,
    rope_theta=1e4,
    learning_rate=3e-3,
    warmup_steps=2,
    sources=((NeedleSourceConfig(("tiny",), template="bare"), 2.0), (CorpusConfig(("tiny",)), 1.0)),
)

RECIPE = LanguageRecipe(
    name="tiny",
    summary="two stages of a few steps",
    model=ModelConfig(vocabulary_size=640, dim=32, ffn=48, layers=2, heads=2, kv_heads=2, head_dim=16, tied=True),
    tokenizer=TokenizerConfig(640, ("tiny",)),
    optimizer=OptimizerConfig(),
    stages=(STAGE, replace(STAGE, name="long", sequence_length=128, rope_theta=2e4, schedule="cosine")),
    mesh=MeshShape(data=4, fsdp=2),
    checkpoint_seconds=1e9,
)

if __name__ == "__main__":
    use_cpu_devices(8)
    train(replace(RECIPE, checkpoint_seconds=0.0), Path(sys.argv[1]))
