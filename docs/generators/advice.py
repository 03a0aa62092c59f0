"""What the pages advise, and which claims appeared; each line has the figure that it rests on.

::

    python -m docs.generators.advice recommended --write README.md
    python -m docs.generators.advice when --write docs/methods.md
    python -m docs.generators.advice claims --write docs/results.md

``advice.yaml`` beside this file has the words; figures are of the records in ``studies/results``
and of ``configs/figures.csv``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from benchmarks.table import replace_between_marks
from docs.generators.studies import STUDIES, study_rows
from resobj_d2.config.zoo import Figure, zoo_entries
from resobj_d2.study.plan import read_plan
from resobj_d2.study.results import read_results
from resobj_d2.study.statistics import Comparison, Interval
from resobj_d2.study.tables import Row

__all__ = ["main", "page", "table"]

NAME = "python -m docs.generators.advice"
ADVICE = Path(__file__).with_suffix(".yaml")
_HEADS = {
    "recommended": ("for", "configuration", "what it is", "evidence"),
    "when": ("where", "use", "evidence"),
    "claims": ("claim", "the papers' AP on COCO", "in the studies here"),
}


def table(kind: str, *, advice: Path = ADVICE, folder: Path = STUDIES) -> str:
    """Markdown of one list of ``advice.yaml``.

    Args:
        kind: "recommended", "when" or "claims".
        advice: the file of words.
        folder: with the studies and their records.

    Raises:
        ValueError: a line names a study, dataset, method or configuration that is not there.
    """
    lines = yaml.safe_load(advice.read_text(encoding="utf-8"))[kind]
    heads = _HEADS[kind]
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for line in lines:
        rows.append(f"| {' | '.join(_cells(kind, line, folder))} |")
    return "\n".join(rows)


def _cells(kind: str, line: Mapping, folder: Path) -> list[str]:
    if kind == "claims":
        return _claim(folder=folder, **line)
    *words, evidence = _HEADS[kind]
    return [*(line[word] for word in words), _evidence(line[evidence], folder)]


def _evidence(sources: Sequence[Mapping], folder: Path) -> str:
    return "; ".join(_paper(**one) if "paper" in one else _study(one, folder) for one in sources)


def _claim(
    claim: str, paper: str, against: str, seen: Sequence[Mapping], folder: Path
) -> list[str]:
    """What a paper says of two configurations, and the runs of the two that are like them."""
    one, base = _two_figures(paper, against)
    promised = float(one.ap) - float(base.ap)
    here = "; ".join(_seen(source, promised, folder) for source in seen)
    return [claim, f"{promised:+.1f}: {one} against {base} on {one.split} ({one.source})", here]


def _seen(source: Mapping, promised: float, folder: Path) -> str:
    row, _ = _row(source, folder)
    if row is None or row.comparison is None or not row.comparison.difference.count:
        return f"{_where(source)}: not run yet"
    difference = _difference(row.comparison.difference)
    return f"{_where(source)}: {difference}, {_verdict(row.comparison, promised)}"


def _verdict(compared: Comparison, promised: float) -> str:
    """Whether a difference on the promised side, and of that size, was seen.

    Raises:
        ValueError: nothing is promised.
    """
    if not promised:
        raise ValueError("a claim needs two configurations with different figures")
    interval = compared.difference
    if interval.count < 2:
        return "one seed shows nothing"
    reached = interval.high if promised > 0 else -interval.low
    less = ", less than promised" if reached < abs(promised) else ""
    if compared.verdict != "undecided":
        as_promised = (compared.verdict == "better") == (promised > 0)
        return f"**appeared**{less}" if as_promised else "opposite"
    other_seeds = interval.count - compared.better if promised > 0 else compared.better
    if not other_seeds:
        return f"on every seed, may be chance{less}"
    return f"not shown{less}"


def _where(source: Mapping) -> str:
    return source.get("name") or source["data"].replace("_", " ")


def _difference(difference: Interval) -> str:
    if difference.count < 2:
        return f"{difference.mean:+.1f}"
    interval = f"{difference.low:+.1f} to {difference.high:+.1f}"
    return f"{difference.mean:+.1f} ({interval}, {difference.count} seeds)"


def _paper(paper: str, against: str | None = None) -> str:
    """What a paper prints for a configuration, and what for its baseline on the same images."""
    one, base = _two_figures(paper, against)
    where = f"on COCO {one.split} in the paper ({one.source})"
    return f"{one} {where}" if base is None else f"{one} against {base} {where}"


def _two_figures(paper: str, against: str | None) -> tuple[Figure, Figure | None]:
    figures = {entry.name: entry.figures for entry in zoo_entries()}
    for one in figures.get(paper, ()):
        if against is None:
            return one, None
        for base in figures.get(against, ()):
            if (base.split, base.source.split(",")[0]) == (one.split, one.source.split(",")[0]):
                return one, base
    beside = f" beside one of {against}" if against else ""
    raise ValueError(f"figures.csv has no figure of {paper}{beside}")


def _study(source: Mapping, folder: Path) -> str:
    """What the runs say: the mean, and the difference to the baseline with its interval."""
    row, baseline = _row(source, folder)
    where = _where(source)
    return f"{where}: {'not run yet' if row is None else _words(row, baseline)}"


def _row(source: Mapping, folder: Path) -> tuple[Row | None, str]:
    """The row of a method, None without a run, and its baseline: the study's or another."""
    plan = read_plan(folder / f"{source['study']}.yaml")
    plan = replace(plan, baseline=source.get("against", plan.baseline))
    if source["method"] == plan.baseline:
        raise ValueError(f"{plan.file.name}: {plan.baseline} is compared with itself")
    for method in (source["method"], plan.baseline):
        if method not in {one.name for one in plan.methods}:
            raise ValueError(f"{plan.file.name} has no method {method}")
    results = read_results(folder / "results" / f"{source['study']}.jsonl")
    rows = {row.method: row for row in study_rows(plan, results) if row.dataset == source["data"]}
    return rows.get(source["method"]), plan.baseline


def _words(row: Row, baseline: str) -> str:
    ap = f"AP {row.interval.mean:.1f}"
    if row.comparison is None or not row.comparison.difference.count:
        return ap
    difference = row.comparison.difference
    if difference.count < 2:
        return f"{ap}, {difference.mean:+.1f} against `{baseline}`, one seed"
    unsure = "" if row.comparison.verdict != "undecided" else ", may be chance"
    return f"{ap}, {_difference(difference)} against `{baseline}`{unsure}"


def page(text: str, kind: str) -> str:
    """``text`` with the table between its markers made anew.

    Raises:
        ValueError: the markers are missing, or as :func:`table`.
    """
    return replace_between_marks(text, table(kind), f"{NAME} {kind}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=_HEADS)
    parser.add_argument("--write", type=Path, required=True, metavar="PAGE")
    args = parser.parse_args(argv)
    text = args.write.read_text(encoding="utf-8")
    args.write.write_text(page(text, args.kind), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
