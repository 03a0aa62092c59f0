"""The contracts of the matching slots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from resobj_d2.structures import GroundTruth, Priors, StagePrediction, Targets

__all__ = ["Assigner", "Coder", "Sampler", "predicted_boxes"]


class Coder:
    """A box parametrisation.

    Class attributes:
        initial_delta: where the bias of the box predictor on the priors starts.
        identity_delta: where those of later stages start: boxes then stay as they are.
        delta_space: the kind of deltas, for the box losses that compare them: "deltas" are numbers
            that any difference suits, "cell_deltas" YOLOv3's.
        anchor_offset: the ``offset`` that its priors must have, or None.
    """

    initial_delta = 0.0
    identity_delta = 0.0
    delta_space = "deltas"
    anchor_offset: float | None = None

    @property
    def delta_options(self) -> Mapping[str, Any] | None:
        """The ``weights`` and ``scale_clamp`` with which ``ops.dense_detections`` decodes the same
        deltas; None where it cannot, and :meth:`decode` must do it for every anchor."""
        return None

    def encode(self, anchors: Tensor, boxes: Tensor, strides: Tensor) -> Tensor:
        """Deltas (..., 4) that turn ``anchors`` into ``boxes``, both (..., 4).

        Args:
            strides: (R, 1) stride of each anchor's level in pixels.
        """
        raise TypeError(f"{type(self).__name__} must define encode")

    def decode(self, anchors: Tensor, deltas: Tensor, strides: Tensor) -> Tensor:
        """Boxes (..., 4) in float32, not clipped to the image."""
        raise TypeError(f"{type(self).__name__} must define decode")


class Assigner:
    """Label assignment: which anchor is trained as what.

    Its constructor takes ``num_classes`` beside its options.

    Class attributes:
        needs_predictions: it reads the detached StagePrediction, whose ``cls`` are then K logits
            whose sigmoids are the class probabilities, whatever the class loss.
        labels_by_iou: ``Targets.matched_ious`` tell how much background overlaps; they are 0
            there otherwise.
        weighs_boxes: its targets have ``box_weights``.
    """

    needs_predictions = False
    labels_by_iou = True
    weighs_boxes = False

    def __call__(
        self,
        priors: Priors,
        anchors: Tensor,
        ground_truth: GroundTruth,
        prediction: StagePrediction | None = None,
    ) -> Targets:
        """
        Args:
            anchors: (R, 4) shared by the batch, or (N, R, 4).
            prediction: None unless ``needs_predictions``.
        """
        raise TypeError(f"{type(self).__name__} must define __call__")


class Sampler:
    """Selection of the labelled anchors that are trained; the others are ignored by every loss.

    Class attributes:
        needs_loss: it ranks anchors by their difficulty.
        needs_ious: it reads the ``matched_ious`` of background.
    """

    needs_loss = False
    needs_ious = False

    def __call__(
        self, targets: Targets, *, anchors: Tensor, difficulty: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            anchors: (R, 4) or (N, R, 4).
            difficulty: (N, R) detached loss of each anchor, infinite where that is NaN: of the
                objectness where it owns the background, otherwise of the class loss. None
                without ``needs_loss``.

        Returns:
            (N, R) bool, a subset of ``targets.valid``.
        """
        raise TypeError(f"{type(self).__name__} must define __call__")


def predicted_boxes(assigner: Assigner, prediction: StagePrediction | None) -> Tensor:
    """The (N, R, 4) decoded boxes that an assigner with ``needs_predictions`` reads."""
    if prediction is None or prediction.boxes is None:
        raise ValueError(f"{type(assigner).__name__} reads the predicted boxes: give a prediction")
    return prediction.boxes
