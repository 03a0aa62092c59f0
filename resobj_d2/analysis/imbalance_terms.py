"""Losses that tell objects from background, and what each anchor has of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from resobj_d2 import ops
from resobj_d2.modeling.branches.objectness import ObjectnessBranch, ObjectnessPrediction
from resobj_d2.structures import LevelMaps, Targets

from .binning import bin_of
from .imbalance_tables import Imbalance

__all__ = ["Term", "add_levels", "add_term", "class_sizes", "objectness_terms"]


@dataclass(frozen=True, kw_only=True)
class Term:
    """A loss that tells objects from background.

    Attributes:
        loss: its name.
        value: of the probability, for the histograms.
        leaves: the tensors of its logits.
        sizes: from their gradients to (1, R) absolute values.
        probability: (1, R) of an object.
        per_anchor: (1, R) the loss of each anchor that is in it; None if there is no such thing.
    """

    loss: str
    value: str
    leaves: list[Tensor]
    sizes: Callable[[Sequence[Tensor]], Tensor]
    probability: Tensor
    per_anchor: Tensor | None


def objectness_terms(
    branch: ObjectnessBranch,
    predicted: ObjectnessPrediction,
    labels: Tensor,
    anchors_per_level: Sequence[int],
    *,
    prefix: str = "loss_",
    suffix: str = "",
) -> Iterator[Term]:
    """The base objectness and every residual step.

    Args:
        branch: with its rule.
        predicted: leaves.
        labels: (1, R) int8, 1 foreground, 0 background, -1 ignored.
        anchors_per_level: their numbers.
        prefix, suffix: of the losses' names.
    """
    rule = branch.residual_loss
    terms = ops.residual_objectness_bce(
        predicted.logits.detach(),
        predicted.residuals.detach(),
        labels,
        detach=rule.detach,
        min_scope=rule.min_scope,
        unselected=rule.unselected,
        anchors_per_level=list(anchors_per_level) if rule.min_scope == "level" else [],
        reduction="none",
    )
    for step in range(len(predicted.residuals) + 1):
        name = "objectness" if step == 0 else f"residual_{step}"
        yield Term(
            loss=f"{prefix}{name}{suffix}",
            value=f"objectness step {step}{suffix}",
            leaves=[predicted.residuals if step else predicted.logits],
            sizes=partial(_objectness_sizes, step=step),
            probability=torch.sigmoid(branch.score_logits(predicted, step)).detach(),
            per_anchor=terms.losses[step],
        )


def class_sizes(gradients: Sequence[Tensor], *, channels: int) -> Tensor:
    """(1, R) sums of absolute gradients over an anchor's classes.

    Args:
        gradients: of the maps of each level.
        channels: of an anchor.
    """
    return LevelMaps(list(gradients), channels).flatten().abs().sum(dim=-1)


def _objectness_sizes(gradients: Sequence[Tensor], *, step: int) -> Tensor:
    return (gradients[0][step - 1] if step else gradients[0]).abs()


def add_term(result: Imbalance, stream: str, term: Term, loss: Tensor, targets: Targets) -> None:
    """Add the shares of one loss and the histogram of its probabilities.

    Args:
        result: is changed.
        stream: whose loss it is.
        term: what it is made of.
        loss: scalar, with a graph to the leaves.
        targets: of the anchors, before sampling.
    """
    gradients = torch.autograd.grad(loss, term.leaves, retain_graph=True, allow_unused=True)
    if gradients[0] is not None:
        _add_shares(result, stream, term, gradients, targets, loss.item())
    _add_histogram(result, (stream, term.value), term.probability, targets)


def add_levels(
    result: Imbalance, key: tuple[str, int], targets: Targets, anchors_per_level: Sequence[int]
) -> None:
    """Add the numbers of positive, negative and ignored anchors of each level.

    Args:
        result: is changed.
        key: stream and stage.
        targets: of the anchors, before sampling.
        anchors_per_level: their numbers.
    """
    kinds = (targets.foreground, targets.background, ~targets.valid)
    for level, parts in enumerate(
        zip(*(k.split(list(anchors_per_level), 1) for k in kinds), strict=True)
    ):
        counts = np.array([int(part.sum()) for part in parts], dtype=float)
        place = (*key, level)
        result.levels[place] = result.levels.get(place, 0) + counts


def _add_shares(
    result: Imbalance,
    stream: str,
    term: Term,
    gradients: Sequence[Tensor],
    targets: Targets,
    total: float,
) -> None:
    size = term.sizes(gradients)
    trained = size > 0
    easy = term.probability < result.easy
    background = ~targets.foreground
    # Weighted and divided as the gradients are: together they are the loss.
    scale = float("nan")
    if term.per_anchor is not None:
        whole = float(term.per_anchor[trained].double().sum())
        scale = total / whole if whole > 0 else 0.0
    rows = []
    for group in (targets.foreground, background & ~easy, background & easy):
        chosen = trained & group
        loss = 0.0 if term.per_anchor is None else float(term.per_anchor[chosen].double().sum())
        rows.append([float(chosen.sum()), loss * scale, float(size[chosen].double().sum())])
    key = (stream, term.loss)
    result.shares[key] = result.shares.get(key, 0) + np.array(rows)


def _add_histogram(
    result: Imbalance, key: tuple[str, str], probability: Tensor, targets: Targets
) -> None:
    places = bin_of(probability.cpu().numpy(), result.bins)
    counts = [
        np.bincount(places[group.cpu().numpy()], minlength=result.bins)
        for group in (targets.background, targets.foreground)
    ]
    result.histograms[key] = result.histograms.get(key, 0) + np.array(counts, dtype=float)
