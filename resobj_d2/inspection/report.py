"""A report as text and as json."""

from __future__ import annotations

import dataclasses
import math
import shlex
import textwrap
from collections.abc import Sequence

import numpy as np
from tabulate import tabulate

from resobj_d2.process import counted

from .anchors import AnchorFit
from .boxes import BANDS
from .check import AnchorReport, DatasetReport, Report
from .findings import LEVELS, Finding
from .input_size import size_in_words
from .suggestion import Suggestion

__all__ = ["override_words", "report_json", "report_text"]

_WIDTH = 100
_EXAMPLES = 3
_CLASSES = 30  # most rows of a table; the json has all
_TENTHS = [f".{i}-" for i in range(10)]


def report_text(report: Report) -> str:
    """For the terminal."""
    parts = [_dataset_text(one) for one in report.datasets]
    if report.across:
        parts.append("\n".join(["between the datasets", *_findings_lines(report.across)]))
    if report.anchors is not None:
        parts.append(_anchors_text(report.anchors))
    count = {level: sum(f.level == level for f in report.findings) for level in LEVELS}
    kinds = ", ".join(f"{n} of level {level}" for level, n in count.items() if n)
    parts.append(f"findings: {kinds or 'none'}")
    return "\n\n".join(parts)


def _dataset_text(one: DatasetReport) -> str:
    objects = sum(row.objects for row in one.classes)
    role = f" ({one.role})" if one.role else ""
    crowd = f", {counted(one.crowd, 'crowd region')}" if one.crowd else ""
    pictures = counted(one.pictures, "picture")
    lines = [
        f"{one.name}{role}: {pictures}, {counted(objects, 'object')}{crowd}",
        f"  {one.source}",
    ]
    table = _class_table(one)
    if table:
        lines += ["", textwrap.indent(table, "  "), ""]
    lines += _findings_lines(one.findings) or ["  nothing to complain about"]
    return "\n".join(lines)


def _class_table(one: DatasetReport) -> str:
    if not one.classes:
        return ""
    with_input = one.input_size != ""
    rows = sorted(one.classes, key=lambda row: -row.objects)
    lines = [_class_row(row.name, [row], with_input) for row in rows[:_CLASSES]]
    if len(rows) > _CLASSES:
        left = rows[_CLASSES:]
        lines.append(_class_row(f"... {len(left)} more", left, with_input))
    if len(rows) > 1:
        lines.append(_class_row("all", rows, with_input))
    headers = ["class", "objects", "pictures", *BANDS]
    if with_input:
        headers += [f"{band}*" for band in BANDS]
    table = tabulate(
        lines,
        headers=[*headers, "tiny"],
        tablefmt="simple",
        disable_numparse=True,
        colalign=("left", *["right"] * len(headers)),
    )
    note = f"\n* at the network's input, {one.input_size}; tiny there too" if with_input else ""
    return table + note


def _class_row(name: str, rows: Sequence, with_input: bool) -> list[str]:
    numbers = [sum(row.objects for row in rows)]
    pictures = str(rows[0].pictures) if len(rows) == 1 else ""
    bands = np.sum([row.bands for row in rows], axis=0).tolist()
    if with_input:
        bands += np.sum([row.input_bands for row in rows], axis=0).tolist()
    return [name, str(numbers[0]), pictures, *map(str, bands), str(sum(row.tiny for row in rows))]


def _findings_lines(findings: Sequence[Finding]) -> list[str]:
    lines = []
    for one in findings:
        count = "1 case:" if one.count == 1 else one.count  # messages are in the plural
        lines += textwrap.wrap(
            f"{one.level:<8}{count} {one.message}",
            _WIDTH,
            initial_indent="  ",
            subsequent_indent=" " * 10,
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += [" " * 12 + example for example in one.examples[:_EXAMPLES]]
        if one.count > _EXAMPLES and one.examples:
            lines.append(" " * 12 + "...")
    return lines


def _anchors_text(report: AnchorReport) -> str:
    lines = []
    for before, suggestions in report.fits:
        anchors, objects = before.anchors, before.objects
        how = ", as shapes with one centre" if anchors.centred else ""
        lines += [
            f"anchors of {anchors.node} ({anchors.kind}) and the "
            f"{counted(len(objects), 'training object')} at {size_in_words(objects.inputs)}{how}",
            "",
            textwrap.indent(_fit_table(before, suggestions), "  "),
            "",
        ]
        lines += _suggestion_lines(suggestions)
    return "\n".join([*lines, *_findings_lines(report.findings), *report.remarks]).rstrip()


def _fit_table(before: AnchorFit, suggestions: Sequence[Suggestion]) -> str:
    fits = [before, *(one.fit for one in suggestions)]
    headers = ["", "now", *(f"suggestion {i}" for i in range(1, len(fits)))]
    rows = [
        [f"best IoU {tenth}", *(_percent(f.histogram()[i] / len(f.objects)) for f in fits)]
        for i, tenth in enumerate(_TENTHS)
    ]
    rows.append(["IoU >= .5, all objects", *(_percent(f.share()) for f in fits)])
    for name in BANDS:
        rows.append([f"  {name} at the input", *(_percent(f.share_by_band()[name]) for f in fits)])
    shares = [f.share_by_class() for f in fits]
    names = sorted(shares[0], key=lambda name: (math.isnan(shares[0][name]), shares[0][name]))
    for name in names[:_CLASSES]:
        rows.append([f"  {name}", *(_percent(share[name]) for share in shares)])
    rows.append(["mean best IoU", *(f"{f.ious.mean():.3f}" for f in fits)])
    return tabulate(
        rows,
        headers=headers,
        tablefmt="simple",
        disable_numparse=True,
        colalign=("left", *["right"] * len(fits)),
    )


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def _suggestion_lines(suggestions: Sequence[Suggestion]) -> list[str]:
    lines = []
    for number, one in enumerate(suggestions, start=1):
        cost = f", for {one.cost:.1f} times the pixels" if one.cost != 1 else ""
        lines += [f"suggestion {number}{cost}: add to the command line", ""]
        lines += [f"    {override_words(one)}", ""]
    return lines or ["no other anchors that were tried fit noticeably better", ""]


def override_words(suggestion: Suggestion) -> str:
    """``KEY VALUE ...`` for a shell."""
    pairs = suggestion.overrides.items()
    return " ".join(f"{key} {shlex.quote(str(value))}" for key, value in pairs)


def report_json(report: Report) -> dict:
    """Everything, in plain values; None where there is nothing to divide by."""
    anchors = report.anchors
    return {
        "datasets": [dataclasses.asdict(one) for one in report.datasets],
        "across": [dataclasses.asdict(one) for one in report.across],
        "anchors": None
        if anchors is None
        else {
            "sets": [
                {
                    **_fit_json(before),
                    "suggestions": [
                        {"overrides": one.overrides, "cost": one.cost, **_fit_json(one.fit)}
                        for one in suggestions
                    ],
                }
                for before, suggestions in anchors.fits
            ],
            "remarks": list(anchors.remarks),
            "findings": [dataclasses.asdict(one) for one in anchors.findings],
        },
    }


def _fit_json(fitted: AnchorFit) -> dict:
    def plain(shares: dict[str, float]) -> dict[str, float | None]:
        return {name: None if math.isnan(share) else share for name, share in shares.items()}

    return {
        "node": fitted.anchors.node,
        "kind": fitted.anchors.kind,
        "centred": fitted.anchors.centred,
        "input_size": size_in_words(fitted.objects.inputs),
        "objects": len(fitted.objects),
        "histogram": fitted.histogram(),
        "share": fitted.share(),
        "share_by_band": plain(fitted.share_by_band()),
        "share_by_class": plain(fitted.share_by_class()),
        "mean_iou": float(fitted.ious.mean()),
    }
