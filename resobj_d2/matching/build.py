"""Registries of the matching slots; yaml names the class: ``ASSIGNER.NAME: MaxIoUAssigner``.

An entry declares its options on its constructor's arguments (:mod:`resobj_d2.options`).
"""

from __future__ import annotations

from fvcore.common.config import CfgNode

from resobj_d2.options import build
from resobj_d2.registry import Registry

from .base import Assigner, Coder, Sampler
from .priors import AnchorGrid

__all__ = [
    "ASSIGNER_REGISTRY",
    "CODER_REGISTRY",
    "PRIORS_REGISTRY",
    "SAMPLER_REGISTRY",
    "build_two_stage_sampler",
]

PRIORS_REGISTRY: Registry[AnchorGrid] = Registry("PRIORS", base=AnchorGrid)
"""Entries of ``PRIORS.NAME``: subclasses of :class:`AnchorGrid`, which also take ``strides``."""
CODER_REGISTRY: Registry[Coder] = Registry("CODER", base=Coder)
"""Entries of ``CODER.NAME``: subclasses of :class:`Coder`."""
ASSIGNER_REGISTRY: Registry[Assigner] = Registry("ASSIGNER", base=Assigner)
"""Entries of ``ASSIGNER.NAME``: subclasses of :class:`Assigner`."""
SAMPLER_REGISTRY: Registry[Sampler] = Registry("SAMPLER", base=Sampler)
"""Entries of ``SAMPLER.NAME``: subclasses of :class:`Sampler`."""


def build_two_stage_sampler(node: CfgNode, detectron2: CfgNode) -> Sampler | None:
    """The sampler of a stage of Detectron2's R-CNN, whose size comes from Detectron2's own keys.

    Args:
        node: the ``SAMPLER`` node of ``MODEL.RESOBJ_RPN`` or ``MODEL.RESOBJ_ROI``.
        detectron2: ``MODEL.RPN`` or ``MODEL.ROI_HEADS``.

    Returns:
        None for Detectron2's own sampling.
    """
    if not node.NAME:
        return None
    node = node.clone()
    node.defrost()
    node.SIZE = detectron2.BATCH_SIZE_PER_IMAGE
    node.POSITIVE_FRACTION = detectron2.POSITIVE_FRACTION
    return build(SAMPLER_REGISTRY.get(node.NAME), node)
