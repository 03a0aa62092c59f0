"""What the README and docs/methods.md advise, each line with the figure that it rests on.

::

    python -m docs.generators.advice recommended --write README.md
    python -m docs.generators.advice when --write docs/methods.md

``advice.yaml`` beside this file has the words; figures are of the records in ``studies/results``
and of ``configs/figures.csv``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from benchmarks.table import replace_between_marks
from docs.generators.studies import STUDIES, study_rows
from resobj_d2.config.zoo import zoo_entries
from resobj_d2.study.plan import read_plan
from resobj_d2.study.results import read_results
from resobj_d2.study.tables import Row

__all__ = ["main", "page", "table"]

NAME = "python -m docs.generators.advice"
ADVICE = Path(__file__).with_suffix(".yaml")
_HEADS = {
    "recommended": ("for", "configuration", "what it is", "evidence"),
    "when": ("where", "use", "evidence"),
}


def table(kind: str, *, advice: Path = ADVICE, folder: Path = STUDIES) -> str:
    """Markdown of one list of ``advice.yaml``.

    Args:
        kind: "recommended" or "when".
        advice: the file of words.
        folder: with the studies and their records.

    Raises:
        ValueError: a line names a study, dataset, method or configuration that is not there.
    """
    lines = yaml.safe_load(advice.read_text(encoding="utf-8"))[kind]
    *words, evidence = _HEADS[kind]
    rows = [f"| {' | '.join((*words, evidence))} |", "|---" * (len(words) + 1) + "|"]
    for line in lines:
        cells = [*(line[word] for word in words), _evidence(line[evidence], folder)]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _evidence(sources: Sequence[Mapping], folder: Path) -> str:
    return "; ".join(_paper(**one) if "paper" in one else _study(one, folder) for one in sources)


def _paper(paper: str, against: str | None = None) -> str:
    """What a paper prints for a configuration, and what for its baseline on the same images."""
    figures = {entry.name: entry.figures for entry in zoo_entries()}
    for one in figures.get(paper, ()):
        where = f"on COCO {one.split} in the paper ({one.source})"
        if against is None:
            return f"{one} {where}"
        for base in figures.get(against, ()):
            if (base.split, base.source.split(",")[0]) == (one.split, one.source.split(",")[0]):
                return f"{one} against {base} {where}"
    beside = f" beside one of {against}" if against else ""
    raise ValueError(f"figures.csv has no figure of {paper}{beside}")


def _study(source: Mapping, folder: Path) -> str:
    """What the runs say: the mean, and the difference to the baseline with its interval."""
    plan = read_plan(folder / f"{source['study']}.yaml")
    results = read_results(folder / "results" / f"{source['study']}.jsonl")
    rows = {row.method: row for row in study_rows(plan, results) if row.dataset == source["data"]}
    method = source["method"]
    if method not in {one.name for one in plan.methods}:
        raise ValueError(f"{plan.file.name} has no method {method}")
    where = source["data"].replace("_", " ")
    words = _words(rows[method], plan.baseline) if method in rows else "not run yet"
    return f"{where}: {words}"


def _words(row: Row, baseline: str) -> str:
    ap = f"AP {row.interval.mean:.1f}"
    if row.comparison is None or not row.comparison.difference.count:
        return ap
    difference = row.comparison.difference
    if difference.count < 2:
        return f"{ap}, {difference.mean:+.1f} against `{baseline}`, one seed"
    interval = f"{difference.low:+.1f} to {difference.high:+.1f}"
    unsure = "" if row.comparison.verdict != "undecided" else ", may be chance"
    return (
        f"{ap}, {difference.mean:+.1f} ({interval}) against `{baseline}`, "
        f"{difference.count} seeds{unsure}"
    )


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
