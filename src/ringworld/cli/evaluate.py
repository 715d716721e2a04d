"""`evaluate`: what is measured of a trained model or tokenizer."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import subcommand

from ringworld.cli.values import Count, Counts, Folder, MaybeCount, Names, Number, OfModel, OfTokenizer, Text, default


@dataclass(frozen=True, kw_only=True)
class Needle(OfModel):
    """Hide a number in held-out prose and ask for it: context lengths x depths x rounds.

    Writes needle.json and needle.png, the heat-map. Started again it goes on, or extends the grid.

    Attributes:
        out: the folder for the results.
        lengths: of the context, in tokens.
        depths: places of the needle, evenly from the beginning to the end.
        rounds: questions at each length and depth.
        haystack: prose: essays, sotu, moby-dick, tiny (no network), or text files.
        seed: of cities, numbers and prose.
        template: whose words say who speaks: those of the model's own chat template, LWM's, or the fewest of these;
            auto: chat where the model has one, else lwm, and bare in rows too short for either.
    """

    out: Folder
    lengths: Counts
    depths: Count = 5
    rounds: Count = 2
    haystack: Names = ("essays", "sotu", "moby-dick")
    seed: Count = 0
    template: Literal["auto", "chat", "lwm", "bare"] = "auto"

    def __call__(self) -> None:
        self.run("needle", needles=1, asked=1)

    def run(self, kind: Literal["needle", "multi-needle"], *, needles: int, asked: int) -> None:
        from ringworld.evaluation.needle import evaluate_needle
        from ringworld.evaluation.prose import HeldOutProse

        model = self.load(many_rows=True)
        result = evaluate_needle(
            model,
            HeldOutProse(model.tokenizer, self.haystack),
            lengths=self.lengths,
            depths=self.depths,
            rounds=self.rounds,
            out=self.out,
            kind=kind,
            needles=needles,
            asked=asked,
            seed=self.seed,
            template=None if self.template == "auto" else self.template,
        )
        questions = len(result.answers)
        print(
            f"{result.accuracy:.1%} of the numbers found in {questions} questions; see {self.out / kind}.json and .png"
        )


@dataclass(frozen=True, kw_only=True)
class MultiNeedle(Needle):
    """Hide several numbers and ask for some of them; one mark for each.

    Writes multi-needle.json and multi-needle.png. The depth is that of the first number asked for.

    Attributes:
        needles: numbers hidden.
        asked: how many of them one question asks for.
    """

    needles: Count = 4
    asked: Count = 2

    def __call__(self) -> None:
        self.run("multi-needle", needles=self.needles, asked=self.asked)


@dataclass(frozen=True, kw_only=True)
class Perplexity(OfModel):
    """How well the model predicts held-out text, by the position in its window.

    Writes perplexity.json and perplexity.png.

    Attributes:
        out: the folder for the results.
        length: of a window, in tokens.
        data: essays, sotu, moby-dick, tiny (no network), or a text file.
        rows: windows, spread evenly over the text.
    """

    out: Folder
    length: Annotated[MaybeCount, default("the longest that the model was trained on")] = None
    data: Text = "essays"
    rows: Count = 16

    def __call__(self) -> None:
        from ringworld.evaluation.perplexity import evaluate_perplexity

        model = self.load(many_rows=True)
        length = model.context_length if self.length is None else self.length
        result = evaluate_perplexity(model, self.data, length=length, out=self.out, rows=self.rows)
        print(f"perplexity {result.perplexity:.4g}; see {self.out / 'perplexity'}.json and .png")


@dataclass(frozen=True, kw_only=True)
class Tokenizer(OfTokenizer):
    """What a tokenizer of frames keeps of them: PSNR, SSIM and codes in use, over a set of frames.

    Writes tokenizer.json and tokenizer.png, a sheet of frames beside what became of them. Of shapes it also says how
    many decoded frames a reader that knows their rules still reads rightly.

    Attributes:
        data: shapes (the built-in world), emoji, clips, pedestrians (fetched), or pictures and films: a file, a folder
            or a .jsonl file.
        out: the folder for the results.
        part: what a tokenizer that was trained on this data has not seen (heldout), what it has (train), or all.
        frames: at most so many, spread evenly over the data.
        fps: frames of a film a second.
        seed: of the shapes.
    """

    data: Text = "shapes"
    out: Folder
    part: Literal["all", "train", "heldout"] = "all"
    frames: Count = 1000
    fps: Number = 2.0
    seed: Count = 0

    def __call__(self) -> None:
        tokenizer = self.load()
        from ringworld.data.frames import frames_of
        from ringworld.evaluation.tokenizer import evaluate_tokenizer

        source = frames_of(self.data, self.fps).build(tokenizer.config.frame_size, self.seed, self.part)
        result = evaluate_tokenizer(tokenizer, source, self.out, frames=self.frames)
        print(f"{result}; see {self.out / 'tokenizer'}.json and .png")


@dataclass(frozen=True)
class Evaluate:
    """Measure a trained model: needles in a haystack, perplexity; or a tokenizer of frames."""

    what: (
        Annotated[Needle, subcommand("needle")]
        | Annotated[MultiNeedle, subcommand("multi-needle")]
        | Annotated[Perplexity, subcommand("perplexity")]
        | Annotated[Tokenizer, subcommand("tokenizer")]
    )

    def __call__(self) -> None:
        self.what()
