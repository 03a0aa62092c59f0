"""What the results say: for every dataset and method a mean, and a difference to the baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from resobj_d2.process import counted

from .fingerprint import NOT_CHECKED
from .results import DONE, Result
from .statistics import Comparison, Interval, compare, mean_interval

__all__ = ["Row", "conclusion", "differences", "summarise", "table_rows"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method on a dataset.

    Attributes:
        dataset, method: of the study.
        values: of the metric by seed.
        interval: of their mean.
        comparison: with the baseline; None for the baseline itself.
        minutes: mean time of a run; NaN where none is known.
        curves: pairs of iteration and metric by seed.
        failed: runs that failed.
    """

    dataset: str
    method: str
    values: Mapping[int, float]
    interval: Interval
    comparison: Comparison | None
    minutes: float
    curves: Mapping[int, Sequence]
    failed: int = 0


def summarise(results: Iterable[Result], *, baseline: str, methods: Sequence[str]) -> list[Row]:
    """A row for every dataset and method that has a result.

    Args:
        results: one for each dataset, method and seed.
        baseline: a method.
        methods: their order; others follow.
    """
    from resobj_d2.engine.best import lower_is_better  # imports Detectron2, which --help need not

    cells: dict[tuple[str, str], dict[int, Result]] = {}
    lower: dict[str, bool] = {}
    for result in results:
        cells.setdefault((result.dataset, result.method), {})[result.seed] = result
        lower[result.dataset] = lower_is_better(result.metric)
    order = {name: position for position, name in enumerate(methods)}
    datasets = list(dict.fromkeys(dataset for dataset, _ in cells))
    keys = sorted(
        cells, key=lambda key: (datasets.index(key[0]), order.get(key[1], len(order)), key[1])
    )
    values = {
        key: {seed: one.value for seed, one in sorted(cells[key].items()) if one.status == DONE}
        for key in keys
    }
    return [_row(key, cells[key], values, baseline, lower[key[0]]) for key in keys]


def _row(
    key: tuple[str, str],
    cell: Mapping[int, Result],
    values: Mapping[tuple[str, str], Mapping[int, float]],
    baseline: str,
    lower: bool,
) -> Row:
    dataset, method = key
    seconds = [one.seconds for one in cell.values() if one.status == DONE and one.seconds]
    own = values[key]
    against = values.get((dataset, baseline), {})
    comparison = compare(own, against, lower_is_better=lower)
    return Row(
        dataset=dataset,
        method=method,
        values=own,
        interval=mean_interval(list(own.values())),
        comparison=None if method == baseline else comparison,
        minutes=sum(seconds) / len(seconds) / 60 if seconds else math.nan,
        curves={s: one.curve for s, one in cell.items() if one.status == DONE and one.curve},
        failed=sum(one.status != DONE for one in cell.values()),
    )


def table_rows(rows: Sequence[Row], metric: str) -> list[dict[str, object]]:
    """The cells of a table, of one dataset."""
    return [
        {
            "method": row.method,
            "runs": f"{len(row.values)}" + (f" ({row.failed} failed)" if row.failed else ""),
            metric: _number(row.interval.mean),
            "+-": _number(row.interval.half_width),
            **_difference_cells(row.comparison),
            "minutes": _number(row.minutes),
        }
        for row in rows
    ]


def _difference_cells(comparison: Comparison | None) -> dict[str, object]:
    if comparison is None:
        return {"difference": "baseline", "95 % interval": "", "sign": "", "better on": ""}
    interval = comparison.difference
    if not interval.count:
        return {"difference": "-", "95 % interval": "-", "sign": "?", "better on": "-"}
    known = interval.count > 1
    return {
        "difference": f"{interval.mean:+.2f}",
        "95 % interval": f"{interval.low:+.2f} to {interval.high:+.2f}" if known else "-",
        "sign": interval.sign,
        "better on": f"{comparison.better} of {counted(interval.count, 'seed')}",
    }


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def conclusion(rows: Sequence[Row], baseline: str) -> list[str]:
    """A sentence for every method of one dataset, in the order of the table."""
    sentences = []
    for row in rows:
        if row.comparison is None or not row.comparison.difference.count:
            continue
        interval = row.comparison.difference
        if interval.count < 2:
            sentences.append(f"{row.method}: {interval.mean:+.2f} on one seed, which shows nothing")
            continue
        verdict = {
            "better": f"better than {baseline}",
            "worse": f"worse than {baseline}",
            "undecided": f"not to be told from {baseline} with {interval.count} seeds",
        }[row.comparison.verdict]
        sentences.append(
            f"{row.method} is {verdict}: {interval.mean:+.2f} "
            f"({interval.low:+.2f} to {interval.high:+.2f})"
        )
    return sentences


def differences(one: Mapping, other: Mapping, prefix: str = "") -> list[str]:
    """Paths at which nested values differ, with both values; not what was not checked."""
    found = []
    for key in sorted({*one, *other}, key=str):
        path = f"{prefix}{key}"
        first, second = one.get(key), other.get(key)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            found += differences(first, second, f"{path}.")
        elif first != second and NOT_CHECKED not in (first, second):
            found.append(f"{path} {_shown(first)} there, {_shown(second)} now")
    return found


def _shown(value: object) -> str:
    return "not set" if value is None else f"{value!r:.40}"
