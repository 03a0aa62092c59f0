"""Refusal of keys that are set, but that nothing in the model or the run reads."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY
from fvcore.common.config import CfgNode

from .backbones import OWN_BACKBONES, backbone_chain, has_backbone
from .defaults import all_keys
from .keys import Condition, Reader, value_of
from .rcnn import RCNN

__all__ = ["check_unused_keys", "unused_keys"]

# What is known to read nothing but what is listed here and by our own keys. Another architecture,
# of the user's, may read any key.
ARCHITECTURES = (
    "ResObjDenseDetector", "RetinaNet", "GeneralizedRCNN", "ProposalNetwork", "PanopticFPN",
    "SemanticSegmentor",
)  # fmt: skip


def _architecture(*names: str) -> Condition:
    return Condition("MODEL.META_ARCHITECTURE", names)


MASKS = Condition("MODEL.MASK_ON", (True,))
KEYPOINTS = Condition("MODEL.KEYPOINT_ON", (True,))
PROPOSALS = Condition("MODEL.LOAD_PROPOSALS", (True,))


def _named(part: str) -> Condition:
    return Condition(
        test=lambda cfg: any(part in name for name in backbone_chain(cfg)),
        text=f"a backbone whose name has {part!r}",
    )


# Detectron2's keys by what they begin with, and who reads them.
DETECTRON2_READERS: dict[str, tuple[Reader, ...]] = {
    "MODEL.RETINANET.": (Reader("RetinaNet", (_architecture("RetinaNet"),)),),
    "MODEL.FCOS.": (Reader("FCOS", (_architecture("FCOS"),)),),
    "MODEL.ANCHOR_GENERATOR.": (
        Reader("RetinaNet", (_architecture("RetinaNet"),)),
        Reader("the RPN", (RCNN,)),
    ),
    "MODEL.PROPOSAL_GENERATOR.": (Reader("the RPN", (RCNN,)),),
    "MODEL.RPN.": (Reader("the RPN", (RCNN,)),),
    # Detectron2's own files set keys of all heads, whichever there are.
    "MODEL.ROI_": (Reader("the RoI heads", (RCNN,)),),
    "MODEL.MASK_ON": (Reader("the RoI heads", (RCNN,)),),
    "MODEL.KEYPOINT_ON": (Reader("the RoI heads", (RCNN,)),),
    "MODEL.LOAD_PROPOSALS": (Reader("the RoI heads", (RCNN,)),),
    "MODEL.SEM_SEG_HEAD.": (
        Reader("the segmentation head", (_architecture("SemanticSegmentor", "PanopticFPN"),)),
    ),
    "MODEL.PANOPTIC_FPN.": (Reader("PanopticFPN", (_architecture("PanopticFPN"),)),),
    "MODEL.RESNETS.": (Reader("a ResNet", (_named("resnet"),)), Reader("", (OWN_BACKBONES,))),
    "MODEL.FPN.": (Reader("an FPN", (_named("fpn"),)), Reader("", (OWN_BACKBONES,))),
    "MODEL.BACKBONE.FREEZE_AT": (
        Reader(
            "ResNets, DarkNet and VGG16",
            (
                Condition(
                    test=lambda cfg: not has_backbone("build_timm_backbone").holds(cfg),
                    text="a backbone other than build_timm_backbone",
                ),
            ),
        ),
    ),
    "VIS_PERIOD": (
        Reader(
            "Detectron2's detectors",
            (_architecture("RetinaNet", "GeneralizedRCNN", "PanopticFPN"),),
        ),
    ),
    "INPUT.MASK_FORMAT": (Reader("the data mappers", (RCNN, MASKS)),),
    "DATASETS.PROPOSAL_FILES_": (Reader("the data loaders", (RCNN, PROPOSALS)),),
    "DATASETS.PRECOMPUTED_PROPOSAL_": (Reader("the data loaders", (RCNN, PROPOSALS)),),
    "TEST.KEYPOINT_OKS_SIGMAS": (Reader("the keypoint evaluator", (KEYPOINTS,)),),
}


def check_unused_keys(cfg: CfgNode) -> None:
    """Refuse keys that differ from their default and that nothing reads.

    Raises:
        ValueError: there is no backbone of that name; or one line that names the key, who would
            read it, and under which condition.
    """
    _check_backbones(cfg)
    problems = list(unused_keys(cfg).values())
    if problems:
        more = f" (and {len(problems) - 1} more such keys)" if len(problems) > 1 else ""
        raise ValueError(problems[0] + more)


def _check_backbones(cfg: CfgNode) -> None:
    for name in backbone_chain(cfg):
        if name not in BACKBONE_REGISTRY:
            known = sorted(known for known, _ in BACKBONE_REGISTRY)
            similar = difflib.get_close_matches(name, known, n=2)
            hint = f". Did you mean {' or '.join(similar)}?" if similar else ""
            raise ValueError(f"there is no backbone {name!r}{hint}")


def unused_keys(cfg: CfgNode) -> dict[str, str]:
    """Keys that differ from their default and that nothing reads, and why, by their path.

    Empty for an architecture that neither Detectron2 nor this package has: it may read any key.
    """
    if cfg.MODEL.META_ARCHITECTURE not in ARCHITECTURES:
        return {}
    readers = [(key.path, key.default, key.readers) for key in all_keys()]
    defaults = get_cfg()
    for path in _leaves(defaults):
        for prefix, known in DETECTRON2_READERS.items():
            if path.startswith(prefix):
                readers.append((path, value_of(defaults, path), known))
    problems = {path: _problem(cfg, path, default, known) for path, default, known in readers}
    return {path: problem for path, problem in problems.items() if problem}


def _problem(cfg: CfgNode, path: str, default: object, readers: tuple[Reader, ...]) -> str:
    value = value_of(cfg, path)
    if _plain(value) == _plain(default):
        return ""
    missing = [reader.missing(cfg) for reader in readers]
    if not all(missing):
        return ""
    # The reader that is nearest to being there explains most.
    reader, conditions = min(zip(readers, missing, strict=True), key=lambda pair: len(pair[1]))
    return (
        f"{path} is {value!r}, but nothing in this model reads it: {reader.name} would, with "
        f"{_both(conditions, cfg)}. Its default is {default!r}"
    )


def _both(conditions: list[Condition], cfg: CfgNode) -> str:
    """The conditions in words, each with what is there instead."""
    texts = []
    for condition in conditions:
        text = str(condition)
        if condition.path:
            text += f" (it is {value_of(cfg, condition.path)})"
        texts.append(text)
    return " and ".join(texts)


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _plain(value):
    """Lists and tuples are the same to a yaml."""
    return [_plain(x) for x in value] if isinstance(value, (list, tuple)) else value
