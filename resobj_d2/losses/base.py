"""Base classes of the loss slots."""

from __future__ import annotations

from torch import Tensor, nn

from resobj_d2.structures import LevelMaps

__all__ = ["BoxLoss", "ClassLoss", "Normalizer", "SigmoidScores"]


class ClassLoss:
    """A classification loss: the float32 SUM over the anchors of a mask, never a mean.

    Each stage has its own instance, so that the state of a stateful loss (an ``nn.Module`` with
    buffers) covers only the anchors of that stage.

    Class attributes:
        self_normalized: its weights already normalise the sum, so the normaliser must not.
        ranks_anchors: it defines :meth:`per_anchor`, by which samplers can rank anchors.
        takes_quality: it is called with a fourth argument, (N, R): the quality of each foreground
            anchor's box in [0, 1], without gradient.
    """

    self_normalized = False
    ranks_anchors = True
    takes_quality = False

    @staticmethod
    def num_logits(num_classes: int) -> int:
        """K', the number of logits per anchor: K or K + 1."""
        raise TypeError("a ClassLoss must define num_logits")

    @staticmethod
    def sigmoid_logits(maps: LevelMaps) -> LevelMaps:
        """Maps K' logits per anchor to K whose sigmoids are the class probabilities."""
        raise TypeError("a ClassLoss must define sigmoid_logits")

    def __call__(self, logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            logits: (N, R, K').
            labels: (N, R) int64: -1 ignored, 0..K-1 a class, K background.
            mask: (N, R) bool, the anchors that count.

        Returns:
            Scalar float32; gradients are zero outside ``mask``, whatever the logits there.
        """
        raise TypeError(f"{type(self).__name__} must define __call__")

    def per_anchor(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N, R) loss of each anchor, for ranking; required if ``ranks_anchors``."""
        raise TypeError(f"{type(self).__name__} has no loss per anchor")


class SigmoidScores(ClassLoss):
    """A classification loss whose scores are the sigmoids of one logit per class."""

    @staticmethod
    def num_logits(num_classes: int) -> int:
        return num_classes

    @staticmethod
    def sigmoid_logits(maps: LevelMaps) -> LevelMaps:
        return maps


class BoxLoss:
    """A box loss: the float32 SUM over the rows of a mask, never a mean.

    Class attributes:
        compares: "boxes" for decoded boxes; "deltas" or "cell_deltas" for encoded deltas, to match
            the coder's ``delta_space``.
        takes_weights: it is called with a fourth argument: a (...) factor per row, or None.
        self_normalized: its weights already normalise the sum, so the normaliser must not.
    """

    compares = "deltas"
    takes_weights = False
    self_normalized = False

    def __call__(self, pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            pred, target: (..., 4).
            mask: (...) bool, the rows that count.

        Returns:
            Scalar float32; gradients are zero outside ``mask``, whatever the values there.
        """
        raise TypeError(f"{type(self).__name__} must define __call__")


class Normalizer(nn.Module):
    """The divisor of the summed losses. Nothing else all-reduces.

    Your own should count with :func:`.parts.over_parts` and return :func:`.parts.per_part`, so that
    gradients can be accumulated over the parts of a batch.

    Attributes:
        counts_batch: it depends on the whole batch, so parts of a batch must be counted first.
    """

    counts_batch = True

    def forward(self, num_foreground: Tensor, num_trained: Tensor, num_images: int) -> Tensor:
        """Called once per stage and training iteration.

        Args:
            num_foreground: scalar, number of foreground anchors in the batch.
            num_trained: scalar, number of anchors that the sampler kept.
            num_images: number of images in the batch.

        Returns:
            Scalar >= 1.
        """
        raise TypeError(f"{type(self).__name__} must define forward")
