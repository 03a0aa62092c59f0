"""Stages: sets of anchors with their own supervision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor, nn

from resobj_d2.losses import BoxLoss, ClassLoss, Normalizer
from resobj_d2.matching import Assigner, Coder
from resobj_d2.options import Option, Part
from resobj_d2.structures import IGNORE, StagePrediction, Targets, TowerFeatures

from .contracts import Predictor, Tower
from .heads.predictors import HeadParts, init_conv, prior_bias
from .stage_options import TASKS, FirstStage, StageOptions

__all__ = ["Stage", "build_stages"]


class Stage(nn.Module):
    """One set of anchors: predictors, assigner, losses and normaliser.

    Losses and normaliser may have state, which belongs to these anchors.

    Args:
        cls: predictor of the class logits from the class tower's levels; None to use those of the
            previous stage.
        box: predictor of the coder's deltas from the box tower's levels; None to predict none.
        assigner: labels its anchors.
        normalizer: divisor of its losses.
        cls_loss: None if its labels do not train the class logits.
        box_loss: None if it does not train boxes.
        tower: None to read what the previous stage reads.
        gates: by task, the convolution that gates the previous tower's feature, which is then added
            to the pyramid's; empty for none.
        repeats_box: without ``box``, apply the previous deltas once more.
        weight: factor of its losses; 0 for none.
        cls_weight, box_weight: further factors of the class and the box loss.
        binary: its class logits only tell whether there is an object.
        own_cls_normalizer: divide the class loss by this stage's normaliser instead of the first's.
    """

    def __init__(
        self,
        *,
        cls: Predictor | None,
        box: Predictor | None,
        assigner: Assigner,
        normalizer: Normalizer,
        cls_loss: ClassLoss | None,
        box_loss: BoxLoss | None,
        tower: Tower | None = None,
        gates: Mapping[str, nn.Module] | None = None,
        repeats_box: bool = False,
        weight: float = 1.0,
        cls_weight: float = 1.0,
        box_weight: float = 1.0,
        binary: bool = False,
        own_cls_normalizer: bool = True,
    ) -> None:
        super().__init__()
        self.cls = cls
        self.box = box
        self.assigner = assigner
        self.normalizer = normalizer
        self.tower = tower
        self.gates = nn.ModuleDict(gates or {})
        self.cls_loss = cls_loss
        self.box_loss = box_loss
        self.repeats_box = repeats_box
        self.weight = weight
        self.cls_weight = cls_weight
        self.box_weight = box_weight
        self.binary = binary
        self.own_cls_normalizer = own_cls_normalizer

    def features(self, features: TowerFeatures) -> TowerFeatures:
        """The features its predictors read, given those of the previous stage."""
        if self.tower is None:
            return features
        own = {}
        for task in self.tower.tasks:
            levels = features.pyramid
            if task in self.gates:
                gate = self.gates[task]
                levels = [
                    p + torch.sigmoid(gate(h)) * h
                    for p, h in zip(levels, getattr(features, task), strict=True)
                ]
            own[task] = self.tower.run(task, levels)
        return replace(features, **own)

    def class_labels(self, targets: Targets) -> Tensor:
        """(N, R) the labels of its class logits: one class for all if it is ``binary``."""
        if not self.binary:
            return targets.labels
        return torch.where(targets.foreground, 0, torch.where(targets.valid, 1, IGNORE))

    def forward(
        self, features: TowerFeatures, anchors: Tensor, earlier: Sequence[StagePrediction] = ()
    ) -> StagePrediction:
        """
        Args:
            features: from :meth:`features`.
            anchors: (R, 4) or (N, R, 4), without gradient.
            earlier: predictions of the previous stages.
        """
        box = None
        if self.box is not None:
            box = self.box.maps(features.box)
        elif self.repeats_box:
            box = [stage.box for stage in earlier if stage.box is not None][-1]
        cls = earlier[-1].cls if self.cls is None else self.cls.maps(features.cls)
        return StagePrediction(anchors=anchors, cls=cls, box=box)


_FIRST = FirstStage()


def build_stages(
    *,
    num_classes: int,
    parts: HeadParts,
    coder: Coder,
    make_assigner: Callable[[], Assigner],
    make_cls_loss: Callable[[], ClassLoss],
    make_box_loss: Callable[[], BoxLoss],
    make_normalizer: Callable[[], Normalizer],
    make_tower: Callable[..., Tower],
    pyramid_channels: Sequence[int],
    prior_prob: Annotated[
        float,
        Option(
            "initial score of the class predictor; 0 for 1 / NUM_CLASSES, at most .5, which suits "
            "a P(class | object) trained on foreground only",
            key="CLS_LOSS.PRIOR_PROB",
            source="RetinaNet, section 4.1",
        ),
    ] = 0.01,
    first: Annotated[FirstStage, Part()] = _FIRST,
    refinements: Annotated[
        Sequence,
        Option(
            "stages after the first, a list of dicts "
            "(resobj_d2.modeling.stage_options.StageOptions); each trains on the boxes predicted "
            "by the previous one; {} is consistent "
            "optimisation",
            key="STAGES",
            source="ConRetinaNet, Eq. 1 and 2",
        ),
    ] = (),
) -> list[Stage]:
    """The first stage, on the priors, and those listed in ``MODEL.DENSE.STAGES``.

    Args:
        num_classes: K.
        parts: what predictors are built from.
        coder: provides the number of deltas and their initial values.
        make_assigner: makes the first stage's; later stages have their own thresholds.
        make_cls_loss, make_box_loss: called once per stage, since losses may have state.
        make_normalizer: likewise.
        make_tower: ``make_tower(in_channels=, tasks=)``, for stages with their own tower.
        pyramid_channels: number of input channels of towers, per level.
        prior_prob: see :func:`.heads.predictors.prior_bias`.
        first: what distinguishes the first stage.
        refinements: entries of ``StageOptions``.
    """
    make_loss: dict[str, Callable] = {"cls": make_cls_loss, "box": make_box_loss}

    def own_parts(
        own: Sequence[str], trained: Sequence[str], delta: float, classes: int = num_classes
    ) -> dict:
        """Predictors for the tasks in ``own``, losses for those in ``trained``, a normaliser."""
        channels = {"cls": make_cls_loss().num_logits(classes), "box": coder.channels}
        bias = {"cls": prior_bias(prior_prob, classes), "box": delta}
        arguments: dict = {"normalizer": make_normalizer()}
        for task in TASKS:
            arguments[task] = arguments[f"{task}_loss"] = None
            if task in own:
                arguments[task] = parts.predictor(channels=channels[task], bias=bias[task])
            if task in trained:
                arguments[f"{task}_loss"] = make_loss[task]()
        return arguments

    binary = first.cls == "binary"
    stages = [
        Stage(
            assigner=make_assigner(),
            weight=first.weight,
            cls_weight=first.cls_weight,
            box_weight=first.box_weight,
            binary=binary,
            **own_parts(TASKS, TASKS, coder.initial_delta, 1 if binary else num_classes),
        )
    ]
    later = []
    repeats_binary = binary
    for i, entry in enumerate(refinements):
        try:
            options = StageOptions.from_entry(entry)
            later.append(options)
            repeats_binary &= options.cls != "own"
            tower = None
            if options.tower != "shared":
                tower = make_tower(in_channels=pyramid_channels, tasks=options.own_tasks)
            stage = Stage(
                **own_parts(options.own_tasks, options.trained, coder.identity_delta),
                assigner=options.assigner(num_classes),
                binary=repeats_binary,
                tower=tower,
                gates=_gates(options, parts.in_channels, pyramid_channels),
                repeats_box=options.box == "shared",
                weight=options.weight,
                cls_weight=options.cls_weight,
                box_weight=options.box_weight,
                own_cls_normalizer=options.normalizer == "own",
            )
        except ValueError as error:
            raise ValueError(f"STAGES[{i}]: {error}") from error
        stages.append(stage)
    first.check(later)
    return stages


def _gates(
    options: StageOptions, channels: Sequence[int], pyramid_channels: Sequence[int]
) -> dict[str, nn.Module]:
    if options.tower != "gated":
        return {}
    if len({*channels, *pyramid_channels}) != 1:
        raise ValueError(
            f"TOWER gated adds the tower's channels {list(channels)} to the pyramid's "
            f"{list(pyramid_channels)}: set TOWER.CHANNELS to the same number"
        )
    width = channels[0]
    gates: dict[str, nn.Module] = {}
    for task in options.own_tasks:
        gate = nn.Conv2d(width, width, kernel_size=1)
        init_conv(gate)
        gates[task] = gate
    return gates
