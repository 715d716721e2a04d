"""LWM's own runs at 7B, with the paper's numbers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ringworld.data.sources import ShardsConfig, SourceConfig, TokenizerConfig
from ringworld.errors import UserError
from ringworld.mesh import MeshShape
from ringworld.model.config import ModelConfig
from ringworld.recipes.data import part, require_parts, texts
from ringworld.tokens.vocabulary import LWM
from ringworld.training.language import LanguageRecipe, LanguageStage
from ringworld.training.optimizer import OptimizerConfig
from ringworld.training.step import Precision
from ringworld.weights.checkpoint import FRAMES

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


# LWM's stage 2 (arXiv 2402.08268, its table of vision-language training): sequence, steps, warm-up, devices along
# tensor and sequence.
LWM_VISION = {
    "1k": (1024, 45_000, 1000, 1, 1),
    "8k": (8192, 14_000, 500, 1, 1),
    "32k": (32_768, 1200, 100, 4, 1),
    "128k": (131_072, 450, 50, 8, 1),
    "1m": (1_048_576, 50, 5, 16, 4),
}
LWM_VISION_TOKENS_PER_STEP = 2**23
LWM_VISION_THETA = 5e7  # that of text-1m, where it begins
LWM_PAIRS = ("1k", "8k")  # the stages of pictures or films and their captions; the others are of chats
LWM_TEXT_SHARE = 0.16
LWM_CHATS = ("image-generation", "image-understanding", "video-generation", "video-understanding")
SWAPPED = 0.5  # of the pairs come with the vision first
# Of the captions so many are left out, so that guidance has something to draw away from (arXiv 2207.12598). LWM's own
# training, as far as it is told, has for that the pairs with the vision first.
DROPPED = 0.1


def lwm_vision(last: str) -> Callable[[int, Path | None], LanguageRecipe]:
    """LWM's stage 2 from the beginning to the length `last`: a model of text learns to see, to draw, and to talk of it.

    It begins with the model that `--init` names, such as LWM's own of text (`ringworld convert` reads it), which gets
    LWM's vision ids beside its own, or one that sees already. Without one it begins with random weights.

    `--data` is a folder with

        vqgan            LWM's tokenizer of frames, or frames.safetensors; a model that sees has its own
        tokenizer.json   of text, where there is no model to begin with
        image-text/      pictures with their captions: shards, as `ringworld tokenize` and `convert` write them
        text/            prose: *.txt, or in its place text.jsonl
        video-text/      from 8k on: the same of films (LWM's have 30 frames at 4 a second)
        image-generation/, image-understanding/, video-generation/, video-understanding/
                         from 32k on: conversations, as shards

    Shares are of rows, and no row has documents of two kinds. At 8k pictures and films have as many: how many they have
    in LWM's own run is not told in what was at hand.
    """

    def recipe(seed: int = 0, data: Path | None = None) -> LanguageRecipe:
        name, reached = f"vision-{last}", list(LWM_VISION)[: list(LWM_VISION).index(last) + 1]
        needed = ["image-text", *(["video-text"] if len(reached) > 1 else [])]
        needed += LWM_CHATS if len(reached) > len(LWM_PAIRS) else ()
        if data is None:
            raise UserError(
                f"{name} trains on pictures, films and texts of your own: name a folder with {', '.join(needed)}, text "
                "and LWM's vqgan in it with --data (docs/data.md says what each holds)"
            )
        require_parts(name, [*(data / kind for kind in needed), part(data, "text")])
        frames = data / FRAMES
        return LanguageRecipe(
            name=name,
            summary=f"LWM's stage 2 at 7B, text with pictures and films, up to {last.upper()} tokens, with the paper's "
            "numbers",
            model=replace(LLAMA_7B, vocabulary_size=LWM.size),
            tokenizer=TokenizerConfig(size=LWM.text_size, path=str(data / "tokenizer.json")),
            optimizer=OptimizerConfig(kind="adamw"),
            stages=tuple(_vision_stage(stage, data) for stage in reached),
            seed=seed,
            precision=Precision(remat="layer"),
            checkpoint_seconds=1800.0,
            frames=str(frames if frames.exists() else data / "vqgan"),
        )

    return recipe


def _vision_stage(name: str, data: Path) -> LanguageStage:
    length, steps, warmup, tensor, sequence = LWM_VISION[name]
    pairs = name in LWM_PAIRS
    return LanguageStage(
        name=name,
        sequence_length=length,
        batch_size=LWM_VISION_TOKENS_PER_STEP // length,
        steps=steps,
        rope_theta=LWM_VISION_THETA,
        learning_rate=6e-4 if pairs else 8e-5,
        warmup_steps=warmup,
        schedule="cosine" if pairs else "constant",
        final_learning_rate=6e-5 if pairs else 0.0,
        sources=_pairs(name, data) if pairs else _chats(data),
        mesh=MeshShape(fsdp=-1, tensor=tensor, sequence=sequence),
        reset_optimizer=True,
        packing="split long",
        normalization="modality",
        mixing="rows",
    )


def _pairs(name: str, data: Path) -> tuple[tuple[SourceConfig, float], ...]:
    kinds = ("image-text",) if name == "1k" else ("image-text", "video-text")
    share = (1 - LWM_TEXT_SHARE) / len(kinds)
    pairs = tuple((ShardsConfig(str(data / kind), swap=SWAPPED, drop_text=DROPPED), share) for kind in kinds)
    return (*pairs, (texts(part(data, "text")), LWM_TEXT_SHARE))


def _chats(data: Path) -> tuple[tuple[SourceConfig, float], ...]:
    return tuple(
        (ShardsConfig(str(data / task), drop_text=DROPPED if task.endswith("generation") else 0.0), 1 / len(LWM_CHATS))
        for task in LWM_CHATS
    )
