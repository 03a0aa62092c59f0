"""Mean objectness of positives and negatives at each step over training.

Figures 2 and 4 of Chen et al., "Residual Objectness for Imbalance Reduction", from the scalars
that training writes to ``metrics.json``::

    python -m resobj_d2.plots.objectness_curves output/RUN [output/OTHER ...] --output curves.png
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from resobj_d2.command import CommandParser, run_command
from resobj_d2.process import replacing

from .labels import plain_label
from .scalars import FILE, Scalars, Series, read_scalars, thinned

__all__ = ["main", "plot_objectness_curves", "read_objectness"]

logger = logging.getLogger(__name__)

Steps = dict[str, dict[int, Series]]
_MOST_POINTS = 300  # of a line
_SCALAR = re.compile(r"(validation/)?objectness/step(\d+)/(positive|negative|selected)")
_PANELS = (
    ("positive", "mean objectness of positives", "linear"),
    ("negative", "mean objectness of negatives", "log"),
    ("selected", "anchors in the loss, per batch", "log"),
)
# From the base to the last step; distinguishable in grey and with colour vision deficiency.
_COLORS = ("#9aa0a6", "#e69f00", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#000000")


def read_objectness(metrics_file: str | os.PathLike, *, validation: bool = False) -> Steps:
    """The objectness scalars of a run, read by :func:`.scalars.read_scalars`.

    Args:
        metrics_file: a file written by Detectron2's ``JSONWriter``, or the run's folder.
        validation: read those of the evaluations (``TEST.VALIDATION_LOSS``), which the paper has,
            instead of those of the training's batches.

    Returns:
        ``{"positive": {step: [(iteration, value), ...]}, "negative": ..., "selected": ...}`` with
        ascending steps and iterations; kinds without values are omitted.

    Raises:
        FileNotFoundError: the file does not exist.
    """
    return _objectness(_scalars(metrics_file), validation)


def _scalars(metrics_file: str | os.PathLike) -> Scalars:
    path = Path(metrics_file)
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.absolute()} does not exist: pass the OUTPUT_DIR of a training run"
        )
    return read_scalars(path)


def _objectness(scalars: Scalars, validation: bool) -> Steps:
    series: dict[tuple[str, int], Series] = {}
    for name, values in scalars.items():
        match = _SCALAR.fullmatch(name)
        if match is not None and bool(match[1]) == validation:
            series[match[3], int(match[2])] = values
    return {
        kind: dict(sorted(steps.items()))
        for kind, *_ in _PANELS
        if (steps := {step: s for (k, step), s in series.items() if k == kind})
    }


def plot_objectness_curves(
    metrics_files: str | os.PathLike | Sequence[str | os.PathLike],
    output_file: str | os.PathLike,
    *,
    title: str | None = None,
) -> bool:
    """Plot the objectness at each step over the iterations, one row of panels per run.

    Solid lines are of the training's batches, dashed ones of the validation set at each evaluation,
    where ``TEST.VALIDATION_LOSS`` was on. Long runs are plotted as means of consecutive values. A
    warning names the runs that are left out because they have no objectness.

    Args:
        metrics_files: ``metrics.json`` of one or more runs, or their folders.
        output_file: file to write; its suffix determines the format (png, pdf, svg).
        title: title above the plot.

    Returns:
        Whether there was anything to plot; without objectness scalars no file is written.

    Raises:
        FileNotFoundError: a metrics file does not exist.
    """
    if isinstance(metrics_files, (str, os.PathLike)):
        metrics_files = [metrics_files]
    runs = _runs_of(metrics_files)
    if not runs:
        return False
    figure = Figure(figsize=(13, 3.6 * len(runs) + 0.3), layout="constrained")
    axes = figure.subplots(len(runs), len(_PANELS), sharex=True, sharey="col", squeeze=False)
    for row, (name, objectness, evaluated) in zip(axes, runs, strict=True):
        for axis, (kind, label, scale) in zip(row, _PANELS, strict=True):
            _draw(axis, objectness.get(kind, {}), label, scale)
            _draw_evaluations(axis, evaluated.get(kind, {}))
        if len(runs) > 1:
            row[0].set_title(plain_label(name), loc="left", fontweight="bold")
        row[0].legend(loc="best")
    for axis in axes[-1]:
        axis.set_xlabel("iteration")
    axes[0, 0].set_ylim(bottom=0)  # axes of a column are shared
    for axis, (*_, scale) in zip(axes[0], _PANELS, strict=True):
        if scale == "log":
            _label_log_axis(axis)
    if title:
        figure.suptitle(plain_label(title))
    path = Path(output_file).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, binary=True) as file:
        figure.savefig(file, format=path.suffix[1:] or "png", dpi=120)
    return True


def _runs_of(metrics_files: Sequence[str | os.PathLike]) -> list[tuple[str, Steps, Steps]]:
    """Name, objectness in training and at evaluations of the runs that have it."""
    runs = []
    without = []
    for path in metrics_files:
        scalars = _scalars(path)
        trained, evaluated = _objectness(scalars, False), _objectness(scalars, True)
        if trained or evaluated:
            runs.append((_run_name(path), trained, evaluated))
        else:
            without.append(_run_name(path))
    if runs and without:
        logger.warning("no objectness in %s: left out of the plot", ", ".join(without))
    return runs


def _draw(axis: Axes, steps: dict[int, Series], label: str, scale: str) -> None:
    for step, series in steps.items():
        iterations, values = zip(*thinned(series, _MOST_POINTS), strict=True)
        axis.plot(
            iterations,
            values,
            label=f"step {step}" + (" (base)" if step == 0 else ""),
            color=_COLORS[step % len(_COLORS)],
            linewidth=1.6,
            marker="." if len(series) == 1 else None,
        )
    axis.set_yscale(scale)
    axis.set_ylabel(f"{label} (log scale)" if scale == "log" else label)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_evaluations(axis: Axes, steps: dict[int, Series]) -> None:
    """Dashed, in the colours of the steps, with a circle for each evaluation."""
    for step, series in steps.items():
        axis.plot(
            *zip(*series, strict=True),
            label="on the validation set" if step == max(steps) else None,
            color=_COLORS[step % len(_COLORS)],
            linewidth=1.2,
            linestyle="--",
            marker="o",
            markersize=4,
        )


def _label_log_axis(axis: Axes) -> None:
    low, high = axis.get_ylim()
    # Less than a decade may contain only one of 1, 2, 5.
    few = high < 10 * low
    axis.yaxis.set_major_locator(MaxNLocator(6) if few else LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _run_name(path: str | os.PathLike) -> str:
    path = Path(path).absolute()
    return path.name if path.is_dir() else path.parent.name


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = CommandParser(
        prog="resobj-d2 analyze curves",
        description="Plot the mean objectness of positives and negatives at each step.",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="OUTPUT_DIR of a training run, or a metrics.json"
    )
    parser.add_argument(
        "--output", default="objectness_curves.png", metavar="FILE", help="file to write"
    )
    parser.add_argument("--title", metavar="TEXT", help="above the plot")
    options = parser.parse_args(arguments)
    try:
        drawn = plot_objectness_curves(options.runs, options.output, title=options.title)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not drawn:
        print(
            "error: no objectness in "
            + ", ".join(options.runs)
            + "; it is logged with MODEL.DENSE (or RESOBJ_RPN).OBJECTNESS.ENABLED",
            file=sys.stderr,
        )
        return 1
    print(f"Objectness curves: {os.path.abspath(options.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
