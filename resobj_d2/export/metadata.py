"""What an exported file says about its detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode

from resobj_d2 import __version__

from .detector import INPUTS, ExportableDetector

__all__ = ["describe"]


def describe(
    detector: ExportableDetector, cfg: CfgNode, class_names: Sequence[str]
) -> dict[str, Any]:
    """Everything that whoever runs the file must know, as ``json`` can write it.

    Args:
        detector: what is exported.
        cfg: its config.
        class_names: of classes 0..K-1.
    """
    fixed = list(cfg.INPUT.FIXED_SIZE)
    result = {
        "version": __version__,
        "meta_architecture": cfg.MODEL.META_ARCHITECTURE,
        "class_names": list(class_names),
        "inputs": list(INPUTS),
        "outputs": list(detector.outputs),
        "channels": cfg.INPUT.FORMAT,
        "size_divisibility": detector.size_divisibility,
        # To this size, or the shorter side to the first and at most the longer to the second.
        "resize_to": fixed or None,
        "shorter_side": None if fixed else cfg.INPUT.MIN_SIZE_TEST,
        "longest_side": None if fixed else cfg.INPUT.MAX_SIZE_TEST,
    }
    return result | ({} if detector.raw else detector.limits)
