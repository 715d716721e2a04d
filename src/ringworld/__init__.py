"""World-model training for million-token sequences.

From Python:

    import ringworld

    model = ringworld.load("nano")  # or what `ringworld train --out` wrote
    picture = model.draw("a large red ring")
"""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringworld.attention.decode import CacheType
    from ringworld.generation.model import Model
    from ringworld.mesh import MeshShape

__version__ = version("ringworld")
__all__ = ["__version__", "load"]


def load(model: str | Path, mesh: "MeshShape | None" = None, cache_type: "CacheType" = "float32") -> "Model":
    """A model, ready to be asked.

    Args:
        model: what `ringworld train --out` wrote, of which the newest complete checkpoint is taken; or anything
            else that `--model` takes, such as "nano", which is shipped.
        mesh: how to spread the model over all devices, e.g. `MeshShape(sequence=8)`. The default keeps it on one.
        cache_type: in which keys and values are kept: "float32", "bfloat16" (half of the memory) or "int8" (a quarter).

    Raises:
        UserError: no such model, no checkpoint in it, or weights of another shape than its configuration says.
    """
    # Here and not above: JAX takes a second to import, and `ringworld --help` must not wait for it.
    import jax

    from ringworld.generation.model import Model
    from ringworld.mesh import MeshShape, build_mesh
    from ringworld.weights.models import load as load_model
    from ringworld.weights.tokenizer import load_tokenizer

    devices = build_mesh(MeshShape(), jax.devices()[:1]) if mesh is None else build_mesh(mesh)
    saved = load_model(model, devices)
    about = saved.description
    frames = None if saved.frames is None else load_tokenizer(saved.frames, devices)
    return Model(
        weights=saved.weights,
        config=about.config,
        tokenizer=saved.tokenizer,
        rope_theta=about.rope_theta,
        mesh=devices,
        context_length=about.context_length,
        rope_scaling=about.rope_scaling,
        frames=frames,
        cache_type=cache_type,
        draws_unasked=about.draws_unasked,
    )
