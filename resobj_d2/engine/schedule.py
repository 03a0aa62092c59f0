"""Learning-rate schedules beyond Detectron2's."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from detectron2.solver import LRMultiplier, build_lr_scheduler
from fvcore.common.param_scheduler import ParamScheduler

__all__ = ["BurnIn", "build_schedule"]


class BurnIn(ParamScheduler):
    """Darknet's: ``((i + 1) / burn_in)^power`` at first, then steps down by ``gamma``.

    Args:
        steps: iterations at which the rate falls.
        gamma: factor of each fall.
        burn_in: iterations that the rise takes.
        power: its exponent.
        max_iter: iterations of the whole run, in which the schedule counts its time.
    """

    def __init__(
        self, *, steps: Sequence[int], gamma: float, burn_in: int, power: int, max_iter: int
    ) -> None:
        self.steps = sorted(steps)
        self.gamma = gamma
        self.burn_in = burn_in
        self.power = power
        self.max_iter = max_iter

    def __call__(self, where: float) -> float:
        """The factor of the base rate at a part of the run in [0, 1)."""
        iteration = round(where * self.max_iter)
        rise = min(1.0, (iteration + 1) / max(self.burn_in, 1)) ** self.power
        return rise * self.gamma ** bisect_right(self.steps, iteration)


def build_schedule(cfg, optimizer):
    """Detectron2's schedule, and ``SOLVER.WARMUP_METHOD: power4``, the burn-in of Darknet.

    Raises:
        ValueError: power4 with another schedule than WarmupMultiStepLR.
    """
    solver = cfg.SOLVER
    if solver.WARMUP_METHOD != "power4":
        return build_lr_scheduler(cfg, optimizer)
    if solver.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        raise ValueError(
            "SOLVER.WARMUP_METHOD power4 is for LR_SCHEDULER_NAME WarmupMultiStepLR, got "
            f"{solver.LR_SCHEDULER_NAME}"
        )
    burn_in = BurnIn(
        steps=solver.STEPS,
        gamma=solver.GAMMA,
        burn_in=solver.WARMUP_ITERS,
        power=4,
        max_iter=solver.MAX_ITER,
    )
    return LRMultiplier(optimizer, multiplier=burn_in, max_iter=solver.MAX_ITER)
