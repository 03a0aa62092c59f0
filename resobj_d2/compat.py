"""Every difference between Detectron2 0.5 and upstream main that this package meets."""

from __future__ import annotations

from torch import Tensor

from detectron2.structures import ImageList

__all__ = ["batch_images"]


def batch_images(images: list[Tensor], backbone) -> ImageList:
    """Pad (C, H_i, W_i) images to one size that the backbone divides.

    Upstream main adds ``Backbone.padding_constraints`` (square inputs), which 0.5 lacks.
    """
    constraints = getattr(backbone, "padding_constraints", None)
    if constraints:
        return ImageList.from_tensors(
            images, backbone.size_divisibility, padding_constraints=constraints
        )
    return ImageList.from_tensors(images, backbone.size_divisibility)
