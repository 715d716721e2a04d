"""Where the time of a training step goes: what share of it is matrix products and attention.

    python benchmarks/profile_step.py [--stage 1k] [--steps 8]

Takes steps of a stage of `nano-text` on one device under JAX's profiler, and adds up the time of each operation by
what it belongs to. An operation's own time is counted, not that of those within it (a loop's body is not the loop).
"""

import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro

from ringworld.data.documents import Given
from ringworld.data.loading import PackedLoader, mix, place
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.rope import rope_frequencies
from ringworld.recipes.long_text import nano_text
from ringworld.training.step import init_state, make_step

# The first that fits an operation's name in the program says what it belongs to.
KINDS = (
    ("attention: blocks of scores, and their softmax", r"/attention/.*while/body"),
    ("attention: cutting rows into blocks and back", r"/attention/"),
    ("matrix products", r"dot_general$"),
    ("norms, rotations, activations, softmax of the loss, embedding", r"jvp"),
    ("optimizer", r""),
)


@dataclass(frozen=True)
class Settings:
    stage: str = "1k"
    steps: int = 8


def names_of(program: str) -> dict[str, str]:
    """What each operation of a compiled program is called in the source: {fusion.7: jit(step)/jvp()/.../mul}."""
    return dict(re.findall(r'%?([\w.-]+) = .*?metadata=\{.*?op_name="([^"]*)"', program))


def own_times(trace: Path, names: dict[str, str]) -> Counter[str]:
    """Nanoseconds of the operations in a trace by their names in the source, without those of operations inside them.

    One that has no name there (what a library computes) goes by that of the operation it is in.
    """
    times: Counter[str] = Counter()
    (file,) = trace.rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            events = [(e.start_ns, e.start_ns + e.duration_ns, e.name.removeprefix("end: ")) for e in line.events]
            around: list[tuple[float, str]] = []  # the end and the name of each operation that is under way
            for start, end, operation in sorted(events, key=lambda event: (event[0], -event[1])):
                while around and around[-1][0] <= start:
                    around.pop()
                name = names.get(operation) or (around[-1][1] if around else "")
                if around:
                    times[around[-1][1]] -= round(end - start)
                times[name] += round(end - start)
                around.append((end, name))
    del times[""]  # not of the program
    return times


def main(settings: Settings) -> None:
    recipe = nano_text()
    index = [stage.name for stage in recipe.stages].index(settings.stage)
    assert recipe.tokenizer is not None
    stage, mesh, tokenizer = recipe.stages[index], build_mesh(MeshShape(), jax.devices()[:1]), recipe.tokenizer.build()
    *seeds, order = recipe.data_seeds(index, "training")
    sources = [
        source.build(Given(tokenizer, stage.sequence_length, seed))
        for (source, _), seed in zip(stage.sources, seeds, strict=True)
    ]
    loader = PackedLoader(
        mix(sources, [share for _, share in stage.sources], seed=order),
        batch_size=stage.batch_size,
        sequence_length=stage.sequence_length,
        vocabulary=tokenizer.vocabulary,
        policy=stage.packing,
        normalization=stage.normalization,
    )
    batches = [place(next(loader), mesh, "zigzag") for _ in range(settings.steps + 1)]
    state = init_state(jax.random.key(0), recipe.model, recipe.optimizer, mesh)
    frequencies = rope_frequencies(stage.rope_theta, recipe.model.head_dim)
    rate = jnp.float32(stage.learning_rate)
    step = make_step(recipe.model, recipe.optimizer, mesh, tokenizer.vocabulary.modalities, recipe.precision)
    program = step.lower(state, batches[0], frequencies, rate).compile()
    state, metrics = program(state, batches[0], frequencies, rate)
    jax.block_until_ready(metrics)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for batch in batches[1:]:
                state, metrics = program(state, batch, frequencies, rate)
                jax.block_until_ready((state, metrics))
        times = own_times(Path(folder), names_of(program.as_text()))
    loader.close()
    kinds: Counter[str] = Counter()
    for name, nanoseconds in times.items():
        kinds[next(kind for kind, pattern in KINDS if re.search(pattern, name))] += nanoseconds
    total = sum(kinds.values())
    print(f"stage {stage.name}: {stage.batch_size} rows of {stage.sequence_length}, on one device")
    print("| what | ms a step | share |\n|---|---|---|")
    for kind, nanoseconds in kinds.most_common():
        print(f"| {kind} | {nanoseconds / settings.steps / 1e6:.1f} | {nanoseconds / total:.0%} |")


if __name__ == "__main__":
    main(tyro.cli(Settings))
