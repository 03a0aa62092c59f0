"""The page about who owns the gradient, where the run has been measured for it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from resobj_d2.analysis.imbalance_tables import GROUPS
from resobj_d2.data.values import fits_float

from . import plots
from .blocks import Plot, Section, Table, left_out, named
from .judge import Judgement

__all__ = ["FILE", "imbalance_section"]

FILE = "imbalance.json"
_MOST_BYTES = 2**24
_COLUMNS = {
    "levels": {"stream", "stage", "level", "positives", "negatives", "ignored", "ratio"},
    "shares": {"stream", "loss", "anchors", "number", "loss share", "gradient share"},
}


def imbalance_section(judgements: Sequence[Judgement]) -> Section:
    """What `analyze imbalance --json RUN/imbalance.json` has measured.

    Raises:
        ValueError: the file is another one.
    """
    blocks: list = []
    without = []
    for one in judgements:
        path = one.subject.folder / FILE if one.subject.folder else None
        if path is None or not path.is_file():
            without.append(one.subject.name)
            continue
        tables = _read(path)
        shares: dict[str, dict] = {group: {} for group in GROUPS}
        for row in tables["shares"]:
            shares[row["anchors"]][f"{row['loss']} ({row['stream']})"] = row["gradient share"]
        blocks += named(one.subject.name, len(judgements))
        if shares[GROUPS[0]]:
            blocks.append(
                Plot(
                    svg=plots.bars(shares, label="part of the gradient in percent"),
                    alt="Who owns the gradient of each loss",
                    caption="Easy negatives that own much of the gradient late in a training mean "
                    "that there is something to gain from focal loss or Residual Objectness.",
                )
            )
        blocks.append(Table(rows=tables["shares"], caption="Loss and gradient, in percent"))
        blocks.append(
            Table(rows=tables["levels"], caption="Anchors of an image (level -1: all of them)")
        )
    blocks += left_out(without, f"`resobj-d2 analyze imbalance` has left no {FILE}", blocks)
    return Section(
        key="imbalance",
        short="Imbalance",
        title="Who owns the gradient",
        text="Positives, hard negatives and easy negatives among the anchors of each loss.",
        blocks=blocks,
    )


def _read(path: Path) -> dict[str, list[dict]]:
    problem = f"{path} is not what `resobj-d2 analyze imbalance --json` writes: remove it"
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(problem)
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(problem) from error
    for name, columns in _COLUMNS.items():
        rows = tables.get(name) if isinstance(tables, dict) else None
        if not isinstance(rows, list) or not all(
            isinstance(row, dict) and set(row) == columns for row in rows
        ):
            raise ValueError(problem)
    if not all(row["anchors"] in GROUPS for row in tables["shares"]):
        raise ValueError(problem)
    numbers = [row["gradient share"] for row in tables["shares"]]
    if not all(x is None or (fits_float(x) and math.isfinite(x)) for x in numbers):
        raise ValueError(problem)
    return tables
