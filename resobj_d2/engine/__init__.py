"""Training loop and hooks."""

from .best import BestCheckpoint, primary_ap
from .ema import WeightAverage, WeightAverageHook
from .hooks import NonFiniteLossError, NonFiniteLossGuard, StatisticsHook
from .interrupt import InterruptHook, RunInterrupted
from .multi_scale import MultiScale
from .progress import ProgressHook
from .startup import run_setup
from .summary import results_table
from .trainer import Trainer, evaluate

__all__ = [
    "BestCheckpoint",
    "InterruptHook",
    "MultiScale",
    "NonFiniteLossError",
    "NonFiniteLossGuard",
    "ProgressHook",
    "RunInterrupted",
    "StatisticsHook",
    "Trainer",
    "WeightAverage",
    "WeightAverageHook",
    "evaluate",
    "primary_ap",
    "results_table",
    "run_setup",
]
