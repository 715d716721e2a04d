"""`train`, `convert` and `demo`: what makes a model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ringworld.cli.values import Count, Devices, Folder, Lengths, MaybeCount, MaybeNumber, MaybePath, MaybeText, default
from ringworld.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a recipe, stage after stage, or go on where the folder stands.

    Language models: debug (seconds, no network), debug-vision (the like with pictures and films), nano-text (the
    demo's), nano-text-long (on to 64K tokens), and LWM's at 7B, for pods: text-32k, text-128k, text-256k, text-512k,
    text-1m. extend goes on from a trained model (--init) to longer contexts (--stages). Tokenizers of frames:
    vqgan-nano (64x64), vqgan-emoji (the same with more codes) and LWM's, vqgan-lwm (256x256, for accelerators).

    Attributes:
        recipe: one of these.
        out: the run's folder: checkpoints, metrics, tokenizer.
        steps: stop after so many in all.
        seed: of the first weights and of the data.
        data: for debug and text-*, a folder of .txt files or a .jsonl file (nano-* fetch their own prose). For vqgan-*,
            pictures and films: a file, a folder, a .jsonl file, shapes (the built-in world), or one of emoji, clips and
            pedestrians, which are fetched.
        init: begin with this model: a name (smollm2), a run's or a Hugging Face folder, or a .gguf file. For vqgan-*,
            with this tokenizer of frames: nano, a run's folder, or a .safetensors file.
        stages: context lengths of extend, such as 8k,16k.
    """

    recipe: Annotated[Positional[str], arg(metavar="RECIPE")]
    out: Folder
    steps: Annotated[MaybeCount, default("all stages, to their ends")] = None
    seed: Count = 0
    data: Annotated[MaybePath, default("the recipe's own")] = None
    init: Annotated[MaybeText, default("random weights")] = None
    stages: Annotated[Lengths, default("the recipe's own")] = ()
    compute: Devices = field(default_factory=Devices)

    def __call__(self) -> None:
        mesh = self.compute.shape()
        from ringworld import recipes
        from ringworld.training.loop import train

        recipe = recipes.build(self.recipe, seed=self.seed, data=self.data, init=self.init, lengths=self.stages)
        train(recipe, self.out, mesh=mesh, steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a model in another format, one array at a time.

    Attributes:
        model: a name (smollm2, or owner/name on Hugging Face), a run's, a converted or a Hugging Face folder, a .gguf
            file, or LWM's file of weights.
        target: the folder to write; for lwm a file.
        to: ringworld's own folder, one that transformers opens, or LWM's file of weights.
        rope_theta: of an LWM file, which does not say it: 1e6 of the models for 32K tokens, 1e7 for 128K and 256K,
            2.5e7 for 512K, 5e7 for 1M.
        context_length: of an LWM file, in tokens.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    target: Annotated[Positional[Path], arg(metavar="TARGET")]
    to: Literal["ringworld", "hugging-face", "lwm"] = "ringworld"
    rope_theta: Annotated[MaybeNumber, default("what the model says")] = None
    context_length: Annotated[MaybeCount, default("what the model says")] = None

    def __call__(self) -> None:
        from ringworld.weights.models import WRITERS, open_lwm_model, open_model

        if (self.rope_theta is None) != (self.context_length is None):
            raise UserError("an LWM file needs --rope-theta and --context-length; other models neither")
        if self.rope_theta is None or self.context_length is None:
            source = open_model(self.model)
        else:
            source = open_lwm_model(Path(self.model), self.rope_theta, self.context_length)
        WRITERS[self.to](source, self.target)
        print(f"{source.description.config.parameters / 1e6:,.1f}M parameters in {self.target}")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Train a small model from 64 tokens to 8K, ask it for needles in held-out prose, write a report.

    Seven minutes on two fast cores, a quarter of an hour on slow ones. Stopped and started again, it goes on.

    Attributes:
        out: the folder for the run, the results and report.html.
        seed: of the first weights and of the data.
    """

    out: Folder = Path("runs-out/demo")
    seed: Count = 0

    def __call__(self) -> None:
        Devices().shape()
        from ringworld.demo import demo

        print(f"report: {demo(self.out, seed=self.seed)}")
