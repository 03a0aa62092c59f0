"""Lines and bars that show how far a training or an evaluation is."""

from __future__ import annotations

import datetime
import logging
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping

import torch
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm

from resobj_d2.modeling.test_time_augmentation import with_augmentation
from resobj_d2.process import progress_bar
from resobj_d2.process.console import CONSOLE_ONLY

from .summary import Contents

__all__ = ["EvaluationProgress", "ProgressHook", "duration", "evaluate_with_progress"]

logger = logging.getLogger(__name__)


def duration(seconds: float) -> str:
    """As ``h:mm:ss``, without the hours where there are none."""
    text = str(datetime.timedelta(seconds=round(seconds)))
    return text[2:] if text.startswith("0:") else text


class ProgressHook(HookBase):
    """One line at the first iteration, after each period and at the last one; a bar on a terminal.

    It goes behind the hook of the learning rate and before that of the evaluation, whose time does
    not count.

    Args:
        period: iterations between two lines; the figures are medians and means over as many.
    """

    def __init__(self, *, period: int = 20) -> None:
        self.period = period
        self._bar = None
        self._seconds: deque[float] = deque(maxlen=period)
        self._start = 0.0

    def before_train(self) -> None:
        self._bar = progress_bar(
            total=self.trainer.max_iter,
            done=self.trainer.start_iter,
            label="training",
            unit="it",
        )

    def before_step(self) -> None:
        self._start = time.perf_counter()

    def after_step(self) -> None:
        self._seconds.append(time.perf_counter() - self._start)
        if self._bar is not None:
            self._bar.update()
        done = self.trainer.iter + 1
        first, last = self.trainer.iter == self.trainer.start_iter, done == self.trainer.max_iter
        if first or last or done % self.period == 0:
            # log.txt has Detectron2's line.
            logger.info(self._line(done), extra=CONSOLE_ONLY)

    def after_train(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _line(self, done: int) -> str:
        max_iter = self.trainer.max_iter
        seconds = sum(self._seconds) / len(self._seconds)
        parts = [
            f"{done:{len(str(max_iter))}d}/{max_iter}",
            self._losses(),
            f"lr {self._value('lr'):.3g}",
            f"{seconds:.3g} s/iteration",
            f"ETA {duration(seconds * (max_iter - done))}",
        ]
        if torch.cuda.is_available():
            parts.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
        return "  ".join(parts)

    def _losses(self) -> str:
        names = [name for name in self.trainer.storage.histories() if name.startswith("loss_")]
        terms = ", ".join(f"{name.removeprefix('loss_')} {self._value(name):.3g}" for name in names)
        return f"loss {self._value('total_loss'):.4g}" + (f" ({terms})" if terms else "")

    def _value(self, name: str) -> float:
        """The median over the last period, as the losses jump from batch to batch."""
        histories = self.trainer.storage.histories()
        if name not in histories:
            return float("nan")
        history = histories[name]
        return history.latest() if name == "lr" else history.median(len(self._seconds))


class EvaluationProgress(DatasetEvaluator):
    """Beside an evaluator: a bar on a terminal, elsewhere a line now and then.

    Args:
        name: of the dataset.
        total: images of this process.
        check: called for each batch; what it raises ends the evaluation.
        period: seconds between two lines.
    """

    def __init__(
        self,
        *,
        name: str,
        total: int,
        check: Callable[[], None] = lambda: None,
        period: float = 30.0,
    ) -> None:
        self.name = name
        self.total = total
        self.period = period
        self._check = check
        self._bar = None
        self._done = 0
        self._start = self._last = 0.0

    def reset(self) -> None:
        self._close()
        self._done = 0
        self._start = self._last = time.monotonic()
        self._bar = progress_bar(total=self.total, label=f"evaluating {self.name}", unit="img")

    def process(self, inputs: list, outputs: list) -> None:
        try:
            self._check()
        except BaseException:
            self._close()
            raise
        self._done += len(inputs)
        if self._bar is not None:
            self._bar.update(len(inputs))
            return
        now = time.monotonic()
        if now - self._last >= self.period:
            self._last = now
            left = (now - self._start) / self._done * max(self.total - self._done, 0)
            logger.info(
                "evaluating %s: %d/%d images, ETA %s",
                self.name,
                self._done,
                self.total,
                duration(left),
                extra=CONSOLE_ONLY,
            )

    def evaluate(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def evaluate_with_progress(
    trainer: type[DefaultTrainer],
    cfg,
    model,
    *,
    contents: Mapping[str, Contents],
    check: Callable[[], None] = lambda: None,
) -> OrderedDict:
    """Evaluate on all of ``DATASETS.TEST``, with ``TEST.AUG``, and show how far it is.

    Args:
        contents: of the datasets, on the main process.
        check: called for each batch.
    """
    evaluators = []
    for name in cfg.DATASETS.TEST:
        images = contents[name].images if name in contents else 0
        progress = EvaluationProgress(
            name=name, total=math.ceil(images / comm.get_world_size()), check=check
        )
        evaluators.append(DatasetEvaluators([progress, trainer.build_evaluator(cfg, name)]))
    return trainer.test(cfg, with_augmentation(cfg, model), evaluators)
