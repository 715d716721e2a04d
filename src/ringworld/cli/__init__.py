"""The command line. It maps words to calls; what the calls do is elsewhere. Only this file reads argv.

What needs JAX is imported inside the commands: `ringworld --help` answers at once, and `--devices` comes first.
"""

import contextlib
import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import tyro
from tyro.conf import OmitArgPrefixes, OmitSubcommandPrefixes, subcommand

from ringworld import __version__
from ringworld.cli.evaluate import Evaluate
from ringworld.cli.generate import Chat, Generate
from ringworld.cli.media import Reconstruct, Tokenize
from ringworld.cli.train import Convert, Demo, Train
from ringworld.errors import UserError

DESCRIPTION = """Train a model on ever longer contexts, ask it for needles in a haystack, let it write; train a
tokenizer of pictures and films, and use it.

examples:
  ringworld demo                                    # what the shipped model can do, with a report to look at
  ringworld train debug --out runs-out/debug        # seconds, no network: does it run here?
  ringworld train nano-text --out runs-out/text     # minutes; stop it, start it again, it goes on
  ringworld train debug --devices 8 --mesh sequence=8 --out runs-out/ring
  ringworld evaluate needle --model runs-out/text --lengths 512,1024 --out runs-out/needle
  ringworld evaluate film --model runs-out/vision --out runs-out/film
  ringworld evaluate generation --model runs-out/vision --guidance 1,2,4 --out runs-out/drawn
  ringworld generate text --model runs-out/text --prompt "The sea was" --max-tokens 32
  ringworld chat --model smollm2                    # a model that others trained, fetched
  ringworld convert smollm2 smollm2-hf --to hugging-face
  ringworld convert lwm-data.jsonl shards --fields "[caption],vision"
  ringworld train vqgan-nano --out runs-out/eyes    # a tokenizer of frames
  ringworld tokenize films/ --tokenizer runs-out/eyes --out runs-out/codes
  ringworld reconstruct film.mp4 --tokenizer runs-out/eyes --out beside.mp4

ringworld COMMAND --help says what a command takes; ringworld --version says which one this is."""

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
