"""Losses as sums over anchors, and the normaliser, the only place that divides them."""

from .base import BoxLoss, ClassLoss, Normalizer, SigmoidScores
from .box_overlap import CIoULoss, DIoULoss, GIoULoss, IoULoss, NegativeLogIoULoss
from .build import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY, NORMALIZER_REGISTRY
from .classification import SigmoidCE, SigmoidFocalLoss, sigmoid_focal_loss
from .gradient_harmonizing import GHMCLoss, GHMRLoss
from .normalizer import (
    ForegroundCount,
    ForegroundCountPlusOne,
    ForegroundEMA,
    ImageCount,
    TrainedCount,
    weight_sum,
)
from .objectness import ResidualObjectnessLoss, objectness_difficulty
from .quality import QualityLoss
from .quality_focal import QualityFocalLoss, VarifocalLoss
from .regression import BalancedL1Loss, L1Loss, SmoothL1Loss, smooth_l1_loss
from .softmax import SoftmaxCE
from .yolo_box import YOLOBoxLoss

__all__ = [
    "BOX_LOSS_REGISTRY",
    "CLS_LOSS_REGISTRY",
    "NORMALIZER_REGISTRY",
    "BalancedL1Loss",
    "BoxLoss",
    "CIoULoss",
    "ClassLoss",
    "DIoULoss",
    "ForegroundCount",
    "ForegroundCountPlusOne",
    "ForegroundEMA",
    "GHMCLoss",
    "GHMRLoss",
    "GIoULoss",
    "ImageCount",
    "IoULoss",
    "L1Loss",
    "NegativeLogIoULoss",
    "Normalizer",
    "QualityFocalLoss",
    "QualityLoss",
    "VarifocalLoss",
    "ResidualObjectnessLoss",
    "SigmoidCE",
    "SigmoidFocalLoss",
    "SigmoidScores",
    "SmoothL1Loss",
    "SoftmaxCE",
    "TrainedCount",
    "YOLOBoxLoss",
    "objectness_difficulty",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "weight_sum",
]
