"""What a model might have shown, for the tests of what is told of it."""

from pathlib import Path

import numpy as np

from ringworld.evaluation.shown import About, Asked, Described, Drawn, LongFilm, Shown
from ringworld.tokens.images import write_image
from ringworld.tokens.video import write_video
from ringworld.worlds.passing import passing_film
from ringworld.worlds.world import World

ABOUT = About("<nano>", "films of shapes", 1_430_000, 4096, 64, 16, 4096)


def write_shown(folder: Path) -> Shown:
    """Writes a picture that is half right, a film that nobody can judge, and a long film."""
    frames = [*World(1).film(0, 3).frames(64)]
    for name in ("drawn-0.png", "heldout-0.png"):
        write_image(folder / "shown" / name, frames[0])
    write_video(folder / "shown/drawn-0-of-3.mp4", frames, 1.0)
    film = passing_film(World(2), 0, 3)
    strip = [minute.scene.frame(30.0, 64) for minute in film]
    write_image(folder / "shown/long-film.png", np.concatenate(strip, axis=1))
    shown = Shown(
        {"temperature": 1.0, "guidance": 2.0, "heldout": "place", "model": "me"},
        ABOUT,
        (
            Drawn("shown/drawn-0.png", 1, "a <small> red ring", {"ground": True, "place": False, "size": False}),
            Drawn("shown/drawn-0-of-3.mp4", 3, "whatever I like", None),
        ),
        (Described("shown/heldout-0.png", 1, "a large blue cross", "a large <b>blue</b> cross", False),),
        LongFilm(
            "shown/long-film.png",
            tuple(minute.time for minute in film),
            tuple(minute.told() for minute in film),
            180,
            12_288,
            75.4,
            (
                Asked("What passed at 23:00?", "23:00 ring.", "23:00 ring.", True, 1.25),
                Asked("When did the ring pass?", "ring 23:00.", "ring 1:00." + 30 * " 2:00", False, 0.5),
            ),
        ),
    )
    shown.write(folder)
    return shown
