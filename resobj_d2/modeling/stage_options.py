"""The options of stages: ``MODEL.DENSE.FIRST_STAGE`` and the entries of ``MODEL.DENSE.STAGES``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated

from resobj_d2.matching import MaxIoUAssigner
from resobj_d2.options import Option

__all__ = ["TASKS", "FirstStage", "StageOptions"]

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
        weight: factor of this stage's losses, those of branches included.
        cls_weight, box_weight: further factors of its class and its box loss; 0 for no such loss.
            ``cls_weight`` is alpha of Eq. 1.
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
    cls_weight: float = 1.0
    box_weight: float = 1.0
    normalizer: str = "first"

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            value = getattr(self, key.lower())
            if value not in choices:
                raise ValueError(f"{key} must be one of {', '.join(choices)}, got {value!r}")
        if isinstance(self.weight, (bool, str)) or not 0 < self.weight < float("inf"):
            raise ValueError(f"WEIGHT must be a positive number, got {self.weight!r}")
        for key in ("CLS_WEIGHT", "BOX_WEIGHT"):
            _check_weight(key, getattr(self, key.lower()))
        if not isinstance(self.allow_low_quality, bool):
            raise ValueError(
                f"ALLOW_LOW_QUALITY must be True or False, got {self.allow_low_quality!r}"
            )
        if self.cls == "none" and self.box == "none":
            raise ValueError("CLS none with BOX none leaves nothing to train")
        self._check_trained()
        if self.tower != "shared" and "own" not in (self.cls, self.box):
            raise ValueError(
                f"TOWER {self.tower} needs CLS or BOX own: no predictor would read that tower"
            )

    def _check_trained(self) -> None:
        for task in TASKS:
            key = task.upper()
            if getattr(self, task) == "own" and task not in self.trained:
                raise ValueError(f"{key}_WEIGHT 0 leaves the predictor of {key} own untrained")
        if not self.trained:
            raise ValueError("CLS_WEIGHT and BOX_WEIGHT leave nothing to train")

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
        return [
            task
            for task in TASKS
            if getattr(self, task) != "none" and getattr(self, f"{task}_weight") > 0
        ]

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


def _check_weight(key: str, value: object) -> None:
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else -1
    if not 0 <= number < float("inf"):
        raise ValueError(f"{key} must be a number of at least 0, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class FirstStage:
    """What distinguishes the first stage: ``MODEL.DENSE.FIRST_STAGE``.

    Attributes:
        cls: "own": it predicts the K classes; "binary": only whether there is an object, as in
            RefineDet's anchor refinement, and a later stage predicts the classes.
        weight, cls_weight, box_weight: as in :class:`StageOptions`; ``weight`` may be 0 too.
    """

    cls: Annotated[
        str,
        Option(
            "own: the first stage predicts the classes; binary: only whether there is an object",
            key="FIRST_STAGE.CLS",
            source="RefineDet, section 3.1",
        ),
    ] = "own"
    weight: Annotated[
        float,
        Option("factor of the first stage's losses; 0 for none", key="FIRST_STAGE.WEIGHT"),
    ] = 1.0
    cls_weight: Annotated[
        float,
        Option("factor of the first stage's class loss; 0 for none", key="FIRST_STAGE.CLS_WEIGHT"),
    ] = 1.0
    box_weight: Annotated[
        float,
        Option("factor of the first stage's box loss; 0 for none", key="FIRST_STAGE.BOX_WEIGHT"),
    ] = 1.0

    def __post_init__(self) -> None:
        if self.cls not in ("own", "binary"):
            raise ValueError(f"FIRST_STAGE.CLS must be own or binary, got {self.cls!r}")
        for key in ("WEIGHT", "CLS_WEIGHT", "BOX_WEIGHT"):
            _check_weight(f"FIRST_STAGE.{key}", getattr(self, key.lower()))

    def check(self, later: Sequence[StageOptions]) -> None:
        """
        Raises:
            ValueError: one of its predictors would not be trained, or a later stage would share its
                single class.
        """
        for task in TASKS:
            uses = [getattr(stage, task) for stage in later]
            shared = uses[: uses.index("own")] if "own" in uses else uses
            if task == "cls" and self.cls == "binary":
                if "own" not in uses or "shared" in shared:
                    raise ValueError(
                        "FIRST_STAGE.CLS binary needs a stage with CLS own in STAGES, and none "
                        "with CLS shared before it"
                    )
            elif "shared" not in shared and self.weight * getattr(self, f"{task}_weight") == 0:
                raise ValueError(
                    f"FIRST_STAGE.WEIGHT and {task.upper()}_WEIGHT leave nothing that trains its "
                    f"{task} predictor: no stage of STAGES has {task.upper()} shared"
                )
