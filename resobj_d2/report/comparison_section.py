"""The page that puts runs side by side, in words and as tables."""

from __future__ import annotations

from collections.abc import Sequence

from resobj_d2.analysis.compare import CHANCE, SAMPLES, Comparison, Method, compare
from resobj_d2.analysis.errors import KINDS
from resobj_d2.analysis.tables import Row
from resobj_d2.analysis.thresholds import shown_score

from .blocks import Note, Section, Table
from .judge import Judgement
from .summary import ERROR_NAMES

__all__ = ["comparison_section"]

_NOTICEABLE = 0.1  # points of AP50


def comparison_section(judgements: Sequence[Judgement]) -> Section | None:
    """Runs beside the first one; None for a single run."""
    if len(judgements) < 2:
        return None
    rows = []
    for one in judgements:
        limit = one.limit
        rows.append(
            {
                "run": one.subject.name,
                "AP": one.average(),
                "AP50": one.average("AP50"),
                "AP75": one.average("AP75"),
                "best F1": limit and 100 * limit.f1,
                "at score": shown_score(limit and limit.score),
                "recall": limit and 100 * limit.recall,
                "precision": limit and 100 * limit.precision,
            }
        )
    verdicts, tables = _differences(judgements)
    return Section(
        key="comparison",
        short="Comparison",
        title="Side by side",
        text="The same images and objects for all runs.",
        blocks=[
            *verdicts,
            Table(rows=rows, caption="In percent; score limits by F1", digits=2),
            *tables,
        ],
    )


def _differences(judgements: Sequence[Judgement]) -> tuple[list, list]:
    """Differences from the first run in words, and as a table with what its intervals mean."""
    first = judgements[0]
    if not first.counts[-1].objects:
        return [], []
    methods = [Method(name=one.subject.name, runs=[one.data]) for one in judgements]
    found = compare(methods)
    verdicts = [Note(text=_verdict(first, one, found)) for one in judgements[1:]]
    return verdicts, [
        _table(found, first.subject.name),
        Note(text=CHANCE),
    ]


def _table(found: Comparison, first: str) -> Table:
    rows = [
        {
            "run": row["method"],
            "figure": row.get("figure") or f"dAP of {row['error']}",
            "difference": row["difference"],
            "low": row["low"],
            "high": row["high"],
            "beyond chance": {None: None, True: "yes", False: "no"}[row["beyond chance"]],
        }
        for row in [*found.difference_table(), *found.error_table()]
    ]
    return Table(
        rows=rows,
        caption=f"Difference from {first} in points, with the interval of 95 % of {SAMPLES} "
        "drawings of the images",
        digits=2,
    )


def _verdict(first: Judgement, other: Judgement, found: Comparison) -> str:
    """A run against the first one in three sentences."""
    own = other.subject.name
    (row,) = (x for x in found.difference_table() if x["method"] == own and x.get("figure") == "AP")
    text = (
        f"{own} has an AP of {_number(other.average())}, {first.subject.name} one of "
        f"{_number(first.average())}"
    )
    if row["difference"] is not None:
        text += f": a difference of {row['difference']:+.1f} points{_chance(row)}"
    costs = [
        x
        for x in found.error_table()
        if x["method"] == own
        and x["error"] in KINDS
        and x["difference"] is not None
        and abs(x["difference"]) >= _NOTICEABLE
    ]
    costs.sort(key=lambda x: -abs(x["difference"]))
    kinds = [
        f"{ERROR_NAMES[x['error']].lower()} {x['difference']:+.1f}{_chance(x)}" for x in costs[:2]
    ]
    # Of the others the difference may be that of one object.
    classes = [
        x for x in found.class_table() if x["method"] == own and x["beyond chance"] is not None
    ]
    if len(classes) > 1:
        most = max(classes, key=lambda x: abs(x["difference"]))
        text += f"; of the classes it is largest for {most['class']}, {most['difference']:+.1f}"
    text += ". "
    if kinds:
        text += f"In points of AP50 that kinds of errors cost: {', '.join(kinds)}. "
    limits = [_at_best(one) for one in (other, first)]
    return (
        f"{text}At its best score limit it has {limits[0]}; {first.subject.name} has {limits[1]}."
    )


def _chance(row: Row) -> str:
    if row["beyond chance"] is None:
        return ""
    what = "beyond" if row["beyond chance"] else "within"
    low, high = _border(row["low"]), _border(row["high"])
    return f" ({low} to {high}, {what} the chance of these images)"


def _border(value: float) -> str:
    """One digit after the point, or the second one where that would make it 0."""
    digits = 1 if round(value, 1) else 2
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def _at_best(one: Judgement) -> str:
    limit = one.limit
    if limit is None:
        return "nothing right"
    return (
        f"a precision of {100 * limit.precision:.1f} % and a recall of {100 * limit.recall:.1f} %"
    )


def _number(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.1f}"
