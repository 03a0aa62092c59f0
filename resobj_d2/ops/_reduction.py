"""How the losses are reduced: the kernels sum, everything else is composed of plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._checks import as_dtype, require_floating, require_same_device

REDUCTIONS = ("none", "mean", "sum")


def check_reduction(
    op: str, reduction: str, weight: Tensor | None, shape: Sequence[int], like: Tensor
) -> None:
    """Raises, naming ``op``, unless the terms of ``shape`` can be weighted and reduced so.

    ``like`` is a tensor on the device of the terms.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"{op}: reduction must be none, mean or sum, got {reduction!r}")
    if weight is None:
        return
    require_floating(op, weight=weight)
    own = tuple(weight.shape)
    last = tuple(shape)[len(shape) - len(own) :]
    if len(own) > len(shape) or any(a not in (1, b) for a, b in zip(own, last, strict=True)):
        raise ValueError(f"{op}: weight must broadcast to the losses, {tuple(shape)}, got {own}")
    require_same_device(op, pred=like, weight=weight)


def is_plain_sum(reduction: str, weight: Tensor | None) -> bool:
    """Whether this is what the kernels compute."""
    return weight is None and reduction == "sum"


def reduce_terms(
    terms: Callable[[], Tensor],
    total: Callable[[], Tensor],
    shape: Sequence[int],
    counts: Tensor | None,
    weight: Tensor | None,
    reduction: str,
) -> Tensor:
    """The weighted terms, their sum, or their sum divided by the number of those that count.

    Args:
        terms: computes the losses one by one, of ``shape``; 0 where they do not count.
        total: computes their sum without a weight.
        counts: bool, which terms count; broadcasts to ``shape``. None for all.
        weight: broadcasts to ``shape``, or None. It does not change the divisor.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``; the mean of nothing is 0.
    """
    if weight is None and reduction != "none":
        summed = total()
    else:
        losses = terms() if weight is None else weighted(terms(), counts, weight)
        if reduction == "none":
            return losses
        summed = losses.sum()
    if reduction == "sum":
        return summed
    if counts is None:
        return summed / max(math.prod(shape), 1)
    return summed / counts.expand(shape).sum().clamp(min=1)


def weighted(losses: Tensor, counts: Tensor | None, weight: Tensor) -> Tensor:
    """The losses times the weight, whose values do not matter where nothing counts."""
    weight = as_dtype(weight, losses.dtype)
    if counts is not None:
        # 0 times NaN is NaN.
        weight = torch.where(counts, weight, weight.new_zeros(()))
    return losses * weight
