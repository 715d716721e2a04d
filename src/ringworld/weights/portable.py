"""ringworld's own folder for passing a model on: its weights as safetensors, and two files that say of what.

    model.json                               shape of the model, vocabulary, context length, RoPE theta
    tokenizer.json
    frames.safetensors                       the tokenizer of frames, where the model sees
    weights-00001-of-00002.safetensors, ...  whole arrays by our names ("layers/query"), in the types they came in

Nothing of a training run is in it, such as the optimizer's state. A checkpoint of one is read here, too.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ringworld.errors import UserError
from ringworld.files import write_atomically
from ringworld.tokens.text import TextTokenizer
from ringworld.weights.checkpoint import (
    FRAMES,
    MODEL,
    TOKENIZER,
    Description,
    frames_beside,
    misfits,
    named,
    newest_checkpoint,
    read_description,
    read_tokenizer,
    require_same_vocabulary,
)
from ringworld.weights.safetensors_files import TYPES, appearing, opened, shard_name, write_shards
from ringworld.weights.source import Source

_STEM = "weights"
_SHARD = re.compile(r"weights-\d{5}-of-(\d{5})\.safetensors")


def write_portable(source: Source, folder: Path, *, shard_bytes: int = 2**30) -> None:
    """Writes a model's folder, whole or not at all, holding one array at a time.

    Args:
        folder: that does not exist, or is empty.
        shard_bytes: a file of weights ends before it grows beyond this; one array alone may.

    Raises:
        UserError: the folder has something in it or cannot be written, or the source is damaged.
    """
    with appearing(folder) as made:
        write_shards(made, source.arrays(), source.shapes, stem=_STEM, shard_bytes=shard_bytes)
        write_atomically(made / MODEL, json.dumps(source.description.to_dict(), indent=2) + "\n")
        source.tokenizer.save(made / TOKENIZER)
        if source.frames is not None:
            shutil.copyfile(source.frames, made / FRAMES)


def open_portable(folder: Path) -> Source:
    """A model in a folder that `write_portable` wrote, of which no array is read yet.

    Raises:
        UserError: a file of it is missing, one too many or damaged, or they do not belong together.
    """
    description = _read_description(folder / MODEL)
    tokenizer = TextTokenizer.load(folder / TOKENIZER)
    require_same_vocabulary(description, tokenizer, folder)
    files: dict[str, Path] = {}
    frames = folder / FRAMES
    source = Source(
        folder,
        description,
        tokenizer,
        lambda name: _read(files[name], name),
        frames if frames.is_file() else None,
    )
    files |= _find_arrays(folder, source.shapes)
    return source


def source_of_checkpoint(directory: Path) -> Source:
    """The newest whole checkpoint of a run folder (or the one checkpoint `directory`), to be read an array at a time.

    Raises:
        UserError: there is none, it is damaged, or its arrays are not those of its `model.json`.
    """
    checkpoint = newest_checkpoint(directory)
    weights = (checkpoint / "weights").absolute()  # orbax takes no other
    description = read_description(checkpoint)
    source = Source(
        checkpoint,
        description,
        read_tokenizer(checkpoint, description),
        lambda name: _read_saved(weights, name),
        frames_beside(checkpoint),
    )
    wanted = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in source.shapes.items()}
    with _orbax(weights) as handler:
        unlike = misfits(named(handler.metadata(weights).tree), wanted, "checkpoint")
    if unlike:
        raise UserError(f"the arrays in {weights} are not those of its {MODEL}: {unlike[0]}")
    return source


def _read_description(path: Path) -> Description:
    try:
        return Description.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): give a folder that `ringworld convert` wrote, with {MODEL}, "
            f"{TOKENIZER} and {shard_name(_STEM, 1, 1)}"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} does not describe a model ({type(error).__name__}: {error}): it was written by another version of "
            "ringworld, or changed by hand"
        ) from error


def _shards(folder: Path) -> list[Path]:
    """The files of a folder's weights, once it is known that all are there."""
    there = {path.name for path in folder.glob("weights-*.safetensors")}
    counts = Counter(int(match[1]) for name in there if (match := _SHARD.fullmatch(name)))
    if not counts:
        raise UserError(
            f"there are no weights in {folder}: it must hold {shard_name(_STEM, 1, 1)} or the like; copy it again"
        )
    count = counts.most_common(1)[0][0]
    names = [shard_name(_STEM, number, count) for number in range(1, count + 1)]
    if missing := [name for name in names if name not in there]:
        raise UserError(f"{missing[0]} is missing in {folder} ({len(missing)} of {count} are): copy the folder again")
    if more := sorted(there - set(names)):
        raise UserError(
            f"{more[0]} in {folder} is none of the {count} files that its other weights are in: remove it, or copy the "
            "folder again"
        )
    return [folder / name for name in names]


def _find_arrays(folder: Path, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, Path]:
    """The file that each array is in, once it is known to be the one that the model needs."""
    found: dict[str, Path] = {}
    for path in _shards(folder):
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118
                there = file.get_slice(name)
                if name not in wanted or name in found:
                    raise UserError(
                        f"{name} {there.get_shape()} in {path} is one array too many for the model that {MODEL} "
                        "describes: copy the folder again"
                    )
                if tuple(there.get_shape()) != wanted[name]:
                    raise UserError(
                        f"{name} is {there.get_shape()} in {path} and {list(wanted[name])} in the model that {MODEL} "
                        "describes: the two do not belong together"
                    )
                if there.get_dtype() not in TYPES:
                    raise UserError(
                        f"{name} is kept as {there.get_dtype()} in {path}, and weights must be one of "
                        f"{', '.join(TYPES)}: convert the model again"
                    )
                found[name] = path
    if missing := [name for name in wanted if name not in found]:
        raise UserError(
            f"{missing[0]} {list(wanted[missing[0]])} of the model that {MODEL} describes is missing in {folder}: copy "
            "the folder again"
        )
    return found


def _read(path: Path, name: str) -> np.ndarray:
    with opened(path) as file:
        return file.get_tensor(name)


@contextmanager
def _orbax(folder: Path) -> Iterator[Any]:
    """What reads the arrays of a checkpoint's folder, and says it in a sentence when it cannot."""
    try:
        with closing(ocp.PyTreeCheckpointHandler()) as handler:
            yield handler
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"cannot read the arrays in {folder} ({reason}): the checkpoint is damaged") from error


def _read_saved(folder: Path, name: str) -> np.ndarray:
    """One array of a checkpoint."""
    tree: Any = None
    for key in reversed(name.split("/")):
        tree = {key: tree or ocp.RestoreArgs(restore_type=np.ndarray)}
    with _orbax(folder) as handler:
        arguments = ocp.args.PyTreeRestore(item=tree, restore_args=tree, partial_restore=True)
        return named(handler.restore(folder, args=arguments))[name]
