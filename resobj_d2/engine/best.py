"""The best checkpoint of a run, by one figure of its evaluations, and the end of its patience."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.evaluation import result_names
from resobj_d2.process import replacing, similar_names

__all__ = [
    "Best",
    "BestCheckpoint",
    "check_metric",
    "lower_is_better",
    "metric_value",
    "primary_ap",
]

logger = logging.getLogger(__name__)

FILE = "model_best.pth"
_LOSSES = "validation/"


@dataclass(frozen=True)
class Best:
    """A checkpoint and what it reached."""

    file: str
    value: float
    iteration: int
    metric: str = "AP"

    def __str__(self) -> str:
        figure = f"{self.value:.4g}" if lower_is_better(self.metric) else f"{self.value:.1f}"
        return f"{self.metric} {figure} after iteration {self.iteration + 1}"


def primary_ap(results: Mapping) -> float:
    """AP of the first task of the first dataset.

    Args:
        results: Detectron2's: ``{"bbox": {"AP": ...}}``, by dataset where there are several.

    Returns:
        In percent; NaN where there is none.
    """
    for value in results.values():
        if isinstance(value, Mapping):
            if "AP" in value:
                return float(value["AP"])
            return primary_ap(value)
    return math.nan


def metric_value(results: Mapping, metric: str) -> float:
    """The figure that a run is judged by.

    Args:
        results: of an evaluation.
        metric: "AP" for :func:`primary_ap`; else the path of a result, such as "bbox/AP50",
            "voc_2007_test/bbox/AP-cat" or "validation/total_loss".

    Returns:
        NaN where the evaluation gave nothing, or nothing defined.

    Raises:
        ValueError: there are results, but not this one.
    """
    if metric == "AP" or not results:
        return primary_ap(results)
    figures = dict(_figures(results))
    if metric not in figures:
        raise ValueError(
            f"TEST.BEST_METRIC is {metric!r}, which this evaluation has no result of: set it to AP "
            f"or one of {', '.join(figures)}"
        )
    return figures[metric]


def check_metric(cfg) -> None:
    """Refuse, in front of a training, a ``TEST.BEST_METRIC`` that its evaluations will not have.

    The terms of the validation loss are the model's: only their prefix is checked.

    Raises:
        ValueError: with names that there are.
    """
    metric, data_sets = cfg.TEST.BEST_METRIC, cfg.DATASETS.TEST
    if metric == "AP":
        return
    names = []
    for data_set in data_sets:
        prefix = f"{data_set}/" if len(data_sets) > 1 else ""
        names += [prefix + name for name in result_names(cfg, data_set)]
    if not names or metric in names:
        return
    if metric.startswith(_LOSSES) and cfg.TEST.VALIDATION_LOSS:
        return
    if "@" in metric and cfg.TEST.DETECTIONS_PER_IMAGE < 0:
        return  # as many as the model will give
    names = ["AP", *names, *([f"{_LOSSES}total_loss"] if cfg.TEST.VALIDATION_LOSS else [])]
    similar = similar_names(metric, names, most=1)
    hint = f"did you mean {similar[0]}? " if similar else ""
    if metric.startswith(_LOSSES):
        hint = "it needs TEST.VALIDATION_LOSS True. "
    raise ValueError(
        f"TEST.BEST_METRIC is {metric!r}, which the evaluations of this run have no result of: "
        f"{hint}Results are {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
    )


def _figures(results: Mapping, prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in results.items():
        if isinstance(value, Mapping):
            yield from _figures(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", float(value)


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of a metric is the better one, as of a loss.

    Args:
        metric: as in :func:`metric_value`.
    """
    # By the whole name: a class may be called anything, "gloss" too.
    return metric == "total_loss" or metric.startswith(_LOSSES)


def _names_aside(path: str) -> Iterator[str]:
    yield f"{path}.old"
    yield from (f"{path}.old{number}" for number in itertools.count(2))


class BestCheckpoint:
    """Keeps the weights that an evaluation found best in ``model_best.pth``.

    The file has what was evaluated as ``model`` (the averages, with ``SOLVER.EMA_DECAY``),
    ``metric``, its ``value``, ``iteration`` and ``categories``; nothing to resume from. Of equal
    values the earlier one stays.

    Args:
        checkpointer: of the run; it knows the model, the folder and the classes.
        metric: as in :func:`metric_value`. The largest is the best; of losses the smallest.

    Attributes:
        best: None before the first evaluation that had a value.
    """

    def __init__(self, checkpointer: ResObjCheckpointer, *, metric: str = "AP") -> None:
        self.checkpointer = checkpointer
        self.metric = metric
        self.best: Best | None = None

    def resume(self, start_iteration: int) -> None:
        """Take over the file of a run that goes on; one that a new run finds is put aside."""
        path = os.path.join(self.checkpointer.save_dir, FILE)
        self.best = None
        if not os.path.isfile(path):
            return
        if start_iteration == 0:
            # Of an earlier run: kept, but out of the way of this one and of those before it.
            aside = next(x for x in _names_aside(path) if not os.path.lexists(x))
            os.rename(path, aside)
            logger.info("%s of an earlier run is %s now", path, os.path.basename(aside))
            return
        try:
            saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            best = Best(path, float(saved["value"]), int(saved["iteration"]), saved["metric"])
        except Exception as error:  # torch.load raises whatever the bytes lead it to
            logger.warning("%s cannot be read, it is written anew: %s", path, error)
            return
        # Not of iterations that are trained again, and not by another figure.
        if best.iteration < start_iteration and best.metric == self.metric:
            self.best = best

    def consider(self, results: Mapping, *, iteration: int, file: str | None = None) -> None:
        """Compare an evaluation of the model's present weights with the best one.

        Args:
            results: of the evaluation.
            iteration: after which it took place, from 0.
            file: a checkpoint of these weights; by default they are written.

        Raises:
            ValueError: as :func:`metric_value`.
        """
        value = metric_value(results, self.metric)
        if math.isnan(value) or not self._is_better(value):
            return
        if file is None:
            file = os.path.join(self.checkpointer.save_dir, FILE)
            state = {
                "model": self.checkpointer.model.state_dict(),
                **self.checkpointer.description(),
                "metric": self.metric,
                "value": value,
                "iteration": iteration,
            }
            with replacing(file, binary=True) as stream:
                torch.save(state, stream)
        self.best = Best(file, value, iteration, self.metric)

    def _is_better(self, value: float) -> bool:
        if self.best is None:
            return True
        if lower_is_better(self.metric):
            return value < self.best.value
        return value > self.best.value

    def patience_ended(self, iteration: int, *, patience: int, period: int) -> bool:
        """Whether so many evaluations since the best one have not been better.

        Args:
            iteration: after which the last evaluation took place, from 0.
            patience: evaluations; 0 has no end.
            period: iterations between two evaluations.
        """
        if not patience or self.best is None:
            return False
        return iteration - self.best.iteration >= patience * period
