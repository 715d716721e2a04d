"""`train`, `convert` and `demo`: what makes a model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ringworld.cli.values import (
    Count,
    Devices,
    Folder,
    Lengths,
    MaybeCount,
    MaybeNumber,
    MaybePath,
    MaybeText,
    Number,
    default,
)
from ringworld.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a recipe, stage after stage, or go on where the folder stands; of a language model also write report.html.

    Language models: debug (seconds, no network), debug-vision (the like with pictures and films), nano (the one that is
    shipped: text, pictures and films, in hours), nano-text (needles in up to 8K tokens, in minutes), nano-text-long (on
    to 64K), and LWM's at 7B, for pods: text-32k, text-128k, text-256k, text-512k, text-1m, and with pictures and films
    vision-1k, vision-8k, vision-32k, vision-128k, vision-1m. extend goes on from a trained model (--init) to longer
    contexts (--stages). Tokenizers of frames: vqgan-nano (64x64), vqgan-emoji (the same with more codes) and LWM's,
    vqgan-lwm (256x256, for accelerators).

    Attributes:
        recipe: one of these.
        out: the run's folder: checkpoints, metrics, tokenizer.
        steps: stop after so many in all.
        seed: of the first weights and of the data.
        data: for debug and text-*, a folder of .txt files or a .jsonl file (nano-* fetch their own prose). For
            vision-*, a folder that holds LWM's vqgan, image-text and text, from 8k on video-text, and from 32k on
            image-generation, image-understanding, video-generation and video-understanding: shards of `tokenize`, and
            .txt files (docs/data.md). For vqgan-*, pictures and films: a file, a folder, a .jsonl file, shapes (the
            built-in world), or one of emoji, clips and pedestrians, which are fetched.
        init: begin with this model: a name (smollm2), a run's or a Hugging Face folder, or a .gguf file. One of text
            alone learns to see in vision-*. For vqgan-*, with this tokenizer of frames: nano, a run's folder, a
            .safetensors file, or LWM's vqgan.
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
        import jax

        from ringworld import recipes
        from ringworld.evaluation.report import write_report
        from ringworld.training.language import LanguageRecipe
        from ringworld.training.loop import train

        recipe = recipes.build(self.recipe, seed=self.seed, data=self.data, init=self.init, lengths=self.stages)
        run = train(recipe, self.out, mesh=mesh, steps=self.steps)
        if isinstance(recipe, LanguageRecipe) and jax.process_index() == 0:
            print(f"report: {write_report(run)}")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a model in another format, one array at a time; or LWM's data (.jsonl) as shards to train on.

    Attributes:
        model: a name (smollm2, or owner/name on Hugging Face), a run's, a converted or a Hugging Face folder, a .gguf
            file, LWM's file of weights, or a .jsonl of LWM's data.
        target: the folder to write; for lwm a file.
        to: ringworld's own folder, one that transformers opens, or LWM's file of weights.
        rope_theta: of an LWM file, which does not say it: 1e6 of the models for 32K tokens, 1e7 for 128K and 256K,
            2.5e7 for 512K, 5e7 for 1M.
        context_length: of an LWM file, in tokens.
        fields: of LWM's data, what makes a document of a line: names with commas between them, such as
            [caption],vision; no loss on what is in brackets. Names with "vision" in them are of codes.
        bad_share: of LWM's lines, so many may be left out before it stops, from 0 to 1.
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    target: Annotated[Positional[Path], arg(metavar="TARGET")]
    to: Literal["ringworld", "hugging-face", "lwm"] = "ringworld"
    rope_theta: Annotated[MaybeNumber, default("what the model says")] = None
    context_length: Annotated[MaybeCount, default("what the model says")] = None
    fields: Annotated[MaybeText, default('what each line says under "fields"')] = None
    bad_share: Number = 0.01

    def __call__(self) -> None:
        if Path(self.model).suffix == ".jsonl":
            self._convert_data()
            return
        if self.fields is not None:
            raise UserError(f"--fields is for a .jsonl of LWM's data, and {self.model} is none: leave it out")
        from ringworld.weights.models import WRITERS, open_lwm_model, open_model

        if (self.rope_theta is None) != (self.context_length is None):
            raise UserError("an LWM file needs --rope-theta and --context-length; other models neither")
        if self.rope_theta is None or self.context_length is None:
            source = open_model(self.model)
        else:
            source = open_lwm_model(Path(self.model), self.rope_theta, self.context_length)
        WRITERS[self.to](source, self.target)
        print(f"{source.description.config.parameters / 1e6:,.1f}M parameters in {self.target}")

    def _convert_data(self) -> None:
        if self.to != "ringworld":
            raise UserError(f"{self.model} is data, which becomes shards: leave --to {self.to} out")
        from ringworld.data.lwm_jsonl import InLine, shards_of_lwm_jsonl
        from ringworld.data.tokenized import BAD
        from ringworld.progress import counted

        fields = InLine() if self.fields is None else self.fields
        with counted("documents") as told:
            lines = shards_of_lwm_jsonl(
                Path(self.model),
                self.target,
                fields,
                bad_share=self.bad_share,
                progress=lambda done, of: told(done, of, ""),
            )
        bad = f"; {len(lines.skipped)} left out, see {self.target / BAD}" if lines.skipped else ""
        print(f"{len(lines)} documents in {self.target}{bad}")


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Let the shipped model nano draw, describe, remember an hour of film and find needles in prose; then train another
    one for two minutes, so that one sees its loss fall; write a report.

    Minutes on two cores. Stopped and started again, it goes on.

    Attributes:
        out: the folder for the results, the run and report.html.
        seed: of what is shown and drawn, and of the training.
    """

    out: Folder = Path("runs-out/demo")
    seed: Count = 0

    def __call__(self) -> None:
        Devices().shape()
        from ringworld.demo import demo

        print(f"report: {demo(self.out, seed=self.seed)}")
