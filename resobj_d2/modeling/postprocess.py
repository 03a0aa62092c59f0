"""Turns the predictions of streams into detections."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from detectron2.structures import Boxes, Instances

from resobj_d2.options import Option, Part
from resobj_d2.structures import Candidates, StreamOutput

from .fusion import ScoreFusion
from .suppression import Suppression

if TYPE_CHECKING:
    from .stream import DenseStream

__all__ = ["DensePostprocess", "Scoring", "to_instances"]


DEFAULT = Suppression()


class DensePostprocess:
    """Threshold and top-k per level, class-wise suppression, and the best ``max_detections``.

    Args:
        score_thresh: candidates must score above this, also after a suppression that decays scores.
        topk: candidates per level that enter the suppression.
        suppression: removes duplicate detections; class-wise NMS by default.
        max_detections: maximum number per image.
    """

    def __init__(
        self,
        *,
        score_thresh: Annotated[float, Option("candidates must score above this")] = 0.05,
        topk: Annotated[int, Option("candidates per level that enter NMS")] = 1000,
        suppression: Annotated[Suppression, Part()] = DEFAULT,
        max_detections: int = 100,
    ) -> None:
        if topk < 1 or max_detections < 1:
            raise ValueError(
                "POSTPROCESS.TOPK and TEST.DETECTIONS_PER_IMAGE must be at least 1, "
                f"got {topk} and {max_detections}"
            )
        self.score_thresh = score_thresh
        self.topk = topk
        self.suppression = suppression
        self.max_detections = max_detections

    def __call__(
        self, streams: Sequence[tuple[DenseStream, StreamOutput]], step: int | None = None
    ) -> list[Candidates]:
        """Detections of each image, best first.

        Args:
            streams: each stream with its predictions; all candidates share one suppression.
            step: score with an earlier refinement of the branches; None for the last.
        """
        if len(streams) == 1 and not self.suppression.decays:
            ((stream, output),) = streams
            return stream.candidates(
                output,
                step,
                score_thresh=self.score_thresh,
                topk=self.topk,
                nms_thresh=self.suppression.threshold,
                max_detections=self.max_detections,
            )
        candidates = [
            stream.candidates(output, step, score_thresh=self.score_thresh, topk=self.topk)
            for stream, output in streams
        ]
        return [self.suppress(Candidates.cat(parts)) for parts in zip(*candidates, strict=True)]

    def suppress(self, candidates: Candidates) -> Candidates:
        """One image's candidates after suppression, best first."""
        keep, scores = self.suppression(
            candidates.boxes,
            candidates.scores,
            candidates.classes,
            min_score=self.score_thresh,
            max_output=self.max_detections,
        )
        return replace(candidates.take(keep), scores=scores)


@dataclass
class Scoring:
    """Everything that turns predictions into detections without changing the predictions.

    Attributes:
        postprocess: thresholds and limits.
        fusion: by stream, how probabilities are combined into a score.
        stage_scores: by stream, which stages' class probabilities are used.
    """

    postprocess: DensePostprocess
    fusion: dict[str, ScoreFusion]
    stage_scores: dict[str, str]

    def of_stream(self, name: str, stream: DenseStream) -> DenseStream:
        """The stream with this scoring: a view that shares everything else, so that others who use
        the stream meanwhile do not notice."""
        view = copy(stream)
        view.fusion, view.stage_scores = self.fusion[name], self.stage_scores[name]
        return view


def to_instances(detections: Candidates, image_size: tuple[int, int]) -> Instances:
    """Detections of one image in Detectron2's format.

    Args:
        image_size: (height, width) of the unpadded network input.

    Returns:
        Instances with ``pred_boxes``, ``scores``, ``pred_classes``, and the fused probabilities
        as ``<name>_score`` if there are several.
    """
    result = Instances(image_size)
    result.pred_boxes = Boxes(detections.boxes)
    result.scores = detections.scores
    result.pred_classes = detections.classes
    if len(detections.factors) > 1:
        for name, value in detections.factors.items():
            result.set(f"{name}_score", value)
    return result
