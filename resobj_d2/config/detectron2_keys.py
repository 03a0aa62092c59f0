"""Who reads Detectron2's own keys, and which of its registries its names come from."""

from __future__ import annotations

from detectron2.modeling import (
    ANCHOR_GENERATOR_REGISTRY,
    META_ARCH_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_BOX_HEAD_REGISTRY,
    ROI_HEADS_REGISTRY,
    ROI_KEYPOINT_HEAD_REGISTRY,
    ROI_MASK_HEAD_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from fvcore.common.config import CfgNode

from resobj_d2.matching import SAMPLER_REGISTRY
from resobj_d2.options import options_of

from .backbones import OWN_BACKBONES, backbone_chain, has_backbone
from .keys import Condition, Reader, value_of
from .rcnn import RCNN, ROI, RPN, WITH_HEADS

__all__ = ["ARCHITECTURES", "DETECTRON2_READERS", "MODES", "NAMES"]

# What is known to read nothing but what is listed here and by our own keys. Another architecture,
# of the user's, may read any key.
ARCHITECTURES = (
    "ResObjDenseDetector", "RetinaNet", "GeneralizedRCNN", "ProposalNetwork", "PanopticFPN",
    "SemanticSegmentor",
)  # fmt: skip


def _architecture(*names: str) -> Condition:
    return Condition("MODEL.META_ARCHITECTURE", names)


MASKS = Condition("MODEL.MASK_ON", (True,))
KEYPOINTS = Condition("MODEL.KEYPOINT_ON", (True,))
PROPOSALS = Condition("MODEL.LOAD_PROPOSALS", (True,))


def _named(part: str) -> Condition:
    return Condition(
        test=lambda cfg: any(part in name for name in backbone_chain(cfg)),
        text=f"a backbone whose name has {part!r}",
    )


def _lacks(cfg: CfgNode, conditions: tuple[Condition, ...]) -> bool:
    return not all(condition.holds(cfg) for condition in conditions)


def _has_nms_threshold(cfg: CfgNode) -> bool:
    return cfg.MODEL.RESOBJ_ROI.NMS in ("greedy", "soft_linear")


def _sampler_with(option: str, node: str, there: tuple[Condition, ...]) -> Condition:
    """Detectron2's sampling, or one of ours that declares the option."""

    def test(cfg: CfgNode) -> bool:
        name = value_of(cfg, f"{node}.SAMPLER.NAME")
        if not name or _lacks(cfg, there) or name not in SAMPLER_REGISTRY:
            return True
        return any(option == known.key for known in options_of(SAMPLER_REGISTRY.get(name)))

    having = sorted(
        name for name, entry in SAMPLER_REGISTRY if option in [x.key for x in options_of(entry)]
    )
    return Condition(
        test=test, text=f"{node}.SAMPLER.NAME {', '.join(having)} or empty (Detectron2's)"
    )


# Detectron2's keys by what they begin with, and who reads them; the longest counts.
DETECTRON2_READERS: dict[str, tuple[Reader, ...]] = {
    "MODEL.RETINANET.": (Reader("RetinaNet", (_architecture("RetinaNet"),)),),
    "MODEL.FCOS.": (Reader("FCOS", (_architecture("FCOS"),)),),
    "MODEL.ANCHOR_GENERATOR.": (
        Reader("RetinaNet", (_architecture("RetinaNet"),)),
        Reader("the RPN", (RCNN,)),
    ),
    "MODEL.PROPOSAL_GENERATOR.": (Reader("the RPN", (RCNN,)),),
    "MODEL.RPN.": (Reader("the RPN", (RCNN,)),),
    # BATCH_SIZE_PER_IMAGE also divides the RPN's box loss, whatever samples.
    "MODEL.RPN.POSITIVE_FRACTION": (
        Reader("the RPN", (RCNN, _sampler_with("POSITIVE_FRACTION", "MODEL.RESOBJ_RPN", RPN))),
    ),
    # Detectron2's own files set keys of all heads, whichever there are.
    "MODEL.ROI_": (Reader("the RoI heads", (RCNN,)),),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": (
        Reader("the RoI heads", (RCNN, _sampler_with("SIZE", "MODEL.RESOBJ_ROI", ROI))),
    ),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": (
        Reader(
            "the RoI heads", (RCNN, _sampler_with("POSITIVE_FRACTION", "MODEL.RESOBJ_ROI", ROI))
        ),
    ),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": (
        Reader(
            "the RoI heads",
            (
                RCNN,
                Condition(
                    test=lambda cfg: _lacks(cfg, ROI) or _has_nms_threshold(cfg),
                    text="MODEL.RESOBJ_ROI.NMS greedy or soft_linear",
                ),
            ),
        ),
    ),
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": (
        Reader(
            "the RoI heads",
            (
                RCNN,
                Condition(
                    test=lambda cfg: _lacks(cfg, ROI) or not cfg.MODEL.RESOBJ_ROI.BOX_LOSS.NAME,
                    text="an empty MODEL.RESOBJ_ROI.BOX_LOSS.NAME",
                ),
            ),
        ),
    ),
    "MODEL.MASK_ON": (Reader("the RoI heads", (RCNN,)),),
    "MODEL.KEYPOINT_ON": (Reader("the RoI heads", (RCNN,)),),
    "MODEL.LOAD_PROPOSALS": (Reader("the RoI heads", (RCNN,)),),
    "MODEL.SEM_SEG_HEAD.": (
        Reader("the segmentation head", (_architecture("SemanticSegmentor", "PanopticFPN"),)),
    ),
    "MODEL.PANOPTIC_FPN.": (Reader("PanopticFPN", (_architecture("PanopticFPN"),)),),
    "MODEL.RESNETS.": (Reader("a ResNet", (_named("resnet"),)), Reader("", (OWN_BACKBONES,))),
    "MODEL.FPN.": (Reader("an FPN", (_named("fpn"),)), Reader("", (OWN_BACKBONES,))),
    "MODEL.BACKBONE.FREEZE_AT": (
        Reader(
            "ResNets, DarkNet and VGG16",
            (
                Condition(
                    test=lambda cfg: not has_backbone("build_timm_backbone").holds(cfg),
                    text="a backbone other than build_timm_backbone",
                ),
            ),
        ),
    ),
    "VIS_PERIOD": (
        Reader(
            "the detectors",
            (_architecture("ResObjDenseDetector", "RetinaNet", "GeneralizedRCNN", "PanopticFPN"),),
        ),
    ),
    "INPUT.MASK_FORMAT": (Reader("the data mappers", (RCNN, MASKS)),),
    "DATASETS.PROPOSAL_FILES_": (Reader("the data loaders", (RCNN, PROPOSALS)),),
    "DATASETS.PRECOMPUTED_PROPOSAL_": (Reader("the data loaders", (RCNN, PROPOSALS)),),
    "TEST.KEYPOINT_OKS_SIGMAS": (Reader("the keypoint evaluator", (KEYPOINTS,)),),
}

FREE_SIZE = Condition("INPUT.FIXED_SIZE", ((), []))
MULTI_STEP = Condition("SOLVER.LR_SCHEDULER_NAME", ("WarmupMultiStepLR",))

# Keys of one mode of a run. A configuration file may leave them behind when what is based on it
# takes another mode; on a command line they are a mistake.
MODES: dict[str, tuple[Reader, ...]] = {
    "INPUT.MIN_SIZE_TRAIN": (
        Reader("the data mappers", (FREE_SIZE, Condition("INPUT.SCALE_JITTER", ((), [])))),
    ),
    "INPUT.MIN_SIZE_TEST": (Reader("the data mappers", (FREE_SIZE,)),),
    "INPUT.MAX_SIZE_": (Reader("the data mappers", (FREE_SIZE,)),),
    "INPUT.CROP.": (Reader("the data mappers", (Condition("INPUT.CROP.ENABLED", (True,)),)),),
    "SOLVER.STEPS": (Reader("the schedule", (MULTI_STEP,)),),
    "SOLVER.GAMMA": (Reader("the schedule", (MULTI_STEP,)),),
    "SOLVER.CLIP_GRADIENTS.": (
        Reader("the optimizer", (Condition("SOLVER.CLIP_GRADIENTS.ENABLED", (True,)),)),
    ),
    "TEST.AUG.": (Reader("test-time augmentation", (Condition("TEST.AUG.ENABLED", (True,)),)),),
    "TEST.PRECISE_BN.": (Reader("Trainer", (Condition("TEST.PRECISE_BN.ENABLED", (True,)),)),),
    "DATALOADER.REPEAT_THRESHOLD": (
        Reader(
            "the data loader",
            (Condition("DATALOADER.SAMPLER_TRAIN", ("RepeatFactorTrainingSampler",)),),
        ),
    ),
}

# The keys that name an entry of one of Detectron2's registries, and when they are read.
NAMES = (
    ("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY, ()),
    ("MODEL.PROPOSAL_GENERATOR.NAME", PROPOSAL_GENERATOR_REGISTRY, (RCNN,)),
    ("MODEL.RPN.HEAD_NAME", RPN_HEAD_REGISTRY, (RCNN,)),
    (
        "MODEL.ANCHOR_GENERATOR.NAME",
        ANCHOR_GENERATOR_REGISTRY,
        (_architecture("RetinaNet", "GeneralizedRCNN", "ProposalNetwork", "PanopticFPN"),),
    ),
    ("MODEL.ROI_HEADS.NAME", ROI_HEADS_REGISTRY, (WITH_HEADS,)),
    ("MODEL.ROI_BOX_HEAD.NAME", ROI_BOX_HEAD_REGISTRY, (WITH_HEADS,)),
    ("MODEL.ROI_MASK_HEAD.NAME", ROI_MASK_HEAD_REGISTRY, (WITH_HEADS, MASKS)),
    ("MODEL.ROI_KEYPOINT_HEAD.NAME", ROI_KEYPOINT_HEAD_REGISTRY, (WITH_HEADS, KEYPOINTS)),
    (
        "MODEL.SEM_SEG_HEAD.NAME",
        SEM_SEG_HEADS_REGISTRY,
        (_architecture("SemanticSegmentor", "PanopticFPN"),),
    ),
)
