"""The tables of docs/results.md, from the studies and the records of their runs.

::

    python -m docs.generators.studies --write docs/results.md

A study is ``studies/NAME.yaml``, its records are ``studies/results/NAME.jsonl``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from benchmarks.table import replace_between_marks
from resobj_d2.study.plan import Plan, read_plan
from resobj_d2.study.results import DONE, Result, by_key, read_results
from resobj_d2.study.tables import Row, conclusion, summarise, table_rows

__all__ = ["main", "page", "study_rows", "tables"]

STUDIES = Path(__file__).resolve().parents[2] / "studies"
NAME = "python -m docs.generators.studies"


def study_rows(plan: Plan, results: Sequence[Result]) -> list[Row]:
    """A row for every dataset and method of a study that has a result.

    Args:
        plan: of the study.
        results: of its runs; of two in one place the one that is done counts, then the later one.
    """
    found = list(_found(plan, results).values())
    return summarise(found, baseline=plan.baseline, methods=[one.name for one in plan.methods])


def _found(plan: Plan, results: Sequence[Result]) -> dict[tuple[str, str, int], Result]:
    order = sorted(by_key(results).values(), key=lambda one: (one.status == DONE, one.finished))
    places = {(one.dataset, one.method, one.seed): one for one in order}
    return {place: places[place] for place in _places(plan) if place in places}


def _places(plan: Plan) -> list[tuple[str, str, int]]:
    return [
        (dataset.name, method.name, seed)
        for dataset in plan.datasets
        for method in plan.methods
        for seed in method.seeds or plan.seeds
    ]


def tables(plan: Plan, results: Sequence[Result]) -> str:
    """Markdown of a study: for each dataset what its runs say, or that there are none yet.

    Args:
        plan, results: as for :func:`study_rows`.
    """
    found = _found(plan, results).values()
    rows = study_rows(plan, results)
    done = sum(one.status == DONE for one in found)
    parts = [f"### `studies/{plan.file.name}`\n\n{done} of {len(_places(plan))} runs.\n"]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        of_it = [row for row in rows if row.dataset == dataset]
        metric = next(one.metric for one in found if one.dataset == dataset)
        sentences = "".join(f"- {line}\n" for line in conclusion(of_it, plan.baseline))
        table = tabulate(
            table_rows(of_it, metric), headers="keys", tablefmt="github", disable_numparse=True
        )
        parts.append(f"{dataset}:\n\n{table}\n\n{sentences}")
    return "\n".join(parts)


def page(text: str, folder: Path = STUDIES) -> str:
    """``text`` with the tables between its markers made anew.

    Raises:
        ValueError: the markers are missing.
        StudyError: a study or a record is not one.
    """
    parts = []
    for file in sorted(folder.glob("*.yaml")):
        plan = read_plan(file)
        parts.append(tables(plan, read_results(folder / "results" / f"{file.stem}.jsonl")))
    return replace_between_marks(text, "\n".join(parts).strip(), NAME)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, required=True, metavar="PAGE")
    path = parser.parse_args(argv).write
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
