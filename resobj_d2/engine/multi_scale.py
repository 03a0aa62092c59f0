"""Training at a size that changes every few batches."""

from __future__ import annotations

import random
from collections.abc import Sequence

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.nn import functional as F

from resobj_d2.data.mapper import more_than_boxes

__all__ = ["MultiScale", "resize_inputs"]


def resize_inputs(batched_inputs: list[dict], longer_side: int) -> list[dict]:
    """Copies of Detectron2's training inputs with every image's longer side at that length.

    Images keep their shape and dtype; their ground-truth boxes move with them. ``height`` and
    ``width``, which tell the size of detections, stay.
    """
    return [_resized(inputs, longer_side) for inputs in batched_inputs]


def _resized(inputs: dict, longer_side: int) -> dict:
    image = inputs["image"]
    height, width = image.shape[-2:]
    factor = longer_side / max(height, width)
    size = max(1, round(height * factor)), max(1, round(width * factor))
    if size == (height, width):
        return inputs
    resized = F.interpolate(
        image[None].float(), size=size, mode="bilinear", align_corners=False, antialias=True
    )[0]
    if not image.is_floating_point():
        resized = resized.round()
    result = {**inputs, "image": resized.to(image.dtype)}
    if "instances" in inputs:
        instances = type(inputs["instances"])(size)
        for name, value in inputs["instances"].get_fields().items():
            if name == "gt_boxes":
                value = value.clone()
                value.scale(size[1] / width, size[0] / height)
            instances.set(name, value)
        result["instances"] = instances
    return result


class MultiScale(HookBase):
    """Every ``period`` iterations another size for all batches, as in Darknet.

    The size depends on ``seed`` and the iteration alone: all processes have the same one, and a
    resumed run goes on with those it would have had. Only what the model trains on is resized, on
    the model's device, in front of everything that hooks see of the batch.

    Args:
        sizes: lengths of the images' longer side to choose from.
        period: iterations between two choices.
        seed: equal on all processes.
        last: iterations at the end of the run that have the largest size. The running statistics
            of batch normalisation then are of one size, as Darknet's are.
    """

    def __init__(self, *, sizes: Sequence[int], period: int, seed: int, last: int = 0) -> None:
        numbers = all(isinstance(size, int) and size > 0 for size in sizes)
        if not sizes or not numbers or period < 1 or last < 0:
            raise ValueError(
                "INPUT.MULTI_SCALE must be a list of positive lengths, MULTI_SCALE_PERIOD at "
                f"least 1 and MULTI_SCALE_LAST at least 0, got {list(sizes)}, {period} and {last}"
            )
        self.sizes = list(sizes)
        self.period = period
        self.seed = seed
        self.last = last
        self._handle = None

    @classmethod
    def from_config(cls, cfg) -> MultiScale | None:
        """With the keys of ``cfg.INPUT``; None where MULTI_SCALE is empty.

        Raises:
            ValueError: the model learns more than boxes, which would not move with the images.
        """
        if not cfg.INPUT.MULTI_SCALE:
            return None
        unsupported = more_than_boxes(cfg)
        if unsupported:
            raise ValueError(
                f"INPUT.MULTI_SCALE is for box detectors and cannot be combined with {unsupported}"
            )
        return cls(
            sizes=cfg.INPUT.MULTI_SCALE,
            period=cfg.INPUT.MULTI_SCALE_PERIOD,
            seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
            last=cfg.INPUT.MULTI_SCALE_LAST,
        )

    def size_at(self, iteration: int, max_iter: int) -> int:
        """The length of the longer side at one of the ``max_iter`` iterations of the run."""
        if iteration >= max_iter - self.last:
            return max(self.sizes)
        return random.Random(f"{self.seed} {iteration // self.period}").choice(self.sizes)

    def before_train(self) -> None:
        self._handle = self.trainer.model.register_forward_pre_hook(self._resize)

    def after_train(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _resize(self, model: nn.Module, inputs: tuple) -> tuple | None:
        if not model.training:
            return None
        device = next(model.parameters()).device
        batch = [{**x, "image": x["image"].to(device)} for x in inputs[0]]
        size = self.size_at(self.trainer.iter, self.trainer.max_iter)
        return (resize_inputs(batch, size), *inputs[1:])
