"""Tokenizers of frames."""

from dataclasses import replace
from pathlib import Path

from ringworld.data.frames import FrameSourceConfig, MomentsConfig, ShapesConfig, frames_of
from ringworld.errors import UserError
from ringworld.mesh import MeshShape
from ringworld.tokens.quantizers import QuantizerConfig
from ringworld.tokens.vqgan import LWM_VQGAN, VqganConfig
from ringworld.training.optimizer import OptimizerConfig
from ringworld.training.vqgan import VqganLoss, VqganRecipe, VqganStage

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
