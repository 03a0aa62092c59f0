"""Training loop and hooks."""

from .ema import WeightAverage, WeightAverageHook
from .hooks import NonFiniteLossError, NonFiniteLossGuard, StatisticsHook
from .multi_scale import MultiScale
from .trainer import Trainer, evaluate

__all__ = [
    "MultiScale",
    "NonFiniteLossError",
    "NonFiniteLossGuard",
    "StatisticsHook",
    "Trainer",
    "WeightAverage",
    "WeightAverageHook",
    "evaluate",
]
