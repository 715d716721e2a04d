"""World-model training for million-token sequences.

From Python, after `ringworld demo`:

    import ringworld

    model = ringworld.load("runs-out/demo")
    print(model.generate("The sea was"))
"""

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringworld.generation.model import Model
    from ringworld.mesh import MeshShape

__version__ = version("ringworld")
__all__ = ["__version__", "load"]


def load(directory: str | Path, mesh: "MeshShape | None" = None) -> "Model":
    """The newest complete checkpoint of a run folder, ready to be asked.

    Args:
        directory: what `ringworld train --out` wrote.
        mesh: how to spread the model over all devices, e.g. `MeshShape(sequence=8)`. The default keeps it on one.

    Raises:
        UserError: no such folder, no checkpoint in it, or weights of another shape than its configuration says.
    """
    # Here and not above: JAX takes a second to import, and `ringworld --help` must not wait for it.
    import jax

    from ringworld.generation.model import Model
    from ringworld.mesh import MeshShape, build_mesh
    from ringworld.model.rope import rope_frequencies
    from ringworld.weights.checkpoint import load_model

    devices = build_mesh(MeshShape(), jax.devices()[:1]) if mesh is None else build_mesh(mesh)
    saved = load_model(Path(directory), devices)
    about = saved.description
    return Model(
        weights=saved.weights,
        config=about.config,
        tokenizer=saved.tokenizer,
        frequencies=rope_frequencies(about.rope_theta, about.config.head_dim),
        mesh=devices,
        context_length=about.context_length,
    )
