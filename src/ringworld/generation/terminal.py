"""A conversation line by line, as at a terminal: words, commands, and what they show and draw."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from ringworld.errors import UserError
from ringworld.generation.chat import Chat
from ringworld.generation.drawing import Film
from ringworld.tokens.images import read_image, write_image
from ringworld.tokens.video import read_video, write_video

COMMANDS = """\
/image FILE        show a picture; what is said next is about it
/video FILE [FPS]  show a film, so many frames of it a second (1)
/reset             begin anew
/save FILE         write the conversation into a file
/keep FILE         the same, and what was read of it into FILE.cache: --resume FILE need not read it again
/help              say this
/quit              end
ctrl-C             stop the answer
"""


@dataclass(frozen=True)
class Album:
    """A folder that keeps what is drawn: drawn-1.png, drawn-2.mp4, ...; what is there already stays."""

    folder: Path
    fps: float = 4.0  # of films

    def __call__(self, film: Film) -> str:
        """Writes a picture or a film, and says where. Raises UserError when it cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        there = {path.stem for path in self.folder.glob("drawn-*")}
        name = next(name for number in count(1) if (name := f"drawn-{number}") not in there)
        path = self.folder / (f"{name}.png" if len(film) == 1 else f"{name}.mp4")
        if len(film) == 1:
            write_image(path, film[0])
        else:
            write_video(path, film, self.fps)
        return f"(drawn: {path})"


def converse(
    chat: Chat,
    read_line: Callable[[], str],
    write: Callable[[str], None],
    keep: Callable[[Film], str],
    *,
    every: int = 0,
    resolution: int = 1,
    max_tokens: int = 512,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> None:
    """A conversation line by line, until /quit or the end of what is read.

    An interruption (KeyboardInterrupt) ends the answer, or the line that is being written, and not the conversation. A
    mistake (UserError) is said, and the conversation goes on.

    Args:
        read_line: the next line; raises EOFError when there is none.
        write: takes pieces of what is said.
        keep: takes what an answer has drawn, and gives what is said of it, such as the name of a file.
        every: the time stands behind every so many seconds of a film that is shown; 0: nowhere.
        resolution: seconds to which it is told; with 60, in whole minutes.
        seed: of the first answer; each further one has the next number.
    """
    answers = 0
    while True:
        try:
            line = read_line().strip()
            if line.startswith("/"):
                if not _obey(chat, line, write, every, resolution):
                    return
            elif line:
                settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed + answers}
                drawn: list[np.ndarray] = []
                for piece in chat.say(line, max_tokens=max_tokens, **settings):
                    if isinstance(piece, str):
                        write(piece)
                    else:
                        drawn.append(piece)
                answers += 1
                write(f"\n{keep(np.stack(drawn))}\n" if drawn else "\n")
        except KeyboardInterrupt:
            write("\n(stopped; /quit ends)\n")
        except UserError as error:
            write(f"\n{error}\n")
        except EOFError:
            write("\n")
            return


def _obey(chat: Chat, line: str, write: Callable[[str], None], every: int, resolution: int) -> bool:
    """Whether the conversation goes on."""
    command, _, rest = line.partition(" ")
    match command, rest.strip():
        case "/quit", "":
            return False
        case "/reset", "":
            chat.reset()
            write("(a new conversation)\n")
        case "/save", path if path:
            chat.save(Path(path).expanduser())
            write(f"(saved as {path})\n")
        case "/keep", path if path:
            chat.save(Path(path).expanduser(), memory=True)
            write(f"(saved as {path}, and what was read as {path}.cache)\n")
        case "/image", path if path:
            chat.show(read_image(Path(path).expanduser(), chat.frame_size)[None])
            write(f"(shown: {path})\n")
        case "/video", words if words:
            path, fps = _film(words)
            frames = chat.show(read_video(Path(path).expanduser(), fps, chat.frame_size), fps, every, resolution)
            write(f"(shown: {frames} frames of {path})\n")
        case "/help", "":
            write(COMMANDS)
        case _:
            write(f"there is no command {line!r}; there are:\n{COMMANDS}")
    return True


def _film(words: str) -> tuple[str, float]:
    """A path, and the number behind it, if there is one."""
    path, _, last = words.rpartition(" ")
    try:
        return (path.strip(), float(last)) if path else (words, 1.0)
    except ValueError:
        return words, 1.0
