"""`tokenize` and `reconstruct`: pictures and films through a tokenizer of frames."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ringworld.cli.values import Folder, MaybeCount, MaybeNumber, Number, OfTokenizer, default, words


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
    workers: Annotated[MaybeCount, default("one more than there are cores")] = None

    def __call__(self) -> None:
        tokenizer = self.load()
        from ringworld.data.tokenize import tokenize
        from ringworld.data.tokenized import BAD
        from ringworld.progress import counted

        with counted("documents") as told:
            summary = tokenize(
                self.input,
                tokenizer,
                self.out,
                fingerprint=tokenizer.fingerprint,
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
    out: Annotated[Path, words("FILE", Path)]
    fps: Annotated[MaybeNumber, default("as many as it has")] = None

    def __call__(self) -> None:
        tokenizer = self.load()
        from ringworld.evaluation.tokenizer import reconstruct

        print(f"{reconstruct(tokenizer, self.input, self.out, fps=self.fps)}; see {self.out}")
