"""The first thing that a person reads: what a detector does well, loses by, and what to try.

Every sentence has the figure that it follows from. The rules are short on purpose: they name the
largest effect and what usually helps, and leave the rest to the pages below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resobj_d2.analysis.doubts import are_probabilities, doubts
from resobj_d2.analysis.errors import KINDS, ErrorAnalysis
from resobj_d2.analysis.precision import mean_precision
from resobj_d2.analysis.thresholds import shown_score
from resobj_d2.process import counted

from .judge import Judgement

__all__ = ["ERROR_NAMES", "Figure", "Summary", "summarise"]

# What an anchor has to reach with some object to be trained on it, in most configurations.
_ANCHOR_IOU = 0.5
_NOTICEABLE = 0.5  # points of AP
_NOTHING = 5.0  # AP50 below which nothing is good, and the files may be to blame
_USABLE = 0.5  # of F1: below, nobody would use the detector yet
ERROR_NAMES = {
    "Cls": "Wrong classes",
    "Loc": "Loose boxes",
    "Both": "Loose boxes of a wrong class",
    "Dupe": "Duplicates",
    "Bkg": "Detections of background",
    "Miss": "Missed objects",
}
"""Of the kinds of errors, as a sentence begins."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number at the top.

    Attributes:
        name, value: as shown.
        meaning: in a sentence.
    """

    name: str
    value: str
    meaning: str


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The summary of one run.

    Attributes:
        name: of the run.
        figures: the main numbers.
        columns: titles with their sentences.
    """

    name: str
    figures: list[Figure]
    columns: list[tuple[str, list[str]]]


def summarise(judgement: Judgement) -> Summary:
    """What a run does well, what it loses most by, and what to try."""
    if not (~judgement.data.objects.ignored).any():
        nothing = ["The dataset has no objects to find, so there is nothing to judge."]
        return Summary(name=judgement.subject.name, figures=[], columns=[("Result", nothing)])
    check = _check(judgement)
    return Summary(
        name=judgement.subject.name,
        figures=_figures(judgement),
        columns=[
            *([("What to check first", check)] if check else []),
            ("What it does well", _strengths(judgement)),
            ("What it loses most by", _losses(judgement)),
            ("What to try", _advice(judgement)),
        ],
    )


def _figures(judgement: Judgement) -> list[Figure]:
    limit = judgement.limit
    return [
        Figure(
            name="AP",
            value=_percent(judgement.average()),
            meaning="COCO's average precision over IoU thresholds .50 to .95",
        ),
        Figure(name="AP50", value=_percent(judgement.average("AP50")), meaning="at IoU .50"),
        Figure(name="AP75", value=_percent(judgement.average("AP75")), meaning="at IoU .75"),
        Figure(
            name="best score limit",
            value=shown_score(limit and limit.score),
            meaning="with the highest F1, the harmonic mean of precision and recall",
        ),
        Figure(
            name="precision there",
            value=_percent(limit and 100 * limit.precision),
            meaning="part of its detections that are right, in percent",
        ),
        Figure(
            name="recall there",
            value=_percent(limit and 100 * limit.recall),
            meaning="part of the objects that are found, in percent",
        ),
    ]


def _finds_nothing(judgement: Judgement) -> bool:
    return (judgement.average("AP50") or 0.0) < _NOTHING


def _check(judgement: Judgement) -> list[str]:
    """What may be wrong with the files, rather than with the detector."""
    items = doubts(judgement.data)
    subject = judgement.subject
    of_others = subject.about.get("detections") or not (
        subject.folder or subject.about.get("config")
    )
    if of_others and _finds_nothing(judgement) and len(judgement.data.detections):
        items.append(
            f"An AP50 below {_NOTHING:.0f} is often a matter of the files: boxes have to be x, y, "
            "width, height in pixels of the original picture, and category ids those of the "
            "ground truth."
        )
    return items


def _strengths(judgement: Judgement) -> list[str]:
    limit = judgement.limit
    if limit is None:
        there_are_some = len(judgement.data.detections) > 0
        return ["None of its detections is right" + ("." if there_are_some else ": it has none.")]
    everything = 100 * float(judgement.wholes[-1].recall[-1])
    items = [
        ("" if limit.f1 >= _USABLE else "Not much yet. ")
        + f"At a score of {shown_score(limit.score)} or more, "
        f"{100 * limit.precision:.0f} % of its detections are right and "
        f"{100 * limit.recall:.0f} % of the objects are found."
    ]
    if _finds_nothing(judgement):
        return items
    items.append(
        f"{everything:.1f} % of the objects are among its detections of any score"
        + (": the rest of the way is to score them better." if everything >= 90 else ".")
    )
    classes = {k: v for k, v in judgement.groups("class").items() if v is not None}
    if len(classes) > 1:
        name = max(classes, key=lambda k: classes[k])
        items.append(f"Its best class is {name}, with an AP of {classes[name]:.1f}.")
    cheap = [
        ERROR_NAMES[str(row["error"])].lower()
        for row in judgement.last.table()
        if row["error"] in ERROR_NAMES and row["dAP"] is not None and row["dAP"] < _NOTICEABLE
    ]
    if cheap:
        items.append(f"Costing less than {_NOTICEABLE} points of AP50 each: {', '.join(cheap)}.")
    return items


def _ranked(errors: ErrorAnalysis) -> list[tuple[str, float, int]]:
    """Kinds of errors with what they cost and their number, dearest first."""
    rows = [
        (str(row["error"]), float(row["dAP"]), int(row["count"]))
        for row in errors.table()
        if row["error"] in ERROR_NAMES and row["dAP"] is not None
    ]
    return sorted(rows, key=lambda row: -row[1])


def _losses(judgement: Judgement) -> list[str]:
    errors = judgement.last
    objects = int((~judgement.data.objects.ignored).sum())
    items = []
    for kind, cost, count in _ranked(errors)[:3]:
        if cost < _NOTICEABLE:
            continue
        what = (
            f"{count} of {counted(objects, 'object')}"
            if kind == "Miss"
            else f"{counted(count, 'detection')} of any score"
        )
        items.append(f"{ERROR_NAMES[kind]}: {cost:.1f} points of AP50 ({what}).")
    classes = {k: v for k, v in judgement.groups("class").items() if v is not None}
    if len(classes) > 1:
        name = min(classes, key=lambda k: classes[k])
        items.append(f"Its worst class is {name}, with an AP of {classes[name]:.1f}.")
    sizes = {k: v for k, v in judgement.groups("size").items() if v is not None}
    if len(sizes) > 1:
        low, high = min(sizes, key=lambda k: sizes[k]), max(sizes, key=lambda k: sizes[k])
        if sizes[high] - sizes[low] > 5:
            items.append(
                f"AP is {sizes[low]:.1f} on {low} objects and {sizes[high]:.1f} on {high} ones."
            )
    tight, loose = judgement.average("AP75"), judgement.average("AP50")
    if tight is not None and loose and loose >= _NOTHING and tight < 0.6 * loose:
        items.append(
            f"AP falls from {loose:.1f} at IoU .50 to {tight:.1f} at .75: boxes are found, but "
            "not tight."
        )
    return items or ["Nothing stands out."]


def _advice(judgement: Judgement) -> list[str]:
    ranked = [kind for kind, cost, _ in _ranked(judgement.last) if cost >= _NOTICEABLE]
    limit = judgement.limit
    items = []
    if limit is None or limit.f1 < _USABLE:
        items.append(
            "First train longer, and look at the data with `resobj-d2 data check`: what follows "
            "may change with that."
        )
    items += [_ADVICE[kind](judgement) for kind in ranked[:3]]
    if "Bkg" not in ranked and not _finds_nothing(judgement):
        items.append(_about_imbalance(judgement))
    probable = are_probabilities(judgement.data.detections.scores)
    if limit is not None and probable and not _finds_nothing(judgement):
        score = shown_score(limit.score)
        items.append(
            f"For use, keep detections of {score} or more: `resobj-d2 predict "
            f"--confidence-threshold {score}`."
        )
    return items


def _about_missed(judgement: Judgement) -> str:
    ious, missed = judgement.subject.anchor_ious, judgement.last.missed
    if ious is not None and missed.any() and not np.isnan(ious[missed]).any():
        low = ious[missed] < _ANCHOR_IOU
        if low.mean() > 0.3:
            return (
                f"{int(low.sum())} of the {int(missed.sum())} missed objects have no anchor with "
                f"an IoU of {_ANCHOR_IOU}: `resobj-d2 data check CONFIG` suggests sizes and "
                "ratios that fit, or a larger `INPUT.MIN_SIZE_TRAIN`."
            )
        return (
            f"{int((~low).sum())} of the {int(missed.sum())} missed objects have a fitting anchor, "
            "so anchors are not the reason: train longer, or with more such examples."
        )
    return (
        "Missed objects: look at the pictures below for what they share (size, crowding, "
        "blur); `resobj-d2 data check CONFIG` compares the anchors with them."
    )


def _about_imbalance(judgement: Judgement) -> str:
    """Whether less background imbalance would help, which is what this package is for."""
    cost = next(cost for kind, cost, _ in _ranked(judgement.last) if kind == "Bkg")
    average = judgement.average("AP50") or 0.0
    return (
        f"Less background imbalance would win little: detections of background cost {cost:.1f} of "
        f"the {100 - average:.1f} points of AP50 that are missing."
    )


def _about_background(judgement: Judgement) -> str:
    errors = judgement.last
    background = errors.kinds == KINDS.index("Bkg")
    sure = int((judgement.data.detections.scores[background] >= 0.5).sum())
    return (
        f"Detections of background, {sure} of them with a score of 0.5 or more: look for objects "
        f"that were not annotated first; then less background imbalance may help, by "
        f"{_against_background(judgement)}."
    )


# Of dense detectors, and of those with an RPN or with RoIs.
_STEPS_KEY = {
    False: "`MODEL.DENSE.OBJECTNESS.STEPS`",
    True: "`MODEL.RESOBJ_RPN.OBJECTNESS.STEPS`",
}
_LOOSE = {
    False: "Loose boxes: a box loss on the overlap (`MODEL.DENSE.BOX_LOSS.NAME GIoULoss`), a "
    "predicted IoU in the score (`MODEL.DENSE.QUALITY.ENABLED True`) or a second stage "
    "(`MODEL.DENSE.STAGES [{}]`).",
    True: "Loose boxes: a box loss on the overlap (`MODEL.RESOBJ_ROI.BOX_LOSS.NAME GIoULoss`), a "
    "predicted IoU in the score (`MODEL.RESOBJ_ROI.QUALITY.ENABLED True`) or a cascade.",
}


def _against_background(judgement: Judgement) -> str:
    """What may lessen the imbalance; another step only where the last one was measured to help."""
    about = judgement.subject.about
    if not about.get("num_steps", 0):
        return "Residual Objectness (see `resobj-d2 configs`) or focal loss"
    averages = [mean_precision(errors.precision) for errors in judgement.errors]
    if len(averages) < 2 or None in averages[-2:]:
        return "a longer training"
    gain = averages[-1] - averages[-2]
    measured = f"the last residual step changes AP50 by {gain:+.1f} points"
    if gain < _NOTICEABLE:
        return f"a longer training ({measured}, so that another one promises little)"
    key = _STEPS_KEY["rpn" in about.get("sources", ())]
    return f"one more step ({key}; {measured}) or a longer training"


def _about_loose(judgement: Judgement) -> str:
    return _LOOSE["roi" in judgement.subject.about.get("sources", ())]


_ADVICE = {
    "Cls": lambda j: (
        "Wrong classes: the table of confusions below names the pairs. More examples "
        "of them, or merging classes that nobody needs apart, helps more than another loss."
    ),
    "Loc": _about_loose,
    "Both": lambda j: (
        "Loose boxes of a wrong class are mostly parts or groups of objects: look at "
        "them in the pictures before changing anything."
    ),
    "Dupe": lambda j: (
        "Duplicates: a lower NMS threshold, or matrix or soft NMS; `resobj-d2 analyze "
        "sweep` compares them without another training."
    ),
    "Bkg": _about_background,
    "Miss": _about_missed,
}


def _percent(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.1f}"
