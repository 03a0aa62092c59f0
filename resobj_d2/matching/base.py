"""Base classes of the matching slots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from resobj_d2.structures import GroundTruth, Priors, StagePrediction, Targets

__all__ = ["Assigner", "Coder", "Sampler", "predicted_boxes"]


class Coder:
    """A box parametrisation.

    Class attributes:
        initial_delta: initial bias of the box predictor on the priors.
        identity_delta: initial bias of the box predictors of later stages; keeps boxes unchanged.
        delta_space: the kind of deltas, matched against ``BoxLoss.compares``: "deltas" for numbers
            that any loss of differences suits, "cell_deltas" for YOLOv3's.
        anchor_offset: the ``offset`` that its priors must have, or None for any.
        refines: it starts from a box of any size, so that a later stage can refine boxes with it.

    Attributes:
        channels: numbers predicted per anchor.
        loss_weight: factor of :meth:`loss`; 0 if it has none.
    """

    channels = 4
    loss_weight = 0.0

    initial_delta = 0.0
    identity_delta = 0.0
    delta_space = "deltas"
    anchor_offset: float | None = None
    refines = True

    @property
    def delta_options(self) -> Mapping[str, Any] | None:
        """The ``weights`` and ``scale_clamp`` for ``ops.dense_detections`` to decode these deltas;
        None if the operator cannot, so that :meth:`decode` must run for every anchor."""
        return None

    def encode(self, anchors: Tensor, boxes: Tensor, strides: Tensor) -> Tensor:
        """Deltas (..., 4) that turn ``anchors`` into ``boxes``, both (..., 4).

        Args:
            strides: (R, 1) stride, in pixels, of each anchor's level.
        """
        raise TypeError(f"{type(self).__name__} must define encode")

    def decode(self, anchors: Tensor, deltas: Tensor, strides: Tensor) -> Tensor:
        """Boxes (..., 4) in float32, not clipped to the image, from (..., channels)."""
        raise TypeError(f"{type(self).__name__} must define decode")

    def loss(
        self, deltas: Tensor, target: Tensor, mask: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """A loss of what is predicted besides the box loss, as a sum; for ``loss_weight`` above 0.

        Args:
            deltas: (..., channels).
            target: (..., 4) from :meth:`encode`.
            mask: (...) bool, the rows that count.
            weights: (...) factor of each row; None for 1.
        """
        raise TypeError(f"{type(self).__name__} has no loss of its own")


class Assigner:
    """Label assignment: what each anchor is trained as.

    Its constructor takes ``num_classes`` besides its options.

    Class attributes:
        needs_predictions: it reads the detached StagePrediction, whose ``cls`` then has K logits
            with class probabilities as sigmoids, whatever the class loss.
        labels_by_iou: ``Targets.matched_ious`` also holds the IoU of background anchors, and
            ``Targets.background_ious`` its range; otherwise they are 0 and None.
        weighs_boxes: its targets have ``box_weights``.
        weighs_by_size: these follow the objects' size, which a loss of boxes does not need;
            otherwise their sum divides the box loss.
    """

    needs_predictions = False
    labels_by_iou = True
    weighs_boxes = False
    weighs_by_size = False

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
    """Selects the labelled anchors to train; all others are ignored by every loss.

    Class attributes:
        needs_loss: it ranks anchors by their loss (``difficulty``).
        needs_ious: it reads ``matched_ious`` of background anchors.
    """

    needs_loss = False
    needs_ious = False

    def __call__(
        self, targets: Targets, *, anchors: Tensor, difficulty: Tensor | None = None
    ) -> Tensor:
        """
        Args:
            anchors: (R, 4) or (N, R, 4).
            difficulty: (N, R) detached loss of each anchor, infinite where that is NaN: the
                objectness loss if objectness handles the background, otherwise the class loss.
                None unless ``needs_loss``.

        Returns:
            (N, R) bool, a subset of ``targets.valid``.
        """
        raise TypeError(f"{type(self).__name__} must define __call__")


def predicted_boxes(assigner: Assigner, prediction: StagePrediction | None) -> Tensor:
    """The (N, R, 4) decoded boxes for an assigner with ``needs_predictions``."""
    if prediction is None or prediction.boxes is None:
        raise ValueError(f"{type(assigner).__name__} needs the predicted boxes: pass a prediction")
    return prediction.boxes
