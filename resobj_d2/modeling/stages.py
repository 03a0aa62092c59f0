"""Stages: sets of anchors with their own supervision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated

import torch
from torch import Tensor, nn

from resobj_d2.losses import BoxLoss, ClassLoss, Normalizer
from resobj_d2.matching import Assigner, Coder, MaxIoUAssigner
from resobj_d2.options import Option
from resobj_d2.structures import StagePrediction, TowerFeatures

from .contracts import Predictor, Tower
from .heads.predictors import HeadParts, init_conv, prior_bias

__all__ = ["Stage", "StageOptions", "build_stages"]

TASKS = ("cls", "box")
_CHOICES = {
    "CLS": ("shared", "own", "none"),
    "BOX": ("own", "shared", "none"),
    "TOWER": ("shared", "own", "gated"),
    "NORMALIZER": ("first", "own"),
}


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """One entry of ``MODEL.DENSE.STAGES``: a later stage, which refines the previous one's boxes.

    Kong et al., "Consistent Optimization for Single-Shot Object Detection", Eq. 1 and 2, Figure 4.

    Attributes:
        cls: "shared": this stage's labels also train the class logits of the previous stage;
            "own": its own class predictor; "none": no class loss.
        box: "own": its own box predictor; "shared": the deltas of the previous stage, applied and
            trained once more; "none": the boxes are unchanged.
        tower: "shared": the tower of the previous stage; "own": its own tower on the same pyramid
            (cascade); "gated": the same on ``P + sigmoid(conv1x1(h)) * h``, with h the last feature
            of the previous tower (gated cascade).
        iou_thresholds, iou_labels, allow_low_quality: see ``MaxIoUAssigner``; without labels
            the lowest interval is background, the highest foreground, the others ignored.
        weight: factor of this stage's losses.
        normalizer: divisor of the class loss: "first", the first stage's normaliser (Eq. 1 has one
            for both terms), or "own", this stage's, which always divides its box loss.
    """

    cls: str = "shared"
    box: str = "own"
    tower: str = "shared"
    iou_thresholds: Sequence[float] = (0.5, 0.6)
    iou_labels: Sequence[int] | None = None
    allow_low_quality: bool = False
    weight: float = 1.0
    normalizer: str = "first"

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            value = getattr(self, key.lower())
            if value not in choices:
                raise ValueError(f"{key} must be one of {', '.join(choices)}, got {value!r}")
        if isinstance(self.weight, (bool, str)) or not 0 < self.weight < float("inf"):
            raise ValueError(f"WEIGHT must be a positive number, got {self.weight!r}")
        if not isinstance(self.allow_low_quality, bool):
            raise ValueError(
                f"ALLOW_LOW_QUALITY must be True or False, got {self.allow_low_quality!r}"
            )
        if self.cls == "none" and self.box == "none":
            raise ValueError("CLS none with BOX none leaves nothing to train")
        if self.tower != "shared" and "own" not in (self.cls, self.box):
            raise ValueError(
                f"TOWER {self.tower} needs CLS or BOX own: no predictor would read that tower"
            )

    @classmethod
    def from_entry(cls, entry: Mapping) -> StageOptions:
        """Reads a dict whose keys are the attributes' names in capitals, all optional."""
        known = [field.name.upper() for field in fields(cls)]
        if not isinstance(entry, Mapping):
            raise ValueError(f"must be a dict with some of the keys {known}, got {entry!r}")
        unknown = sorted(str(key) for key in set(entry) - set(known))
        if unknown:
            raise ValueError(f"has unknown keys {unknown}; known are {known}")
        return cls(**{key.lower(): value for key, value in entry.items()})

    @property
    def own_tasks(self) -> list[str]:
        """The tasks for which it has its own predictor."""
        return [task for task in TASKS if getattr(self, task) == "own"]

    @property
    def trained(self) -> list[str]:
        """The tasks for which it has a loss."""
        return [task for task in TASKS if getattr(self, task) != "none"]

    def assigner(self, num_classes: int) -> MaxIoUAssigner:
        """The assigner that labels the boxes of this stage.

        Raises:
            ValueError: thresholds or labels are not lists of numbers of matching lengths.
        """
        thresholds, labels = self.iou_thresholds, self.iou_labels
        for key, value in (("IOU_THRESHOLDS", thresholds), ("IOU_LABELS", labels or [])):
            numbers = isinstance(value, (list, tuple)) and all(
                isinstance(x, (int, float)) for x in value
            )
            if not numbers:
                raise ValueError(f"{key} must be a list of numbers, got {value!r}")
        if labels is None:
            labels = [0, *[-1] * (len(thresholds) - 1), 1]
        return MaxIoUAssigner(
            num_classes=num_classes,
            iou_thresholds=thresholds,
            iou_labels=labels,
            allow_low_quality=self.allow_low_quality,
        )


class Stage(nn.Module):
    """One set of anchors: predictors, assigner, losses and normaliser.

    Losses and normaliser may have state, which belongs to these anchors.

    Args:
        cls: predictor of the class logits from the class tower's levels; None to use those of the
            previous stage.
        box: predictor of 4 deltas per anchor from the box tower's levels; None to predict none.
        assigner: labels its anchors.
        normalizer: divisor of its losses.
        cls_loss: None if its labels do not train the class logits.
        box_loss: None if it does not train boxes.
        tower: None to read what the previous stage reads.
        gates: by task, the convolution that gates the previous tower's feature, which is then added
            to the pyramid's; empty for none.
        repeats_box: without ``box``, apply the previous deltas once more.
        weight: factor of its losses.
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
    refinements: Annotated[
        Sequence,
        Option(
            "stages after the first, a list of dicts (resobj_d2.modeling.stages.StageOptions); "
            "each trains on the boxes predicted by the previous one; {} is consistent "
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
        coder: provides the initial deltas.
        make_assigner: makes the first stage's; later stages have their own thresholds.
        make_cls_loss, make_box_loss: called once per stage, since losses may have state.
        make_normalizer: likewise.
        make_tower: ``make_tower(in_channels=, tasks=)``, for stages with their own tower.
        pyramid_channels: number of input channels of towers, per level.
        prior_prob: see :func:`.heads.predictors.prior_bias`.
        refinements: entries of ``StageOptions``.
    """
    channels = {"cls": make_cls_loss().num_logits(num_classes), "box": 4}
    make_loss: dict[str, Callable] = {"cls": make_cls_loss, "box": make_box_loss}

    def own_parts(own: Sequence[str], trained: Sequence[str], delta: float) -> dict:
        """Predictors for the tasks in ``own``, losses for those in ``trained``, a normaliser."""
        bias = {"cls": prior_bias(prior_prob, num_classes), "box": delta}
        arguments: dict = {"normalizer": make_normalizer()}
        for task in TASKS:
            arguments[task] = arguments[f"{task}_loss"] = None
            if task in own:
                arguments[task] = parts.predictor(channels=channels[task], bias=bias[task])
            if task in trained:
                arguments[f"{task}_loss"] = make_loss[task]()
        return arguments

    stages = [Stage(assigner=make_assigner(), **own_parts(TASKS, TASKS, coder.initial_delta))]
    for i, entry in enumerate(refinements):
        try:
            options = StageOptions.from_entry(entry)
            tower = None
            if options.tower != "shared":
                tower = make_tower(in_channels=pyramid_channels, tasks=options.own_tasks)
            stage = Stage(
                **own_parts(options.own_tasks, options.trained, coder.identity_delta),
                assigner=options.assigner(num_classes),
                tower=tower,
                gates=_gates(options, parts.in_channels, pyramid_channels),
                repeats_box=options.box == "shared",
                weight=options.weight,
                own_cls_normalizer=options.normalizer == "own",
            )
        except ValueError as error:
            raise ValueError(f"STAGES[{i}]: {error}") from error
        stages.append(stage)
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
