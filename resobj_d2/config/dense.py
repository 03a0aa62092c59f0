"""The configuration keys of the dense detector, made from what its slots declare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from resobj_d2.losses import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY, NORMALIZER_REGISTRY
from resobj_d2.matching import (
    ASSIGNER_REGISTRY,
    CODER_REGISTRY,
    PRIORS_REGISTRY,
    SAMPLER_REGISTRY,
)
from resobj_d2.modeling import (
    BRANCH_REGISTRY,
    PREDICTOR_REGISTRY,
    TOWER_REGISTRY,
    DensePostprocess,
    DenseStream,
)
from resobj_d2.modeling.fusion import build_fusion
from resobj_d2.modeling.stages import build_stages
from resobj_d2.registry import Registry

from .keys import Condition, Key, Reader, owner_keys, slot_keys

__all__ = ["DENSE", "dense_keys"]

DENSE = Condition("MODEL.META_ARCHITECTURE", ("ResObjDenseDetector",))
ANCHORS = Condition("MODEL.DENSE.ANCHOR_BASED", (True,))
ANCHOR_FREE = Condition("MODEL.DENSE.ANCHOR_FREE.ENABLED", (True,))

# The entry of each slot; with the entries' own defaults it is Detectron2's RetinaNet.
SLOTS: dict[str, tuple[Registry, str]] = {
    "PRIORS": (PRIORS_REGISTRY, "OctaveAnchors"),
    "PREDICTOR": (PREDICTOR_REGISTRY, "SharedConv"),
    "CODER": (CODER_REGISTRY, "DeltaCoder"),
    "ASSIGNER": (ASSIGNER_REGISTRY, "MaxIoUAssigner"),
    "SAMPLER": (SAMPLER_REGISTRY, "KeepAll"),
    "CLS_LOSS": (CLS_LOSS_REGISTRY, "SigmoidFocalLoss"),
    "BOX_LOSS": (BOX_LOSS_REGISTRY, "SmoothL1Loss"),
    "NORMALIZER": (NORMALIZER_REGISTRY, "ForegroundEMA"),
}
# A second stream on the same towers, with the same keys as the first (Zhu et al., "Feature
# Selective Anchor-Free Module for Single-Shot Object Detection"). One point per cell; the square of
# SCALE strides around it is the unit of its box.
ANCHOR_FREE_DEFAULTS = {
    "PRIORS.SCALES_PER_OCTAVE": 1,
    "PRIORS.ASPECT_RATIOS": [1.0],
    "CODER.NAME": "LTRBCoder",
    "ASSIGNER.NAME": "FSAFAssigner",
    "CLS_LOSS.WEIGHT": 0.5,
    "BOX_LOSS.NAME": "NegativeLogIoULoss",
    "BOX_LOSS.WEIGHT": 0.5,
    "NORMALIZER.NAME": "ForegroundCount",
}


def dense_keys() -> list[Key]:
    """Those of the dense detector, for all entries that are registered now."""
    detector = (Reader("ResObjDenseDetector", (DENSE,)),)
    path = "MODEL.DENSE"
    return [
        Key(
            "MODEL.CHANNELS_LAST",
            False,
            "bool",
            "lay out weights and feature maps by pixel, which is faster for depthwise convolutions",
            readers=detector,
        ),
        Key(
            f"{path}.IN_FEATURES",
            ["p3", "p4", "p5", "p6", "p7"],
            "list[str]",
            "names of the feature maps of the backbone, finest first",
            readers=detector,
        ),
        Key(f"{path}.NUM_CLASSES", 80, "int", "K, the foreground classes", readers=detector),
        Key(
            f"{path}.ANCHOR_BASED",
            True,
            "bool",
            "there is a stream of anchors; without it only the anchor-free one is left",
            readers=detector,
        ),
        *slot_keys(
            f"{path}.TOWER",
            TOWER_REGISTRY,
            name="ConvTower",
            reader="ResObjDenseDetector",
            when=(DENSE,),
        ),
        *_stream_keys(path, (DENSE, ANCHORS), {}),
        Key(
            f"{path}.ANCHOR_FREE.ENABLED",
            False,
            "bool",
            "there is a stream of points beside or instead of the anchors (FSAF)",
            readers=detector,
        ),
        *_stream_keys(f"{path}.ANCHOR_FREE", (DENSE, ANCHOR_FREE), ANCHOR_FREE_DEFAULTS),
        *owner_keys(f"{path}.POSTPROCESS", DensePostprocess, when=(DENSE,)),
    ]


def _stream_keys(path: str, when: tuple[Condition, ...], defaults: dict[str, Any]) -> list[Key]:
    """What one stream predicts and learns."""

    def below(node: str) -> dict[str, Any]:
        return {
            key[len(node) + 1 :]: value
            for key, value in defaults.items()
            if key.startswith(f"{node}.")
        }

    keys: list[Key] = []
    for slot, (registry, name) in SLOTS.items():
        own = below(slot)
        keys += slot_keys(
            f"{path}.{slot}",
            registry,
            name=own.get("NAME", name),
            reader="DenseStream",
            when=when,
            defaults=own,
        )
    for owner in (DenseStream, build_stages):
        keys += owner_keys(path, owner, reader="DenseStream", when=when, defaults=defaults)
    for name, branch in sorted(BRANCH_REGISTRY):
        node = f"{path}.{branch.node_name}"
        keys += branch_keys(node, branch, when=when, reader=name)
    return keys + owner_keys(f"{path}.FUSION", build_fusion, reader="ScoreFusion", when=when)


def branch_keys(
    node: str,
    owner: Callable,
    *,
    when: tuple[Condition, ...],
    reader: str,
    defaults: dict[str, Any] | None = None,
    omit: tuple[str, ...] = (),
) -> list[Key]:
    """``ENABLED``, and the options of what is then there."""
    meaning = f"there is a {reader}"
    enabled = Key(f"{node}.ENABLED", False, "bool", meaning, readers=(Reader(reader, when),))
    there = (*when, Condition(f"{node}.ENABLED", (True,)))
    return [
        enabled,
        *owner_keys(node, owner, reader=reader, when=there, defaults=defaults, omit=omit),
    ]
