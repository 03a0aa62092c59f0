"""The detector and its slots. Importing this package registers them with Detectron2."""

from .backbones import DarkNet, TimmBackbone
from .branches import ObjectnessBranch, ScoreBranch
from .build import BRANCH_REGISTRY, TOWER_REGISTRY
from .dense_detector import ResObjDenseDetector
from .fusion import ScoreFusion
from .necks import BalancedFeaturePyramid, BiFPN
from .postprocess import DensePostprocess
from .predictors import SharedConv
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
    "ResObjDenseDetector",
    "ScoreBranch",
    "ScoreFusion",
    "SharedConv",
    "Stage",
    "TimmBackbone",
]
