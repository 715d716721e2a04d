"""The sections of a report about what a model that sees drew, described and answered (`shown`)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ringworld.errors import UserError
from ringworld.evaluation.page import captioned, duration, image, shortened, side_by_side, table, text, video
from ringworld.evaluation.plots import short_count, short_decimal
from ringworld.evaluation.shown import About, Described, Drawn, LongFilm, Shown
from ringworld.tokens.images import read_image, to_png
from ringworld.tokens.vocabulary import LWM
from ringworld.tokens.vqgan import LWM_VQGAN
from ringworld.worlds.shapes import COLOURS, GROUNDS, KINDS, SIZES
from ringworld.worlds.world import HeldOut

_LWM_PARAMETERS, _LWM_CONTEXT = 7e9, 2**20
_NEW: Mapping[HeldOut, str] = {"ground": "things on grounds on which", "place": "things at places where"}


def sections(shown: Shown, folder: Path) -> Iterator[str]:
    """Of what is there. Raises UserError when a file of `folder` is not."""
    there = shown.there(folder)
    yield from _size(there.about, there.long_film)
    if there.drawn:
        yield from _drawn(there.drawn, shown.settings["temperature"], shown.settings["guidance"], folder)
    if there.described:
        yield from _described(there.described, shown.settings["heldout"], folder)
    if there.long_film:
        yield from _long_film(there.long_film, there.about, folder)


def _size(about: About, film: LongFilm | None) -> Iterator[str]:
    """What is small about it, in the model's own numbers."""
    shapes, colours, sizes, grounds = (len(words) for words in (KINDS, COLOURS, SIZES, GROUNDS))
    size, codes = about.frame_size, about.codes_per_frame
    trained = f"It was trained on {about.trained_on}, and knows of nothing else. " if about.trained_on else ""
    longer = film is not None and film.tokens > about.context_length
    beyond = ", which is less than the long film below" if longer else ""
    yield f"<h2>What is {text(about.name)} about it</h2>"
    yield (
        f"<p>{text(about.name)} has {short_decimal(about.parameters)} parameters; LWM, the large world model that it "
        f"follows (arXiv 2402.08268), has {short_decimal(_LWM_PARAMETERS)}. It sees frames of {size}x{size} pixels, "
        f"each as {codes} codes out of {about.codes:,}; LWM's are {LWM_VQGAN.frame_size}x{LWM_VQGAN.frame_size}, of "
        f"{LWM.codes_per_frame} codes out of {LWM.codes:,}. {text(trained)}All that it is shown here, and is to draw, "
        f"is a world made up by rules: {shapes} shapes in {colours} colours and {sizes} sizes, on {grounds} plain "
        f"grounds. The longest rows that it was trained on have {about.context_length:,} tokens, about "
        f"{about.context_length // (codes + 1):,} frames{beyond}; LWM's have {short_count(_LWM_CONTEXT)}.</p>"
    )


def _drawn(drawn: Sequence[Drawn], temperature: float | int, guidance: float | int, folder: Path) -> Iterator[str]:
    judged = [one for one in drawn if one.score is not None]
    right = sum(all(one.score.values()) for one in judged if one.score is not None)
    yield "<h2>Drawn from words</h2>"
    yield (
        "<p>Below each picture and film stands what it was asked for in, and what of it is not so, as a reader finds "
        f"that goes by rules and knows nothing of the model: {right} of {len(judged)} are right in everything. These "
        f"are the first that were drawn, none was chosen (temperature {temperature:g}, guidance {guidance:g}).</p>"
    )
    yield side_by_side("cards", (captioned(_medium(one, one.words, folder), _marked(one)) for one in drawn))


def _marked(drawn: Drawn) -> dict[str, str]:
    if drawn.score is None:
        return {"asked for": drawn.words}
    wrong = [what for what, right in drawn.score.items() if not right]
    return {"asked for": drawn.words, "found": "as asked" if not wrong else f"wrong in {', '.join(wrong)}"}


def _described(described: Sequence[Described], heldout: HeldOut, folder: Path) -> Iterator[str]:
    right = sum(one.right for one in described)
    yield "<h2>Described in words</h2>"
    yield (
        f"<p>Pictures and films of {_NEW[heldout]} training never showed them, what the model said that they are, and "
        f"what they are: {right} of {len(described)} are described in just these words.</p>"
    )
    yield side_by_side(
        "cards",
        (
            captioned(
                _medium(one, one.caption, folder),
                {"it said": one.answer, "right" if one.right else "wrong, it is": one.caption},
            )
            for one in described
        ),
    )


def _long_film(film: LongFilm, about: About, folder: Path) -> Iterator[str]:
    minutes, right = len(film.times), sum(one.right for one in film.asked)
    over = film.tokens / about.context_length
    beyond = f", {over:.3g} times the longest rows that it was trained on" if over > 1 else ""
    yield f"<h2>A film of {_counted(minutes, 'minute')}, and {_counted(len(film.asked), 'question')}</h2>"
    yield (
        f"<p>A film that no training has shown, of {film.frames:,} frames; in each minute one thing passes. The model "
        f"read it once, {film.tokens:,} tokens in {duration(film.seconds)}{beyond}, and was then asked each question "
        f"by itself: {right} of {len(film.asked)} answers are right. Here is a frame of each minute's middle.</p>"
    )
    with_times = zip(
        np.split(_picture(folder / film.file, minutes), minutes, axis=1), film.times, film.told, strict=True
    )
    yield side_by_side("strip", (captioned(image(to_png(frame), told), {"": time}) for frame, time, told in with_times))
    rows = [
        [one.question, shortened(one.answer), one.expected, "right" if one.right else "wrong", f"{one.seconds:.1f}"]
        for one in film.asked
    ]
    yield table(["question", "the model's answer", "what is so", "", "seconds"], rows, numbers=range(4, 5))
    yield "<p>The first question's seconds hold what had to be compiled for it.</p>"


def _picture(path: Path, minutes: int) -> np.ndarray:
    """The frames of so many minutes, side by side."""
    picture = read_image(path)
    if picture.shape[1] % minutes:
        raise UserError(f"{path} does not hold a frame of each of {minutes} minutes: remove it, and have it made anew")
    return picture


def _medium(one: Drawn | Described, words: str, folder: Path) -> str:
    content = (folder / one.file).read_bytes()
    return image(content, words) if one.frames == 1 else video(content, words)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count > 1 else ''}"
