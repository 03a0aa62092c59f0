"""The configuration keys of the two stages of Detectron2's R-CNNs."""

from __future__ import annotations

from fvcore.common.config import CfgNode

from .dense import (
    add_box_loss_options,
    add_objectness,
    add_quality_options,
    add_sampler_options,
)

__all__ = ["add_roi", "add_rpn"]


def add_rpn(cfg: CfgNode, node_type: type) -> None:
    """Used where MODEL.PROPOSAL_GENERATOR.NAME is ResObjRPN and MODEL.RPN.HEAD_NAME ResObjRPNHead.

    The defaults are Detectron2's RPN, whose keys MODEL.RPN.* keep their meanings.
    """
    rpn = cfg.MODEL.RESOBJ_RPN = node_type()
    add_objectness(rpn, node_type)
    # The base reads the head's 3x3 convolution, as in every RPN.
    rpn.OBJECTNESS.BASE_CONVS = 0

    rpn.SAMPLER = node_type()
    # "" is Detectron2's random sampling; otherwise as MODEL.DENSE.SAMPLER.NAME. SIZE and
    # POSITIVE_FRACTION are MODEL.RPN.BATCH_SIZE_PER_IMAGE and MODEL.RPN.POSITIVE_FRACTION,
    # NEGATIVE_IOU the lower one of MODEL.RPN.IOU_THRESHOLDS.
    rpn.SAMPLER.NAME = ""
    add_sampler_options(rpn.SAMPLER)

    # Divides the sums of OBJECTNESS; as MODEL.DENSE.NORMALIZER.
    rpn.NORMALIZER = node_type()
    rpn.NORMALIZER.NAME = "ForegroundCount"
    rpn.NORMALIZER.INITIAL = 100.0
    rpn.NORMALIZER.MOMENTUM = 0.9


def add_roi(cfg: CfgNode, node_type: type) -> None:
    """Used where MODEL.ROI_HEADS.NAME is ResObjROIHeads or ResObjCascadeROIHeads.

    The defaults are Detectron2's heads, whose keys keep their meanings.
    """
    roi = cfg.MODEL.RESOBJ_ROI = node_type()
    roi.BOX_LOSS = node_type()
    # "" is Detectron2's loss; otherwise as MODEL.DENSE.BOX_LOSS.NAME. It is divided by the sampled
    # RoIs; its weight is MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT.
    roi.BOX_LOSS.NAME = ""
    add_box_loss_options(roi.BOX_LOSS)

    roi.SAMPLER = node_type()
    # "" is Detectron2's random sampling; otherwise as MODEL.DENSE.SAMPLER.NAME. SIZE and
    # POSITIVE_FRACTION are MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE and
    # MODEL.ROI_HEADS.POSITIVE_FRACTION, NEGATIVE_IOU the lowest of MODEL.ROI_HEADS.IOU_THRESHOLDS.
    roi.SAMPLER.NAME = ""
    add_sampler_options(roi.SAMPLER)
    roi.SAMPLER.NMS_THRESH = 0.7  # the OHEM paper's

    # The predicted IoU of a detected box with its object; see MODEL.DENSE.QUALITY.
    add_quality_options(roi, node_type)
