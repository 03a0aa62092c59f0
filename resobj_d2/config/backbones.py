"""The configuration keys of this package's backbones and necks, and which ones a model has."""

from __future__ import annotations

from detectron2.modeling import BACKBONE_REGISTRY
from fvcore.common.config import CfgNode

from resobj_d2.modeling import (
    BalancedFeaturePyramid,
    BiFPN,
    DarkNet,
    SSDExtras,
    TimmBackbone,
    YOLOPyramid,
)

from .keys import Condition, Key, Reader, owner_keys, value_of

__all__ = ["OWN_BACKBONES", "backbone_chain", "backbone_keys", "backbone_names", "has_backbone"]

# The key of each neck that names the backbone below it.
BELOW = {
    "build_balanced_fpn_backbone": "MODEL.BFP.PYRAMID",
    "build_bifpn_backbone": "MODEL.BIFPN.BOTTOM_UP",
    "build_fpn_backbone": "MODEL.ANY_FPN.BOTTOM_UP",
    "build_ssd_extras_backbone": "MODEL.SSD_EXTRAS.BOTTOM_UP",
    "build_yolo_backbone": "MODEL.YOLO_PYRAMID.BOTTOM_UP",
}


def backbone_names(cfg: CfgNode) -> dict[str, str]:
    """``MODEL.BACKBONE.NAME`` and, while it is one of our necks, what it stands on, by key."""
    key = "MODEL.BACKBONE.NAME"
    names = {key: cfg.MODEL.BACKBONE.NAME}
    while names[key] in BELOW and BELOW[names[key]] not in names:
        below = BELOW[names[key]]
        names[below] = value_of(cfg, below)
        key = below
    return names


def backbone_chain(cfg: CfgNode) -> list[str]:
    """The values of :func:`backbone_names`."""
    return list(backbone_names(cfg).values())


def _is_known(backbone: str) -> bool:
    if backbone not in BACKBONE_REGISTRY:
        return True  # which is an error of its own
    module = BACKBONE_REGISTRY.get(backbone).__module__
    return module.startswith(("detectron2.", "resobj_d2."))


# It may build any other backbone below it.
OWN_BACKBONES = Condition(
    test=lambda cfg: any(not _is_known(name) for name in backbone_chain(cfg)),
    text="a backbone of your own",
)


def has_backbone(*names: str) -> Condition:
    """One of these functions builds a part of the backbone."""
    return Condition(
        test=lambda cfg: not set(names).isdisjoint(backbone_chain(cfg)),
        text=f"MODEL.BACKBONE.NAME (or a BOTTOM_UP) {' or '.join(names)}",
    )


def backbone_keys() -> list[Key]:
    """Those of ``MODEL.DARKNET``, ``MODEL.TIMM`` and of the necks."""
    keys: list[Key] = []
    for node, owner, builder in (
        ("DARKNET", DarkNet, "build_darknet_backbone"),
        ("TIMM", TimmBackbone, "build_timm_backbone"),
        ("BFP", BalancedFeaturePyramid, "build_balanced_fpn_backbone"),
        ("BIFPN", BiFPN, "build_bifpn_backbone"),
        ("SSD_EXTRAS", SSDExtras, "build_ssd_extras_backbone"),
        ("YOLO_PYRAMID", YOLOPyramid, "build_yolo_backbone"),
    ):
        for condition in (has_backbone(builder), OWN_BACKBONES):
            keys += owner_keys(f"MODEL.{node}", owner, when=(condition,))
    for path, default, meaning, builder in (
        (
            "MODEL.BFP.PYRAMID",
            "build_retinanet_resnet_fpn_backbone",
            "the registered backbone whose pyramid is balanced",
            "build_balanced_fpn_backbone",
        ),
        ("MODEL.BFP.REFINE", "non_local", "non_local or none", "build_balanced_fpn_backbone"),
        (
            "MODEL.BIFPN.BOTTOM_UP",
            "build_timm_backbone",
            "the registered backbone below",
            "build_bifpn_backbone",
        ),
        (
            "MODEL.ANY_FPN.BOTTOM_UP",
            "build_resnet_backbone",
            "the registered backbone below",
            "build_fpn_backbone",
        ),
        (
            "MODEL.ANY_FPN.TOP_BLOCK",
            "p6p7_from_c5",
            "levels beyond the backbone's: p6p7_from_c5 (RetinaNet), p6p7_from_p5 (FCOS), max_pool "
            "(R-CNN) or none; MODEL.FPN has the other keys",
            "build_fpn_backbone",
        ),
        (
            "MODEL.SSD_EXTRAS.BOTTOM_UP",
            "build_ssd_vgg16_backbone",
            "the registered backbone below",
            "build_ssd_extras_backbone",
        ),
        (
            "MODEL.YOLO_PYRAMID.BOTTOM_UP",
            "build_darknet_backbone",
            "the registered backbone below",
            "build_yolo_backbone",
        ),
    ):
        readers = tuple(
            Reader(builder, (condition,)) for condition in (has_backbone(builder), OWN_BACKBONES)
        )
        keys.append(Key(path, default, "str", meaning, readers=readers))
    return keys
