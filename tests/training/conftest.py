from collections.abc import Iterator
from pathlib import Path

import jax
import pytest


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Iterator[Path]:
    """Runs share their programs, compiled in haste: to compile them anew for each run would take minutes."""
    folder = tmp_path_factory.mktemp("programs")
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_disable_most_optimizations": True,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
