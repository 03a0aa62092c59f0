"""A detector as a function from tensors to tensors."""

from __future__ import annotations

import torch
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import ImageList
from torch import Tensor, nn

from resobj_d2.modeling import ResObjDenseDetector
from resobj_d2.modeling.suppression import Suppression

from .selection import SELECTIONS, raw_predictions
from .suppression import ABSENT
from .two_stage import (
    check_two_stage,
    propose,
    roi_predictions,
    select_of_rois,
    suppression_of,
)

__all__ = [
    "INPUTS",
    "OUTPUTS",
    "RAW_OUTPUTS",
    "ExportableDetector",
    "ExportableRCNN",
    "exportable",
    "padded_detections",
]


INPUTS = ("images", "image_sizes", "original_sizes")
OUTPUTS = ("boxes", "scores", "classes", "counts")
RAW_OUTPUTS = ("scores", "boxes")


class ExportableDetector(nn.Module):
    """A dense detector without dicts, lists or ``Instances``: what the formats of export hold.

    Resizing is left to the caller, whose library of pictures does it (see
    :class:`resobj_d2.inference.Predictor`); the rest of the preprocessing is inside.

    Args:
        model: the detector; put into evaluation mode.
        selection: a name of :data:`SELECTIONS`: what finds the detections. "operator" is
            :func:`resobj_d2.ops.dense_detections`; "nms" has torch's own operators but for
            :func:`resobj_d2.ops.batched_nms_padded`; "onnx" only those that ONNX has.
        raw: no selection; return the scores and boxes of all anchors.

    Raises:
        ValueError: the model is of another kind, or ONNX cannot express its suppression.
    """

    def __init__(self, model: nn.Module, *, selection: str = "operator", raw: bool = False) -> None:
        super().__init__()
        self._check_model(model)
        self.model = model.eval()
        self.selection = selection
        self.raw = raw
        method = self.suppression.method
        if selection == "onnx" and not raw and method != "greedy":
            raise ValueError(
                f"ONNX has no operator for {self.suppression_key} {method}: export with NMS "
                "greedy, or with --raw and suppress duplicates yourself"
            )

    suppression_key = "MODEL.DENSE.POSTPROCESS.NMS"
    """The key of the config that names :attr:`suppression`."""

    def _check_model(self, model: nn.Module) -> None:
        if not isinstance(model, ResObjDenseDetector):
            raise ValueError(
                f"export knows the detectors of MODEL.META_ARCHITECTURE ResObjDenseDetector and "
                f"GeneralizedRCNN, got {type(model).__name__}"
            )

    @property
    def suppression(self) -> Suppression:
        """What removes duplicates."""
        return self.model.postprocess.suppression

    @property
    def size_divisibility(self) -> int:
        """Height and width of the input must be multiples of it."""
        return self.model.backbone.size_divisibility or 1

    @property
    def coarsest_stride(self) -> int:
        """Distance between the cells of the coarsest feature map, in pixels."""
        return max(stride for x in self.model.streams.values() for stride in x.priors.strides)

    @property
    def device(self) -> torch.device:
        """Where the inputs must be."""
        return self.model.device

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what :meth:`forward` returns."""
        return RAW_OUTPUTS if self.raw else OUTPUTS

    @property
    def limits(self) -> dict[str, float | int | str]:
        """The numbers by which detections are selected."""
        chosen = self.model.postprocess
        method = chosen.suppression
        return {
            "score_threshold": chosen.score_thresh,
            "candidates_per_level": chosen.topk,
            "nms": method.method,
            "nms_threshold": method.threshold,
            "max_detections": chosen.max_detections,
        }

    def forward(
        self, images: Tensor, image_sizes: Tensor, original_sizes: Tensor
    ) -> tuple[Tensor, ...]:
        """
        Args:
            images: (N, 3, H, W) uint8 or float in 0..255, channels in the order of
                ``INPUT.FORMAT``, each at the top left and padded with anything to the common size,
                a multiple of :attr:`size_divisibility`.
            image_sizes: (N, 2) int64, (height, width) of each without its padding.
            original_sizes: (N, 2) int64, (height, width) of the pictures before they were resized,
                to which boxes are scaled.

        Returns:
            Boxes (N, D, 4), XYXY in pixels of the original pictures, scores (N, D), classes (N, D)
            int64 and counts (N,) int64: image i has ``counts[i]`` detections, best first, and then
            padding: boxes and scores of 0, classes of -1. With ``raw`` scores (N, R, K) of all
            anchors and boxes (N, R, 4) in pixels of the original pictures, not clipped. Several
            streams follow each other along R.
        """
        pixels = self._normalised(images, image_sizes)
        outputs = self.model.predict(ImageList(pixels, []), every_step=False)
        streams = self.model.streams.items()
        inputs = [stream.detection_inputs(outputs[name]) for name, stream in streams]
        scale = _scale(image_sizes, original_sizes)
        if self.raw:
            scores, boxes = raw_predictions(inputs)
            return scores, boxes * scale
        choose = SELECTIONS[self.selection]
        boxes, scores, classes = choose(inputs, self.model.postprocess)
        return padded_detections(boxes * scale, scores, classes, original_sizes)

    def finding_more(self) -> ExportableDetector:
        """The same detector, that has something to compare for any picture: of all anchors."""
        return ExportableDetector(self.model, raw=True)

    def _normalised(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """The network's input: normalised pixels, and 0 in the padding, as Detectron2 pads."""
        pixels = (images.float() - self.model.pixel_mean) / self.model.pixel_std
        pixels = pixels.to(next(self.model.backbone.parameters()).dtype)
        height, width = (
            torch.arange(n, device=images.device) for n in (images.shape[2], images.shape[3])
        )
        inside = (height < image_sizes[:, :1])[:, :, None] & (width < image_sizes[:, 1:])[:, None]
        return torch.where(inside[:, None], pixels, 0.0)


class ExportableRCNN(ExportableDetector):
    """The same of a two-stage detector: Detectron2's ``GeneralizedRCNN`` with an RPN, this
    package's or its own, and ``StandardROIHeads`` or ``ResObjROIHeads`` without masks and
    keypoints.

    Args:
        model: the detector; put into evaluation mode.
        selection: as for :class:`ExportableDetector`; "operator" and "nms" are the same.
        raw: refused, since there are no anchors whose boxes could be returned.

    Attributes:
        score_threshold: detections must score above it.

    Raises:
        ValueError: a part of the model cannot be exported.
    """

    suppression_key = "MODEL.RESOBJ_ROI.NMS"

    def __init__(self, model: nn.Module, *, selection: str = "operator", raw: bool = False) -> None:
        if raw:
            raise ValueError(
                "--raw returns the boxes of all anchors, which a two-stage detector does not have: "
                "export it without"
            )
        super().__init__(model, selection=selection)
        self.score_threshold = float(model.roi_heads.box_predictor.test_score_thresh)

    def _check_model(self, model: nn.Module) -> None:
        check_two_stage(model)

    @property
    def suppression(self) -> Suppression:
        """What removes duplicates of an object."""
        return suppression_of(self.model.roi_heads.box_predictor)

    @property
    def coarsest_stride(self) -> int:
        """Distance between the cells of the RPN's coarsest feature map, in pixels."""
        return max(self.model.proposal_generator.anchor_generator.strides)

    @property
    def limits(self) -> dict[str, float | int | str]:
        """The numbers by which proposals and detections are selected."""
        rpn, method = self.model.proposal_generator, self.suppression
        return {
            "score_threshold": self.score_threshold,
            "candidates_per_level": rpn.pre_nms_topk[False],
            "proposals": rpn.post_nms_topk[False],
            "proposal_nms_threshold": rpn.nms_thresh,
            "nms": method.method,
            "nms_threshold": method.threshold,
            "max_detections": self.model.roi_heads.box_predictor.test_topk_per_image,
        }

    def forward(
        self, images: Tensor, image_sizes: Tensor, original_sizes: Tensor
    ) -> tuple[Tensor, ...]:
        """As :meth:`ExportableDetector.forward`, without ``raw``."""
        rpn, heads = self.model.proposal_generator, self.model.roi_heads
        features = self.model.backbone(self._normalised(images, image_sizes))
        proposals, present = propose(rpn, [features[x] for x in rpn.in_features], image_sizes)
        scores, boxes = roi_predictions(heads, features, proposals, image_sizes)
        boxes, scores, classes = select_of_rois(
            torch.where(present[..., None], scores, ABSENT),
            boxes,
            suppression=self.suppression,
            threshold=self.score_threshold,
            max_detections=heads.box_predictor.test_topk_per_image,
            for_onnx=self.selection == "onnx",
        )
        boxes = boxes * _scale(image_sizes, original_sizes)
        return padded_detections(boxes, scores, classes, original_sizes)

    def finding_more(self) -> ExportableRCNN:
        """The same detector, that has something to compare for any picture: of any score."""
        other = ExportableRCNN(self.model, selection=self.selection)
        other.score_threshold = 0.0
        return other


def exportable(
    model: nn.Module, *, selection: str = "operator", raw: bool = False
) -> ExportableDetector:
    """The exportable form of a detector, dense or two-stage.

    Args:
        model, selection, raw: see :class:`ExportableDetector`.

    Raises:
        ValueError: the model, or a part of it, is of another kind.
    """
    kind = ExportableRCNN if isinstance(model, GeneralizedRCNN) else ExportableDetector
    return kind(model, selection=selection, raw=raw)


def _scale(image_sizes: Tensor, original_sizes: Tensor) -> Tensor:
    """(N, 1, 4), from pixels of the network's input to those of the original, x first."""
    scale = original_sizes.float() / image_sizes.float()
    return torch.cat((scale, scale), dim=1).flip(1)[:, None]


def padded_detections(
    boxes: Tensor, scores: Tensor, classes: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Clips boxes to their pictures and drops those of which nothing is left, as Detectron2 does.

    Args:
        boxes, scores, classes: (N, D, 4), (N, D), (N, D), best first; scores ``ABSENT`` for none.
        sizes: (N, 2), (height, width) of the pictures.
    """
    limit = torch.cat((sizes, sizes), dim=1).flip(1)[:, None].to(boxes.dtype)
    boxes = torch.minimum(boxes.clamp(min=0), limit)
    seen = (boxes[..., 2:] > boxes[..., :2]).all(dim=2) & (scores > ABSENT)
    # Those that are seen first, in their order.
    count = scores.shape[1]
    position = torch.arange(count, device=scores.device)
    place = torch.where(seen, position, position + count)
    order = place.topk(count, dim=1, largest=False).indices
    seen, boxes = seen.gather(1, order), boxes.gather(1, order[..., None].expand(-1, -1, 4))
    return (
        torch.where(seen[..., None], boxes, 0.0),
        torch.where(seen, scores.gather(1, order), 0.0),
        torch.where(seen, classes.gather(1, order), -1),
        seen.sum(dim=1),
    )
