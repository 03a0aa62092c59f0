"""A dense prediction stream: anchors with their predictions, losses and candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from resobj_d2.losses import objectness_difficulty
from resobj_d2.matching import AnchorGrid, Coder, Sampler
from resobj_d2.ops import dense_detections, expected_gradient
from resobj_d2.options import Option
from resobj_d2.structures import (
    IGNORE,
    Candidates,
    GroundTruth,
    LevelMaps,
    Priors,
    StagePrediction,
    StreamOutput,
    Targets,
    TowerFeatures,
)

from .box_weights import box_weights, class_targets
from .class_logits import mean_of_sigmoids, without_excluded, without_nan
from .compatibility_checks import check_compatibility
from .contracts import ScoreBranch
from .fusion import ScoreFusion
from .stages import Stage

__all__ = ["DenseStream"]

# By name: what computes a sum of losses, its weight, and its divisor if that is not the normaliser.
_Sums = dict[str, tuple[Callable[[], Tensor], float, Tensor | float | None]]


class DenseStream(nn.Module):
    """One set of priors with everything that is predicted for it and trained on it.

    Three rules couple the slots. A branch that ``owns_background`` takes background away from the
    class loss, which then covers foreground anchors only. Every later stage starts from the
    decoded, detached boxes of the previous stage. Layers that a stage shares (class logits,
    objectness) are trained on that stage's labels too.

    Args:
        priors, coder, sampler: see :mod:`resobj_d2.matching`.
        stages: at least one; the first has both predictors and both losses.
        cls_weight, box_weight: factors of the stages' losses.
        box_weighed_by: what the box loss of an anchor, and that of the coder, is weighed by; one of
            :data:`.box_weights.BOX_WEIGHTS`. The weights' sum then divides the loss.
        stage_scores: class probabilities are those of the last stage with its own class predictor
            ("last"), or the mean over all such stages ("mean", as in Cascade R-CNN).
        branches: score branches, by their ``name``.
        fusion: combines the probabilities of the class and the branches into one score.
    """

    def __init__(
        self,
        *,
        priors: AnchorGrid,
        coder: Coder,
        sampler: Sampler,
        stages: Sequence[Stage],
        cls_weight: Annotated[
            float, Option("factor of the class loss", key="CLS_LOSS.WEIGHT")
        ] = 1.0,
        box_weight: Annotated[float, Option("factor of the box loss", key="BOX_LOSS.WEIGHT")] = 1.0,
        box_weighed_by: Annotated[
            str,
            Option(
                "factor of each anchor's box loss, whose sum then divides the loss: none, score "
                "(its highest class score), iou (of its box) or centerness (of its centre)",
                key="BOX_LOSS.WEIGHED_BY",
                source="Generalized Focal Loss, section 3.3; VarifocalNet, Eq. 5; FCOS's code",
            ),
        ] = "none",
        stage_scores: Annotated[
            str,
            Option(
                "class probabilities are those of the last stage with its own class predictor "
                "(last), or the mean over all such stages (mean)",
                source="Cascade R-CNN",
            ),
        ] = "last",
        branches: Sequence[ScoreBranch] = (),
        fusion: ScoreFusion,
    ) -> None:
        super().__init__()
        self.priors = priors
        self.coder = coder
        self.sampler = sampler
        self.stages = nn.ModuleList(stages)
        self.cls_weight = cls_weight
        self.box_weight = box_weight
        self.box_weighed_by = box_weighed_by
        self.stage_scores = stage_scores
        self.branches = nn.ModuleDict({b.name: b for b in branches})
        self.fusion = fusion
        owners = [b.name for b in branches if b.owns_background]
        if len(owners) > 1:
            raise ValueError(f"only one branch can own the background, got {owners}")
        self.classify_background = not owners
        check_compatibility(
            priors,
            coder,
            sampler,
            stages,
            classify_background=self.classify_background,
            weighed_by=box_weighed_by,
            branches=branches,
        )
        if stage_scores not in ("last", "mean"):
            raise ValueError(f"STAGE_SCORES must be last or mean, got {stage_scores!r}")
        if stage_scores == "mean" and sum(s.cls is not None and not s.binary for s in stages) < 2:
            raise ValueError("STAGE_SCORES mean needs a stage with CLS own in STAGES")

    @property
    def num_steps(self) -> int:
        """Number of refinements of the branch that is refined most."""
        return max((b.num_steps for b in self.branches.values()), default=0)

    def forward(self, features: TowerFeatures, *, every_step: bool = True) -> StreamOutput:
        """
        Args:
            every_step: False if only the last refinement of the branches is needed.
        """
        priors: Priors = self.priors([tuple(x.shape[-2:]) for x in features.box])
        predictions: list[StagePrediction] = []
        first = features
        for stage in self.stages:
            anchors = self._refined(predictions[-1], priors) if predictions else priors.boxes
            features = stage.features(features)
            predictions.append(stage(features, anchors, predictions))
        branches = {
            name: branch.predict(
                features if branch.last_stage_only else first, every_step=every_step
            )
            for name, branch in self.branches.items()
        }
        return StreamOutput(priors=priors, stages=predictions, branches=branches)

    def _boxes(self, prediction: StagePrediction, priors: Priors) -> Tensor:
        """The (N, R, 4) boxes predicted by a stage."""
        if prediction.box is None:
            return prediction.anchors
        return self.coder.decode(prediction.anchors, prediction.deltas, priors.anchor_strides)

    def boxes_per_stage(self, output: StreamOutput) -> list[Tensor]:
        """(N, R, 4) for every stage that moves boxes; the last are the detector's."""
        return [self._boxes(x, output.priors) for x in output.stages if x.box is not None]

    @torch.no_grad()
    def _refined(self, prediction: StagePrediction, priors: Priors) -> Tensor:
        """The anchors of the next stage: (N, R, 4), detached, not clipped to the image.

        An anchor is left where it is if its decoded box is not finite or has no area.
        """
        boxes = self._boxes(prediction, priors)
        usable = torch.isfinite(boxes) & (boxes[..., 2:] > boxes[..., :2]).repeat(1, 1, 2)
        return torch.where(usable.all(dim=-1, keepdim=True), boxes, prediction.anchors)

    def losses(
        self, output: StreamOutput, ground_truth: GroundTruth
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Named losses, weighted and normalised, and detached statistics to log.

        Nothing here waits for the device: no ``.item()``, no ``nonzero``, no boolean indexing.
        """
        losses: dict[str, Tensor] = {}
        statistics: dict[str, Tensor] = {}
        first_normalizer = None
        for i, (stage, prediction) in enumerate(zip(self.stages, output.stages, strict=True)):
            suffix = f"_stage{i}" if i else ""
            targets = self._targets(i, output, ground_truth)
            num_foreground = targets.foreground.sum()
            statistics[f"num_foreground{suffix}"] = num_foreground / ground_truth.num_images
            numbers = num_foreground, targets.valid.sum()
            normalizer = stage.normalizer(*numbers, ground_truth.num_images)
            first_normalizer = normalizer if first_normalizer is None else first_normalizer
            cls_normalizer = normalizer if stage.own_cls_normalizer else first_normalizer
            sums = self._stage_losses(stage, prediction, targets, output.priors)
            for name, (total, weight, own) in sums.items():
                divisor = cls_normalizer if name == "cls" else normalizer
                factor = weight / (divisor if own is None else own)
                with expected_gradient(factor):
                    losses[f"loss_{name}{suffix}"] = total() * factor
            for branch in self.branches.values():
                last_only = branch.last_stage_only
                if prediction is not output.stages[-1] if last_only else stage.weight == 0:
                    continue
                branch_losses, branch_statistics = branch.loss(
                    output.branches[branch.name],
                    targets=targets,
                    anchors=prediction.anchors,
                    boxes=self._boxes(prediction, output.priors) if branch.needs_boxes else None,
                    anchors_per_level=output.priors.anchors_per_level,
                    normalizer=normalizer if last_only else cls_normalizer / stage.weight,
                )
                ending = "" if last_only else suffix
                losses.update({k + ending: v for k, v in branch_losses.items()})
                statistics.update({k + ending: v for k, v in branch_statistics.items()})
        return losses, statistics

    @torch.no_grad()
    def assign(self, index: int, output: StreamOutput, ground_truth: GroundTruth) -> Targets:
        """What each anchor of a stage is, before anchors are sampled.

        Args:
            index: of the stage.
        """
        stage, prediction = self.stages[index], output.stages[index]
        seen = None
        if stage.assigner.needs_predictions:
            seen = replace(
                prediction,
                cls=self.stages[0].cls_loss.sigmoid_logits(prediction.cls),
                boxes=self._boxes(prediction, output.priors),
            )
        targets = stage.assigner(output.priors, prediction.anchors, ground_truth, seen)
        if targets.excluded_class is not None and not self.classify_background:
            # An anchor that may contain some object must not be trained as background.
            unsure = targets.excluded_class >= 0
            targets = replace(targets, labels=torch.where(unsure, IGNORE, targets.labels))
        return targets

    @torch.no_grad()
    def _targets(self, index: int, output: StreamOutput, ground_truth: GroundTruth) -> Targets:
        """Assigns and samples; every loss ignores anchors that are not sampled."""
        targets = self.assign(index, output, ground_truth)
        stage, prediction = self.stages[index], output.stages[index]
        difficulty = None
        if self.sampler.needs_loss:
            difficulty = self._difficulty(stage, output, prediction, targets)
        mask = self.sampler(targets, anchors=prediction.anchors, difficulty=difficulty)
        return replace(targets, labels=torch.where(mask, targets.labels, IGNORE))

    def _difficulty(
        self, stage: Stage, output: StreamOutput, prediction: StagePrediction, targets: Targets
    ) -> Tensor:
        """(N, R) loss of each anchor in the part that separates foreground from background."""
        for name, branch in self.branches.items():
            if branch.owns_background:
                logits = branch.score_logits(output.branches[name])
                return objectness_difficulty(logits, targets.foreground)
        logits = without_excluded(prediction.cls_logits, targets.excluded_class)
        return without_nan(self.stages[0].cls_loss.per_anchor(logits, stage.class_labels(targets)))

    def _stage_losses(
        self, stage: Stage, prediction: StagePrediction, targets: Targets, priors: Priors
    ) -> _Sums:
        """What the stage trains."""
        sums: _Sums = {}
        loss, weight = stage.cls_loss, stage.weight * stage.cls_weight
        if loss is not None and weight > 0:
            own, quality = None, ()
            if loss.takes_quality:
                target, own = class_targets(targets, partial(self._boxes, prediction, priors))
                quality = (target,)
            total = partial(
                loss,
                without_excluded(prediction.cls_logits, targets.excluded_class),
                stage.class_labels(targets),
                targets.valid if self.classify_background else targets.foreground,
                *quality,
            )
            sums["cls"] = total, self.cls_weight * weight, 1.0 if loss.self_normalized else own
        if prediction.box is not None and stage.box_loss is not None:
            sums.update(self._box_losses(stage, prediction, targets, priors))
        return sums

    def _box_losses(
        self, stage: Stage, prediction: StagePrediction, targets: Targets, priors: Priors
    ) -> _Sums:
        """As :meth:`_stage_losses`: the box loss and the coder's own."""
        loss, foreground = stage.box_loss, targets.foreground
        weight = stage.weight * stage.box_weight
        if weight == 0:
            return {}
        factors, own = box_weights(
            self.box_weighed_by,
            prediction=prediction,
            cls_loss=self.stages[0].cls_loss,
            targets=targets,
            decode=partial(self._boxes, prediction, priors),
            by_size=stage.assigner.weighs_by_size,
        )
        encoded = None
        if loss.compares != "boxes" or self.coder.loss_weight > 0:
            encoded = self.coder.encode(
                prediction.anchors, targets.matched_gt_boxes, priors.anchor_strides
            )
        pred, target = prediction.deltas, encoded
        if loss.compares == "boxes":
            pred, target = self._boxes(prediction, priors), targets.matched_gt_boxes
        taken = (factors,) if loss.takes_weights else ()
        total = partial(loss, pred, target, foreground, *taken)
        divisor = 1.0 if loss.self_normalized else own
        sums: _Sums = {"box_reg": (total, self.box_weight * weight, divisor)}
        if self.coder.loss_weight > 0:
            total = partial(self.coder.loss, prediction.deltas, encoded, foreground, factors)
            sums["box_coder"] = total, self.coder.loss_weight * weight, own
        return sums

    def detection_inputs(self, output: StreamOutput, step: int | None = None) -> dict[str, Any]:
        """The arguments of ``ops.dense_detections`` that depend on the predictions or the method.

        Args:
            step: score with an earlier refinement of the branches; None for the last.

        Returns:
            ``cls_logits``, ``deltas``, ``anchors``, ``num_classes``, ``factor_logits``,
            ``exponents``, ``floors`` and, where there are deltas to decode, what decodes them.
        """
        cls, moved = self._class_maps(output), output.box_stage
        decoding = self.coder.delta_options
        boxes = self._boxes(moved, output.priors) if decoding is None else moved.anchors
        names = ["cls", *self.branches]
        return {
            "cls_logits": cls.levels,
            "deltas": None if decoding is None else moved.box.levels,
            "anchors": boxes.split(output.priors.anchors_per_level, dim=-2),
            "num_classes": cls.channels,
            "factor_logits": [
                cls.view_per_anchor(branch.score_logits(output.branches[name], step))
                for name, branch in self.branches.items()
            ],
            "exponents": [self.fusion.exponents.get(name, 1.0) for name in names],
            "floors": [self.fusion.floors.get(name, 0.0) for name in names],
            **(decoding or {}),
        }

    @torch.no_grad()
    def candidates(
        self,
        output: StreamOutput,
        step: int | None = None,
        *,
        score_thresh: float,
        topk: int,
        nms_thresh: float | None = None,
        max_detections: int | None = None,
    ) -> list[Candidates]:
        """The highest-scoring boxes of each image, best first, by ``ops.dense_detections``.

        Args:
            step: score with an earlier refinement of the branches; None for the last.
            score_thresh, topk, nms_thresh, max_detections: see there; None disables suppression or
                the limit.
        """
        inputs = self.detection_inputs(output, step)
        names = ["cls", *self.branches]
        if max_detections is None:
            max_detections = sum(min(topk, x[0].numel()) for x in inputs["cls_logits"])
        detected = dense_detections(
            **inputs,
            score_thresh=score_thresh,
            topk=topk,
            nms_thresh=math.inf if nms_thresh is None else nms_thresh,
            max_detections=max_detections,
        )
        steps = self._probability_per_step(output)
        ends = list(accumulate(output.priors.anchors_per_level))
        return [
            Candidates(
                boxes=detected.boxes[i, :count],
                classes=detected.classes[i, :count],
                scores=detected.scores[i, :count],
                factors={
                    **dict(zip(names, detected.factors[i, :count].unbind(dim=1), strict=True)),
                    **{name: p[i, detected.rows[i, :count]] for name, p in steps.items()},
                },
                levels=sum((detected.rows[i, :count] >= end).long() for end in ends),
                rows=detected.rows[i, :count],
            )
            for i, count in enumerate(detected.counts.tolist())
        ]

    def _probability_per_step(self, output: StreamOutput) -> dict[str, Tensor]:
        """(N, R) for each refinement, if ``output`` has every step."""
        return {
            f"{name}_step{t}": probability
            for name, branch in self.branches.items()
            for t, probability in enumerate(branch.probability_per_step(output.branches[name]))
        }

    def _class_maps(self, output: StreamOutput) -> LevelMaps:
        """Maps of K logits per anchor whose sigmoids are the class probabilities."""
        predicted = [
            self.stages[0].cls_loss.sigmoid_logits(prediction.cls)
            for stage, prediction in zip(self.stages, output.stages, strict=True)
            if stage.cls is not None and not stage.binary
        ]
        return predicted[-1] if self.stage_scores == "last" else mean_of_sigmoids(predicted)
