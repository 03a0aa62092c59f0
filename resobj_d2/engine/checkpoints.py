"""Hooks of checkpoints: how many stay, and when a run has nothing more to gain."""

from __future__ import annotations

import contextlib
import logging
import os

from detectron2.engine import HookBase
from detectron2.utils import comm

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.launch import largest_of_all_processes
from resobj_d2.process import agreeing, counted

from .best import BestCheckpoint

__all__ = ["EarlyStop", "KeepLast", "TrainingEnded"]

logger = logging.getLogger(__name__)


class KeepLast(HookBase):
    """Removes all but the last checkpoints of the run; ``model_best`` and ``model_final`` stay.

    On the main process, behind the hook that writes them. What other runs have left in the folder
    is not touched.

    Args:
        checkpointer: that writes them.
        number: that stay.
    """

    def __init__(self, checkpointer: ResObjCheckpointer, *, number: int) -> None:
        self.checkpointer = checkpointer
        self.number = number
        self._seen = ""

    def before_train(self) -> None:
        self._remove()  # what a killed run has left

    def after_step(self) -> None:
        if self.checkpointer.last_saved != self._seen:
            self._seen = self.checkpointer.last_saved
            self._remove()

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:  # what a killed run has left
            self._remove()

    def _remove(self) -> None:
        written = self.checkpointer.written
        for name in written[: -self.number]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.checkpointer.save_dir, name))
        del written[: -self.number]


class TrainingEnded(BaseException):
    """The patience of a run has ended; for :class:`Trainer`, which ends the loop in order."""

    def __init__(self, iteration: int) -> None:
        super().__init__()
        self.iteration = iteration


class EarlyStop(HookBase):
    """Ends a run when its evaluations have not become better for a while.

    All processes have it, behind the evaluation; the last hook, so that all others have begun.

    Args:
        best: of the run.
        patience: evaluations without a better one.
        period: iterations between two evaluations.

    Raises:
        ValueError: ``patience`` or ``period`` is not positive.
    """

    def __init__(self, best: BestCheckpoint, *, patience: int, period: int) -> None:
        if patience < 1 or period < 1:
            raise ValueError(f"patience and period must be positive, got {patience} and {period}")
        self.best = best
        self.patience = patience
        self.period = period

    def before_train(self) -> None:
        if self.trainer.start_iter:  # an ended run that is resumed has ended
            self._check(self.trainer.start_iter - 1)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 and done != self.trainer.max_iter:
            self._check(self.trainer.iter)

    def _check(self, iteration: int) -> None:
        ended = comm.is_main_process() and self.best.patience_ended(
            iteration, patience=self.patience, period=self.period
        )
        if not largest_of_all_processes(int(ended)):
            return
        logger.info(
            "Training ends after iteration %d of %d: %s not been better than %s. "
            "A higher TEST.PATIENCE and --resume go on",
            iteration + 1,
            self.trainer.max_iter,
            f"{counted(self.patience, 'evaluation')} {agreeing(self.patience, 'have')}",
            self.best.best,
        )
        raise TrainingEnded(iteration)
