"""The best checkpoint of a run, by the AP of its evaluations."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.process import replacing

__all__ = ["Best", "BestCheckpoint", "primary_ap"]

logger = logging.getLogger(__name__)

FILE = "model_best.pth"


@dataclass(frozen=True)
class Best:
    """A checkpoint and what it reached."""

    file: str
    ap: float
    iteration: int


def primary_ap(results: Mapping) -> float:
    """The figure that a run is judged by: AP of the first task of the first data set.

    Args:
        results: Detectron2's: ``{"bbox": {"AP": ...}}``, by data set where there are several.

    Returns:
        In percent; NaN where there is none.
    """
    for value in results.values():
        if isinstance(value, Mapping):
            if "AP" in value:
                return float(value["AP"])
            return primary_ap(value)
    return math.nan


class BestCheckpoint:
    """Keeps the weights with the highest :func:`primary_ap` in ``model_best.pth``.

    The file has what was evaluated as ``model`` (the averages, with ``SOLVER.EMA_DECAY``), ``AP``,
    ``iteration`` and ``categories``; nothing to resume from. Of equal APs the earlier one stays.

    Args:
        checkpointer: of the run; it knows the model, the folder and the classes.

    Attributes:
        best: None before the first evaluation that had an AP.
    """

    def __init__(self, checkpointer: ResObjCheckpointer) -> None:
        self.checkpointer = checkpointer
        self.best: Best | None = None

    def resume(self, start_iteration: int) -> None:
        """Take over the file of a run that goes on; one that a new run finds is put aside."""
        path = os.path.join(self.checkpointer.save_dir, FILE)
        self.best = None
        if not os.path.isfile(path):
            return
        if start_iteration == 0:
            # Of an earlier run: kept, but out of the way of this one.
            os.replace(path, f"{path}.old")
            logger.info("%s of an earlier run is %s.old now", path, FILE)
            return
        try:
            saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            best = Best(path, float(saved["AP"]), int(saved["iteration"]))
        except Exception as error:  # torch.load raises whatever the bytes lead it to
            logger.warning("%s cannot be read, it is written anew: %s", path, error)
            return
        if best.iteration < start_iteration:  # not of iterations that are trained again
            self.best = best

    def consider(self, results: Mapping, *, iteration: int, file: str | None = None) -> None:
        """Compare an evaluation of the model's present weights with the best one.

        Args:
            results: of the evaluation.
            iteration: after which it took place, from 0.
            file: a checkpoint of these weights; by default they are written.
        """
        ap = primary_ap(results)
        if math.isnan(ap) or (self.best is not None and ap <= self.best.ap):
            return
        if file is None:
            file = os.path.join(self.checkpointer.save_dir, FILE)
            state = {
                "model": self.checkpointer.model.state_dict(),
                **self.checkpointer.description(),
                "AP": ap,
                "iteration": iteration,
            }
            with replacing(file, binary=True) as stream:
                torch.save(state, stream)
        self.best = Best(file, ap, iteration)
