"""The layers between the feature pyramid and the predictions."""

from .predictors import HeadParts, PerLevelConv, SharedConv
from .separable import SepConvTower, SharedSepConv
from .towers import ConvTower, NoTower
from .yolo_tower import YOLOTower

__all__ = [
    "ConvTower",
    "HeadParts",
    "NoTower",
    "PerLevelConv",
    "SepConvTower",
    "SharedConv",
    "SharedSepConv",
    "YOLOTower",
]
