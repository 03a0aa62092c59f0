"""A predictor as a model of SAHI, for small objects in large images.

SAHI (``pip install sahi``; tried with 0.12.8) cuts an image into overlapping slices, detects in
each, and merges the detections::

    from sahi.predict import get_sliced_prediction
    from resobj_d2.inference import Predictor
    from resobj_d2.inference.sahi import SahiModel

    predictor = Predictor.from_config("my.yaml", weights="output/model_final.pth")
    model = SahiModel(predictor, confidence_threshold=0.3)
    result = get_sliced_prediction("large.jpg", model, slice_height=640, slice_width=640)
    result.object_prediction_list

SAHI's own ``Detectron2DetectionModel`` knows neither this package's keys nor its checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from detectron2.structures import Instances

from .predictor import Predictor

try:
    from sahi.models.base import DetectionModel
    from sahi.prediction import ObjectPrediction
    from sahi.utils.compatibility import fix_full_shape_list, fix_shift_amount_list
    from sahi.utils.cv import get_coco_segmentation_from_bool_mask
except ImportError as error:
    raise ImportError(f"resobj_d2.inference.sahi needs SAHI: pip install sahi ({error})") from error

__all__ = ["SahiModel"]


class SahiModel(DetectionModel):
    """A :class:`Predictor` for SAHI's ``get_prediction`` and ``get_sliced_prediction``.

    Of a batch of slices (SAHI's ``batch_size``) as many go through the model together as the
    predictor's own ``batch_size`` says.

    Args:
        predictor: the detector; its class numbers are SAHI's category ids.
        confidence_threshold: lowest score that SAHI sees.
        category_remapping: class numbers as strings to other category ids, as SAHI reads it.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        confidence_threshold: float = 0.3,
        category_remapping: dict[str, int] | None = None,
    ) -> None:
        names = predictor.class_names
        super().__init__(
            model=predictor,
            device=str(next(predictor.model.parameters()).device),
            confidence_threshold=confidence_threshold,
            category_mapping={str(number): name for number, name in enumerate(names)},
            category_remapping=category_remapping,
        )

    def set_model(self, model: Predictor, **_) -> None:
        self.model = model

    @property
    def num_categories(self) -> int:
        """How many classes have a name."""
        return len(self.category_mapping)

    def perform_inference(self, image: np.ndarray) -> None:
        """Detect on one (H, W, 3) uint8 RGB image, as SAHI hands it over."""
        self.perform_batch_inference([image])

    def perform_batch_inference(self, images: Sequence[np.ndarray]) -> None:
        self._original_predictions = self.model(images, channels="RGB")

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: list | None = None, full_shape_list: list | None = None
    ) -> None:
        count = len(self._original_predictions)
        shifts = fix_shift_amount_list(shift_amount_list or [[0, 0]] * count)
        shapes = fix_full_shape_list(full_shape_list) or [None] * count
        self._object_prediction_list_per_image = [
            self._objects(detections, shift, shape)
            for detections, shift, shape in zip(
                self._original_predictions, shifts, shapes, strict=True
            )
        ]

    def _objects(
        self, detections: Instances, shift: Sequence[int], shape: Sequence[int] | None
    ) -> list[ObjectPrediction]:
        detections = detections[detections.scores >= self.confidence_threshold]
        masks = detections.pred_masks.numpy() if detections.has("pred_masks") else None
        return [
            ObjectPrediction(
                bbox=item["box"],
                score=item["score"],
                category_id=item["class_index"],
                category_name=item["class_name"],
                # A mask of less than three corners is none; its box remains.
                segmentation=None if masks is None else _polygons(masks[i]) or None,
                shift_amount=list(shift),
                full_shape=list(shape or detections.image_size),
            )
            for i, item in enumerate(self.model.to_dicts(detections))
        ]


def _polygons(mask: np.ndarray) -> list[list[float]]:
    return get_coco_segmentation_from_bool_mask(mask)
