"""Any model by what people call it: a folder or file of one of the known formats, or a name; and from one format to
another."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jax.sharding import Mesh

from ringworld.errors import UserError
from ringworld.tokens.vocabulary import LWM
from ringworld.weights.checkpoint import MODEL, SavedModel, load_model
from ringworld.weights.gguf import open_gguf
from ringworld.weights.hugging_face import open_hugging_face, write_hugging_face
from ringworld.weights.hugging_face_tensors import CONFIG
from ringworld.weights.lwm import VISION_TABLE, open_lwm, write_lwm
from ringworld.weights.lwm_stream import index_stream
from ringworld.weights.named import MODELS, fetch_llama_tokenizer, fetch_model
from ringworld.weights.portable import open_portable, source_of_checkpoint, write_portable
from ringworld.weights.source import Source

Format = Literal["ringworld", "hugging-face", "lwm"]
WRITERS: Mapping[Format, Callable[[Source, Path], None]] = {
    "ringworld": write_portable,
    "hugging-face": write_hugging_face,
    "lwm": write_lwm,
}
SHIPPED = {path.parent.name: path.parent for path in sorted((Path(__file__).parent / "shipped").glob(f"*/{MODEL}"))}
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja")


def located(model: str | Path) -> Path:
    """Where a model's files are: a path, or a name of those in `SHIPPED`, or of what is fetched first: one of `MODELS`,
    or "owner/name" on Hugging Face.

    Raises:
        UserError: there is no such path and no such name, or it cannot be fetched.
    """
    path, name = Path(model), str(model)
    if path.exists():
        return path
    if name in SHIPPED:
        return SHIPPED[name]
    if name in MODELS:
        return fetch_model(name)
    if name.count("/") == 1 and not path.is_absolute():
        try:
            return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"there is no path {name}, and Hugging Face did not give a model of that name ({reason}): check both"
            ) from error
    raise UserError(
        f"there is no model {name}: give a folder that `ringworld train` or `ringworld convert` wrote, a Hugging Face "
        f"folder, a .gguf file, a name on Hugging Face such as owner/name, or one of {', '.join([*SHIPPED, *MODELS])}"
    )


def open_model(model: str | Path) -> Source:
    """A model of any known format, of which nothing but its description is read yet.

    Raises:
        UserError: as `located`; it is of no known format, or damaged.
    """
    path = located(model)
    if path.is_file() and not _is_gguf(path):
        raise UserError(
            f"{path} is no .gguf file; if it is one of LWM's, which do not say their RoPE theta and context, convert "
            "it first: ringworld convert FILE DIR --rope-theta X --context-length N"
        )
    if path.is_file():
        return open_gguf(path)
    if (path / CONFIG).is_file():
        return open_hugging_face(path)
    if (path / MODEL).is_file():
        return open_portable(path)
    return source_of_checkpoint(path)


def open_lwm_model(path: Path, rope_theta: float, context_length: int) -> Source:
    """A model in LWM's file, with LLaMA's tokenizer, which is fetched. Raises UserError as `open_lwm`."""
    tokenizer = fetch_llama_tokenizer()
    if VISION_TABLE in index_stream(path):
        tokenizer = tokenizer.of(LWM)
    return open_lwm(path, tokenizer=tokenizer, rope_theta=rope_theta, context_length=context_length)


def load(model: str | Path, mesh: Mesh) -> SavedModel:
    """A model of any known format in memory, spread over `mesh`. Raises UserError as `open_model`."""
    path = located(model)
    if path.is_dir() and not any((path / name).is_file() for name in (CONFIG, MODEL)):
        return load_model(path, mesh)  # each device reads its own part
    return open_model(path).load(mesh)


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF" or path.suffix == ".gguf"
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
