"""Hooks of the training loop; they also serve stock Detectron2 models."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from torch import nn

from resobj_d2.process import replacing

__all__ = ["EvaluationHook", "NonFiniteLossError", "NonFiniteLossGuard", "StatisticsHook"]


class NonFiniteLossError(FloatingPointError):
    """A loss became NaN or infinite."""


class EvaluationHook(hooks.EvalHook):
    """Detectron2's, but a run that ends within its last iteration is not evaluated.

    A signal or an error has ended it then, and of several processes perhaps only one.
    """

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()


class NonFiniteLossGuard(HookBase):
    """Stop at the first non-finite loss, say which, and keep the batch that caused it.

    Works on any model whose training forward returns a dict of losses. The error names the
    loss terms, the iteration and the images; the batch lies in
    ``<output_dir>/nonfinite_batch_rank<r>.pth`` for ``torch.load(..., weights_only=False)``.
    """

    def __init__(self, *, output_dir: str) -> None:
        self.output_dir = output_dir
        self._handle = None

    def before_train(self) -> None:
        self._handle = self.trainer.model.register_forward_hook(self._check)

    def after_train(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _check(self, model: nn.Module, inputs: tuple, losses: object) -> None:
        if not model.training or not isinstance(losses, dict):
            return
        values = torch.stack([v.detach().float() for v in losses.values()])
        if torch.isfinite(values).all():  # Detectron2 reads the losses every iteration as well
            return
        bad = {k: v.item() for k, v in losses.items() if not torch.isfinite(v.detach()).item()}
        batch = inputs[0]
        images = [x.get("image_id", x.get("file_name", "?")) for x in batch]
        path = os.path.join(self.output_dir, f"nonfinite_batch_rank{comm.get_rank()}.pth")
        with replacing(path, binary=True) as file:
            torch.save({"iteration": self.trainer.iter, "losses": bad, "batch": batch}, file)
        raise NonFiniteLossError(
            f"non-finite loss at iteration {self.trainer.iter}: {bad}; images {images}; "
            f"the batch is saved in {path}. A lower SOLVER.BASE_LR, a longer warm-up or "
            f"SOLVER.CLIP_GRADIENTS usually helps; broken boxes in these images are the other "
            f"usual cause."
        )


class StatisticsHook(HookBase):
    """Log what the parts of the detector measured of their last batch (``module.statistics``).

    The tensors stay on the device until the logging period ends. Register it before the writers'
    hook.

    Args:
        period: iterations between two readings.
        on_end: called on the main process when training has reached its end, e.g. to draw.
    """

    def __init__(self, *, period: int = 20, on_end: Callable[[], None] | None = None) -> None:
        self.period = period
        self.on_end = on_end
        self._sources: list[nn.Module] = []
        self._pending: list[dict[str, torch.Tensor]] = []

    def before_train(self) -> None:
        modules = self.trainer.model.modules()
        self._sources = [m for m in modules if isinstance(getattr(m, "statistics", None), dict)]

    def after_step(self) -> None:
        statistics = {k: x for module in self._sources for k, x in module.statistics.items()}
        if not statistics:
            return
        self._pending.append(statistics)
        last = self.trainer.iter + 1 == self.trainer.max_iter
        if len(self._pending) >= self.period or last:
            self._log()

    def _log(self) -> None:
        """The mean over the period, leaving out batches without a value (NaN)."""
        names = list(self._pending[-1])
        rows = [
            torch.stack([s[n].float() for n in names]) for s in self._pending if list(s) == names
        ]
        means = torch.nanmean(torch.stack(rows), dim=0).tolist()
        self._pending.clear()
        storage = self.trainer.storage
        for name, mean in zip(names, means, strict=True):
            if mean == mean:
                storage.put_scalar(name, mean, smoothing_hint=False)

    def after_train(self) -> None:
        # after_train also runs when training failed; drawing then could hide the reason.
        finished = self.trainer.iter >= self.trainer.max_iter
        if self.on_end is not None and finished and comm.is_main_process():
            self.on_end()
