"""Every test sees eight CPU devices, float32, no silent rank promotion, and shapes checked against annotations."""

import os

# Programs here are compiled far more often than they are run: without fusion emitters it takes half of the time. What
# is compiled so must not be scheduled for concurrency, or now and then a step that gives its state's memory up, with a
# z-loss on eight devices, gives NaN for numbers that are finite each other time. Read when JAX starts.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    )
).strip()

import jax
import matplotlib
from jaxtyping import install_import_hook

# Before any computation: JAX fixes its devices with the first one.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", False)
# For the same reason; the numbers do not depend on it.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
matplotlib.use("Agg")

# Before the first import of ringworld: the hook works on modules as they are loaded.
install_import_hook("ringworld", "annotations.check")
