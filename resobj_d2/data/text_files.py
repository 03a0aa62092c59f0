"""Text files as editors of all systems save them."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

__all__ = ["read_text"]

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")


def read_text(path: Path, where: str, *, declared: bool = False) -> str:
    """The text of a file: UTF-8, or UTF-16 with its byte order mark.

    Args:
        path: the file.
        where: begins the message of an error.
        declared: whether an XML declaration may name another encoding.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not text in that encoding; it is a folder, device or pipe, which may have
            no end.
    """
    if not path.is_file():
        if not path.exists():
            raise FileNotFoundError(f"{where}: there is no file {path}")
        raise ValueError(f"{where}: {path} is not a file")
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is None and data[1:2] == b"\0":
        encoding = "utf-16-le"
    elif encoding is None and data[:1] == b"\0":
        encoding = "utf-16-be"
    if encoding is None and declared and (match := _DECLARED.match(data)):
        encoding = match[1].decode("ascii")
    try:
        return data.decode(encoding or "utf-8")
    except (UnicodeDecodeError, LookupError) as error:
        name = "" if path.name in where else f"{path}: "
        raise ValueError(f"{where}: {name}not text in {encoding or 'utf-8'}: {error}") from None
