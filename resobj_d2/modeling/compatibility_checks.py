"""Checks that the slots of a stream fit together, by the properties they declare."""

from __future__ import annotations

from collections.abc import Sequence

from .box_weights import BOX_WEIGHTS
from .contracts import ScoreBranch
from .stages import Stage

__all__ = ["check_compatibility"]


def check_compatibility(
    priors,
    coder,
    sampler,
    stages: Sequence[Stage],
    *,
    classify_background: bool,
    weighed_by: str,
    branches: Sequence[ScoreBranch],
) -> None:
    """Raises for combinations that would build and train but do not make sense.

    Args:
        classify_background: the class loss tells foreground from background.
        weighed_by: what boxes are weighed by; "none" for nothing.
        branches: the score branches.

    Raises:
        ValueError: the message names both slots.
    """
    if weighed_by not in BOX_WEIGHTS:
        raise ValueError(
            f"BOX_LOSS.WEIGHED_BY must be one of {', '.join(BOX_WEIGHTS)}, got {weighed_by!r}"
        )
    _check_sampler(sampler, stages, classify_background)
    _check_binary(stages[0], classify_background)
    offset = coder.anchor_offset
    if offset is not None and priors.offset != offset:
        raise ValueError(
            f"CODER {type(coder).__name__} is for anchors in the middle of their cells: "
            f"PRIORS.OFFSET must be {offset}, got {priors.offset}"
        )
    for stage in stages:
        if stage.box_loss is not None:
            _check_box_loss(stage.box_loss, stage.assigner, coder, weighed_by)
    if len(stages) > 1:
        _check_refinement(coder, stages[1:], weighed_by, branches)


def _check_refinement(
    coder, later: Sequence[Stage], weighed_by: str, branches: Sequence[ScoreBranch]
) -> None:
    """Raises for what only suits boxes that do not lie on their objects yet."""
    if not coder.refines and any(x.box is not None or x.repeats_box for x in later):
        raise ValueError(
            f"CODER {type(coder).__name__} measures boxes from a point and ignores the box that a "
            "stage of STAGES refines: take another coder, or stages with BOX none"
        )
    for branch in branches:
        if branch.single_stage:
            raise ValueError(f"{branch.node_name}: {branch.single_stage}")
    if weighed_by == "centerness":
        raise ValueError(
            "BOX_LOSS.WEIGHED_BY centerness is nearly 1 for the refined boxes of STAGES, whose "
            "centres are their objects': set it to iou, score or none"
        )


def _check_binary(first: Stage, classify_background: bool) -> None:
    if first.binary and not classify_background:
        raise ValueError(
            "FIRST_STAGE.CLS binary tells foreground from background, and so does OBJECTNESS: "
            "leave one of them out"
        )
    if first.binary and first.assigner.needs_predictions:
        raise ValueError(
            f"ASSIGNER {type(first.assigner).__name__} reads the class scores, so "
            "FIRST_STAGE.CLS must be own"
        )


def _check_sampler(sampler, stages: Sequence[Stage], classify_background: bool) -> None:
    """Raises if the sampler lacks the values that it ranks or bins anchors by."""
    name = type(sampler).__name__
    cls_loss = stages[0].cls_loss
    if sampler.needs_loss and classify_background and not cls_loss.ranks_anchors:
        raise ValueError(
            f"SAMPLER {name} ranks anchors by their class loss, but "
            f"{type(cls_loss).__name__} weighs anchors jointly and has no loss per anchor"
        )
    for stage in stages:
        if sampler.needs_ious and not stage.assigner.labels_by_iou:
            raise ValueError(
                f"SAMPLER {name} draws background by its IoU, but "
                f"{type(stage.assigner).__name__} does not use IoU: it would draw at random"
            )


def _check_box_loss(loss, assigner, coder, weighed_by: str) -> None:
    name = type(loss).__name__
    if loss.compares not in ("boxes", coder.delta_space):
        raise ValueError(
            f"BOX_LOSS {name} compares {loss.compares}, but CODER {type(coder).__name__} makes "
            f"{coder.delta_space}"
        )
    if weighed_by != "none" and not loss.takes_weights:
        raise ValueError(f"BOX_LOSS.WEIGHED_BY {weighed_by}: {name} takes no weights")
    if weighed_by != "none" and assigner.weighs_boxes:
        raise ValueError(
            f"BOX_LOSS.WEIGHED_BY {weighed_by}: {type(assigner).__name__} weighs the boxes already"
        )
    needless = assigner.weighs_by_size and loss.compares == "boxes"
    if assigner.weighs_boxes and (needless or not loss.takes_weights):
        raise ValueError(
            f"ASSIGNER {type(assigner).__name__} weighs the boxes, but BOX_LOSS {name} cannot"
        )
