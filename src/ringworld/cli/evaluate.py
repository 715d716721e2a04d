"""`evaluate`: what is measured of a trained model or tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import subcommand

from ringworld.cli.values import (
    Count,
    Counts,
    Folder,
    MaybeCount,
    Names,
    Number,
    Numbers,
    OfModel,
    OfTokenizer,
    Span,
    Text,
    default,
    words,
)
from ringworld.errors import UserError

if TYPE_CHECKING:
    from ringworld.evaluation.film import Task

HeldOut = Literal["ground", "place"]


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
    """How well the model predicts what it has not seen, by the position in its window: text, or documents of text,
    pictures and films, of which text and vision are told apart.

    Writes perplexity.json and perplexity.png.

    Attributes:
        out: the folder for the results.
        length: of a window, in tokens.
        data: essays, sotu, moby-dick, tiny (no network), a text file, or a folder that `ringworld tokenize` wrote (of
            which the documents count that training holds out).
        rows: windows, spread evenly over the text; or rows of documents side by side.
        every: in documents, the time stands behind every so many seconds of a film, as in training; 0: nowhere.
    """

    out: Folder
    length: Annotated[MaybeCount, default("the longest that the model was trained on")] = None
    data: Text = "essays"
    rows: Count = 16
    every: Count = 0

    def __call__(self) -> None:
        from ringworld.evaluation.perplexity import evaluate_perplexity

        model = self.load(many_rows=True)
        length = model.context_length if self.length is None else self.length
        result = evaluate_perplexity(model, self.data, length=length, out=self.out, rows=self.rows, every=self.every)
        vision = "" if result.vision_perplexity is None else f" of text, {result.vision_perplexity:.4g} of vision"
        print(f"perplexity {result.perplexity:.4g}{vision}; see {self.out / 'perplexity'}.json and .png")


@dataclass(frozen=True, kw_only=True)
class VideoNeedle(OfModel):
    """Hide something in a film of the shapes world and ask for it: lengths of films x depths x rounds.

    Writes video-needle-FORM.json and .png, the heat-map. Started again it goes on, or extends the grid.

    Attributes:
        out: the folder for the results.
        lengths: of the films, in frames of one a second.
        depths: places of what is hidden, evenly from the beginning to the end.
        rounds: questions at each length and depth.
        form: what is hidden and asked for: a picture (what was it?), a clip of four frames (which way did it move?),
            the order of two pictures, or when one was seen (at which minute?).
        every: the time stands behind every so many frames; 0: nowhere.
        part: films and hidden things like those that training shows, or with what it never shows (heldout).
        seed: of the films and what is hidden.
        heldout: what training held out, things on grounds or at places.
    """

    out: Folder
    lengths: Counts
    depths: Count = 5
    rounds: Count = 2
    form: Literal["picture", "clip", "order", "when"] = "picture"
    every: Count = 0
    part: Literal["train", "heldout"] = "train"
    seed: Count = 0
    heldout: HeldOut = "ground"

    def __call__(self) -> None:
        from ringworld.evaluation.video_needle import evaluate_video_needle
        from ringworld.generation.answering import Answering

        result = evaluate_video_needle(
            Answering(self.load(many_rows=True)),
            lengths=self.lengths,
            depths=self.depths,
            rounds=self.rounds,
            out=self.out,
            form=self.form,
            seed=self.seed,
            part=self.part,
            every=self.every,
            heldout=self.heldout,
        )
        print(
            f"{result.grid.accuracy:.1%} right of {len(result.answers)} answers; see "
            f"{self.out / f'video-needle-{self.form}'}.json and .png"
        )


@dataclass(frozen=True, kw_only=True)
class Film(OfModel):
    """Ask about films of the shapes world as they are: what is where and when, what passed, which came first. What
    training shows stands beside what it never shows.

    With --minutes they are films in which one thing passes each minute: --minutes 60 --frames 3600 is an hour.

    Writes film.json. Started again it goes on, or asks about more films.

    Attributes:
        out: the folder for the results.
        films: so many like those trained on, and as many with what is held out.
        minutes: of a film in which one thing passes each minute, with its time behind it. It has no scenes.
        frames: of a film; in scenes one a second.
        scene: seconds of a film's scenes, from so many to so many.
        things: in a scene, from so many to so many.
        asked: questions about a film.
        kinds: of questions, such as what,colour,passed; one that there is not is answered with all there are.
        every: the time stands behind every so many frames; 0: nowhere, or with --minutes behind each minute's last.
        seed: of the films.
        heldout: what training held out, things on grounds or at places.
    """

    out: Folder
    films: Count = 16
    minutes: Annotated[MaybeCount, default("films of scenes")] = None
    frames: Count = 64
    scene: Span = (5, 15)
    things: Span = (1, 3)
    asked: Annotated[MaybeCount, default("as many as there are kinds")] = None
    kinds: Annotated[Names, default("all of them")] = ()
    every: Count = 0
    seed: Count = 0
    heldout: HeldOut = "ground"

    def __call__(self) -> None:
        from ringworld.evaluation.film import evaluate_film
        from ringworld.generation.answering import Answering

        model = Answering(self.load(many_rows=True))
        print(evaluate_film(model, self.out, self._task(), films=self.films, asked=self.asked))
        print(f"see {self.out / 'film'}.json")

    def _task(self) -> "Task":
        from ringworld.evaluation.film import Minutes, Scenes

        if self.minutes is None:
            return Scenes(self.frames, self.scene, self.things, self.kinds, self.every, self.seed, self.heldout)
        if (self.scene, self.things) != (Film.scene, Film.things):
            raise UserError("films of --minutes have one thing a minute, and no scenes: leave --scene and --things out")
        return Minutes(self.minutes, self.frames, self.kinds, self.every, self.seed, self.heldout)


@dataclass(frozen=True, kw_only=True)
class Vqa(OfModel):
    """Ask questions about pictures and films out of a file, and mark the answers.

    A line of the file is such as {"media": "a.png", "question": "Which colour is the bus?", "answer": ["red", "dark
    red"], "kind": "colour"}. Writes vqa.json. Started again it goes on.

    Attributes:
        data: the questions, a .jsonl file; paths in it are relative to it.
        out: the folder for the results.
        fps: frames of a film a second, where a line does not say its own.
        max_frames: of a film, spread evenly over it.
        max_tokens: an answer has at most so many.
        question_first: the words come before what is shown, as LWM's models were trained.
        instructed: with LLaVA's words that ask for a short answer or a letter.
        batch_tokens: tokens of questions and frames that are read together, which bounds the memory.
        bad_share: of the pictures and films, so many may be left out, as they cannot be read, before it stops, from 0
            to 1.
    """

    data: Annotated[Path, words("FILE", Path)]
    out: Folder
    fps: Number = 1.0
    max_frames: Annotated[MaybeCount, default("all")] = None
    max_tokens: Count = 16
    question_first: bool = False
    instructed: bool = True
    batch_tokens: Count = 32768
    bad_share: Number = 0.01

    def __call__(self) -> None:
        from ringworld.evaluation.vqa import evaluate_vqa
        from ringworld.generation.answering import Answering

        result = evaluate_vqa(
            Answering(self.load(many_rows=True)),
            self.data,
            self.out,
            fps=self.fps,
            max_frames=self.max_frames,
            max_tokens=self.max_tokens,
            layout="question first" if self.question_first else "media first",
            instructed=self.instructed,
            batch_tokens=self.batch_tokens,
            bad_share=self.bad_share,
        )
        bad = f"; {len(result.unreadable)} pictures and films cannot be read" if result.unreadable else ""
        print(f"{result.accuracy:.1%} right of {len(result.answers)} answers{bad}; see {self.out / 'vqa'}.json")


@dataclass(frozen=True, kw_only=True)
class Captions(OfModel):
    """Show the model pictures or films of the shapes world, ask what is in them, and compare its words with the
    caption: as a whole, and by size, colour, kind, place, ground and motion. What training shows stands beside what it
    never shows.

    Writes captions.json; of films captions-film.json. Started again it goes on, or asks about more of them.

    Attributes:
        out: the folder for the results.
        count: pictures or films like those trained on, and as many with what is held out.
        frames: 1 is a picture, more a film of one frame a second.
        things: in each, from so many to so many.
        seed: of the pictures and films.
        heldout: what training held out, things on grounds or at places.
    """

    out: Folder
    count: Count = 64
    frames: Count = 1
    things: Span = (1, 1)
    seed: Count = 0
    heldout: HeldOut = "ground"

    def __call__(self) -> None:
        from ringworld.evaluation.captions import evaluate_captions
        from ringworld.generation.answering import Answering

        result = evaluate_captions(
            Answering(self.load(many_rows=True)),
            self.out,
            count=self.count,
            frames=self.frames,
            things=self.things,
            seed=self.seed,
            heldout=self.heldout,
        )
        print(result)
        print(f"see {self.out / ('captions' if self.frames == 1 else 'captions-film')}.json")


@dataclass(frozen=True, kw_only=True)
class Generation(OfModel):
    """Let the model draw captions of the shapes world, or go on with films of it, and have a reader of its rules say
    what is right in them. What training shows stands beside what it never shows.

    Writes generation.json, the drawings, and sheets of them, generation-GUIDANCE.png; of films generation-film.json and
    so on, of films with given frames generation-film-given3.json. Started again it goes on, or draws more captions, or
    with another guidance.

    Attributes:
        out: the folder for the results.
        count: captions like those trained on, and as many with what is held out.
        frames: 1 is a picture, more a film of one frame a second.
        given: so many of a film's frames are given, 2 or more, and no words: how it goes on is to be seen from them.
            0: it is drawn from its caption.
        things: in each, from so many to so many.
        guidance: how closely captions are followed (CFG), one value or several, with each of which all are drawn.
        temperature: 0 takes the likeliest token each time; 1 draws as the model says.
        seed: of the captions and of the draws.
        batch: drawings that are made at once.
        heldout: what training held out, things on grounds or at places.
    """

    out: Folder
    count: Count = 64
    frames: Count = 1
    given: Count = 0
    things: Span = (1, 1)
    guidance: Numbers = (1.0,)
    temperature: Number = 1.0
    seed: Count = 0
    batch: Count = 16
    heldout: HeldOut = "ground"

    def __call__(self) -> None:
        from ringworld.evaluation.drawn import evaluate_drawn, results_name
        from ringworld.generation.drawing import Drawing

        result = evaluate_drawn(
            Drawing(self.load(many_rows=True)),
            self.out,
            heldout=self.heldout,
            count=self.count,
            frames=self.frames,
            given=self.given,
            things=self.things,
            guidance=self.guidance,
            temperature=self.temperature,
            seed=self.seed,
            batch=self.batch,
        )
        print(result)
        if len(result.guidances) > 1:
            print(f"guidance {result.best:g} is the best of the seen ones")
        print(f"see {self.out / results_name(self.frames, self.given)}.json and the .png files")


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
    """Measure a trained model: needles in haystacks and in films, perplexity, questions, descriptions, drawings; or a
    tokenizer of frames."""

    what: (
        Annotated[Needle, subcommand("needle")]
        | Annotated[MultiNeedle, subcommand("multi-needle")]
        | Annotated[Perplexity, subcommand("perplexity")]
        | Annotated[VideoNeedle, subcommand("video-needle")]
        | Annotated[Film, subcommand("film")]
        | Annotated[Vqa, subcommand("vqa")]
        | Annotated[Captions, subcommand("captions")]
        | Annotated[Generation, subcommand("generation")]
        | Annotated[Tokenizer, subcommand("tokenizer")]
    )

    def __call__(self) -> None:
        self.what()
