"""Pictures of a run, as PNG bytes. matplotlib's object interface alone: no windows, no global state."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure

INK, FAINT, ACCENT = "#22303c", "#8a97a3", "#1f6f78"
# Orange to teal over a pale middle: told apart without red and green, and the ends stay apart in grey.
ACCURACY = LinearSegmentedColormap.from_list(
    "accuracy", ["#b5532a", "#e9b27c", "#f6eedf", "#8fbfb8", "#1f6f78"], bad="#eceff1"
)


@dataclass(frozen=True)
class Curve:
    """One stage of a run: its name, and the loss at so many tokens since the run's beginning."""

    name: str
    tokens: Float[np.ndarray, " N"]
    loss: Float[np.ndarray, " N"]


def short_count(count: int | float) -> str:
    """512 -> "512", 4096 -> "4K", 12_000_000 -> "11.4M": powers of 1024, three digits."""
    for unit, size in (("M", 2**20), ("K", 2**10)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"


def heat_map(
    values: Float[np.ndarray, "depths lengths"],
    lengths: Sequence[int],
    depths: Sequence[float],
    *,
    title: str,
    trained_length: int | None = None,
) -> bytes:
    """Accuracy (0 to 1) by context length (columns) and depth (rows), with the percentage in each cell; NaN is "not
    run".

    A dashed line stands behind the longest column that was trained on, where the grid goes beyond it.
    """
    figure, axes = _matrix(values, [short_count(n) for n in lengths], [f"{depth:.0%}" for depth in depths], title)
    axes.set_xlabel("context length, tokens", color=INK, labelpad=8)
    axes.set_ylabel("depth of the needle", color=INK, labelpad=8)
    if trained_length is not None and any(n > trained_length for n in lengths):
        edge = sum(n <= trained_length for n in lengths) - 0.5
        axes.axvline(edge, color=INK, linestyle=(0, (4, 3)), linewidth=1.4)
        axes.annotate(
            "longer than trained ", (edge, 1.0), xycoords=("data", "axes fraction"), xytext=(4, 4),
            textcoords="offset points", fontsize=8, color=INK,
        )  # fmt: skip
    return _png(figure)


def stage_matrix(
    values: Float[np.ndarray, "stages lengths"], stages: Sequence[str], lengths: Sequence[int], *, title: str
) -> bytes:
    """What each stage bought: accuracy after each stage (rows, the first on top) at each length; NaN is "not run"."""
    figure, axes = _matrix(values, [short_count(n) for n in lengths], list(stages), title)
    axes.set_xlabel("context length, tokens", color=INK, labelpad=8)
    axes.set_ylabel("after stage", color=INK, labelpad=8)
    return _png(figure)


def loss_curve(curves: Sequence[Curve], *, title: str) -> bytes:
    """The training loss against tokens seen: one panel a stage, named, on one common scale of the loss.

    Every stage has the same width and its own logarithmic axis of tokens, counted from the run's beginning: the late
    stages take few tokens, and on one axis, of either kind, they would be a smear at its end.
    """
    curves = [curve for curve in curves if len(curve.tokens)]
    figure = _blank(max(6.0, 1.2 + 1.05 * len(curves)), 3.9, title)
    panels = figure.subplots(1, max(1, len(curves)), sharey=True, squeeze=False)[0]
    for number, (curve, axes) in enumerate(zip(curves, panels, strict=False)):
        _dress(axes)
        axes.set_xscale("log")
        axes.plot(curve.tokens, curve.loss, color=ACCENT, alpha=0.25, linewidth=0.8)
        axes.plot(curve.tokens, _smooth(curve.loss), color=ACCENT, linewidth=1.8)
        axes.set_title(curve.name, fontsize=9.5, color=INK)
        axes.set_xticks([float(curve.tokens[-1])], [short_decimal(float(curve.tokens[-1]))])
        axes.set_xticks([], minor=True)
        axes.get_xticklabels()[0].set_horizontalalignment("right")
        axes.margins(x=0.0)
        if number:
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_linestyle(":")
    panels[0].set_ylabel("training loss, nats", color=INK)
    figure.supxlabel("tokens seen by the end of each stage", color=INK, fontsize=10)
    return _png(figure)


def perplexity_curves(
    curves: Mapping[str, Sequence[tuple[int, int, float]]], *, title: str, trained_length: int | None = None
) -> bytes:
    """Perplexity by position in the row (log), a step for each (start, end, perplexity): a panel for each curve, named
    where there are several, as their scales may be far apart.
    """
    figure = _blank(3.5 + 4.0 * len(curves), 3.8, title)
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for axes, (name, steps) in zip(panels, curves.items(), strict=True):
        _dress(axes)
        axes.set_xscale("log", base=2)
        there = {(start, end): value for start, end, value in steps}
        edges = sorted({edge for bounds in there for edge in bounds})
        values = [there.get(bounds, np.nan) for bounds in pairwise(edges)]
        axes.stairs(values, [max(1, edges[0]), *edges[1:]], color=ACCENT, linewidth=2.2, baseline=None)
        if trained_length is not None and edges[-1] > trained_length:
            axes.axvline(trained_length, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2)
            axes.annotate("longer than trained", (trained_length, 1.0), xycoords=("data", "axes fraction"),
                          xytext=(4, -12), textcoords="offset points", fontsize=8, color=INK)  # fmt: skip
        axes.xaxis.set_major_formatter(lambda value, _: short_count(value))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("position in the row, tokens", color=INK)
        axes.set_ylabel("perplexity", color=INK)
        if len(curves) > 1:
            axes.set_title(name, fontsize=9.5, color=INK)
    return _png(figure)


def short_decimal(count: int | float) -> str:
    """20000 -> "20K", 1e6 -> "1M": powers of 1000, for how much was trained."""
    for unit, size in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:.3g}"


def _matrix(values: np.ndarray, columns: list[str], rows: list[str], title: str) -> tuple[Figure, Axes]:
    """Cells in the colours of `ACCURACY`, each with its percentage in a colour that can be read on it."""
    figure, axes = _figure(1.9 + 0.72 * len(columns), 1.5 + 0.46 * len(rows), title)
    masked = np.ma.masked_invalid(values)
    axes.imshow(masked, cmap=ACCURACY, vmin=0.0, vmax=1.0, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            axes.text(column, row, "-", ha="center", va="center", color=FAINT)
            continue
        red, green, blue = to_rgb(ACCURACY(float(value)))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        axes.text(
            column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=11, color="white" if dark else INK
        )
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.grid(visible=False, which="major")
    # White joints between the cells.
    axes.set_xticks(np.arange(len(columns) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2.0)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return figure, axes


def _blank(width: float, height: float, title: str) -> Figure:
    """A figure of so many inches, wider where its title needs it, with the title and nothing else."""
    width = max(width, 0.3 + 0.088 * len(title))
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained", facecolor="white")
    figure.suptitle(title, fontsize=11.5, color=INK, x=0.01, ha="left")
    return figure


def _figure(width: float, height: float, title: str) -> tuple[Figure, Axes]:
    """A figure with one pair of axes."""
    figure = _blank(width, height, title)
    axes = figure.add_subplot()
    _dress(axes)
    return figure, axes


def _dress(axes: Axes) -> None:
    """Quiet axes: no box, thin grey lines behind the curves."""
    axes.tick_params(colors=INK, labelsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color="#e3e8ec", linewidth=0.7)


def _smooth(values: np.ndarray) -> np.ndarray:
    """The mean of the numbers around each one, over an eighth of its index to either side: even on a logarithmic
    axis.
    """
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    index = np.arange(len(values))
    low, high = index - index // 8, np.minimum(index + index // 8 + 1, len(values))
    number = counts[high] - counts[low]
    return np.divide(sums[high] - sums[low], number, out=np.full(len(values), np.nan), where=number > 0)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
