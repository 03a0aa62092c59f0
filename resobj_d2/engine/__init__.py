"""Configuration, training loop and hooks."""

from .hooks import NonFiniteLossError, NonFiniteLossGuard, StatisticsHook
from .multi_scale import MultiScale
from .setup import class_counts, load_config
from .trainer import Trainer, evaluate

__all__ = [
    "MultiScale",
    "NonFiniteLossError",
    "NonFiniteLossGuard",
    "StatisticsHook",
    "Trainer",
    "class_counts",
    "evaluate",
    "load_config",
]
