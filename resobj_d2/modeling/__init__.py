"""The detector and its slots. Importing this package registers them with Detectron2."""

from .backbones import SSDVGG16, VGG16, DarkNet, TimmBackbone
from .branches import ObjectnessBranch, QualityBranch
from .build import BRANCH_REGISTRY, PREDICTOR_REGISTRY, TOWER_REGISTRY
from .contracts import Predictor, ScoreBranch, Tower
from .dense_detector import ResObjDenseDetector
from .fusion import ScoreFusion
from .heads import (
    ConvTower,
    HeadParts,
    NoTower,
    PerLevelConv,
    SepConvTower,
    SharedConv,
    SharedSepConv,
    YOLOTower,
)
from .necks import BalancedFeaturePyramid, BiFPN, SSDExtras, YOLOPyramid
from .postprocess import DensePostprocess
from .roi import (
    MLPMaskHead,
    ResObjBoxPredictor,
    ResObjCascadeROIHeads,
    ResObjROIHeads,
    SoftmaxMaskHead,
)
from .rpn import ResObjRPN, ResObjRPNHead
from .stages import Stage
from .stream import DenseStream

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
    "MLPMaskHead",
    "NoTower",
    "ObjectnessBranch",
    "PerLevelConv",
    "Predictor",
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
    "SoftmaxMaskHead",
    "Stage",
    "TimmBackbone",
    "Tower",
    "VGG16",
    "YOLOPyramid",
    "YOLOTower",
]
