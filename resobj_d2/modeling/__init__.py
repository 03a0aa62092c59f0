"""The detector and its slots. Importing this package registers them with Detectron2."""

from .backbones import SSDVGG16, DarkNet, TimmBackbone
from .branches import ObjectnessBranch, ScoreBranch
from .build import BRANCH_REGISTRY, TOWER_REGISTRY
from .dense_detector import ResObjDenseDetector
from .fusion import ScoreFusion
from .necks import BalancedFeaturePyramid, BiFPN, SSDExtras
from .postprocess import DensePostprocess
from .predictors import SharedConv
from .quality_branch import QualityBranch
from .stages import Stage
from .stream import DenseStream
from .towers import ConvTower

__all__ = [
    "BRANCH_REGISTRY",
    "TOWER_REGISTRY",
    "BalancedFeaturePyramid",
    "BiFPN",
    "ConvTower",
    "DarkNet",
    "DensePostprocess",
    "DenseStream",
    "ObjectnessBranch",
    "QualityBranch",
    "ResObjDenseDetector",
    "SSDExtras",
    "SSDVGG16",
    "ScoreBranch",
    "ScoreFusion",
    "SharedConv",
    "Stage",
    "TimmBackbone",
]
