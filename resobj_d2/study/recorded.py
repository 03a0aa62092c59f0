"""Runs of a study whose data were not read, and the results that are there of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

from .fingerprint import NOT_CHECKED
from .results import Result, by_rank
from .runs import Run

__all__ = ["recorded"]


def recorded(runs: Sequence[Run], results: Iterable[Result]) -> list[Run]:
    """Runs with what was not checked as their results have it.

    A result belongs to a run where everything else that decides is equal. All results of one
    dataset of the study are of the same data, which are those of the latest one.

    Args:
        runs: of :func:`.runs.resolve` without data.
        results: of any runs.

    Returns:
        In the same order. Runs without a result are as they were, but for the data.
    """
    ranked = sorted(results, key=by_rank, reverse=True)
    plain = [json.loads(json.dumps(run.decides)) for run in runs]
    found = [
        [one for one in ranked if one.seed == run.seed and _filled(own, one.decides) == one.decides]
        for run, own in zip(runs, plain, strict=True)
    ]
    latest: dict[str, Result] = {}
    for run, own_results in zip(runs, found, strict=True):
        for one in own_results:
            if run.dataset not in latest or by_rank(one) > by_rank(latest[run.dataset]):
                latest[run.dataset] = one
    made = []
    for run, own, own_results in zip(runs, plain, found, strict=True):
        data = latest[run.dataset].decides["data"] if run.dataset in latest else own["data"]
        result = next((one for one in own_results if one.decides["data"] == data), None)
        decides = {**own, "data": data} if result is None else result.decides
        metric = run.metric or ("" if result is None else _average_precision(run, result))
        made.append(dataclasses.replace(run, decides=decides, metric=metric))
    return made


def _filled(own: Mapping, recorded: Mapping) -> dict:
    """What was not checked of a run, as a result has it."""
    return {
        key: _filled(value, recorded[key])
        if isinstance(value, Mapping) and isinstance(recorded.get(key), Mapping)
        else recorded.get(key, value)
        if value == NOT_CHECKED
        else value
        for key, value in own.items()
    }


def _average_precision(run: Run, result: Result) -> str:
    """The AP of a result: the one that it was judged by, else that of the first test set."""
    several = len(run.cfg.DATASETS.TEST) > 1
    begins = f"{run.cfg.DATASETS.TEST[0]}/" if several else ""
    names = [x for x in (result.metric, *result.results) if x.endswith("/AP")]
    return next((x for x in names if x.startswith(begins)), result.metric)
