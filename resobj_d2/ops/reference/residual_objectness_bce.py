"""Algorithm 1 of Residual Objectness in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def residual_objectness_bce(
    logits: Tensor,
    residuals: Tensor,
    labels: Tensor,
    detach: str = "all",
    min_scope: str = "image",
    unselected: str = "update",
    anchors_per_level: Sequence[int] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Algorithm 1 of Residual Objectness, step by step. Gradients come from autograd.

    See :func:`resobj_d2.ops.residual_objectness_bce`.
    """
    losses, *others = residual_objectness_terms(
        logits, residuals, labels, detach, min_scope, unselected, anchors_per_level
    )
    counts, thresholds, scores, numbers = others
    return losses.sum(dim=(1, 2)), counts, thresholds, scores, numbers


def residual_objectness_terms(
    logits: Tensor,
    residuals: Tensor,
    labels: Tensor,
    detach: str,
    min_scope: str,
    unselected: str,
    anchors_per_level: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same with the terms of the sums, (T+1, N, R), 0 for anchors that are not in a sum."""
    valid = labels >= 0
    foreground = labels > 0
    losses = [_masked_bce(logits, foreground, valid)]
    counts = [valid.sum()]
    kinds = torch.stack((labels == 0, foreground))
    scores = [_score_sums(logits, kinds)]
    thresholds: list[Tensor] = []
    previous = logits.detach() if detach == "objectness" else logits
    for residual in residuals:
        if detach == "all":
            previous = previous.detach()
        minima = foreground_minima(previous.detach(), foreground, min_scope, anchors_per_level)
        selected = valid & selected_by(previous, minima, min_scope, anchors_per_level)
        updated = previous + residual
        losses.append(_masked_bce(updated, foreground, selected))
        counts.append(selected.sum())
        thresholds.append(minima)
        previous = updated if unselected == "update" else torch.where(selected, updated, previous)
        scores.append(_score_sums(previous, kinds))
    num_groups = count_groups(logits.shape[0], min_scope, anchors_per_level)
    return (
        torch.stack(losses),
        torch.stack(counts),
        torch.stack(thresholds) if thresholds else logits.new_empty(0, num_groups),
        torch.stack(scores),
        kinds.sum(dim=(1, 2)),
    )


def residual_objectness_bce_backward(
    grad_losses: Tensor,
    logits: Tensor,
    residuals: Tensor,
    labels: Tensor,
    thresholds: Tensor,
    detach: str,
    min_scope: str,
    unselected: str,
    anchors_per_level: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """Gradients of ``sum(grad_losses * losses)`` with respect to the logits and the residuals."""
    valid = labels >= 0
    foreground = (labels > 0).to(logits.dtype)
    grads = [_masked(grad_losses[0] * (torch.sigmoid(logits) - foreground), valid)]
    entered: list[Tensor] = []
    previous = logits
    for t, residual in enumerate(residuals):
        selected = valid & selected_by(previous, thresholds[t], min_scope, anchors_per_level)
        updated = previous + residual
        bce_grad = grad_losses[t + 1] * (torch.sigmoid(updated) - foreground)
        grads.append(_masked(bce_grad, selected))
        entered.append(selected if unselected == "keep" else torch.ones_like(selected))
        previous = torch.where(entered[-1], updated, previous)
    if detach == "all":
        grad_residuals = grads[1:]
        grad_logits = grads[0]
    else:
        # L_s reaches every residual that is part of o_s: sum over s >= t.
        reaching = list(grads)
        for t in range(len(grads) - 2, -1, -1):
            reaching[t] = reaching[t] + reaching[t + 1]
        grad_residuals = [_masked(g, e) for g, e in zip(reaching[1:], entered, strict=True)]
        grad_logits = grads[0] if detach == "objectness" else reaching[0]
    stacked = torch.stack(grad_residuals) if grad_residuals else torch.empty_like(residuals)
    return grad_logits, stacked


def foreground_minima(
    logits: Tensor, foreground: Tensor, min_scope: str, anchors_per_level: Sequence[int]
) -> Tensor:
    """(G,) smallest foreground logit per group; +inf without foreground, NaN if any is NaN."""
    if min_scope == "none":
        return logits.new_full((1,), -torch.inf)
    values = logits.masked_fill(~foreground, torch.inf)
    if min_scope == "image":
        groups = values
    elif min_scope == "batch":
        groups = values.reshape(1, -1)
    else:
        levels = [level.reshape(-1) for level in values.split(list(anchors_per_level), dim=1)]
        # +inf is appended to each, as amin rejects an empty level.
        return torch.stack([F.pad(level, (0, 1), value=torch.inf).amin() for level in levels])
    return F.pad(groups, (0, 1), value=torch.inf).amin(dim=1)


def selected_by(
    logits: Tensor, minima: Tensor, min_scope: str, anchors_per_level: Sequence[int]
) -> Tensor:
    """(N, R) mask of ``logits >= minima`` of the anchor's group; False if the minimum is +inf.

    Written as "not below", so that a NaN is selected and shows up in the loss of that step.
    """
    if min_scope == "image":
        minima = minima[:, None]
    elif min_scope == "level":
        sizes = torch.tensor(anchors_per_level, device=minima.device)
        minima = minima.repeat_interleave(sizes, output_size=logits.shape[1])
    return ~(logits < minima) & (minima != torch.inf)


def count_groups(num_images: int, min_scope: str, anchors_per_level: Sequence[int]) -> int:
    """G, the number of minima per step."""
    return {"image": num_images, "level": len(anchors_per_level)}.get(min_scope, 1)


def _score_sums(logits: Tensor, kinds: Tensor) -> Tensor:
    """(K,) sums of the sigmoid over the anchors of each of K masks, given as (K, N, R)."""
    return _masked(torch.sigmoid(logits.detach()), kinds).sum(dim=(1, 2))


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, values.new_zeros(()))


def _masked_bce(logits: Tensor, foreground: Tensor, mask: Tensor) -> Tensor:
    # Masked before and after, so that a NaN outside the mask reaches neither sum nor gradient.
    logits = _masked(logits, mask)
    bce = -F.logsigmoid(torch.where(foreground, logits, -logits))
    return _masked(bce, mask)
