"""The command line. It maps words to calls; what the calls do is elsewhere. Only this file reads argv."""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, Positional, arg, subcommand
from tyro.constructors import PrimitiveConstructorSpec

from ringworld import __version__
from ringworld.errors import UserError

# What needs JAX is imported inside the commands: `ringworld --help` answers at once, and `--devices` comes first.
if TYPE_CHECKING:
    from ringworld.generation.model import Model
    from ringworld.mesh import MeshShape
    from ringworld.tokens.codec import FrameTokenizer

DESCRIPTION = """Train a model on ever longer contexts, ask it for needles in a haystack, let it write; train a
tokenizer of pictures and films, and use it.

examples:
  ringworld demo                                    # all of it, small, with a report to look at
  ringworld train debug --out runs-out/debug        # seconds, no network: does it run here?
  ringworld train nano-text --out runs-out/nano     # the demo's model; stop it, start it again, it goes on
  ringworld train debug --devices 8 --mesh sequence=8 --out runs-out/ring
  ringworld evaluate needle --model runs-out/nano --lengths 512,1024 --out runs-out/needle
  ringworld generate text --model runs-out/nano --prompt "The sea was" --max-tokens 32
  ringworld chat --model smollm2                    # a model that others trained, fetched
  ringworld convert smollm2 smollm2-hf --to hugging-face
  ringworld train vqgan-nano --out runs-out/eyes    # a tokenizer of frames
  ringworld tokenize films/ --tokenizer runs-out/eyes --out runs-out/codes
  ringworld reconstruct film.mp4 --tokenizer runs-out/eyes --out beside.mp4

ringworld COMMAND --help says what a command takes; ringworld --version says which one this is."""


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"must be a whole number, 0 or more; got {text!r}")
    return int(text)


def _wholes(text: str) -> tuple[int, ...]:
    return tuple(map(_whole, text.split(",")))


def _lengths(text: str) -> tuple[int, ...]:
    """ "8k,16384" -> 8192, 16384."""
    return tuple(1024 * _whole(word[:-1]) if word[-1:] in ("k", "K") else _whole(word) for word in text.split(","))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"must be a number; got {text!r}") from None


def _words(
    metavar: str, read: Callable[[str], Any], write: Callable[[Any], str] = str
) -> PrimitiveConstructorSpec[Any]:
    """How tyro reads and shows one kind of value. Its own reading of `int | None` speaks of Python classes."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [write(value)],
    )


Count = Annotated[int, _words("N", _whole)]
Counts = Annotated[tuple[int, ...], _words("N,N,...", _wholes, lambda values: ",".join(map(str, values)))]
Lengths = Annotated[tuple[int, ...], _words("N,Nk,...", _lengths, lambda values: ",".join(map(str, values)))]
Number = Annotated[float, _words("X", _number)]
MaybeCount = Annotated[int | None, _words("N", _whole)]
MaybeMesh = Annotated[str | None, _words("AXIS=N,...", str)]
MaybeNumber = Annotated[float | None, _words("X", _number)]
MaybeText = Annotated[str | None, _words("TEXT", str)]
MaybePath = Annotated[Path | None, _words("PATH", Path)]
Text = Annotated[str, _words("TEXT", str)]
Names = Annotated[tuple[str, ...], _words("NAME,...", lambda text: tuple(text.split(",")), ",".join)]
Folder = Annotated[Path, _words("DIR", Path)]


def _default(meaning: str) -> Any:
    """Says in the help what leaving a flag out means."""
    return arg(help_behavior_hint=f"(default: {meaning})")


@dataclass(frozen=True, kw_only=True)
class Devices:
    """Where to compute.

    Attributes:
        mesh: devices along each axis, such as data=2,sequence=4. Axes: data, fsdp, tensor, sequence. One number may be
            -1, all devices that the others leave.
        devices: make so many virtual devices of the CPU.
    """

    mesh: Annotated[MaybeMesh, _default("the recipe's; rows over all devices to evaluate; one to generate")] = None
    devices: Annotated[MaybeCount, _default("two, where there are two cores")] = None

    def shape(self) -> "MeshShape | None":
        """The mesh that was asked for. Makes the devices, so it comes before anything that asks JAX for its own."""
        from ringworld.mesh import MeshShape, default_cpu_devices, use_cpu_devices

        use_cpu_devices(default_cpu_devices() if self.devices is None else self.devices)
        return None if self.mesh is None else MeshShape.parse(self.mesh)


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
    steps: Annotated[MaybeCount, _default("all stages, to their ends")] = None
    seed: Count = 0
    data: Annotated[MaybePath, _default("the recipe's own")] = None
    init: Annotated[MaybeText, _default("random weights")] = None
    stages: Annotated[Lengths, _default("the recipe's own")] = ()
    compute: Devices = field(default_factory=Devices)

    def __call__(self) -> None:
        mesh = self.compute.shape()
        from ringworld import recipes
        from ringworld.training.loop import train

        recipe = recipes.build(self.recipe, seed=self.seed, data=self.data, init=self.init, lengths=self.stages)
        train(recipe, self.out, mesh=mesh, steps=self.steps)


@dataclass(frozen=True, kw_only=True)
class OfModel:
    """What every command takes that asks a trained model.

    Attributes:
        model: what `ringworld train --out` or `ringworld convert` wrote, smollm2 (fetched), a name on Hugging Face, a
            folder that transformers opens, or a .gguf file.
    """

    model: Annotated[str, _words("MODEL", str)]
    compute: Devices = field(default_factory=Devices)

    def load(self, *, many_rows: bool) -> "Model":
        """On the mesh asked for, or else on all devices for many rows and on one for a single row."""
        mesh = self.compute.shape()
        import ringworld
        from ringworld.mesh import MeshShape

        return ringworld.load(self.model, MeshShape(data=-1) if mesh is None and many_rows else mesh)


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
    length: Annotated[MaybeCount, _default("the longest that the model was trained on")] = None
    data: Text = "essays"
    rows: Count = 16

    def __call__(self) -> None:
        from ringworld.evaluation.perplexity import evaluate_perplexity

        model = self.load(many_rows=True)
        length = model.context_length if self.length is None else self.length
        result = evaluate_perplexity(model, self.data, length=length, out=self.out, rows=self.rows)
        print(f"perplexity {result.perplexity:.4g}; see {self.out / 'perplexity'}.json and .png")


@dataclass(frozen=True, kw_only=True)
class OfTokenizer:
    """What every command takes that uses a tokenizer of frames.

    Attributes:
        tokenizer: nano, shipped, for frames of shapes; what `ringworld train vqgan-...` wrote; or a .safetensors file.
    """

    tokenizer: Folder
    compute: Devices = field(default_factory=Devices)

    def load(self) -> "FrameTokenizer":
        """On the mesh asked for, or else with its frames spread over all devices."""
        mesh = self.compute.shape()
        from ringworld.mesh import MeshShape, build_mesh
        from ringworld.weights.tokenizer import load_tokenizer

        return load_tokenizer(self.tokenizer, build_mesh(mesh or MeshShape(data=-1)))


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


@dataclass(frozen=True, kw_only=True)
class Tokenize(OfTokenizer):
    """Turn pictures and films into codes: shards of documents to train on.

    What cannot be read is listed in bad.jsonl and left out. Started again, a job goes on at its first missing shard.

    Attributes:
        input: a picture, a film, a .jsonl file of documents, or a folder with any of these in it.
        out: the folder for the shards.
        fps: frames of a film a second, where a document does not say its own; 0: all of them.
        fit: what happens to a frame that is no square: crop cuts off what stands over, pad shows all of it on black.
        bad_share: of documents, so many may be left out before the job stops, from 0 to 1.
        workers: files that are read at a time.
    """

    input: Annotated[Positional[Path], arg(metavar="INPUT")]
    out: Folder
    fps: Number = 1.0
    fit: Literal["crop", "pad"] = "crop"
    bad_share: Number = 0.01
    workers: Annotated[MaybeCount, _default("one more than there are cores")] = None

    def __call__(self) -> None:
        tokenizer = self.load()
        from ringworld.data.tokenize import BAD, tokenize
        from ringworld.progress import counted
        from ringworld.weights.tokenizer import fingerprint

        with counted("documents") as told:
            summary = tokenize(
                self.input,
                tokenizer,
                self.out,
                fingerprint=fingerprint(tokenizer),
                fps=self.fps or None,
                fit=self.fit,
                bad_share=self.bad_share,
                workers=self.workers,
                progress=lambda done, of, frames: told(done, of, f"{frames} frames"),
            )
        bad = f"; {len(summary.bad)} left out, see {self.out / BAD}" if summary.bad else ""
        print(f"{summary.documents} documents with {summary.frames} frames in {self.out}{bad}")


@dataclass(frozen=True, kw_only=True)
class Reconstruct(OfTokenizer):
    """Write a picture or a film as it is after encode and decode, on the right of how it was; say how like they are.

    Attributes:
        input: a picture or a film; its middle square is taken.
        out: .png, .webp or .jpg for a picture, .gif or .mp4 for a film.
        fps: frames of a film a second.
    """

    input: Annotated[Positional[Path], arg(metavar="INPUT")]
    out: Annotated[Path, _words("FILE", Path)]
    fps: Annotated[MaybeNumber, _default("as many as it has")] = None

    def __call__(self) -> None:
        tokenizer = self.load()
        from ringworld.evaluation.tokenizer import reconstruct

        print(f"{reconstruct(tokenizer, self.input, self.out, fps=self.fps)}; see {self.out}")


@dataclass(frozen=True, kw_only=True)
class Generate(OfModel):
    """Let a trained model write, draw or film.

    Text goes on from the prompt, and appears as it is written; a picture or a film is of what the prompt says.

    Attributes:
        what: text, image or video.
        prompt: what the text goes on from, or what is to be seen.
        out: of an image (.png, .webp or .jpg) or a video (.mp4 or .gif): the file.
        max_tokens: of text, at most so many.
        frames: of a video.
        fps: of a video, frames a second.
        like: a picture that a video begins with.
        guidance: of an image or a video, how closely the prompt is followed: 1 as the model says, more exaggerates
            what it changes (CFG).
        temperature: 0 takes the likeliest token each time; 1 draws as the model says.
        top_k: draw among so many of the likeliest; 0 among all.
        top_p: draw among the likeliest that have this probability together.
        seed: of the draws.
    """

    what: Positional[Literal["text", "image", "video"]]
    prompt: Text
    out: Annotated[MaybePath, _default("none: text is printed")] = None
    max_tokens: Count = 128
    frames: Count = 8
    fps: Number = 4.0
    like: Annotated[MaybePath, _default("none")] = None
    guidance: Number = 1.0
    temperature: Annotated[MaybeNumber, _default("0 for text, 1 for images and videos")] = None
    top_k: Count = 0
    top_p: Number = 1.0
    seed: Count = 0

    def __call__(self) -> None:
        if self.what == "text":
            self._write()
        else:
            self._draw()

    def _draw(self) -> None:
        from ringworld.errors import UserError

        if self.out is None:
            raise UserError(
                f"{self.what} needs a file to write: name it with --out, such as --out a.png or --out a.mp4"
            )
        if self.like is not None and self.what == "image":
            raise UserError("--like is what a video begins with: leave it out, or generate a video")
        from ringworld.generation.drawing import Brush, frame_tokenizer_of
        from ringworld.progress import tracked
        from ringworld.tokens.images import read_image, write_image
        from ringworld.tokens.video import write_video

        model = self.load(many_rows=False)
        temperature = 1.0 if self.temperature is None else self.temperature
        brush = Brush(temperature, self.top_k, self.top_p, self.guidance, self.seed)
        if self.what == "image":
            write_image(self.out, model.draw(self.prompt, brush))
        else:
            side = frame_tokenizer_of(model).config.frame_size
            like = None if self.like is None else read_image(self.like, (side, side))[None]
            film = model.film(self.prompt, self.frames, brush, like)
            write_video(self.out, tracked(film, "frames", self.frames), self.fps)
        print(self.out)

    def _write(self) -> None:
        pieces = self.load(many_rows=False).stream(
            self.prompt,
            self.max_tokens,
            temperature=self.temperature or 0.0,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
        )
        for piece in pieces:
            print(piece, end="", flush=True)
        print()


@dataclass(frozen=True, kw_only=True)
class Chat(OfModel):
    """Talk with a model. /help says what else one can type; ctrl-C stops an answer, and not the program.

    Attributes:
        system: what the model is told before the first turn.
        max_tokens: an answer has at most so many.
        temperature: 0 takes the likeliest token each time; 1 draws as the model says.
        top_k: draw among so many of the likeliest; 0 among all.
        top_p: draw among the likeliest that have this probability together.
        seed: of the draws.
        resume: go on with a conversation that /save wrote.
        drawings: the folder for what the model draws.
        every: the time stands before every so many seconds of a film that is shown; 0: nowhere.
    """

    system: Annotated[MaybeText, _default("what the model's own template says")] = None
    max_tokens: Count = 512
    temperature: Number = 0.0
    top_k: Count = 0
    top_p: Number = 1.0
    seed: Count = 0
    resume: Annotated[MaybePath, _default("begin anew")] = None
    drawings: Folder = Path(".")
    every: Count = 0

    def __call__(self) -> None:
        chat = self.load(many_rows=False).chat(self.system)
        from ringworld.generation.terminal import Album, converse

        with contextlib.suppress(ImportError):  # lines can be edited and called back, where the system has it
            import readline  # noqa: F401
        if self.resume is not None:
            chat.load(self.resume)
        converse(
            chat,
            lambda: input("> "),
            partial(print, end="", flush=True),
            Album(self.drawings),
            every=self.every,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
        )


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
    rope_theta: Annotated[MaybeNumber, _default("what the model says")] = None
    context_length: Annotated[MaybeCount, _default("what the model says")] = None

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


Command = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Train, subcommand("train")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Generate, subcommand("generate")]
    | Annotated[Chat, subcommand("chat")]
    | Annotated[Convert, subcommand("convert")]
    | Annotated[Tokenize, subcommand("tokenize")]
    | Annotated[Reconstruct, subcommand("reconstruct")]
)


def parse(words: Sequence[str]) -> Callable[[], None]:
    """The command that `words` ask for. Prints help and exits with status 0 where they ask for help.

    Raises:
        UserError: they are not a command.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                Command,  # pyright: ignore[reportArgumentType]
                prog="ringworld",
                description=DESCRIPTION,
                args=list(words),
                config=(OmitArgPrefixes, OmitSubcommandPrefixes),
            )
    except SystemExit as stop:
        if stop.code:
            raise UserError(sentence(box.getvalue())) from None
        raise


def sentence(box: str) -> str:
    """What is wrong with a command line, in one line.

    tyro draws it as a box, coloured on a terminal, with edges of one character (spaces where there is no Unicode): a
    title in the upper edge, then between rules what is wrong, hints, and where to read on.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    title, *rows = [line[1:-1].rstrip() for line in plain.splitlines()]
    title = title.strip("─- ")
    blocks: list[list[str]] = [[]]
    for row in rows:
        if not row.strip("─- "):
            blocks.append([])
        elif not row.startswith(" " * 9):  # so deep stands the help of an option, which --help shows too
            blocks[-1].append(row.strip())
    wrong, *others = [" ".join(block) for block in blocks if block]
    hints = [block for block in others if block.startswith(("Perhaps", "Available"))]
    line = "; ".join([wrong, *hints, "see ringworld --help"])
    return line if wrong.startswith((title, "Missing", "Error")) else f"{title}: {line}"


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command line (`sys.argv` by default); returns the exit status.

    0: done. 2: a mistake that the user can mend, in one line on standard error. 130: interrupted from the keyboard.
    """
    words = sys.argv[1:] if words is None else words
    if list(words) == ["--version"]:
        print(f"ringworld {__version__}")
        return 0
    try:
        parse(words or ["--help"])()
    except UserError as error:
        print(f"ringworld: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ringworld: interrupted", file=sys.stderr)
        return 130
    return 0
