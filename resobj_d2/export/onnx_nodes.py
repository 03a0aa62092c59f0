"""What an operator of this package is in ONNX."""

from __future__ import annotations

from collections.abc import Callable

from .suppression import keep_greedy

__all__ = ["translations"]

_BETWEEN = -0.5  # below every score, above ABSENT


def translations() -> dict[Callable, Callable]:
    """For ``torch.onnx.export(custom_translation_table=...)``."""
    return {keep_greedy._opoverload: _keep_greedy}


def _keep_greedy(boxes, scores, classes, num_classes: int, iou_threshold: float, max_output: int):
    """NonMaxSuppression, which knows images and classes, and the mask of what it selects."""
    from onnxscript import opset18 as op  # the exporter's own; it converts to the newer one

    numbers = op.Constant(value_ints=list(range(num_classes)))
    numbers = op.Reshape(numbers, [1, -1, 1])
    own = op.Equal(op.Unsqueeze(classes, [1]), numbers)  # (N, K, C)
    absent = op.Constant(value_float=-1.0)
    per_class = op.Where(own, op.Unsqueeze(scores, [1]), absent)
    # Rows of (image, class, candidate); each candidate has one class.
    selected = op.NonMaxSuppression(
        boxes,
        per_class,
        op.Constant(value_ints=[max_output]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[_BETWEEN]),
    )
    places = op.Gather(selected, [0, 2], axis=1)
    ones = op.Expand(op.Constant(value_float=1.0), op.Slice(op.Shape(selected), [0], [1]))
    nothing = op.Mul(scores, op.Constant(value_float=0.0))
    return op.Greater(op.ScatterND(nothing, places, ones), op.Constant(value_float=0.5))
