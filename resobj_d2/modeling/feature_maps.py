"""Names of feature maps that the backbone does not have, told with the key that they are from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from .backbones import without_imagenet_weights

__all__ = ["explained_feature_maps"]

# Keys of the feature maps that a META_ARCHITECTURE takes from its backbone.
_KEYS: Mapping[str, Sequence[str]] = {
    "RetinaNet": ["RETINANET"],
    "FCOS": ["FCOS"],
    "GeneralizedRCNN": ["RPN", "ROI_HEADS"],
    "ProposalNetwork": ["RPN"],
    "PanopticFPN": ["RPN", "ROI_HEADS", "SEM_SEG_HEAD"],
    "SemanticSegmentor": ["SEM_SEG_HEAD"],
}


@contextlib.contextmanager
def explained_feature_maps(cfg: CfgNode) -> Iterator[None]:
    """Around Detectron2's ``build_model(cfg)``, which raises a ``KeyError`` with their name alone.

    Raises:
        ValueError: the config asks for feature maps that its backbone does not have.
    """
    try:
        yield
    except KeyError as error:
        problem = _missing_features(cfg, error)
        if not problem:
            raise
        raise ValueError(problem) from None


def _missing_features(cfg: CfgNode, error: KeyError) -> str:
    """What is wrong with the names of feature maps; "" where they are right."""
    model = cfg.MODEL
    shapes = _shapes(cfg)
    if shapes is None:
        if error.args[0] not in model.FPN.IN_FEATURES:
            return ""
        below = ""
        if "resnet" in model.BACKBONE.NAME:
            below = f": MODEL.RESNETS.OUT_FEATURES is {list(model.RESNETS.OUT_FEATURES)}"
        return (
            f"MODEL.FPN.IN_FEATURES lists {error.args[0]!r}, but the network below "
            f"{model.BACKBONE.NAME} has no such feature map{below}"
        )
    for part in _KEYS.get(model.META_ARCHITECTURE, ()):
        names = model[part].IN_FEATURES if part in model else []
        missing = [name for name in names if name not in shapes]
        if missing:
            return (
                f"MODEL.{part}.IN_FEATURES lists {missing}, but {model.BACKBONE.NAME} has "
                f"{list(shapes)}: name some of these, or set a MODEL.BACKBONE.NAME that has them, "
                "such as build_retinanet_resnet_fpn_backbone (p3 to p7) or "
                "build_resnet_fpn_backbone (p2 to p6)"
            )
    return ""


def _shapes(cfg: CfgNode) -> Mapping | None:
    """Of the backbone; None where it cannot be built."""
    try:
        return build_backbone(without_imagenet_weights(cfg)).output_shape()
    except KeyError:
        return None
