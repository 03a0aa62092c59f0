"""The detector and its slots. Importing this package registers them with Detectron2."""

from .backbones import SSDVGG16, DarkNet, TimmBackbone
from .branches import ObjectnessBranch, ScoreBranch
from .build import BRANCH_REGISTRY, PREDICTOR_REGISTRY, TOWER_REGISTRY
from .dense_detector import ResObjDenseDetector
from .fusion import ScoreFusion
from .necks import BalancedFeaturePyramid, BiFPN, SSDExtras, YOLOPyramid
from .postprocess import DensePostprocess
from .predictors import HeadParts, PerLevelConv, SharedConv
from .proposals import ResObjRPN, ResObjRPNHead
from .quality_branch import QualityBranch
from .roi import ResObjBoxPredictor, ResObjCascadeROIHeads, ResObjROIHeads
from .separable import SepConvTower, SharedSepConv
from .stages import Stage
from .stream import DenseStream
from .towers import ConvTower, NoTower
from .yolo_tower import YOLOTower

__all__ = [
    "BRANCH_REGISTRY",
    "PREDICTOR_REGISTRY",
    "TOWER_REGISTRY",
    "BalancedFeaturePyramid",
    "BiFPN",
    "ConvTower",
    "DarkNet",
    "DensePostprocess",
    "DenseStream",
    "HeadParts",
    "NoTower",
    "ObjectnessBranch",
    "PerLevelConv",
    "QualityBranch",
    "ResObjBoxPredictor",
    "ResObjCascadeROIHeads",
    "ResObjDenseDetector",
    "ResObjROIHeads",
    "ResObjRPN",
    "ResObjRPNHead",
    "SSDExtras",
    "SSDVGG16",
    "ScoreBranch",
    "ScoreFusion",
    "SepConvTower",
    "SharedConv",
    "SharedSepConv",
    "Stage",
    "TimmBackbone",
    "YOLOPyramid",
    "YOLOTower",
]
