"""Checks that the slots of a stream fit together, by the properties they declare."""

from __future__ import annotations

from collections.abc import Sequence

from .stages import Stage

__all__ = ["check_compatibility"]


def check_compatibility(
    priors, coder, sampler, stages: Sequence[Stage], *, classify_background: bool, by_score: bool
) -> None:
    """Raises for combinations that would build and train but do not make sense.

    Args:
        classify_background: the class loss tells foreground from background.
        by_score: boxes are weighed by their class score.

    Raises:
        ValueError: the message names both slots.
    """
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
            _check_box_loss(stage.box_loss, stage.assigner, coder, by_score)


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


def _check_box_loss(loss, assigner, coder, by_score: bool) -> None:
    name = type(loss).__name__
    if loss.compares not in ("boxes", coder.delta_space):
        raise ValueError(
            f"BOX_LOSS {name} compares {loss.compares}, but CODER {type(coder).__name__} makes "
            f"{coder.delta_space}"
        )
    if by_score and not loss.takes_weights:
        raise ValueError(f"BOX_LOSS.WEIGHED_BY score: {name} takes no weights")
    if by_score and assigner.weighs_boxes:
        raise ValueError(
            f"BOX_LOSS.WEIGHED_BY score: {type(assigner).__name__} weighs the boxes already"
        )
    needless = assigner.weighs_by_size and loss.compares == "boxes"
    if assigner.weighs_boxes and (needless or not loss.takes_weights):
        raise ValueError(
            f"ASSIGNER {type(assigner).__name__} weighs the boxes, but BOX_LOSS {name} cannot"
        )
