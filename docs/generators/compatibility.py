"""Which parts of the dense detector combine: axes, refusals and docs/compatibility.md.

::

    python -m docs.generators.compatibility --write docs/compatibility.md

The page is generated from the registries and from :data:`REFUSALS`.
``tests/modeling/test_compositions.py`` verifies it: it builds, trains and evaluates combinations
that cover every pair of values, and tries to build those listed as refused.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

from resobj_d2.losses import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY
from resobj_d2.matching import ASSIGNER_REGISTRY, CODER_REGISTRY, SAMPLER_REGISTRY

__all__ = ["REFUSALS", "Refusal", "axes", "cover", "main", "overrides", "page", "pairs"]

Axes = Mapping[str, Mapping[str, Sequence[tuple[str, object]]]]
Row = dict[str, str]  # axis: value

_OBJECTNESS = [("OBJECTNESS.ENABLED", True), ("OBJECTNESS.STEPS", 2)]
_QUALITY = [("QUALITY.ENABLED", True)]

# The registries' axes are named after the node whose NAME chooses the entry.
_REGISTRIES = {
    "CLS_LOSS": CLS_LOSS_REGISTRY,
    "BOX_LOSS": BOX_LOSS_REGISTRY,
    "SAMPLER": SAMPLER_REGISTRY,
    "ASSIGNER": ASSIGNER_REGISTRY,
    "CODER": CODER_REGISTRY,
}
# What an entry needs besides its name.
_NEEDED: dict[str, list[tuple[str, object]]] = {
    # Its weights follow the objects' size, which suits YOLOBoxLoss alone.
    "YOLOAssigner": [("ASSIGNER.WEIGHS_BOXES", False)],
    "YOLOCoder": [("PRIORS.OFFSET", 0.5)],
}
# The values of an axis that leave each stream with its own: MaxIoUAssigner and DeltaCoder with
# anchors, FSAFAssigner and LTRBCoder without.
_OWN = "each stream's own"
_OWN_ENTRIES = ("MaxIoUAssigner", "FSAFAssigner", "DeltaCoder")

# Overrides below the node of a stream, by axis and value.
_STREAM: Axes = {
    "OBJECTNESS": {
        "off": [],
        "T=0": [("OBJECTNESS.ENABLED", True), ("OBJECTNESS.STEPS", 0)],
        "T=2": _OBJECTNESS,
        "T=2 level, keep, chain": [
            *_OBJECTNESS,
            ("OBJECTNESS.MIN_SCOPE", "level"),
            ("OBJECTNESS.UNSELECTED", "keep"),
            ("OBJECTNESS.SOURCE", "chain"),
        ],
    },
    "STAGES": {
        "plain": [],
        "consistent": [("STAGES", [{}])],
        "cascade": [("STAGES", [{"CLS": "own", "TOWER": "own"}])],
        "gated cascade": [("STAGES", [{"CLS": "own", "TOWER": "gated"}])],
        "2 cls / 1 reg": [("STAGES", [{"BOX": "none"}])],
    },
    "QUALITY": {
        "off": [],
        "cls": [*_QUALITY, ("QUALITY.READS", "cls")],
        "box": [*_QUALITY, ("QUALITY.READS", "box")],
    },
}

# Overrides of the whole configuration.
_DETECTOR: Axes = {
    "ANCHOR_FREE": {
        "off": [],
        "beside anchors": [("MODEL.DENSE.ANCHOR_FREE.ENABLED", True)],
        "alone": [
            ("MODEL.DENSE.ANCHOR_FREE.ENABLED", True),
            ("MODEL.DENSE.ANCHOR_BASED", False),
        ],
    },
    "neck": {
        "FPN": [("MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone")],
        "balanced FPN": [("MODEL.BACKBONE.NAME", "build_balanced_fpn_backbone")],
    },
}

_STREAM_NODES = ("MODEL.DENSE", "MODEL.DENSE.ANCHOR_FREE")


@dataclass(frozen=True)
class Refusal:
    """A combination that is refused when the model is built.

    Attributes:
        values: the combination, by axis, for any values of the other axes.
        reason: part of the error's message.
    """

    values: Mapping[str, str]
    reason: str


_OF_DELTAS = sorted(x for x, entry in BOX_LOSS_REGISTRY if entry.compares == "deltas")
_NOT_BY_IOU = ("ATSSAssigner", "FCOSAssigner", "PAAAssigner", "TaskAlignedAssigner")


REFUSALS = [
    Refusal(
        {"OBJECTNESS": "off", "CLS_LOSS": "GHMCLoss", "SAMPLER": sampler},
        f"SAMPLER {sampler} ranks anchors by their class loss, but GHMCLoss weighs anchors "
        "jointly and has no loss per anchor",
    )
    for sampler in ("HardExampleSampler", "HardNegativeRatio", "OHEMSampler")
] + [
    Refusal(
        {"SAMPLER": "IoUBalancedSampler", "ASSIGNER": _OWN, "ANCHOR_FREE": streams},
        "SAMPLER IoUBalancedSampler draws background by its IoU, but FSAFAssigner does not use "
        "IoU: it would draw at random",
    )
    for streams in ("beside anchors", "alone")
]
REFUSALS += [
    Refusal(
        {"SAMPLER": "IoUBalancedSampler", "ASSIGNER": assigner},
        f"SAMPLER IoUBalancedSampler draws background by its IoU, but {assigner} does not use IoU: "
        "it would draw at random",
    )
    for assigner in _NOT_BY_IOU
]
REFUSALS += [
    Refusal(
        {"BOX_LOSS": loss, "ASSIGNER": "TaskAlignedAssigner"},
        f"ASSIGNER TaskAlignedAssigner weighs the boxes, but BOX_LOSS {loss} cannot",
    )
    for loss in _OF_DELTAS
]
REFUSALS += [
    Refusal(
        {"BOX_LOSS": loss, "CODER": coder},
        f"BOX_LOSS {loss} compares deltas, but CODER {coder} makes {space}",
    )
    for coder, space in (("DistributionCoder", "distributions"), ("YOLOCoder", "cell_deltas"))
    for loss in _OF_DELTAS
]
REFUSALS += [
    Refusal(
        {"STAGES": stages, "CODER": "DistributionCoder"},
        "CODER DistributionCoder measures boxes from a point and ignores the box that a stage of "
        "STAGES refines: take another coder, or stages with BOX none",
    )
    for stages in ("consistent", "cascade", "gated cascade")
]


def axes() -> Axes:
    """Overrides by axis and value, including everything currently in the registries."""
    registered: dict[str, dict[str, list]] = {axis: {} for axis in _REGISTRIES}
    for axis in ("ASSIGNER", "CODER"):
        registered[axis][_OWN] = []
    for axis, registry in _REGISTRIES.items():
        for name, entry in sorted(registry):
            if _suits(entry) and name not in _OWN_ENTRIES:
                registered[axis][name] = [(f"{axis}.NAME", name), *_NEEDED.get(name, [])]
    return {**_STREAM, **registered, **_DETECTOR}


def _suits(entry: type) -> bool:
    """Whether it fits the box parametrisation of these detectors; YOLOv3's box loss does not."""
    return getattr(entry, "compares", "boxes") in ("boxes", "deltas")


def overrides(row: Row) -> list:
    """KEY, VALUE, ... of a combination; stream options are set for both streams."""
    options: list = []
    for axis, value in row.items():
        for key, setting in axes()[axis][value]:
            keys = [key] if axis in _DETECTOR else [f"{node}.{key}" for node in _STREAM_NODES]
            for full in keys:
                options += [full, setting]
    return options


def pairs(row: Row) -> set[frozenset]:
    """Every two (axis, value) of a combination."""
    return {frozenset(pair) for pair in combinations(row.items(), 2)}


def cover(values: Mapping[str, Sequence[str]], forbidden: Sequence[Row] = ()) -> list[Row]:
    """A small set of combinations that covers every pair of values of two axes (greedy).

    Args:
        values: the values of each axis.
        forbidden: combinations of some axes that must not occur. Pairs that cannot occur without
            one of them are omitted.
    """
    left = {
        frozenset(((a, x), (b, y)))
        for a, b in combinations(values, 2)
        for x, y in product(values[a], values[b])
    }
    rows = []
    # Sorted, for the same rows in every process.
    for pair in sorted(left, key=sorted):
        if pair in left:
            row = _fill(dict(sorted(pair)), values, forbidden, left)
            if row is not None:
                rows.append({axis: row[axis] for axis in values})
                left -= pairs(row)
    return rows


def _fill(
    row: Row, values: Mapping[str, Sequence[str]], forbidden: Sequence[Row], left: set[frozenset]
) -> Row | None:
    """The row completed so that each added value covers the most pairs; None if impossible."""
    if any(bad.items() <= row.items() for bad in forbidden):
        return None
    axis = next((axis for axis in values if axis not in row), None)
    if axis is None:
        return row

    def gain(value: str) -> int:
        return sum(frozenset(((axis, value), other)) in left for other in row.items())

    for value in sorted(values[axis], key=gain, reverse=True):
        full = _fill({**row, axis: value}, values, forbidden, left)
        if full is not None:
            return full
    return None


def page() -> str:
    """docs/compatibility.md."""
    columns = axes()
    lines = [_INTRODUCTION, ""]
    lines.append("| axis | value | " + " | ".join(columns) + " |")
    lines.append("|---" * (len(columns) + 2) + "|")
    for axis, settings in columns.items():
        for value in settings:
            cells = [_cell(axis, value, other, columns[other]) for other in columns]
            lines.append(f"| {axis} | {value} | " + " | ".join(cells) + " |")
    lines += ["", "## Refused", ""]
    for i, refusal in enumerate(REFUSALS, 1):
        what = ", ".join(f"{axis} {value}" for axis, value in refusal.values.items())
        lines.append(f'{i}. {what}: "{refusal.reason}"')
    return "\n".join(lines) + "\n"


def _cell(axis: str, value: str, other: str, settings: Mapping[str, object]) -> str:
    """How ``value`` combines with the values of another axis."""
    if other == axis:
        return ""
    exceptions = []
    for name in settings:
        pair = {axis: value, other: name}
        notes = [i for i, r in enumerate(REFUSALS, 1) if pair.items() <= r.values.items()]
        if notes:
            exceptions.append(f"{name} in {', '.join(map(str, notes))}")
    return "all but " + ", ".join(exceptions) if exceptions else "all"


_INTRODUCTION = """\
# Compatibility

Generated by `python -m docs.generators.compatibility --write docs/compatibility.md`.

Every value of an axis combined with the values of every other axis. "all" work: the detector
builds, a training step gives finite losses and a gradient for every parameter, and evaluation gives
finite boxes with scores in [0, 1]. "all but X in 1" is the same except for the combination of that
number below the table: it raises `ValueError` when the model is built, with the reason given there.
`tests/modeling/test_compositions.py` verifies both.

OBJECTNESS, STAGES, QUALITY, CLS_LOSS, BOX_LOSS, SAMPLER, ASSIGNER and CODER are nodes of
`MODEL.DENSE`; with ANCHOR_FREE they are set for both streams, and a combination that either refuses
is refused. The values of STAGES are explained in [methods](methods.md); those of QUALITY are the
tower it reads. "each stream's own" is `MaxIoUAssigner` and `DeltaCoder` with anchors, and
`FSAFAssigner` and `LTRBCoder` without. `YOLOAssigner` is without `WEIGHS_BOXES`, and `YOLOCoder`
with `MODEL.DENSE.PRIORS.OFFSET` 0.5. Whether a combination detects better is another question.
`YOLOBoxLoss` is omitted: it is for `YOLOCoder` and refused with any other coder."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m docs.generators.compatibility", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="instead of printing it")
    args = parser.parse_args(argv)
    if args.write:
        args.write.write_text(page())
    else:
        print(page(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
