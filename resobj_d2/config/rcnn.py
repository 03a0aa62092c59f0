"""The configuration keys of the two stages of Detectron2's R-CNNs."""

from __future__ import annotations

from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY
from fvcore.common.config import CfgNode
from fvcore.common.registry import Registry

from resobj_d2.losses import BOX_LOSS_REGISTRY, NORMALIZER_REGISTRY, QualityLoss
from resobj_d2.matching import SAMPLER_REGISTRY
from resobj_d2.modeling import (
    ObjectnessBranch,
    ResObjBoxPredictor,
    ResObjCascadeROIHeads,
    ResObjROIHeads,
    ResObjRPN,
)
from resobj_d2.modeling.suppression import Suppression

from .dense import branch_keys
from .keys import Condition, Key, owner_keys, slot_keys, value_of

__all__ = ["RCNN", "rcnn_keys"]

RCNN = Condition("MODEL.META_ARCHITECTURE", ("GeneralizedRCNN", "ProposalNetwork", "PanopticFPN"))


def _is_a(key: str, registry: Registry, *bases: type) -> Condition:
    """What a key names is one of these classes, or inherits from one, as one of yours may."""

    def test(cfg: CfgNode) -> bool:
        name = value_of(cfg, key)
        return name in registry and issubclass(registry.get(name), bases)

    names = " or ".join(base.__name__ for base in bases)
    return Condition(
        path=key, values=tuple(base.__name__ for base in bases), test=test, text=f"{key} {names}"
    )


RPN = (RCNN, _is_a("MODEL.PROPOSAL_GENERATOR.NAME", PROPOSAL_GENERATOR_REGISTRY, ResObjRPN))
RPN_OBJECTNESS = Condition("MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", (True,))
WITH_HEADS = Condition("MODEL.META_ARCHITECTURE", ("GeneralizedRCNN", "PanopticFPN"))
ROI = (
    WITH_HEADS,
    _is_a("MODEL.ROI_HEADS.NAME", ROI_HEADS_REGISTRY, ResObjROIHeads, ResObjCascadeROIHeads),
)
# Detectron2 has keys of its own for these: BATCH_SIZE_PER_IMAGE and POSITIVE_FRACTION.
DETECTRON2_OPTIONS = ("SIZE", "POSITIVE_FRACTION")


def rcnn_keys() -> list[Key]:
    """Those of ``MODEL.RESOBJ_RPN`` and ``MODEL.RESOBJ_ROI``."""
    return [*_rpn_keys("MODEL.RESOBJ_RPN"), *_roi_keys("MODEL.RESOBJ_ROI")]


def _rpn_keys(path: str) -> list[Key]:
    objectness = branch_keys(
        f"{path}.OBJECTNESS",
        ObjectnessBranch,
        when=RPN,
        reader="ObjectnessBranch",
        # The base reads the head's 3x3 convolution, as in every RPN.
        defaults={"BASE_CONVS": 0},
    )
    sampler = slot_keys(
        f"{path}.SAMPLER",
        SAMPLER_REGISTRY,
        name="",
        reader="ResObjRPN",
        when=RPN,
        omit=DETECTRON2_OPTIONS,
    )
    # Divides the sums of OBJECTNESS.
    normalizer = slot_keys(
        f"{path}.NORMALIZER",
        NORMALIZER_REGISTRY,
        name="ForegroundCount",
        reader="ResObjRPN",
        when=(*RPN, RPN_OBJECTNESS),
    )
    return [*objectness, *sampler, *normalizer]


def _roi_keys(path: str) -> list[Key]:
    # Divided by the sampled RoIs; its weight is MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT.
    box_loss = slot_keys(
        f"{path}.BOX_LOSS", BOX_LOSS_REGISTRY, name="", reader="ResObjROIHeads", when=ROI
    )
    sampler = slot_keys(
        f"{path}.SAMPLER",
        SAMPLER_REGISTRY,
        name="",
        reader="ResObjROIHeads",
        when=ROI,
        defaults={"NMS_THRESH": 0.7},  # the OHEM paper's
        omit=DETECTRON2_OPTIONS,
    )
    quality = branch_keys(
        f"{path}.QUALITY", ResObjBoxPredictor, when=ROI, reader="ResObjBoxPredictor"
    )
    there = (*ROI, Condition(f"{path}.QUALITY.ENABLED", (True,)))
    # Its threshold is MODEL.ROI_HEADS.NMS_THRESH_TEST.
    suppression = owner_keys(
        path, Suppression, reader="ResObjROIHeads", when=ROI, omit=("NMS_THRESH",)
    )
    return [
        *suppression,
        *box_loss,
        *sampler,
        *quality,
        *owner_keys(f"{path}.QUALITY", QualityLoss, reader="ResObjBoxPredictor", when=there),
    ]
