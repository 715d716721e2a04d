"""Peak memory of a conversion: below twice the largest array and 1 GB, however large the model is.

    python benchmarks/convert_memory.py [--layers 6] [--dim 2048] [--ffn 5504] [--folder /tmp]

Writes an LWM file of random bfloat16 weights (about 1 GB by default), converts it to ringworld's folder and that back
to an LWM file, each in a process of its own, and compares the two files. The figure is the process's peak resident
size, less what it had before it began to convert. What was written is removed at the end.
"""

import filecmp
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
import tyro
from tokenizers import Tokenizer, models

from ringworld.model.config import ModelConfig
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vocabulary import LWM
from ringworld.weights.checkpoint import Description
from ringworld.weights.lwm import open_lwm, write_lwm
from ringworld.weights.portable import open_portable, write_portable
from ringworld.weights.source import Source

GB = 2**30
TOKENIZER = TextTokenizer(Tokenizer(models.BPE()), LWM)  # it knows no words: only the size of its vocabulary matters


@dataclass(frozen=True)
class Settings:
    layers: int = 6
    dim: int = 2048
    ffn: int = 5504
    folder: Path = Path(tempfile.gettempdir())
    only: Literal["make", "to-portable", "to-lwm"] | None = None
    """Do this one thing in `folder`, print the seconds and the bytes that it took, and end."""


def random_model(settings: Settings) -> Source:
    """A model that is drawn as it is read."""
    heads = settings.dim // 128
    config = ModelConfig(LWM.size, settings.dim, settings.ffn, settings.layers, heads, kv_heads=heads, head_dim=128)

    def read(name: str) -> np.ndarray:
        drawn = np.random.default_rng(len(name)).integers(0, 2**14, prod(shapes[name]), np.uint16)
        return drawn.view(jnp.bfloat16).reshape(shapes[name])

    source = Source(Path("random"), Description(config, LWM, 4096, 1e4), TOKENIZER, read)
    shapes = source.shapes
    return source


def convert(settings: Settings) -> None:
    file, folder = settings.folder / "streaming_params", settings.folder / "portable"
    start, before = time.perf_counter(), peak()
    if settings.only == "make":
        write_lwm(random_model(settings), file)
    elif settings.only == "to-portable":
        write_portable(open_lwm(file, tokenizer=TOKENIZER, rope_theta=1e4, context_length=4096), folder)
    else:
        write_lwm(open_portable(folder), settings.folder / "again")
    print(time.perf_counter() - start, peak() - before)


def peak() -> int:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(settings: Settings, folder: str, only: str) -> tuple[float, float]:
    given = {"layers": settings.layers, "dim": settings.dim, "ffn": settings.ffn, "folder": folder, "only": only}
    options = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, __file__, *options], check=True, stdout=subprocess.PIPE, text=True)
    seconds, size = map(float, done.stdout.split())
    return seconds, size


def main(settings: Settings) -> None:
    if settings.only is not None:
        convert(settings)
        return
    sizes = [2 * prod(shape) for shape in random_model(settings).shapes.values()]
    bound = 2 * max(sizes) + GB
    print(f"a model of {sum(sizes) / GB:.2f} GB, its largest array {max(sizes) / GB:.2f} GB")
    print("| conversion | seconds | peak, GB | bound, GB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=settings.folder) as folder:
        measure(settings, folder, "make")
        for only, what in (("to-portable", "LWM to ringworld's folder"), ("to-lwm", "the folder to LWM")):
            seconds, size = measure(settings, folder, only)
            print(f"| {what} | {seconds:.1f} | {size / GB:.2f} | {bound / GB:.2f} |", flush=True)
            if size >= bound:
                sys.exit("the peak is above the bound")
        if not filecmp.cmp(Path(folder) / "streaming_params", Path(folder) / "again", shallow=False):
            sys.exit("the file that came back is another")
    print("the file that came back is the same to the byte")


if __name__ == "__main__":
    main(tyro.cli(Settings))
