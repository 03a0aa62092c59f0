"""The candidates of a detector before NMS, with everything that their scores were made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from resobj_d2.modeling import ResObjDenseDetector
from resobj_d2.modeling.rpn import ResObjRPNHead
from resobj_d2.ops import pairwise_box_iou
from resobj_d2.structures import LevelMaps

__all__ = ["Capture", "DenseCapture", "Pool", "TwoStageCapture", "capture_of"]


@dataclass(kw_only=True)
class Pool:
    """The candidates of one image from one source, in pixels of the network's input.

    Attributes:
        source: name of what predicted them.
        scores: (C,).
        classes: (C,) int64, -1 for proposals.
        levels: (C,) int64, -1 where there are none.
        priors: (C, 4).
        stages: (C, 4) for each stage; the last are the boxes.
        factors: (C,) each.
        anchors: (R, 4) all priors of the source; None where they are another source's boxes.
    """

    source: str
    scores: Tensor
    classes: Tensor
    levels: Tensor
    priors: Tensor
    stages: list[Tensor]
    factors: dict[str, Tensor]
    anchors: Tensor | None = None


class Capture:
    """Runs a model and keeps what its detections were chosen from.

    Args:
        model: in evaluation mode.
        limit: candidates to keep of each image and source, the best.

    Attributes:
        sources: names of what predicts candidates; empty where they cannot be had.
        num_stages: of the source with most.
        factors: names of all factors.
    """

    sources: Sequence[str] = ()
    num_stages = 1
    factors: Sequence[str] = ()

    def __init__(self, model: nn.Module, limit: int) -> None:
        self.model = model
        self.limit = limit

    @torch.no_grad()
    def __call__(
        self, batched_inputs: list[dict]
    ) -> tuple[list[list[Instances]], list[list[Pool]]]:
        """Of each image the detections at every step, in output pixels, and its candidates.

        The last step's are the detector's; a detector without refinements has one step.

        Raises:
            ValueError: the model detects no objects.
        """
        found = self._detections(self.model(batched_inputs))
        return [[x] for x in found], [[] for _ in found]

    def _detections(self, outputs: list[dict]) -> list[Instances]:
        for output in outputs:
            if "instances" not in output:
                raise ValueError(
                    f"a {type(self.model).__name__} detects no objects: it gives "
                    f"{', '.join(output)}"
                )
        return [output["instances"] for output in outputs]


class DenseCapture(Capture):
    """Of a :class:`ResObjDenseDetector`: what passes its threshold and top-k, per stream."""

    model: ResObjDenseDetector

    def __init__(self, model: ResObjDenseDetector, limit: int) -> None:
        super().__init__(model, limit)
        self.sources = list(model.streams)
        streams = list(model.streams.values())
        self.num_stages = max(_count_moving(stream.stages) for stream in streams)
        names = ["cls"]
        for stream in streams:
            for name, branch in stream.branches.items():
                names += [name, *(f"{name}_step{t}" for t in range(branch.num_steps + 1))]
        self.factors = list(dict.fromkeys(names))

    @torch.no_grad()
    def __call__(
        self, batched_inputs: list[dict]
    ) -> tuple[list[list[Instances]], list[list[Pool]]]:
        steps, streams, sizes = self.model.detections_with_outputs(batched_inputs)
        pools: list[list[Pool]] = [[] for _ in sizes]
        scoring = self.model.postprocess
        for name, stream in self.model.streams.items():
            output = streams[name]
            stages = stream.boxes_per_stage(output)
            found = stream.candidates(output, score_thresh=scoring.score_thresh, topk=scoring.topk)
            for i, candidates in enumerate(found):
                best = candidates.take(_best(candidates.scores, self.limit))
                pools[i].append(
                    Pool(
                        source=name,
                        scores=best.scores,
                        classes=best.classes,
                        levels=best.levels,
                        priors=output.priors.boxes[best.rows],
                        stages=[x.expand(len(sizes), -1, -1)[i, best.rows] for x in stages[:-1]]
                        + [best.boxes],
                        factors=best.factors,
                        anchors=output.priors.boxes,
                    )
                )
        found = zip(*(self._detections(outputs) for outputs in steps), strict=True)
        return [list(x) for x in found], pools


class TwoStageCapture(Capture):
    """Of Detectron2's ``GeneralizedRCNN``: what its RPN ranks, and what its box heads score.

    The model runs as in an evaluation; hooks keep what its parts are given and return.
    """

    def __init__(self, model: nn.Module, limit: int) -> None:
        super().__init__(model, limit)
        self._rpn = model.proposal_generator
        self.predictors = [
            module
            for module in model.roi_heads.modules()
            if isinstance(module, FastRCNNOutputLayers)
        ]
        self.sources = [*(["rpn"] if self._rpn is not None else []), "roi"]
        self.num_stages = max(1, len(self.predictors))
        head = getattr(self._rpn, "rpn_head", None)
        self._refines = isinstance(head, ResObjRPNHead)
        steps = range(head.num_steps + 1) if self._refines and head.num_steps else ()
        self.factors = ["cls", "objectness", *(f"objectness_step{t}" for t in steps)]
        self._kept: dict[object, tuple] = {}

    @torch.no_grad()
    def __call__(
        self, batched_inputs: list[dict]
    ) -> tuple[list[list[Instances]], list[list[Pool]]]:
        self._kept = {}
        watched = [self.model.roi_heads, *self.predictors]
        watched += [] if self._rpn is None else [self._rpn]
        handles = [module.register_forward_hook(self._keep) for module in watched]
        try:
            outputs = self._detections(self.model(batched_inputs))
        finally:
            for handle in handles:
                handle.remove()
        images, features, proposals = self._kept[self.model.roi_heads][0][:3]
        sizes = images.image_sizes
        pools = [[] for _ in sizes] if self._rpn is None else self._ranked(features, len(sizes))
        for own, pool in zip(pools, self._scored(proposals, sizes), strict=True):
            own.append(pool)
        self._kept = {}
        return [[x] for x in outputs], pools

    def _keep(self, module: nn.Module, arguments: tuple, result: object) -> None:
        self._kept[module] = (arguments, result)

    def _ranked(self, features: dict[str, Tensor], count: int) -> list[list[Pool]]:
        """The anchors that the RPN ranks highest, with their boxes before its NMS."""
        rpn = self._rpn
        maps = [features[name] for name in rpn.in_features]
        anchors = rpn.anchor_generator(maps)
        sizes = [len(x) for x in anchors]
        boxes = Boxes.cat(anchors).tensor
        if self._refines:
            prediction, deltas = rpn.rpn_head.predict(maps)
            steps = range(rpn.rpn_head.num_steps + 1)
            logits = [rpn.rpn_head.score_logits(prediction, t) for t in steps]
            deltas = deltas.flatten()
        else:
            maps_of_logits, maps_of_deltas = rpn.rpn_head(maps)
            logits = [LevelMaps(maps_of_logits, 1).flatten().squeeze(-1).float()]
            deltas = LevelMaps(maps_of_deltas, 4).flatten()
        pools = []
        for i in range(count):
            rows = _best_per_level(logits[-1][i], sizes, rpn.pre_nms_topk[False], self.limit)
            steps = [torch.sigmoid(x[i, rows]) for x in logits]
            factors = {"objectness": steps[-1]}
            if len(steps) > 1:
                factors |= {f"objectness_step{t}": x for t, x in enumerate(steps)}
            ends = torch.tensor(sizes, device=rows.device).cumsum(0)
            pool = Pool(
                source="rpn",
                scores=steps[-1],
                classes=torch.full_like(rows, -1),
                levels=torch.bucketize(rows, ends, right=True),
                priors=boxes[rows],
                stages=[rpn.box2box_transform.apply_deltas(deltas[i, rows], boxes[rows])],
                factors=factors,
                anchors=boxes,
            )
            pools.append([pool])
        return pools

    def _scored(self, proposals: list[Instances], sizes: Sequence[tuple[int, int]]) -> list[Pool]:
        """Pairs of a proposal and a class above the threshold, with the boxes of each stage."""
        given = [x.proposal_boxes.tensor for x in proposals]
        probabilities, stages = [], []
        for predictor in self.predictors:
            predictions = self._kept[predictor][1]
            boxes = predictor.predict_boxes(predictions, proposals)
            stages.append(boxes)
            probabilities.append(predictor.predict_probs(predictions, proposals))
            proposals = [_proposals(b, size) for b, size in zip(boxes, sizes, strict=True)]
        pools = []
        for i, priors in enumerate(given):
            scores = sum(p[i] for p in probabilities)[:, :-1] / len(self.predictors)
            threshold = self.predictors[-1].test_score_thresh
            finite = stages[-1][i].isfinite().all(1, keepdim=True) & scores.isfinite().all(
                1, keepdim=True
            )
            rows, classes = ((scores > threshold) & finite).nonzero(as_tuple=True)
            best = _best(scores[rows, classes], self.limit)
            rows, classes = rows[best], classes[best]
            pools.append(
                Pool(
                    source="roi",
                    scores=scores[rows, classes],
                    classes=classes,
                    levels=torch.full_like(rows, -1),
                    priors=priors[rows],
                    stages=[_of_class(boxes[i][rows], classes) for boxes in stages],
                    factors={"cls": scores[rows, classes]},
                )
            )
        return pools


def capture_of(model: nn.Module, limit: int) -> Capture:
    """The capture that fits a model; one without candidates for models that nothing is known of."""
    if isinstance(model, ResObjDenseDetector):
        return DenseCapture(model, limit)
    heads = getattr(model, "roi_heads", None)
    if heads is not None and any(isinstance(x, FastRCNNOutputLayers) for x in heads.modules()):
        return TwoStageCapture(model, limit)
    return Capture(model, limit)


def best_ious(boxes: Tensor, objects: Tensor) -> np.ndarray:
    """(C,) best IoU of each box with an object; 0 where there is none."""
    if not len(objects):
        return np.zeros(len(boxes), dtype=np.float32)
    return pairwise_box_iou(objects, boxes).amax(dim=0).cpu().numpy()


def _count_moving(stages: Sequence) -> int:
    return sum(stage.box is not None or stage.repeats_box for stage in stages)


def _best(scores: Tensor, limit: int) -> Tensor:
    return scores.sort(descending=True, stable=True).indices[:limit]


def _best_per_level(logits: Tensor, sizes: Sequence[int], topk: int, limit: int) -> Tensor:
    rows, start = [], 0
    for part in logits.split(list(sizes)):
        rows.append(start + _best(part, topk))
        start += len(part)
    chosen = torch.cat(rows)
    return chosen[_best(logits[chosen], limit)]


def _proposals(boxes: Tensor, size: tuple[int, int]) -> Instances:
    """What the next stage of a cascade starts from."""
    result = Instances(size)
    result.proposal_boxes = Boxes(boxes[:, :4].clone())
    result.proposal_boxes.clip(size)
    return result


def _of_class(boxes: Tensor, classes: Tensor) -> Tensor:
    """(n, 4) from (n, 4 K), or from (n, 4) shared by all classes."""
    if boxes.shape[1] == 4:
        return boxes
    return boxes.view(len(boxes), -1, 4)[torch.arange(len(boxes)), classes]
