"""Anchors, box parametrisations, label assignment and sampling; imports no Detectron2."""

from .base import Assigner, Coder, Sampler
from .best_anchor_assigner import BestAnchorAssigner
from .build import (
    ASSIGNER_REGISTRY,
    CODER_REGISTRY,
    PRIORS_REGISTRY,
    SAMPLER_REGISTRY,
    build_two_stage_sampler,
)
from .coders import DeltaCoder, LTRBCoder
from .distribution_coder import DistributionCoder
from .fsaf_assigner import FSAFAssigner
from .max_iou_assigner import MaxIoUAssigner, background_range
from .octave_priors import OctaveAnchors, octave_anchors
from .paa_assigner import PAAAssigner
from .point_assigners import ATSSAssigner, FCOSAssigner, centerness
from .priors import AnchorGrid
from .samplers import (
    HardExampleSampler,
    HardNegativeRatio,
    IoUBalancedSampler,
    KeepAll,
    OHEMSampler,
    RandomSampler,
)
from .ssd_priors import SSDAnchors, ssd_anchors
from .task_aligned_assigner import TaskAlignedAssigner
from .yolo_assigner import YOLOAssigner
from .yolo_priors import YOLOAnchors, YOLOCoder

__all__ = [
    "ASSIGNER_REGISTRY",
    "CODER_REGISTRY",
    "PRIORS_REGISTRY",
    "SAMPLER_REGISTRY",
    "ATSSAssigner",
    "AnchorGrid",
    "Assigner",
    "BestAnchorAssigner",
    "Coder",
    "DeltaCoder",
    "DistributionCoder",
    "FCOSAssigner",
    "FSAFAssigner",
    "HardExampleSampler",
    "HardNegativeRatio",
    "IoUBalancedSampler",
    "KeepAll",
    "LTRBCoder",
    "MaxIoUAssigner",
    "OHEMSampler",
    "OctaveAnchors",
    "PAAAssigner",
    "RandomSampler",
    "Sampler",
    "SSDAnchors",
    "TaskAlignedAssigner",
    "YOLOAnchors",
    "YOLOAssigner",
    "YOLOCoder",
    "background_range",
    "build_two_stage_sampler",
    "centerness",
    "octave_anchors",
    "ssd_anchors",
]
