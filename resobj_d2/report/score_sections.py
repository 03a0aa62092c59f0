"""The pages about scores: precision and recall, calibration, and how well scores tell IoUs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from resobj_d2.analysis.calibration import calibration_table, class_calibration_table
from resobj_d2.analysis.doubts import are_probabilities
from resobj_d2.analysis.misalignment import (
    correlation_table,
    regression_table,
    score_table,
    scored_boxes,
)
from resobj_d2.analysis.thresholds import (
    shown_score,
    threshold_override,
    threshold_table,
    why_no_override,
)

from . import plots
from .blocks import Code, Note, Plot, Section, Table, left_out, named
from .judge import SLIDER, Judgement

__all__ = ["calibration_section", "misalignment_section", "precision_section"]


def precision_section(judgements: Sequence[Judgement]) -> Section | None:
    """Precision over recall, F1 over the score, and the best scores of each class."""
    if not any(one.counts[-1].objects for one in judgements):
        return None
    precision, f1, marks, best = {}, {}, {}, {}
    for one in judgements:
        limit, name = one.limit, one.subject.name
        drawn = SLIDER if limit is None else np.unique(np.r_[SLIDER, limit.score])[::-1]
        counts = one.wholes[-1].at(drawn)
        known = ~np.isnan(counts.precision)
        precision[name] = (counts.recall[known], counts.precision[known])
        f1[name] = (counts.scores, counts.f1)
        if limit is not None:
            marks[name] = (limit.recall, limit.precision)
            best[name] = (limit.score, limit.f1)
    return Section(
        key="precision",
        short="Precision",
        title="Precision, recall and the score",
        blocks=[
            Plot(
                svg=plots.curves(
                    precision,
                    x_label="recall",
                    y_label="precision",
                    unit_square=True,
                    percent="xy",
                    marks=marks,
                ),
                alt="Precision over recall of all classes together",
                caption="All classes together, IoU .50; every point is a lowest score. The mark is "
                "the one with the highest F1. A curve that ends early cannot find more at any "
                "score; one that starts low has confident mistakes.",
            ),
            Plot(
                svg=plots.curves(
                    f1,
                    x_label="lowest score",
                    y_label="F1",
                    unit_square=True,
                    percent="y",
                    marks=best,
                ),
                alt="F1 over the lowest score",
                caption="A broad top means that the choice of the score matters little.",
            ),
            *_limits(judgements),
        ],
    )


def _limits(judgements: Sequence[Judgement]) -> list:
    """The best lowest score of each class."""
    blocks: list = []
    for one in judgements:
        rows = threshold_table(one.curves)
        override = threshold_override(rows)
        shown = [{k: v for k, v in row.items() if k != "reached"} for row in rows]
        for row in shown:
            row["threshold"] = shown_score(row["threshold"], digits=3)
        blocks += named(one.subject.name, len(judgements))
        blocks.append(
            Table(
                rows=shown,
                caption="The lowest score with the highest F1, by class; precision, recall and F1 "
                "in percent",
                limit=100,
            )
        )
        if override is None:
            text = f"No override for `resobj-d2 predict`: {why_no_override(rows)}."
            blocks.append(Note(text=text))
        else:
            text = f'resobj-d2 predict ... {override[0]} "{override[1]}"'
            blocks.append(Code(caption="The override that sets these scores", text=text))
    return blocks


def calibration_section(judgements: Sequence[Judgement]) -> Section | None:
    """How often detections of each score are right; None where no scores are probabilities."""
    series, rows = {}, []
    without = []
    for one in judgements:
        scores = one.data.detections.scores
        if not len(scores) or not are_probabilities(scores):
            without.append(one.subject.name)
            continue
        bins = [row for row in calibration_table(one.data) if row["detections"]]
        series[one.subject.name] = (
            [row["score"] for row in bins],
            [row["precision"] / 100 for row in bins],
        )
        whole = class_calibration_table(one.data)[0]
        rows.append(
            {
                "run": one.subject.name,
                "mean score": whole["score"],
                "precision": whole["precision"],
                "calibration error": whole["ECE"],
            }
        )
    if not series:
        return None
    return Section(
        key="calibration",
        short="Calibration",
        title="Whether scores are probabilities",
        blocks=[
            Plot(
                svg=plots.curves(
                    series,
                    x_label="score",
                    y_label="precision",
                    unit_square=True,
                    percent="y",
                    diagonal=True,
                ),
                alt="Precision of detections by their score",
                caption="On the dotted line a score of .7 means that 70 % of such detections are "
                "right. Below it the detector is too sure of itself, above it too careful. "
                "Neither changes AP, but both matter to whoever reads the scores.",
            ),
            Table(
                rows=rows,
                caption="Means over all detections; precision and error in percent",
                digits=2,
            ),
            *left_out(without, "there are no scores between 0 and 1", rows),
        ],
    )


def misalignment_section(judgements: Sequence[Judgement]) -> Section | None:
    """How well scores tell the IoU of their boxes, before and after NMS; None without dumps."""
    blocks: list = []
    without = []
    for one in judgements:
        dump = one.subject.dump
        if dump is None or not len(dump.detections) or not len(dump.objects):
            without.append(one.subject.name)
            continue
        boxes = scored_boxes(dump)
        scores = _curves(score_table(boxes), ["boxes"], "score")
        blocks += named(one.subject.name, len(judgements))
        blocks.append(
            Plot(
                svg=plots.curves(
                    scores, x_label="IoU with an object of its class", y_label="mean score"
                ),
                alt="Mean score of boxes over their IoU",
                caption="It should rise to the right: NMS keeps the box with the highest score, "
                "so scores that do not tell how well a box fits cost AP at high IoUs. A quality "
                "branch or consistent optimisation mend it.",
            )
        )
        regression = _curves(regression_table(dump), ["source", "stage"], "IoU")
        if regression:
            blocks.append(
                Plot(
                    svg=plots.curves(
                        regression,
                        x_label="IoU of the anchor or proposal",
                        y_label="IoU after the stage",
                        unit_square=True,
                        diagonal=True,
                    ),
                    alt="IoU after regression over IoU before it",
                    caption="Above the dotted line the regression improves boxes. Class scores "
                    "are learned from the IoU on the x axis, but judge boxes with that on the y.",
                )
            )
        rows = [
            {"boxes": row["boxes"], "value": row["value"], "rank correlation": row["spearman"]}
            for row in correlation_table(boxes)
        ]
        blocks.append(
            Table(rows=rows, caption="Correlation with the IoU of boxes on objects", digits=3)
        )
    blocks += left_out(without, "there is no dump with detections and objects", blocks)
    return Section(
        key="misalignment",
        short="Score and IoU",
        title="Whether scores tell how well boxes fit",
        blocks=blocks,
    )


def _curves(rows: Sequence[dict], keys: Sequence[str], value: str) -> dict:
    """Curves over the middle of bins, for each group that has two points or more."""
    curves: dict = {}
    for row in rows:
        if row[value] is not None:
            name = ", stage ".join(str(row[key]) for key in keys)
            x, y = curves.setdefault(name, ([], []))
            x.append((row["from"] + row["to"]) / 2)
            y.append(row[value])
    return {name: points for name, points in curves.items() if len(points[0]) > 1}
