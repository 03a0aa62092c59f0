"""Parts of pages that a command writes, between two comments."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["between", "rewrite"]


def between(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between ``<!-- begin: name -->`` and ``<!-- end: name -->``.

    Raises:
        ValueError: the comments are missing.
    """
    begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page has no part between {begin} and {end}")
    return pattern.sub(lambda _: f"{begin}\n\n{content.strip()}\n\n{end}", text)


def rewrite(path: Path, name: str, content: str) -> None:
    """The same in a file.

    Raises:
        ValueError: the comments are missing.
    """
    text = between(path.read_text(encoding="utf-8"), name, content)
    path.write_text(text, encoding="utf-8")
