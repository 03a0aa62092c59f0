"""The tables of configs/README.md, from configs/zoo.csv and configs/figures.csv.

::

    python -m docs.generators.zoo --write configs/README.md

``resobj-d2 configs`` lists the same files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.table import replace_between_marks
from resobj_d2.config.zoo import zoo_entries

__all__ = ["main", "page", "table"]

NAME = "python -m docs.generators.zoo"


def table(folder: str) -> str:
    """Markdown of the configurations in one folder of ``configs/``."""
    head = "| config | method | paper's AP | measured on | source | seen in | differs |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for entry in zoo_entries():
        if entry.name.startswith(f"{folder}/"):
            link = f"[{Path(entry.name).stem}]({entry.name})"
            columns = [
                [str(f) for f in entry.figures],
                [f.split for f in entry.figures],
                [f.source for f in entry.figures],
                [f.checked or "not confirmed" for f in entry.figures],
                [f.note or "-" for f in entry.figures],
            ]
            lines.append(" | ".join(["| " + link, entry.method, *map(_cell, columns)]) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[str]) -> str:
    """The values of all figures, or one if they are the same; a dash if there is no figure."""
    return "; ".join(values[:1] if len(set(values)) == 1 else values) or "-"


def page(text: str) -> str:
    """``text`` with the tables between its markers regenerated.

    Raises:
        ValueError: the markers are missing.
    """
    folders = "COCO-Detection", "PascalVOC-Detection"
    tables = "\n".join(table(folder) for folder in folders).strip()
    return replace_between_marks(text, tables, NAME)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=NAME, description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, required=True, metavar="PAGE")
    path = parser.parse_args(argv).write
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
