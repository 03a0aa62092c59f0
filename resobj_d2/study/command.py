"""Compare methods over seeds and datasets.

::

    resobj-d2 study STUDY.yaml                      # run what is missing, then table and page
    resobj-d2 study STUDY.yaml OTHER.jsonl ...      # take over results of other machines first
    resobj-d2 study FIRST.jsonl SECOND.jsonl --output DIR    # table and page alone

Each run is a `resobj-d2 train` with a folder of its own; whatever stops a study, the same command
goes on with it. Results are lines of ``results.jsonl``, see docs/study.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from resobj_d2.command import CommandParser, run_command
from resobj_d2.process import (
    agreeing,
    counted,
    did_you_mean,
    hold_folder,
    release_folder,
    start_log,
)

from .plan import Plan, StudyError, read_plan
from .results import DONE, FAILED, Result, append_result, by_key, read_results
from .tables import conclusion, differences, summarise, table_rows

if TYPE_CHECKING:
    from .runs import Run

__all__ = ["RESULTS", "main", "run_study"]

logger = logging.getLogger(__name__)

RESULTS = "results.jsonl"
"""The file in a study's folder that gets a line for each run."""
PAGE = "study.html"
_SHOWN_NOTES = 5
_DATA_NOT_READ = (
    "The data were not read: whether they, and weights that are not here, still are those of the "
    "results was not checked. All else that decides was."
)


def run_study(
    plan: Plan,
    output: Path,
    *,
    others: Sequence[Path] = (),
    jobs: int = 0,
    retry: bool = False,
    run: bool = True,
    train: Callable[[Path], list[str]] | None = None,
) -> int:
    """Run what is missing of a study, and write its table and page.

    Args:
        plan: of :func:`.plan.read_plan`.
        output: folder of the study.
        others: files of results to take over, of other machines.
        jobs: runs at a time; 0 for one on each core, or on each GPU where the runs use them.
        retry: run those again that have failed.
        run: False writes table and page of what is there; the data are not read.
        train: from the configuration of a run to the command that trains it; by default
            ``resobj-d2 train``.

    Returns:
        The exit status: 0 where all runs are done, 1 where some are missing or have failed,
        130 or 143 after a signal.

    Raises:
        StudyError, FileNotFoundError, FolderInUse: it cannot be run.
    """
    theirs = by_key(one for path in others for one in _existing(path))
    try:
        runs = _resolved(plan, [*theirs.values(), *read_results(output / RESULTS)], data=run)
    except StudyError as error:
        raise StudyError(f"{error}{_way_without_data(plan, output, others)}") from error
    output.mkdir(parents=True, exist_ok=True)
    hold_folder(output)
    try:
        notes = _take_over(output / RESULTS, theirs, {one.key: one for one in runs})
        signum = 0
        if run:
            signum = _run_missing(plan, output, runs, jobs=jobs, retry=retry, train=train)
        known = by_key(read_results(output / RESULTS))
        found = [_placed(known[one.key], one) for one in runs if one.key in known]
        methods = [method.name for method in plan.methods]
        if found and not run:
            notes = [_DATA_NOT_READ, *notes]
            logger.info(_DATA_NOT_READ)
        _report(plan.name, plan.baseline, methods, found, output, notes)
    finally:
        release_folder(output)
    return _exit_status(signum, found, runs)


def _resolved(plan: Plan, results: Sequence[Result], *, data: bool) -> list[Run]:
    # They need Detectron2; a table of results does not.
    from .recorded import recorded
    from .runs import resolve

    return resolve(plan) if data else recorded(resolve(plan, data=False), results)


def _way_without_data(plan: Plan, output: Path, others: Sequence[Path]) -> str:
    """The end of an error: results that are there can be shown as they are."""
    there = [str(path) for path in (*others, output / RESULTS) if path.is_file()]
    if not there:
        return ""
    baseline = f" --baseline {plan.baseline}" if plan.baseline else ""
    return f". Results as they are: resobj-d2 study {' '.join(there)}{baseline}"


def _take_over(file: Path, theirs: dict[str, Result], wanted: dict) -> list[str]:
    """Add results of other machines; return why others, there or here, are not used."""
    own = _merge(file, [result for key, result in theirs.items() if key in wanted])
    notes = _unused(list({**own, **theirs}.values()), wanted)
    for note in notes[:_SHOWN_NOTES]:
        logger.info("not used: %s", note)
    if len(notes) > _SHOWN_NOTES:
        logger.info("not used: %d more results", len(notes) - _SHOWN_NOTES)
    return notes


def _merge(file: Path, theirs: Sequence[Result]) -> dict[str, Result]:
    """Add what a file lacks or has a lesser result of; return by key what it had before."""
    own = by_key(read_results(file))
    for key, result in by_key([*own.values(), *theirs]).items():
        if own.get(key) != result:
            append_result(file, result)
    return own


def _exit_status(signum: int, found: Sequence[Result], runs: Sequence) -> int:
    done = sum(one.status == DONE for one in found)
    failed = len(found) - done
    if signum:
        from resobj_d2.engine.commands import present_command
        from resobj_d2.process.signals import exit_status

        logger.info(
            "Stopped with %d of %s done. To go on: %s",
            *(done, counted(len(runs), "run"), present_command()),
        )
        return exit_status(signum)
    if failed:
        has, them = agreeing(failed, "have"), "it" if failed == 1 else "them"
        of = counted(len(runs), "run")
        logger.info("%d of %s %s failed; --retry runs %s again", failed, of, has, them)
    return int(done < len(runs))


def _existing(path: Path) -> list[Result]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of results {path.absolute()}")
    return read_results(path)


def _placed(result: Result, run) -> Result:
    """A result under the names that its run has in this study, and with this study's metric."""
    placed = dataclasses.replace(result, dataset=run.dataset, method=run.method, metric=run.metric)
    if placed.status == DONE and run.metric not in placed.results:
        there = ", ".join(list(placed.results)[:12])
        raise StudyError(f"the result of {run} has no {run.metric}; it has {there}")
    return placed


def _unused(results: Sequence[Result], wanted: dict) -> list[str]:
    """Why results of the same place in the study are not those of its present runs."""
    places = {(one.dataset, one.method, one.seed): one for one in wanted.values()}
    notes = []
    for result in results:
        if result.key in wanted:
            continue
        name = f"{result.dataset}, {result.method}, seed {result.seed}"
        run = places.get((result.dataset, result.method, result.seed))
        if run is None:
            notes.append(f"{name}: the study has no such run")
            continue
        why = differences(result.decides, run.decides)
        more = f" and {len(why) - 2} more" if len(why) > 2 else ""
        notes.append(f"{name}: {', '.join(why[:2])}{more}")
    return notes


def _run_missing(plan: Plan, output: Path, runs, *, jobs: int, retry: bool, train) -> int:
    from .execution import execute

    known = by_key(read_results(output / RESULTS))
    missing = [
        one for one in runs if one.key not in known or (retry and known[one.key].status == FAILED)
    ]
    if not missing:
        return 0
    return execute(
        missing, output, study=plan.name, jobs=jobs, total=len(runs), train=train, file=RESULTS
    )


def _report(
    name: str,
    baseline: str,
    methods: Sequence[str],
    results: Sequence[Result],
    output: Path,
    notes: Sequence[str],
) -> None:
    from tabulate import tabulate

    from .page import write_page

    if not results:
        logger.info("There are no results yet of the study as it is.")
        return
    rows = summarise(results, baseline=baseline, methods=methods)
    metrics = {one.dataset: one.metric for one in results}
    for one in results:
        if one.metric != metrics[one.dataset]:
            raise StudyError(
                f"results on {one.dataset} are of {one.metric} and {metrics[one.dataset]}, which "
                "cannot be compared"
            )
    for dataset, metric in metrics.items():
        part = [row for row in rows if row.dataset == dataset]
        table = tabulate(
            table_rows(part, metric), headers="keys", tablefmt="simple", disable_numparse=True
        )
        sentences = "\n".join(conclusion(part, baseline))
        logger.info("\n%s\n\n%s\n%s", dataset, table, sentences)
    path = write_page(
        output / PAGE, name=name, baseline=baseline, rows=rows, results=results, notes=notes
    )
    logger.info("\nresults  %s\npage     %s", output / RESULTS, path)


def _show(files: Sequence[Path], output: Path, baseline: str) -> int:
    """Table and page of results alone: of each dataset, method and seed the last one."""
    results = sorted(
        by_key(one for path in files for one in _existing(path)).values(),
        key=lambda one: (one.status == DONE, one.finished),
    )
    last = {(one.dataset, one.method, one.seed): one for one in results}
    left_out = [one for one in results if last[one.dataset, one.method, one.seed] is not one]
    notes = [
        f"{one.dataset}, {one.method}, seed {one.seed}: there is a later result" for one in left_out
    ]
    if not last:
        raise StudyError(f"{', '.join(map(str, files))}: there are no results")
    methods = sorted({one.method for one in last.values()})
    if baseline and baseline not in methods:
        raise StudyError(
            f"there is no method {baseline}; there are {', '.join(methods)}"
            f"{did_you_mean(baseline, methods, most=1)}"
        )
    if not baseline:
        baseline = methods[0]
        logger.info("compared with %s, the first by name; --baseline METHOD: another", baseline)
    output.mkdir(parents=True, exist_ok=True)
    hold_folder(output)
    try:
        target = output / RESULTS
        if not any(path.resolve() == target.resolve() for path in files):
            _merge(target, results)
        shown = [last[key] for key in sorted(last)]
        name = shown[0].study or output.name
        _report(name, baseline, methods, shown, output, notes)
    finally:
        release_folder(output)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit status."""
    args = _parser().parse_args(argv)
    start_log()
    plans = [path for path in args.files if path.suffix.lower() in (".yaml", ".yml")]
    others = [path for path in args.files if path not in plans]
    if len(plans) > 1:
        raise StudyError(f"one study at a time, got {', '.join(map(str, plans))}")
    if plans:
        plan = read_plan(plans[0])
        return run_study(
            plan,
            args.output or Path("output", "studies", plan.name),
            others=others,
            jobs=args.jobs,
            retry=args.retry,
            run=not args.no_run,
        )
    return _show(others, args.output or others[0].parent, args.baseline)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="resobj-d2 study",
        description="Train methods with several seeds on several datasets, as far as results are "
        "missing, and compare them with a baseline.",
        epilog="Whatever stops a study, the same command goes on with it. docs/study.md describes "
        "both kinds of file.",
    )
    add = parser.add_argument
    add(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="a study (.yaml), and files of results (.jsonl) to merge; these alone are shown",
    )
    add("--output", type=Path, metavar="DIR", help="folder (default: output/studies/NAME)")
    add(
        "--jobs",
        type=_count,
        default=0,
        metavar="N",
        help="runs at a time (default: one for each core, or each GPU where they are used)",
    )
    add("--retry", action="store_true", help="run those again that have failed")
    add(
        "--no-run",
        action="store_true",
        help="table and page of the results that are there, without data",
    )
    add(
        "--baseline",
        default="",
        metavar="METHOD",
        help="of results without their study (default: the first method by name)",
    )
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
