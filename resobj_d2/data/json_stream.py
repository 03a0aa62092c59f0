"""Reading a large json object item by item, without holding all of it in memory."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

__all__ = ["read_object"]

_CHUNK = 1 << 20  # characters
_LONGEST_WORD = 24  # a number or literal that the end of a chunk may cut
_BLANKS = re.compile(r"[ \t\n\r]*").match


def _object(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise _RepeatedKey(f"the key {twice!r:.80} occurs twice in one object")
    return found


class _RepeatedKey(ValueError):
    pass


_SCAN = json.JSONDecoder(object_pairs_hook=_object).scan_once
_NAMES = {"[": "list", '"': "str", "t": "bool", "f": "bool", "n": "NoneType"}


def read_object(path: Path, lists: Mapping[str, Callable[[object, int], None]]) -> dict[str, str]:
    """Read a json file that holds one object, and hand on the items of some of its lists.

    Args:
        path: UTF-8, with or without a byte order mark.
        lists: by key, what is called with each item of that list and its position.

    Returns:
        All keys in their order, with the name of the type of their value.

    Raises:
        TypeError: the file holds no object; the message is the name of what it holds.
        ValueError: it is no valid json, or a key occurs twice.
    """
    with open(path, encoding="utf-8-sig") as file:
        window = _Window(file)
        try:
            return _read(window, lists)
        except RecursionError:
            raise ValueError("values are nested too deeply") from None


def _read(window: _Window, lists: Mapping[str, Callable[[object, int], None]]) -> dict[str, str]:
    first = window.peek()
    if first != "{":
        kind = _NAMES.get(first)
        raise TypeError(kind or type(window.value()).__name__)
    window.skip()
    found: dict[str, str] = {}
    if window.peek() == "}":
        window.skip()
    else:
        while True:
            if window.peek() != '"':
                window.fail("Expecting property name enclosed in double quotes")
            key = window.value()
            window.expect(":")
            if key in found:
                raise ValueError(f"the key {key!r} occurs twice")
            if key in lists and window.peek() == "[":
                _read_list(window, lists[key])
                found[key] = "list"
            else:
                found[key] = type(window.value()).__name__
            if window.expect(",}") == "}":
                break
    if window.peek():
        window.fail("Extra data")
    return found


def _read_list(window: _Window, sink: Callable[[object, int], None]) -> None:
    window.skip()
    if window.peek() == "]":
        window.skip()
        return
    position = 0
    while True:
        sink(window.value(), position)
        position += 1
        if window.expect(",]") == "]":
            return


class _Window:
    """A part of the file as text, from which values are taken one after the other."""

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.text = ""
        self.position = 0
        self.lines = self.columns = 0  # in front of ``text``: lines, and characters of the last
        self.ended = False

    def peek(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            position = _BLANKS(self.text, self.position).end()
            self.position = position
            if position < len(self.text):
                return self.text[position]
            if self.ended:
                return ""
            self._more()

    def skip(self) -> None:
        """Pass the character that :meth:`peek` gave."""
        self.position += 1

    def expect(self, characters: str) -> str:
        """Pass one of some characters and return it."""
        found = self.peek()
        if not found or found not in characters:
            self.fail(f"Expecting {' or '.join(map(repr, characters))} delimiter")
        self.position += 1
        return found

    def value(self) -> object:
        """The value that starts here, whole."""
        self.peek()
        while True:
            try:
                value, end = _SCAN(self.text, self.position)
            except StopIteration as stop:
                self._need_more("Expecting value", stop.value)
            except json.JSONDecodeError as error:
                self._need_more(error.msg, error.pos)
            except _RepeatedKey as error:
                self.fail(str(error))
            else:
                # The chunk may end inside a number (1 of 1e5); what closes itself is whole.
                after = self.text[end : end + 1]
                whole = isinstance(value, (dict, list, str)) or (after and after in " \t\n\r,]}")
                if whole or self.ended:
                    self.position = end
                    return value
                self._more()

    def fail(self, message: str, position: int | None = None) -> None:
        """Raise a ValueError that says where."""
        position = self.position if position is None else position
        line = self.lines + self.text.count("\n", 0, position) + 1
        start = self.text.rfind("\n", 0, position)
        column = position - start + (self.columns if start < 0 else 0)
        raise ValueError(f"{message}: line {line} column {column}")

    def _need_more(self, message: str, position: int) -> None:
        """Read on where the end of the chunk may be at fault; otherwise fail."""
        is_cut = message.startswith(("Unterminated", "Invalid \\")) or (
            position >= len(self.text) - _LONGEST_WORD
        )
        if self.ended or not is_cut:
            self.fail(message, position)
        self._more()

    def _more(self) -> None:
        rest = self.text[self.position :]
        self.lines += self.text.count("\n", 0, self.position)
        start = self.text.rfind("\n", 0, self.position)
        self.columns = self.position - start - 1 + (self.columns if start < 0 else 0)
        chunk = self.file.read(max(_CHUNK, len(rest)))  # doubles within a large value
        self.text, self.position, self.ended = rest + chunk, 0, not chunk
