"""The page of a study: what the results prove, and everything that they depend on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from resobj_d2.process import counted, replacing
from resobj_d2.report import plots
from resobj_d2.report.blocks import Code, Note, Plot, Section, Table
from resobj_d2.report.page import render_sections
from resobj_d2.report.summary import Figure, Summary

from .results import DONE, Result
from .statistics import mean_interval
from .tables import Row, conclusion, table_rows

__all__ = ["write_page"]

_MOST_NOTES = 20

_HOW_TO_READ = (
    "Means over seeds with 95 % intervals of Student's t. The difference to the baseline is taken "
    "seed by seed; its sign is + or - where the interval does not hold 0, otherwise ?, which means "
    "that these seeds do not tell. Of a loss - is the better one. Of twenty such intervals one "
    "excludes 0 by chance."
)


def write_page(
    path: str | os.PathLike,
    *,
    name: str,
    baseline: str,
    rows: Sequence[Row],
    results: Sequence[Result],
    notes: Sequence[str] = (),
) -> Path:
    """Write the page as one HTML file.

    Args:
        path: of the file.
        name: of the study.
        baseline: that methods are compared with.
        rows: of :func:`.tables.summarise`.
        results: that they were made of.
        notes: on what was left out.
    """
    done = sum(one.status == DONE for one in results)
    by_dataset: dict[str, list[Row]] = {}
    for row in rows:
        by_dataset.setdefault(row.dataset, []).append(row)
    metrics = {one.dataset: one.metric for one in results}
    text = render_sections(
        title=name,
        subtitle=", ".join(
            [
                counted(done, "run"),
                counted(len({one.method for one in results}), "method"),
                counted(len({one.seed for one in results}), "seed"),
                counted(len(by_dataset), "dataset"),
            ]
        ),
        summaries=[_summary(dataset, part, baseline) for dataset, part in by_dataset.items()],
        sections=[
            *(
                _section(number, dataset, part, metrics[dataset], baseline)
                for number, (dataset, part) in enumerate(by_dataset.items())
            ),
            _runs(results, notes),
            _what_decides(results),
        ],
    )
    with replacing(path) as file:
        file.write(text)
    return Path(path)


def _summary(dataset: str, rows: Sequence[Row], baseline: str) -> Summary:
    compared = [row for row in rows if row.comparison is not None]
    sentences: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for row in compared:
        sentences[row.comparison.verdict] += conclusion([row], baseline)
    base = next((row for row in rows if row.method == baseline), None)
    figures = [Figure(name=f"{baseline}, mean", value="-", meaning="of the baseline over seeds")]
    if base is not None and base.values:
        value = f"{base.interval.mean:.1f}"
        figures = [Figure(name=f"{baseline}, mean", value=value, meaning=figures[0].meaning)]
    for verdict, found in sentences.items():
        count = f"{len(found)} of {len(compared)}"
        meaning = f"methods that are {verdict} by their interval"
        figures.append(Figure(name=verdict, value=count, meaning=meaning))
    return Summary(
        name=dataset,
        figures=figures,
        columns=[
            (f"Better than {baseline}", sentences["better"] or ["None."]),
            (f"Worse than {baseline}", sentences["worse"] or ["None."]),
            ("Not decided", sentences["undecided"] or ["None."]),
        ],
    )


def _section(number: int, dataset: str, rows: Sequence[Row], metric: str, baseline: str) -> Section:
    known = [row for row in rows if row.values]
    base = next((dict(row.values) for row in rows if row.method == baseline), {})
    blocks: list = [Table(rows=table_rows(rows, metric), caption=f"{metric} by method", limit=200)]
    if known:
        means = {
            r.method: (r.interval.mean, r.interval.half_width, list(r.values.values()))
            for r in known
        }
        blocks.append(
            Plot(
                svg=plots.intervals(means, label=metric),
                alt=f"{metric} of each method with its interval",
                caption="Small dots are single seeds; the bar is the interval of the mean.",
            )
        )
    paired = {
        r.method: (
            r.comparison.difference.mean,
            r.comparison.difference.half_width,
            [v - base[s] for s, v in r.values.items() if s in base],
        )
        for r in known
        if r.comparison is not None and r.comparison.difference.count
    }
    if paired:
        blocks.append(
            Plot(
                svg=plots.intervals(paired, label=f"{metric} minus that of {baseline}", zero=True),
                alt=f"Difference of each method to {baseline} with its interval",
                caption="Seed by seed. A bar that crosses the dotted line does not tell.",
            )
        )
    curves = {r.method: curve for r in known if len((curve := _mean_curve(r.curves))[0]) > 1}
    if curves:
        blocks.append(
            Plot(
                svg=plots.curves(curves, x_label="iteration", y_label=metric),
                alt=f"{metric} over the training, mean over seeds",
                caption="The mean over seeds, of the evaluations that all of them have.",
            )
        )
    return Section(
        key=f"data-{number}", short=dataset, title=dataset, text=_HOW_TO_READ, blocks=blocks
    )


def _mean_curve(curves: Mapping[int, Sequence]) -> tuple[list[float], list[float]]:
    """Iterations that all seeds have, and the means there."""
    tables = [{point[0]: point[1] for point in curve} for curve in curves.values()]
    shared = sorted(set.intersection(*map(set, tables))) if tables else []
    return shared, [mean_interval([table[x] for table in tables]).mean for x in shared]


def _runs(results: Sequence[Result], notes: Sequence[str]) -> Section:
    rows = [
        {
            "data": one.dataset,
            "method": one.method,
            "seed": str(one.seed),
            "result": f"{one.value:.2f}" if one.status == DONE else one.error,
            "minutes": f"{one.seconds / 60:.1f}" if one.seconds else "-",
            "finished": one.finished,
            "code": one.revision or "-",
            "key": one.key,
        }
        for one in results
    ]
    blocks: list = [Table(rows=rows, caption="Every run", limit=2000)] if rows else []
    blocks += [Note(text=note) for note in notes[:_MOST_NOTES]]
    if len(notes) > _MOST_NOTES:
        blocks.append(Note(text=f"... and {len(notes) - _MOST_NOTES} more"))
    return Section(key="runs", short="Runs", title="Every run", blocks=blocks)


def _what_decides(results: Sequence[Result]) -> Section:
    blocks: list = []
    seen = set()
    for one in results:
        if (one.dataset, one.method) not in seen:
            seen.add((one.dataset, one.method))
            shown = {k: v for k, v in one.decides.items() if k != "seed"}
            text = yaml.safe_dump(shown, sort_keys=True)
            blocks.append(Code(caption=f"{one.method} on {one.dataset}", text=text))
    return Section(
        key="decides",
        short="Configurations",
        title="What decides a result",
        text="The configuration where it differs from the defaults, versions, and checksums of "
        "data and weights. The key of a run is made of these and the seed.",
        blocks=blocks,
    )
