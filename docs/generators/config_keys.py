"""The table of configuration keys, docs/config_keys.md, from what their owners declare.

::

    python -m docs.generators.config_keys --write docs/config_keys.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from resobj_d2.config.defaults import all_keys
from resobj_d2.config.keys import Key

__all__ = ["main", "page"]

HEAD = """# Configuration keys

<!-- Made by: python -m docs.generators.config_keys --write docs/config_keys.md -->

Every key that this package adds to [Detectron2's](https://detectron2.readthedocs.io/en/latest/modules/config.html).
A key stands at its owner: it is an annotated argument of the class that reads it, whose docstring
says more. A key that is set to something other than its default, but that nothing in the model
reads, is refused when the configuration is loaded.

`MODEL.DENSE.ANCHOR_FREE` has the keys of `MODEL.DENSE` from `PRIORS` to `FUSION` once more, for the
anchor-free stream; where its defaults differ they are listed below. Entries of your own, named by
`IMPORTS`, add their options in the same way (see [architecture.md](architecture.md)).
"""
FREE = "MODEL.DENSE.ANCHOR_FREE."


def page() -> str:
    keys = list(all_keys())
    defaults = {key.path: key.default for key in keys}
    listed = [key for key in keys if not _repeats(key, defaults)]
    parts = [HEAD]
    for section, group in _sections(listed):
        parts.append(f"\n## {section}\n\n")
        parts.append("| key | default | type | meaning | read by | source |\n")
        parts.append("| --- | --- | --- | --- | --- | --- |\n")
        parts += [_row(key) for key in group]
    return "".join(parts)


def _repeats(key: Key, defaults: dict) -> bool:
    """Whether it is a key of the anchor-free stream with the default of the anchors'."""
    if not key.path.startswith(FREE) or key.path == f"{FREE}ENABLED":
        return False
    return defaults[key.path.replace(FREE, "MODEL.DENSE.")] == key.default


def _sections(keys: Sequence[Key]) -> Iterable[tuple[str, list[Key]]]:
    """Keys by their node, in the order of the nodes' first keys."""
    order: dict[str, list[Key]] = {}
    for key in keys:
        order.setdefault(_node(key), []).append(key)
    return order.items()


def _node(key: Key) -> str:
    parts = key.path.split(".")[:-1]
    if parts[:2] == ["MODEL", "DENSE"]:
        return ".".join(parts[:3])
    return ".".join(parts[:2]) or "Top level"


def _row(key: Key) -> str:
    readers = ", ".join(f"`{name}`" for name, _ in groupby(reader.name for reader in key.readers))
    default = '""' if key.default == "" else str(key.default)
    cells = [f"`{key.path}`", f"`{default}`", key.type, key.meaning, readers, key.source]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", type=Path, help="file to write; otherwise it is printed")
    path = parser.parse_args(arguments).write
    if path is None:
        print(page(), end="")
    else:
        path.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
