"""Refusal of runs that cannot work, before data and model are made."""

from __future__ import annotations

import math

import torch
from fvcore.common.config import CfgNode

from resobj_d2.modeling.stage_options import StageOptions

__all__ = ["check_run", "check_values"]


def check_values(cfg: CfgNode) -> None:
    """Refuse values that no command can work with, training or not.

    Raises:
        ValueError: see the messages.
    """
    for node in (cfg.MODEL.DENSE, cfg.MODEL.DENSE.ANCHOR_FREE):
        for i, entry in enumerate(node.STAGES):
            try:
                StageOptions.from_entry(entry)
            except ValueError as error:
                raise ValueError(f"STAGES[{i}]: {error}") from error


def check_run(cfg: CfgNode) -> None:
    """Refuse by the key's name what Detectron2 and torch refuse without it, later, or ignore.

    Raises:
        ValueError: see the messages.
    """
    solver = cfg.SOLVER
    if solver.IMS_PER_BATCH < 1:
        raise ValueError(f"SOLVER.IMS_PER_BATCH must be at least 1, got {solver.IMS_PER_BATCH}")
    if not 0 <= solver.BASE_LR < math.inf:
        raise ValueError(
            f"SOLVER.BASE_LR must be a finite number and not negative, got {solver.BASE_LR}"
        )
    _check_steps(solver)
    if not 0 <= solver.EMA_DECAY < 1:
        raise ValueError(f"SOLVER.EMA_DECAY must be in [0, 1), got {solver.EMA_DECAY}")
    _check_trainer(cfg)
    if solver.AMP.ENABLED and torch.device(cfg.MODEL.DEVICE).type != "cuda":
        raise ValueError(
            f"SOLVER.AMP.ENABLED needs a GPU, but MODEL.DEVICE is {cfg.MODEL.DEVICE}: set "
            "SOLVER.AMP.ENABLED False"
        )


def _check_trainer(cfg: CfgNode) -> None:
    solver = cfg.SOLVER
    for key, value in (
        ("SOLVER.CHECKPOINT_KEEP", solver.CHECKPOINT_KEEP),
        ("TEST.PATIENCE", cfg.TEST.PATIENCE),
        ("TEST.SAMPLE_PICTURES", cfg.TEST.SAMPLE_PICTURES),
    ):
        if value < 0:
            raise ValueError(f"{key} must not be negative, got {value}")
    parts = solver.ACCUMULATION_STEPS
    if parts < 1 or solver.IMS_PER_BATCH % parts:
        raise ValueError(
            f"SOLVER.ACCUMULATION_STEPS must be at least 1 and divide SOLVER.IMS_PER_BATCH "
            f"{solver.IMS_PER_BATCH}, got {parts}"
        )
    unknown = sorted(set(cfg.WRITERS) - {"csv", "wandb"})
    if unknown:
        raise ValueError(f"WRITERS are csv and wandb, got {', '.join(map(str, unknown))}")


def _check_steps(solver: CfgNode) -> None:
    if solver.LR_SCHEDULER_NAME != "WarmupMultiStepLR":
        return
    beyond = [step for step in solver.STEPS if step >= solver.MAX_ITER]
    if beyond:
        scale = solver.MAX_ITER / (max(solver.STEPS) * 9 / 8)
        fitting = tuple(int(step * scale) for step in solver.STEPS)
        # At iteration 0, or twice at the same one, it would not be the schedule that was meant.
        useful = fitting and min(fitting) > 0 and len(set(fitting)) == len(fitting)
        form = f'"{fitting}", or "()" for a constant rate' if useful else '"()", a constant rate'
        raise ValueError(
            f"SOLVER.STEPS {tuple(solver.STEPS)} are not all below SOLVER.MAX_ITER "
            f"{solver.MAX_ITER}, so the learning rate would not drop: give SOLVER.STEPS {form}"
        )
