"""Ctrl-C and SIGTERM end a training with a checkpoint that it can be resumed from."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import get_worker_info

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.launch import largest_of_all_processes
from resobj_d2.process.signals import StopRequest, exit_status, outlive_signals

__all__ = ["EvaluationStopped", "InterruptHook", "RunInterrupted", "SteadyMapper"]

logger = logging.getLogger(__name__)


class RunInterrupted(SystemExit):
    """A signal stopped the run, whose checkpoint is written.

    Uncaught it ends the process without a traceback, with 128 + the signal's number: 130 after
    Ctrl-C.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(exit_status(signum))
        self.signum = signum


class EvaluationStopped(Exception):
    """An evaluation was left because the run is to stop."""


class SteadyMapper:
    """A dataset mapper whose worker process outlives a Ctrl-C, so that the last batches arrive.

    A terminal sends Ctrl-C to the workers of a data loader too, and a batch system its SIGTERM.
    Their parent ends them when it has written its checkpoint.
    """

    def __init__(self, mapper: Callable[[dict], dict | None]) -> None:
        self.mapper = mapper
        self._steady = False

    def __call__(self, record: dict) -> dict | None:
        if not self._steady and get_worker_info() is not None:
            outlive_signals()
        self._steady = True
        return self.mapper(record)


class InterruptHook(HookBase):
    """Stops at the end of an iteration, with a checkpoint, when a signal has come.

    It goes behind the hooks that change what a checkpoint holds, and before the evaluation's. Of
    several processes all stop after the same iteration, whichever of them got the signal.

    Args:
        checkpointer: that the run is resumed from.
        how_to_resume: printed at the end, e.g. a command line.
        before_saving: called in all processes before one of them writes the checkpoint.
    """

    def __init__(
        self,
        *,
        checkpointer: ResObjCheckpointer,
        how_to_resume: str,
        before_saving: Callable[[], None] = lambda: None,
    ) -> None:
        self.checkpointer = checkpointer
        self.before_saving = before_saving
        self.how_to_resume = how_to_resume
        message = (
            "Stopping after this iteration; a checkpoint will be written. "
            "Press Ctrl-C again to stop at once, without it."
        )
        self._request = StopRequest(
            message=message if comm.is_main_process() else "",
            launched=comm.get_world_size() > 1,
        )

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Around the training loop: signals are requests inside."""
        with self._request.listening():
            yield

    def after_step(self) -> None:
        signum = largest_of_all_processes(self._request.signum)
        if signum:
            self.stop(signum)

    def check_evaluation(self) -> None:
        """To be called for each batch of an evaluation.

        Raises:
            EvaluationStopped: a signal has come. Not where there are several processes: all have
                to take part in an evaluation to its end.
        """
        if self._request.signum and comm.get_world_size() == 1:
            raise EvaluationStopped

    def stop(self, signum: int | None = None) -> None:
        """Save, say how to go on, and leave.

        Raises:
            RunInterrupted: always.
        """
        iteration, max_iter = self.trainer.iter, self.trainer.max_iter
        self.before_saving()
        path = self._save(iteration) if comm.is_main_process() else ""
        # The launcher ends all processes when the first has ended.
        comm.synchronize()
        logger.info(
            "Stopped after iteration %d of %d, checkpoint %s. To go on: %s",
            min(iteration + 1, max_iter),
            max_iter,
            path,
            self.how_to_resume,
        )
        raise RunInterrupted(signum or self._request.signum)

    def _save(self, iteration: int) -> str:
        """The path of a checkpoint of this iteration, which may be there already."""
        if iteration >= self.trainer.max_iter:  # in the evaluation at the end
            return self.checkpointer.get_checkpoint_file()
        name = f"model_{iteration:07d}"
        present = {f"{name}.pth"}
        if iteration + 1 == self.trainer.max_iter:
            present.add("model_final.pth")
        last = self.checkpointer.last_saved
        if os.path.basename(last) in present:
            return last
        self.checkpointer.save(name, iteration=iteration)
        return self.checkpointer.last_saved
