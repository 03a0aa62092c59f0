"""What a checkpoint says about the model it holds, and whether a configuration agrees."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from resobj_d2 import __version__
from resobj_d2.weight_files import CheckpointError

__all__ = ["about", "check_about"]

logger = logging.getLogger(__name__)

# Another value is always a mistake: the network would see other numbers than in training.
PIXELS = ("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")
# Another value can be meant.
SIZES = ("INPUT.FIXED_SIZE", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST")


def about(cfg: CfgNode) -> dict:
    """The package's version, and the keys that say how pictures reach the model."""
    config = {key: value for key in PIXELS + SIZES if (value := _value(cfg, key)) is not None}
    return {"version": __version__, "config": config}


def check_about(stored: object, cfg: CfgNode, *, strict: bool) -> None:
    """Compare what a checkpoint says with a configuration.

    Args:
        stored: as :func:`about` gives it; None, of a checkpoint without, passes.
        strict: refuse other pixels, which is a warning otherwise. Other sizes are a warning.

    Raises:
        CheckpointError: the model was trained on other pixels.
    """
    config = stored.get("config") if isinstance(stored, Mapping) else None
    if not isinstance(config, Mapping):
        return
    other_pixels = _differences(config, cfg, PIXELS)
    if other_pixels and strict:
        raise CheckpointError(
            f"the checkpoint was trained on other pixels: {other_pixels}. Set these keys as the "
            "checkpoint says"
        )
    if other_pixels:
        logger.warning("the checkpoint was trained on other pixels: %s", other_pixels)
    other_sizes = _differences(config, cfg, SIZES)
    if other_sizes:
        logger.warning("the checkpoint was trained for other sizes of images: %s", other_sizes)


def _differences(stored: Mapping, cfg: CfgNode, keys: tuple[str, ...]) -> str:
    rows = [
        f"{key} {stored[key]!r:.60}, here {_value(cfg, key)!r:.60}"
        for key in keys
        if key in stored and _value(cfg, key) != stored[key]
    ]
    return "; ".join(rows)


def _value(cfg: CfgNode, key: str) -> Any:
    """As a checkpoint can hold it; None where there is no such key."""
    value: Any = cfg
    for part in key.split("."):
        value = value.get(part) if isinstance(value, CfgNode) else None
    return list(value) if isinstance(value, (list, tuple)) else value
