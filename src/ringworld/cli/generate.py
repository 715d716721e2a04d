"""`generate` and `chat`: what a trained model writes, draws, films and answers."""

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from ringworld.cli.values import Count, Folder, MaybeNumber, MaybePath, MaybeText, Number, OfModel, Text, default
from ringworld.errors import UserError


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
    out: Annotated[MaybePath, default("none: text is printed")] = None
    max_tokens: Count = 128
    frames: Count = 8
    fps: Number = 4.0
    like: Annotated[MaybePath, default("none")] = None
    guidance: Number = 1.0
    temperature: Annotated[MaybeNumber, default("0 for text, 0.5 for images and videos")] = None
    top_k: Count = 0
    top_p: Number = 1.0
    seed: Count = 0

    def __call__(self) -> None:
        if self.what == "text":
            self._write()
        else:
            self._draw()

    def _draw(self) -> None:
        if self.out is None:
            raise UserError(
                f"{self.what} needs a file to write: name it with --out, such as --out a.png or --out a.mp4"
            )
        if self.like is not None and self.what == "image":
            raise UserError("--like is what a video begins with: leave it out, or generate a video")
        from ringworld.generation.drawing import Brush
        from ringworld.progress import tracked
        from ringworld.tokens.images import read_image, write_image
        from ringworld.tokens.video import write_video

        model = self.load(many_rows=False)
        temperature = Brush.temperature if self.temperature is None else self.temperature
        brush = Brush(temperature, self.top_k, self.top_p, self.guidance, self.seed)
        if self.what == "image":
            write_image(self.out, model.draw(self.prompt, brush))
        else:
            side = model.eyes().config.frame_size
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
        template: own is the model's, with what is shown before the question; lwm is LWM's, for its released models,
            with the question before what is shown.
        max_tokens: an answer has at most so many.
        temperature: 0 takes the likeliest token each time; 1 draws as the model says.
        top_k: draw among so many of the likeliest; 0 among all.
        top_p: draw among the likeliest that have this probability together.
        seed: of the draws.
        resume: go on with a conversation that /save wrote.
        drawings: the folder for what the model draws.
        every: the time stands behind every so many seconds of a film that is shown; 0: nowhere.
        resolution: seconds to which it is told; 60: in whole minutes, as nano was trained.
    """

    system: Annotated[MaybeText, default("what the model's own template says")] = None
    template: Literal["own", "lwm"] = "own"
    max_tokens: Count = 512
    temperature: Number = 0.0
    top_k: Count = 0
    top_p: Number = 1.0
    seed: Count = 0
    resume: Annotated[MaybePath, default("begin anew")] = None
    drawings: Folder = Path(".")
    every: Count = 0
    resolution: Count = 1

    def __call__(self) -> None:
        chat = self.load(many_rows=False).chat(self.system, self.template)
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
            resolution=self.resolution,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
        )
