"""Finds other copies of this package on Python's path or known to pip."""

from __future__ import annotations

import contextlib
import json
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["other_copies"]


def other_copies(this: Path) -> list[Path]:
    """Folders of resobj_d2 other than ``this``: on ``sys.path``, or installed as editable."""
    folders = [Path(entry, "resobj_d2") for entry in sys.path]
    for distribution in metadata.distributions(name="resobj_d2"):
        # What an installer wrote there, or a broken disk left, must not stop a command.
        with contextlib.suppress(ValueError, KeyError, AttributeError, TypeError):
            source = json.loads(distribution.read_text("direct_url.json") or "{}")
            if source.get("dir_info", {}).get("editable"):
                folders.append(Path(unquote(urlsplit(source["url"]).path), "resobj_d2"))
    found = dict.fromkeys(f.resolve() for f in folders if (f / "__init__.py").is_file())
    return [folder for folder in found if folder != this.resolve()]
