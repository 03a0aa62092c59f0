"""Plots as SVG text whose colours follow the page, light or dark.

Matplotlib draws with the colours of :data:`_TOKENS`, which nothing else uses; each is then replaced
by a variable of the page's style.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from resobj_d2.plots.labels import plain_label

__all__ = ["bars", "curves", "intervals", "lines"]

_INK, _SOFT, _LINE = "#0a0b01", "#0a0b02", "#0a0b03"
_SERIES = tuple(f"#0a0b1{k}" for k in range(6))
_TOKENS = {
    _INK: "var(--ink)",
    _SOFT: "var(--soft)",
    _LINE: "var(--line)",
    **{color: f"var(--series-{k})" for k, color in enumerate(_SERIES)},
}
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, and read by screen readers
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _LINE,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "grid.color": _LINE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.frameon": False,
}
_DASHES = ("-", "--", ":", "-.")
_numbers = itertools.count()

Series = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def bars(
    values: Mapping[str, Mapping[str, float]], *, label: str, digits: int = 1, width: float = 6.2
) -> str:
    """Horizontal bars, a group for each name.

    Args:
        values: by series, then by name; all series have the same names.
        label: of the axis.
        digits: of the numbers beside the bars.
        width: in inches.
    """
    names = list(next(iter(values.values())))
    with matplotlib.rc_context(_STYLE):
        figure, axis = _figure(width, 0.8 + len(names) * (0.14 + 0.2 * len(values)))
        size = 0.8 / len(values)
        for k, (series, row) in enumerate(values.items()):
            places = [i + (k + 0.5) * size - 0.4 for i in range(len(names))]
            heights = [0.0 if row[n] is None or row[n] != row[n] else row[n] for n in names]
            drawn = axis.barh(
                places, heights, size * 0.9, color=_color(k), label=plain_label(series)
            )
            texts = [
                "-" if row[n] is None or row[n] != row[n] else f"{row[n]:.{digits}f}" for n in names
            ]
            axis.bar_label(drawn, texts, padding=3, fontsize=9)
        axis.set_yticks(range(len(names)), [plain_label(name) for name in names])
        axis.tick_params(axis="y", colors=_INK, length=0)
        axis.invert_yaxis()
        axis.set_xlabel(plain_label(label))
        axis.margins(x=0.12)
        axis.grid(axis="x", linewidth=0.6)
        axis.set_axisbelow(True)
        _legend(axis, len(values))
        return _svg(figure)


def curves(
    series: Series,
    *,
    x_label: str,
    y_label: str,
    unit_square: bool = False,
    percent: str = "",
    diagonal: bool = False,
    marks: Mapping[str, tuple[float, float]] | None = None,
    log: bool = False,
    width: float = 6.2,
    height: float = 3.6,
) -> str:
    """Curves in one pair of axes.

    Args:
        series: x and y by name.
        x_label, y_label: of the axes.
        unit_square: both axes are 0..1.
        percent: axes of these, "x" or "y" or both, whose ticks are in percent.
        diagonal: also draw y = x.
        marks: by name of a series, a point of it to mark.
        log: logarithmic y.
        width, height: in inches.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axis = _figure(width, height)
        if diagonal:
            axis.plot([0, 1], [0, 1], color=_SOFT, linewidth=1.4, linestyle=":")
        _plot(axis, series)
        for k, name in enumerate(series):
            if name in (marks or {}):
                axis.plot(*marks[name], marker="o", markersize=7, color=_color(k), linestyle="none")
        if unit_square:
            axis.set_xlim(0, 1)
            axis.set_ylim(0, 1.02)
        for name in percent:
            of_axis = axis.xaxis if name == "x" else axis.yaxis
            of_axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
        if log:
            axis.set_yscale("log")
        axis.set_xlabel(plain_label(x_label))
        axis.set_ylabel(plain_label(y_label))
        _legend(axis, len(series))
        return _svg(figure)


def lines(panels: Mapping[str, Series], *, x_label: str, columns: int = 2) -> str:
    """Small panels of curves over one x, such as the scalars of a training.

    Args:
        panels: series by title.
        x_label: of the lowest panels.
        columns: panels in a row.
    """
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.1 * columns, 2.5 * rows + 0.2), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
        for axis, (title, series) in itertools.zip_longest(
            axes, panels.items(), fillvalue=("", {})
        ):
            if not title:
                axis.set_axis_off()
                continue
            _frame(axis)
            _plot(axis, series)
            axis.set_title(plain_label(title), loc="left", fontsize=10)
            _legend(axis, len(series))
        for axis in axes[: len(panels)]:
            axis.tick_params(labelbottom=True)
        for axis in axes[max(0, len(panels) - columns) : len(panels)]:
            axis.set_xlabel(plain_label(x_label))
        return _svg(figure)


def intervals(
    rows: Mapping[str, tuple[float, float, Sequence[float]]],
    *,
    label: str,
    zero: bool = False,
    width: float = 7.5,
) -> str:
    """Means with their intervals, and the single values, a row for each name.

    Args:
        rows: by name mean, half the width of the interval (NaN for none), and values.
        label: of the axis.
        zero: mark 0.
        width: in inches.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axis = _figure(width, 0.8 + 0.34 * len(rows))
        for place, (mean, half, values) in enumerate(rows.values()):
            axis.plot(values, [place] * len(values), ".", color=_SOFT, markersize=5)
            known = {"xerr": half, "capsize": 3} if half == half else {}
            axis.errorbar(mean, place, fmt="o", color=_color(0), markersize=6, **known)
        if zero:
            axis.axvline(0.0, color=_SOFT, linewidth=0.8, linestyle=":")
        axis.set_yticks(range(len(rows)), [plain_label(name) for name in rows])
        axis.tick_params(axis="y", colors=_INK, length=0)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        axis.set_xlabel(plain_label(label))
        return _svg(figure)


def _plot(axis: Axes, series: Series) -> None:
    for k, (name, (x, y)) in enumerate(series.items()):
        axis.plot(
            x,
            y,
            color=_color(k),
            linestyle=_DASHES[k // len(_SERIES) % len(_DASHES)],
            linewidth=1.7,
            label=plain_label(name),
            marker="." if len(x) == 1 else None,
        )


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    _frame(axis)
    return figure, axis


def _frame(axis: Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(linewidth=0.6)
    axis.set_axisbelow(True)


def _legend(axis: Axes, count: int) -> None:
    if count > 1:
        axis.legend(fontsize=9)


def _color(number: int) -> str:
    return _SERIES[number % len(_SERIES)]


def _svg(figure: Figure) -> str:
    """The drawing, without a size of its own and with names that no other plot of the page has."""
    with matplotlib.rc_context({"svg.hashsalt": f"plot{next(_numbers)}"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    number = next(_numbers)
    text = re.sub(r'\bid="([^"]+)"', rf'id="p{number}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\1p{number}-", text)
    for token, variable in _TOKENS.items():
        text = text.replace(token, variable)
    width, height = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', text).groups()
    style = f'style="width: {float(width):.0f}pt" viewBox'
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", text, count=1)
    text = re.sub(r'viewBox="0 0 [\d.]+ [\d.]+"', f'{style}="0 0 {width} {height}"', text, count=1)
    return text
