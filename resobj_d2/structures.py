"""The typed records passed between the steps of a dense detector.

Notation used in this package: N images, L pyramid levels, A_l anchors per cell of level l,
R = sum_l H_l * W_l * A_l anchors per image, K foreground classes, M_i ground-truth boxes of
image i, T residual steps, S stages, C candidate detections of one image. Boxes are XYXY in
pixels of the padded network input, float32. Labels are -1 (ignored), 0..K-1 (a class) or K
(background).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Candidates",
    "GroundTruth",
    "LevelMaps",
    "Priors",
    "StagePrediction",
    "StreamOutput",
    "Targets",
    "TowerFeatures",
]

IGNORE = -1


def _computed_once() -> Any:
    """A field that a method fills; functools.cached_property would break a compiled graph."""
    return field(default=None, init=False, repr=False, compare=False)


@dataclass
class Priors:
    """The anchors (or points) for one image size, shared by every image of the batch.

    Attributes:
        boxes: (R, 4), level by level; within a level, row-major over cells, then over the anchors
            of a cell.
        anchors_per_level: number of anchors of each level; sums to R.
        map_sizes: (H_l, W_l) per level.
        strides: distance between neighbouring cells in pixels, per level.
    """

    boxes: Tensor
    anchors_per_level: list[int]
    map_sizes: list[tuple[int, int]]
    strides: list[int]
    _anchor_strides: Tensor | None = _computed_once()

    def __post_init__(self) -> None:
        if not len(self.anchors_per_level) == len(self.map_sizes) == len(self.strides):
            raise ValueError(
                f"{len(self.anchors_per_level)} counts of anchors, {len(self.map_sizes)} map sizes "
                f"and {len(self.strides)} strides"
            )
        if self.boxes.shape != (sum(self.anchors_per_level), 4):
            raise ValueError(
                f"boxes must be ({sum(self.anchors_per_level)}, 4), got {tuple(self.boxes.shape)}"
            )

    @property
    def num_anchors(self) -> list[int]:
        """A_l per level."""
        pairs = zip(self.anchors_per_level, self.map_sizes, strict=True)
        return [n // max(h * w, 1) for n, (h, w) in pairs]

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the padded network input in pixels."""
        height, width = self.map_sizes[0]
        return height * self.strides[0], width * self.strides[0]

    @property
    def anchor_strides(self) -> Tensor:
        """(R, 1) stride of each anchor's level, float32."""
        if self._anchor_strides is None:
            levels = zip(self.anchors_per_level, self.strides, strict=True)
            parts = [self.boxes.new_full((n, 1), stride) for n, stride in levels]
            self._anchor_strides = torch.cat(parts)
        return self._anchor_strides


@dataclass
class GroundTruth:
    """The ground truth of a batch, concatenated: image i has rows ``offsets[i]:offsets[i + 1]``.

    Attributes:
        boxes: (sum M_i, 4) float32.
        classes: (sum M_i,) int64 in [0, K).
        counts: M_i of each image, on the host (a list).
    """

    boxes: Tensor
    classes: Tensor
    counts: list[int]

    def __post_init__(self) -> None:
        total = sum(self.counts)
        if self.boxes.shape != (total, 4) or self.classes.shape != (total,):
            raise ValueError(
                f"expected {total} boxes and classes, got {tuple(self.boxes.shape)} "
                f"and {tuple(self.classes.shape)}"
            )

    @classmethod
    def from_lists(cls, boxes: Sequence[Tensor], classes: Sequence[Tensor]) -> GroundTruth:
        """Concatenate per-image (M_i, 4) boxes and (M_i,) classes."""
        return cls(
            boxes=torch.cat(list(boxes)).float(),
            classes=torch.cat(list(classes)).long(),
            counts=[len(b) for b in boxes],
        )

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.counts)

    @property
    def offsets(self) -> list[int]:
        """N + 1 row indices, on the host."""
        result = [0]
        for count in self.counts:
            result.append(result[-1] + count)
        return result


@dataclass
class TowerFeatures:
    """The input of the predictors: one (N, C, H_l, W_l) map per level for each task.

    ``pyramid`` is the tower's own input, for stages with their own tower.
    """

    cls: list[Tensor]
    box: list[Tensor]
    pyramid: list[Tensor]


@dataclass
class LevelMaps:
    """The raw output of a convolution on every level.

    Attributes:
        levels: L maps (N, A_l * channels, H_l, W_l); the channels of an anchor are adjacent.
        channels: numbers predicted per anchor.
    """

    levels: list[Tensor]
    channels: int
    _flat: Tensor | None = _computed_once()

    def flatten(self) -> Tensor:
        """(N, R, channels), in the order of :class:`Priors`; copied once, then cached."""
        if self._flat is None:
            # The first caller may be an assigner, which needs no gradient; the losses share its
            # copy.
            with torch.enable_grad():
                self._flat = torch.cat([self._cells(x) for x in self.levels], dim=1)
        return self._flat

    def _cells(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        cells = x.view(n, -1, self.channels, h, w).permute(0, 3, 4, 1, 2)
        if torch.compiler.is_compiling():
            # The choice of reshape between view and copy would tie the graph to sizes.
            cells = cells.clone(memory_format=torch.contiguous_format)
        return cells.reshape(n, -1, self.channels)

    def view_per_anchor(self, values: Tensor) -> list[Tensor]:
        """(N, R) values as views (N, A_l, H_l, W_l), one per level, without a copy."""
        sizes = [x[0].numel() // self.channels for x in self.levels]
        parts = zip(values.split(sizes, dim=1), self.levels, strict=True)
        return [part.unflatten(1, (*x.shape[-2:], -1)).permute(0, 3, 1, 2) for part, x in parts]


@dataclass
class StagePrediction:
    """The predictions of one stage for its anchors.

    Attributes:
        anchors: (R, 4) for the first stage, (N, R, 4) for refined anchors; never carries a
            gradient.
        cls: K or K + 1 logits per anchor, as the class loss needs; a stage without a class
            predictor repeats those of the previous stage.
        box: the coder's ``channels``, usually 4 deltas, per anchor; None for a stage that does not
            move boxes.
        boxes: (N, R, 4) decoded, without gradient, for an assigner that needs predictions.
    """

    anchors: Tensor
    cls: LevelMaps
    box: LevelMaps | None
    boxes: Tensor | None = None

    # Copies are made on demand: losses need them, inference reads the maps.

    @property
    def cls_logits(self) -> Tensor:
        """(N, R, K), or K + 1 if the class loss has a background logit."""
        return self.cls.flatten()

    @property
    def deltas(self) -> Tensor | None:
        """(N, R, channels of the coder), or None if ``box`` is."""
        return None if self.box is None else self.box.flatten()


@dataclass
class StreamOutput:
    """Everything a stream predicts for a batch.

    ``branches`` maps the name of a score branch to the result of its ``predict``.
    """

    priors: Priors
    stages: list[StagePrediction]
    branches: dict[str, object] = field(default_factory=dict)

    @property
    def box_stage(self) -> StagePrediction:
        """The last stage that moves boxes; its decoded boxes are the detector's."""
        return [stage for stage in self.stages if stage.box is not None][-1]


@dataclass
class Targets:
    """The assigner's decision for every anchor of the batch.

    Attributes:
        labels: (N, R) int64 in {-1, 0..K-1, K}.
        matched_gt_boxes: (N, R, 4) the ground-truth box of each foreground anchor; for others the
            anchor itself, so that encoding it is always finite.
        matched_ious: (N, R) best IoU with any ground truth of the image, 0 if it has none.
        gt_index: (N, R) row of the best ground truth within its image, -1 if it has none.
        num_classes: K.
        excluded_class: (N, R) int64, a class for which the anchor is not a negative, -1 for none;
            None if the assigner excludes nothing.
        box_weights: (N, R) factor of each anchor's box loss; None means 1.
        quality: (N, R) target of the class score of foreground, for class losses that take one;
            None for the IoU of the predicted box.
        background_ious: lowest and highest IoU at which anchors are background, for samplers that
            spread background over its IoUs; None if the labels do not follow from IoUs.
    """

    labels: Tensor
    matched_gt_boxes: Tensor
    matched_ious: Tensor
    gt_index: Tensor
    num_classes: int
    excluded_class: Tensor | None = None
    box_weights: Tensor | None = None
    quality: Tensor | None = None
    background_ious: tuple[float, float] | None = None

    @property
    def valid(self) -> Tensor:
        """(N, R) bool, not ignored."""
        return self.labels != IGNORE

    @property
    def foreground(self) -> Tensor:
        """(N, R) bool, labelled with a class."""
        return self.valid & (self.labels != self.num_classes)

    @property
    def background(self) -> Tensor:
        """(N, R) bool, labelled as background."""
        return self.labels == self.num_classes

    @property
    def binary_labels(self) -> Tensor:
        """(N, R) int8: 1 foreground, 0 background, -1 ignored, as the objectness loss expects."""
        return self.foreground.to(torch.int8) - (~self.valid).to(torch.int8)


@dataclass
class Candidates:
    """Scored boxes of one image, before or after suppression.

    Attributes:
        boxes: (C, 4).
        classes: (C,) int64.
        scores: (C,) the fused score.
        factors: the fused probabilities by name, each (C,); on request also ``<name>_step<t>``,
            those after t refinements.
        levels: (C,) int64, the pyramid level of each.
        rows: (C,) int64, the prior of each, a row of its stream's :class:`Priors`.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor
    factors: dict[str, Tensor]
    levels: Tensor
    rows: Tensor

    def take(self, index: Tensor) -> Candidates:
        """The candidates with indices ``index`` (D,), in that order."""
        return Candidates(
            boxes=self.boxes[index],
            classes=self.classes[index],
            scores=self.scores[index],
            factors={name: value[index] for name, value in self.factors.items()},
            levels=self.levels[index],
            rows=self.rows[index],
        )

    @classmethod
    def cat(cls, parts: Sequence[Candidates]) -> Candidates:
        """Concatenate the candidates of several levels or streams.

        A factor that only some of them have is set to 1 for the others, as in their scores.
        """
        names = list(dict.fromkeys(name for p in parts for name in p.factors))
        return cls(
            boxes=torch.cat([p.boxes for p in parts]),
            classes=torch.cat([p.classes for p in parts]),
            scores=torch.cat([p.scores for p in parts]),
            factors={
                name: torch.cat([p.factors.get(name, torch.ones_like(p.scores)) for p in parts])
                for name in names
            },
            levels=torch.cat([p.levels for p in parts]),
            rows=torch.cat([p.rows for p in parts]),
        )
