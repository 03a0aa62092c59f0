"""Detections merged over several sizes and a mirror image of the same picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resobj_d2.ops import weighted_box_fusion

from .dense_detector import ResObjDenseDetector
from .suppression import Suppression

__all__ = ["AugmentedDetector", "AugmentedRCNN", "with_augmentation"]

MERGES = ("nms", "wbf")


class AugmentedDetector(nn.Module):
    """A dense detector whose detections are merged over variants of each image.

    Like Detectron2's ``GeneralizedRCNNWithTTA`` it resizes what the data mapper gives, without
    going back to the file. A variant is detected as if it were alone; its boxes, in pixels of the
    original image, are then merged with those of the others.

    Args:
        model: the detector; its post-processing also merges.
        min_sizes: lengths of the variants' shorter sides.
        max_size: limit of the longer ones.
        flip: also mirror each of them.
        merge: "nms": the detector's suppression over the detections of all variants; "wbf":
            weighted box fusion, after which a box has no scores of single factors. Either way a
            detection scores above the detector's threshold.
    """

    def __init__(
        self,
        model: ResObjDenseDetector,
        *,
        min_sizes: Sequence[int],
        max_size: int,
        flip: bool,
        merge: str = "nms",
    ) -> None:
        super().__init__()
        if merge not in MERGES:
            raise ValueError(f"TEST.AUG_MERGE must be nms or wbf, got {merge!r}")
        if not min_sizes or min(min_sizes) < 1 or max_size < max(min_sizes):
            raise ValueError(
                "TEST.AUG.MIN_SIZES must be positive and at most MAX_SIZE, "
                f"got {list(min_sizes)} and {max_size}"
            )
        self.model = model
        self.min_sizes = list(min_sizes)
        self.max_size = max_size
        self.flip = flip
        self.merge = merge

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """As the detector's, at inference: one dict with ``instances`` per image."""
        return [{"instances": self._detect(x)} for x in batched_inputs]

    @torch.no_grad()
    def _detect(self, inputs: dict) -> Instances:
        found = []
        for image, mirrored in self._variants(inputs["image"]):
            size = {key: inputs.get(key, inputs["image"].shape[i]) for key, i in _SIDES.items()}
            # One at a time: a batch would be padded to its largest variant.
            (output,) = self.model([{**size, "image": image}])
            detections = output["instances"]
            if mirrored:
                boxes, width = detections.pred_boxes.tensor, size["width"]
                x1, y1, x2, y2 = boxes.unbind(dim=1)
                detections.pred_boxes = Boxes(torch.stack((width - x2, y1, width - x1, y2), dim=1))
            found.append(detections)
        return self._fused(found) if self.merge == "wbf" else self._suppressed(found)

    def _variants(self, image: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Images (C, H, W), and whether they are mirrored."""
        pixels = image.permute(1, 2, 0).cpu().numpy()
        for size in self.min_sizes:
            resize = ResizeShortestEdge([size, size], self.max_size).get_transform(pixels)
            resized = np.ascontiguousarray(resize.apply_image(pixels).transpose(2, 0, 1))
            variant = torch.as_tensor(resized)
            yield variant, False
            if self.flip:
                yield variant.flip(2), True

    def _suppressed(self, found: list[Instances]) -> Instances:
        postprocess, every = self.model.postprocess, Instances.cat(found)
        keep, scores = postprocess.suppression(
            every.pred_boxes.tensor,
            every.scores,
            every.pred_classes,
            min_score=postprocess.score_thresh,
            max_output=postprocess.max_detections,
        )
        result = every[keep]
        result.scores = scores
        return result

    def _fused(self, found: list[Instances]) -> Instances:
        every = Instances.cat(found)
        variant = torch.cat([torch.full((len(x),), i) for i, x in enumerate(found)])
        fused = weighted_box_fusion(
            every.pred_boxes.tensor,
            every.scores,
            every.pred_classes,
            variant.to(every.scores.device),
            model_weights=[1.0] * len(found),
        )
        postprocess = self.model.postprocess
        # What few variants find scores lower than they did; the best come first.
        above = int(torch.count_nonzero(fused.scores > postprocess.score_thresh))
        best = slice(min(above, postprocess.max_detections))
        result = Instances(every.image_size)
        result.pred_boxes = Boxes(fused.boxes[best].float())
        result.scores = fused.scores[best].float()
        result.pred_classes = fused.idxs[best]
        return result


class AugmentedRCNN(GeneralizedRCNNWithTTA):
    """Detectron2's, whose variants are merged by the NMS of the RoI heads (``RESOBJ_ROI.NMS``).

    Args:
        cfg, model: as Detectron2's.
        suppression: of the model's RoI heads.
    """

    def __init__(self, cfg, model: nn.Module, suppression: Suppression) -> None:
        super().__init__(cfg, model)
        self.suppression = suppression

    def _merge_detections(
        self,
        all_boxes: Tensor,
        all_scores: Sequence[Tensor],
        all_classes: Sequence[Tensor],
        shape_hw: tuple[int, int],
    ) -> Instances:
        boxes = Boxes(all_boxes.float())
        boxes.clip(shape_hw)
        scores, classes = boxes.tensor.new_zeros(0), torch.zeros_like(boxes.tensor[:, 0]).long()
        if len(boxes):  # Detectron2 hands over a list of scalars
            scores, classes = torch.stack(list(all_scores)), torch.stack(list(all_classes))
        limit = self.cfg.TEST.DETECTIONS_PER_IMAGE
        keep, kept = self.suppression(
            boxes.tensor,
            scores,
            classes,
            min_score=self.cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            max_output=limit if limit >= 0 else len(boxes),
        )
        result = Instances(shape_hw)
        result.pred_boxes, result.scores, result.pred_classes = boxes[keep], kept, classes[keep]
        return result


_SIDES = {"height": 1, "width": 2}  # dimensions of an image (C, H, W)


def with_augmentation(cfg, model: nn.Module) -> nn.Module:
    """What ``TEST.AUG`` makes of a model at inference: the model itself unless it is ``ENABLED``.

    Raises:
        ValueError: the model is neither a dense detector nor an R-CNN, or the options are wrong.
    """
    node = cfg.TEST.AUG
    if not node.ENABLED:
        return model
    alone = model.module if isinstance(model, DistributedDataParallel) else model
    if isinstance(alone, ResObjDenseDetector):
        return AugmentedDetector(
            alone,
            min_sizes=node.MIN_SIZES,
            max_size=node.MAX_SIZE,
            flip=node.FLIP,
            merge=cfg.TEST.AUG_MERGE,
        )
    unfit = cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN"
    if unfit or cfg.MODEL.KEYPOINT_ON or cfg.MODEL.LOAD_PROPOSALS:
        raise ValueError(
            "TEST.AUG is for dense detectors, and for R-CNNs without keypoints and without "
            "proposals from a file: set TEST.AUG.ENABLED False"
        )
    suppression = getattr(alone.roi_heads, "suppression", None)
    if suppression is not None:
        return AugmentedRCNN(cfg, model, suppression)
    return GeneralizedRCNNWithTTA(cfg, model)
