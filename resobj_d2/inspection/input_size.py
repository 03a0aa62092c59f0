"""How large pictures and their objects are at the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from resobj_d2.data.record import Record

__all__ = ["InputObjects", "input_objects", "input_sizes", "size_in_words"]


@dataclass(frozen=True, kw_only=True)
class InputObjects:
    """N objects as the network sees them, without crowd regions.

    Attributes:
        boxes: (N, 4) XYXY in pixels of the network's input.
        areas: (N,) square pixels there, of the masks where the dataset has them.
        classes: (N,) class numbers.
        inputs: (N, 2) height and width of the input, padded.
        class_names: by number.
    """

    boxes: np.ndarray
    areas: np.ndarray
    classes: np.ndarray
    inputs: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: np.ndarray) -> InputObjects:
        """Some of them."""
        return InputObjects(
            boxes=self.boxes[rows],
            areas=self.areas[rows],
            classes=self.classes[rows],
            inputs=self.inputs[rows],
            class_names=self.class_names,
        )


def input_sizes(
    cfg, widths: np.ndarray, heights: np.ndarray, *, is_train: bool = True
) -> np.ndarray:
    """(M, 2) height and width to which pictures are resized, before they are padded.

    Where training chooses at random, the middle: of ``MIN_SIZE_TRAIN`` and ``MULTI_SCALE``, and a
    factor of 1 of ``SCALE_JITTER``. Crops and canvases are left out.

    Args:
        cfg: the configuration.
        widths, heights: (M,) of the pictures, upright.
        is_train: whether for training or for evaluation.
    """
    node = cfg.INPUT
    sizes = np.stack([heights, widths], axis=1).astype(np.float64)
    if node.FIXED_SIZE:
        sizes = np.broadcast_to(np.array(node.FIXED_SIZE, dtype=np.float64), sizes.shape)
    elif node.SCALE_JITTER and is_train:
        low, high = node.SCALE_JITTER
        side = node.MAX_SIZE_TRAIN * min(max(1.0, low), high)
        sizes = np.round(sizes * (side / sizes.max(axis=1, keepdims=True, initial=1)))
    elif is_train:
        sizes = _shortest_edge(sizes, _middle_of(node), node.MAX_SIZE_TRAIN)
    else:
        sizes = _shortest_edge(sizes, node.MIN_SIZE_TEST, node.MAX_SIZE_TEST)
    if node.MULTI_SCALE and is_train:
        side = sorted(node.MULTI_SCALE)[len(node.MULTI_SCALE) // 2]
        sizes = np.round(sizes * (side / sizes.max(axis=1, keepdims=True, initial=1)))
    return np.maximum(sizes, 1.0)


def _middle_of(node) -> float:
    sizes = node.MIN_SIZE_TRAIN
    sizes = sorted(sizes) if isinstance(sizes, Sequence) else [sizes]
    if node.MIN_SIZE_TRAIN_SAMPLING == "range":
        return (sizes[0] + sizes[-1]) / 2
    return sizes[len(sizes) // 2]


def _shortest_edge(sizes: np.ndarray, shorter: float, longest: float) -> np.ndarray:
    """As Detectron2's ``ResizeShortestEdge``; ``shorter`` 0 leaves pictures as they are."""
    if not shorter:
        return sizes
    resized = sizes * (shorter / sizes.min(axis=1, keepdims=True, initial=np.inf))
    longer = resized.max(axis=1, keepdims=True, initial=1)
    return np.floor(resized * np.minimum(1.0, longest / longer) + 0.5)


def input_objects(
    cfg, records: Sequence[Record], *, divisor: int = 1, square: int = 0
) -> InputObjects:
    """The objects of datasets with the same classes, at the training's input.

    Args:
        cfg: the configuration.
        records: of ``DATASETS.TRAIN``.
        divisor: inputs are padded to a multiple of it.
        square: inputs are padded to squares of this side; 0 for none.
    """
    boxes, areas, classes, inputs = [], [], [], []
    for record in records:
        images, table = record.images, record.annotations
        table = table.take(~table.crowd)
        sizes = input_sizes(cfg, images.widths, images.heights)
        scales = (sizes / np.stack([images.heights, images.widths], axis=1))[table.images]
        corners = np.hstack([table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]])
        boxes.append(corners * scales[:, [1, 0, 1, 0]])
        areas.append(table.areas * scales.prod(axis=1))
        classes.append(table.classes)
        padded = np.ceil(sizes / max(divisor, 1)) * max(divisor, 1)
        if cfg.INPUT.SCALE_JITTER:
            padded = np.full_like(padded, cfg.INPUT.MAX_SIZE_TRAIN)
        if square:
            padded = np.full_like(padded, square)
        inputs.append(padded[table.images])
    names = records[0].class_names if records else []
    return InputObjects(
        boxes=np.concatenate([np.zeros((0, 4)), *boxes]),
        areas=np.concatenate([np.zeros(0), *areas]),
        classes=np.concatenate([np.zeros(0, dtype=np.int64), *classes]),
        inputs=np.concatenate([np.zeros((0, 2)), *inputs]),
        class_names=tuple(names),
    )


def size_in_words(inputs: np.ndarray) -> str:
    """ "256x352", or "480-640 x 640" for different ones, of (N, 2) heights and widths."""
    if not len(inputs):
        return "no size"
    ranges = zip(inputs.min(axis=0).astype(int), inputs.max(axis=0).astype(int), strict=True)
    words = [f"{low}" if low == high else f"{low}-{high}" for low, high in ranges]
    return ("x" if not any("-" in word for word in words) else " x ").join(words)
