"""Reading a model from the folder that training wrote.

A run folder holds `checkpoints/<step>/`, and every checkpoint stands for itself, but for the tokenizer of frames of a
model that sees, frames.safetensors beside `checkpoints`, which never changes and may be large:

    weights/      the arrays (orbax)
    model/        model.json: shape of the model, vocabulary, context length, RoPE theta
    tokenizer/    tokenizer.json
    optimizer/    the optimizer's state and the step's counters (orbax)      only training reads these two
    progress/     progress.json: where the run was

Training writes a checkpoint under another name and renames it once it is complete, so one that a crash or a full disk
cut short is never mistaken for a checkpoint. Nothing is pickled.
"""

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from jax.sharding import Mesh

from ringworld.errors import UserError
from ringworld.model.config import ModelConfig
from ringworld.model.rope import RopeScaling
from ringworld.model.transformer import Weights, declare
from ringworld.parameters import abstract
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vocabulary import Vocabulary

CHECKPOINTS = "checkpoints"
MODEL = "model.json"
TOKENIZER = "tokenizer.json"
FRAMES = "frames.safetensors"


@dataclass(frozen=True)
class Description:
    """What one must know to use a checkpoint's weights: its `model.json`.

    Attributes:
        context_length: the longest row that the weights were trained on, in tokens.
        rope_theta: the base of RoPE's angles in that training.
        rope_scaling: how these were stretched; None: not.
        draws_unasked: it was trained on pictures or films that no words ask for, which guidance draws away from; None:
            nobody knows.
    """

    config: ModelConfig
    vocabulary: Vocabulary
    context_length: int
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    draws_unasked: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "config": self.config.to_dict(), "vocabulary": self.vocabulary.to_dict()}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Self:
        return cls(
            config=ModelConfig.from_dict(saved["config"]),
            vocabulary=Vocabulary.from_dict(saved["vocabulary"]),
            context_length=saved["context_length"],
            rope_theta=saved["rope_theta"],
            rope_scaling=RopeScaling(**scaling) if (scaling := saved.get("rope_scaling")) else None,
            draws_unasked=saved.get("draws_unasked"),
        )


@dataclass(frozen=True)
class SavedModel:
    """A checkpoint, in memory: weights on their mesh, and all that their use needs.

    Attributes:
        frames: the file of its tokenizer of frames; None: it has none.
    """

    checkpoint: Path
    description: Description
    tokenizer: TextTokenizer
    weights: Weights
    mesh: Mesh
    frames: Path | None = None


def is_complete(checkpoint: Path) -> bool:
    """Whether a folder is a whole checkpoint: committed under its final name, with a model's parts in it."""
    parts = (checkpoint / "weights" / "_METADATA", checkpoint / "model" / MODEL)
    return ocp.utils.is_checkpoint_finalized(checkpoint) and all(part.is_file() for part in parts)


def complete_checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run folder, the oldest first. Halves of one that lie beside them are passed over."""
    folders = (run / CHECKPOINTS).glob("*") if (run / CHECKPOINTS).is_dir() else ()
    steps = {int(folder.name): folder for folder in folders if folder.name.isdecimal() and is_complete(folder)}
    return [steps[step] for step in sorted(steps)]


def newest_checkpoint(directory: Path) -> Path:
    """The newest whole checkpoint of a run folder, or `directory` itself where that is one.

    Raises:
        UserError: there is no such folder, or no whole checkpoint in it.
    """
    if not directory.is_dir():
        raise UserError(f"there is no model folder {directory}: give the --out folder of a `ringworld train`")
    if is_complete(directory):
        return directory
    found = complete_checkpoints(directory)
    if not found:
        raise UserError(
            f"the model folder {directory} holds no weights (looked for complete checkpoints in "
            f"{directory / CHECKPOINTS}): give the --out folder of a `ringworld train` that has saved a checkpoint"
        )
    return found[-1]


def read_json(checkpoint: Path, part: str, name: str) -> Any:
    """A JSON file of a checkpoint. Raises UserError when it is missing or damaged."""
    try:
        return json.loads((checkpoint / part / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {checkpoint / part / name} ({error}): the checkpoint is damaged, remove it"
        ) from error


def read_description(checkpoint: Path) -> Description:
    """A checkpoint's `model.json`. Raises UserError when it is damaged."""
    saved = read_json(checkpoint, "model", MODEL)
    try:
        return Description.from_dict(saved)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{checkpoint / 'model' / MODEL} does not describe a model ({error!r}): it was written by another version "
            "of ringworld, or changed by hand"
        ) from error


def read_tokenizer(checkpoint: Path, description: Description) -> TextTokenizer:
    """A checkpoint's tokenizer. Raises UserError when it is damaged, or not the one of what is described."""
    tokenizer = TextTokenizer.from_json(json.dumps(read_json(checkpoint, "tokenizer", TOKENIZER)))
    require_same_vocabulary(description, tokenizer, checkpoint)
    return tokenizer


def require_same_vocabulary(description: Description, tokenizer: TextTokenizer, place: Path) -> None:
    """Raises UserError unless a tokenizer has the ids that a model was trained with."""
    if tokenizer.vocabulary != description.vocabulary:
        raise UserError(
            f"{TOKENIZER} and {MODEL} in {place} are of two models, with different vocabularies (of "
            f"{tokenizer.vocabulary.size} and {description.vocabulary.size} ids): copy both again from one"
        )
    if description.vocabulary.size > description.config.vocabulary_size:
        raise UserError(
            f"{MODEL} in {place} has a vocabulary of {description.vocabulary.size} ids for a model of "
            f"{description.config.vocabulary_size}: it was changed by hand, copy it again"
        )


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their paths, such as "layers/query"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def misfits(there: Mapping[str, Any], wanted: Mapping[str, Any], place: str = "file") -> list[str]:
    """Where arrays do not fit a model: "head is missing in the file and [8, 16] in the model"."""

    def said(arrays: Mapping[str, Any], name: str) -> str:
        return str(list(arrays[name].shape)) if name in arrays else "missing"

    names = sorted(there.keys() | wanted.keys())
    return [
        f"{name} is {said(there, name)} in the {place} and {said(wanted, name)} in the model"
        for name in names
        if said(there, name) != said(wanted, name)
    ]


def restore(folder: Path, like: Any) -> Any:
    """The arrays that a checkpoint keeps in `folder`, as a pytree like `like`.

    Args:
        folder: such as `<checkpoint>/weights`.
        like: a pytree of ShapeDtypeStruct with shardings. Each device reads its own slices; the shards on disk may
            have been cut for another mesh.

    Raises:
        UserError: an array is missing, is one too many, is of another shape, or cannot be read.
    """
    there: Any = folder.absolute()  # orbax asks for a path of its own kind, and takes any
    with closing(ocp.StandardCheckpointHandler()) as handler:
        try:
            saved = named(handler.metadata(there).tree)
            if not saved:
                raise ValueError("no arrays in it")
            unlike = misfits(saved, named(like), "folder")
            if not unlike:
                return handler.restore(there, args=ocp.args.StandardRestore(like))
        except Exception as error:
            # Of a file that is cut short orbax raises an `Exception` and nothing more, whose cause says what is wrong.
            cause = error.__cause__ if type(error) is Exception else error
            if not isinstance(cause, (OSError, ValueError, KeyError)):
                raise
            reason = str(cause).strip().split("\n")[0]
            raise UserError(
                f"cannot read the arrays in {folder} ({reason}): the checkpoint is damaged, remove it"
            ) from error
    raise UserError(
        f"{len(unlike)} of the arrays in {folder} do not fit the model: {unlike[0]}; use the configuration they were "
        "trained with"
    )


def load_model(directory: Path, mesh: Mesh) -> SavedModel:
    """The newest whole checkpoint of a run folder (or the one checkpoint `directory`), its weights spread over `mesh`.

    The optimizer's state is not read.

    Raises:
        UserError: there is no such folder, no weights in it, or weights of another shape than its `model.json` says.
    """
    checkpoint = newest_checkpoint(directory)
    description = read_description(checkpoint)
    weights = restore(checkpoint / "weights", abstract(declare(description.config), mesh))
    tokenizer = read_tokenizer(checkpoint, description)
    return SavedModel(checkpoint, description, tokenizer, weights, mesh, frames_beside(checkpoint))


def frames_beside(checkpoint: Path) -> Path | None:
    """The file of the tokenizer of frames that the checkpoints of a run share."""
    path = checkpoint.parent.parent / FRAMES
    return path if path.is_file() else None
