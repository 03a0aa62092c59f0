"""Pickles of arrays and containers, read without running anything.

A pickle is a program: ``pickle.load`` calls whatever it names. Here it may name containers and what
numpy needs to make an array, and not even numpy's own functions are called with what it says:
arrays are made from the bytes. Neither time nor memory grows faster than the file: an object that
occurs many times may be large, so keys are strings and numbers, and what calls make is counted.
"""

from __future__ import annotations

import functools
import os
import pickle
import re
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np

__all__ = ["UnsafePickleError", "read_pickle"]

MAX_OPERATIONS = 10_000_000
MAX_DEPTH = 20
MAX_KEY = 2**60  # such numbers are their own hashes, so that no file can make keys collide
_SPARE_BYTES = 2**20
_BYTES_OF_AN_ITEM = 16  # in a pickle of Python 2 an item of an OrderedDict takes more than half
_NUMPY = re.compile(r"numpy\.(_?core)\.(multiarray|numeric)")
# Operations of a pickle that nothing here needs: objects by reference, callables that other code
# has registered, sets.
_REFUSED = ("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "EMPTY_SET", "ADDITEMS", "FROZENSET")


class UnsafePickleError(ValueError):
    """A pickle that is damaged, or holds more than arrays and containers."""


def read_pickle(path: str | os.PathLike) -> object:
    """What a pickle holds: dicts, lists, tuples, strings, numbers and numpy's arrays of numbers.

    Strings of Python 2 are read as latin1, as Detectron2 does for its model zoo.

    Raises:
        UnsafePickleError: it holds anything else, is damaged or no pickle. Nothing has run.
        OSError: it cannot be opened.
    """
    name = os.fspath(path)
    with open(name, "rb") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            return _plain(_Unpickler(file, size=size).load(), {}, 0)
        except UnsafePickleError as error:
            raise UnsafePickleError(f"{name}: {error}") from None
        # The bytes may lead the unpickler to any operation on any of its objects.
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise UnsafePickleError(f"{name} is damaged or no pickle: {reason}") from error


class _Budget:
    """Bytes that calls may make.

    Twice the file: pickles for Python 2 have text, of which bytes are made, of which an array is.
    """

    def __init__(self, size: int) -> None:
        self.left = 2 * size + _SPARE_BYTES

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise UnsafePickleError("it makes far more data than it holds")


class _DType:
    """numpy's data type, of numbers or strings alone."""

    def __init__(self, text: str, *_: object) -> None:
        if not isinstance(text, str):
            raise UnsafePickleError(f"it holds an array of a {type(text).__name__}")
        if not re.fullmatch(r"[<>|=]?[biufcSU]\d{0,9}", text):
            raise UnsafePickleError(f"it holds an array of {text!r:.40}, not of numbers")
        self.value = np.dtype(text)

    def build(self, state: tuple, _: _Budget) -> None:
        _, order, *fields = state
        if order not in ("<", ">", "|", "=") or any(x is not None for x in fields[:3]):
            raise UnsafePickleError("it holds an array of records")
        if order != "|":
            self.value = self.value.newbyteorder(order)


class _Array:
    """An array whose numbers come with ``build``, as numpy pickles it."""

    value: np.ndarray

    def build(self, state: tuple, budget: _Budget) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _array(budget, data, dtype, shape, "F" if is_fortran else "C").value


def _reconstruct(_: _Budget, *__: object) -> _Array:
    return _Array()


def _array(
    budget: _Budget, data: str | bytes | bytearray, dtype: _DType, shape: tuple, order: str = "C"
) -> _Array:
    if not isinstance(data, (str, bytes, bytearray)) or not isinstance(dtype, _DType):
        raise UnsafePickleError("it holds an array of objects")
    if not isinstance(shape, tuple) or any(type(side) is not int for side in shape):
        raise UnsafePickleError("it holds an array whose shape is not of numbers")
    budget.spend(len(data))
    if isinstance(data, str):
        data = data.encode("latin1")
    array = _Array()
    values = np.frombuffer(data, dtype.value) if len(data) else np.empty(0, dtype.value)
    array.value = values.reshape(shape, order="F" if order == "F" else "C").copy(order="K")
    return array


def _scalar(budget: _Budget, dtype: _DType, data: str | bytes) -> object:
    return _array(budget, data, dtype, ()).value[()]


def _encode(budget: _Budget, text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise UnsafePickleError("it encodes something else than text in latin1")
    budget.spend(len(text))
    return text.encode("latin1")


def _no_bytes(_: _Budget) -> bytes:
    return b""


def _ordered_dict(budget: _Budget, items: list | tuple = ()) -> OrderedDict:
    if not isinstance(items, (list, tuple)):
        raise UnsafePickleError("it makes an OrderedDict of something else than a list")
    budget.spend(_BYTES_OF_AN_ITEM * len(items))
    made: OrderedDict = OrderedDict()
    for key, value in items:
        made[_key(key)] = value
    return made


def _whole_number(_: _Budget, value: int) -> int:
    if type(value) is not int:
        raise UnsafePickleError(f"it has a mode that is a {type(value).__name__}, not a number")
    return value


def _ndarray(*_: object) -> None:
    raise UnsafePickleError("it makes an array in a way of its own")


def _key(value: object) -> object:
    """A key of a dict: of anything else the hash may take for ever."""
    if type(value) in (str, bytes) or (type(value) is int and abs(value) < MAX_KEY):
        return value
    raise UnsafePickleError(
        f"it has a {type(value).__name__} as a key; strings and numbers below 2**60 are read"
    )


# What may be called, with the budget in front of the arguments, and the type of data.
_KNOWN: dict[tuple[str, str], Callable] = {
    ("numpy", "ndarray"): _ndarray,  # an argument of _reconstruct
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("collections", "OrderedDict"): _ordered_dict,
    ("detectron2.structures.boxes", "BoxMode"): _whole_number,
}
_KNOWN_OF_NUMPY: dict[str, Callable] = {
    "_reconstruct": _reconstruct,
    "_frombuffer": _array,
    "scalar": _scalar,
}


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """Python's own in Python: of the one in C neither ``BUILD`` nor the memory can be limited."""

    def __init__(self, file: IO[bytes], *, size: int) -> None:
        super().__init__(file, encoding="latin1")
        self.dispatch = _Operations(self.dispatch)
        self.budget = _Budget(size)

    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) == ("numpy", "dtype"):
            return _DType
        known = _KNOWN.get((module, name))
        if known is None and _NUMPY.fullmatch(module):
            known = _KNOWN_OF_NUMPY.get(name)
        if known is None:
            raise UnsafePickleError(
                f"it refers to {f'{module}.{name}':.80}; only arrays, numbers, strings and "
                "containers are read, since a pickle can run any code"
            )
        return functools.partial(known, self.budget)


class _Operations(dict):
    """The table of operations, without some, and for so many calls alone."""

    def __init__(self, table: dict[int, Callable]) -> None:
        super().__init__(table)
        self.left = MAX_OPERATIONS
        for name in _REFUSED:
            del self[getattr(pickle, name)[0]]
        self[pickle.BUILD[0]] = _build
        self[pickle.BYTEARRAY8[0]] = _bytearray
        self[pickle.SETITEM[0]] = _set_item
        self[pickle.SETITEMS[0]] = _set_items
        self[pickle.DICT[0]] = _dict
        self[pickle.PUT[0]] = _put

    def __getitem__(self, key: int) -> Callable:
        self.left -= 1
        if self.left < 0:
            raise UnsafePickleError(f"it has more than {MAX_OPERATIONS:,} operations")
        return super().__getitem__(key)


def _bytearray(unpickler: Any) -> None:
    """Python's makes room for as many bytes as the file says."""
    (size,) = struct.unpack("<Q", unpickler.read(8))
    data = unpickler.read(min(size, sys.maxsize))
    if len(data) < size:
        raise UnsafePickleError("it ends too early")
    unpickler.append(bytearray(data))


def _build(unpickler: Any) -> None:
    state = unpickler.stack.pop()
    target = unpickler.stack[-1]
    if not isinstance(target, (_Array, _DType)):
        raise UnsafePickleError(f"it changes a {type(target).__name__}")
    target.build(state, unpickler.budget)


def _set_item(unpickler: Any) -> None:
    value = unpickler.stack.pop()
    _fill(unpickler, unpickler.stack.pop(), value)


def _set_items(unpickler: Any) -> None:
    _fill(unpickler, *unpickler.pop_mark())


def _dict(unpickler: Any) -> None:
    items = unpickler.pop_mark()
    unpickler.append({})
    _fill(unpickler, *items)


def _fill(unpickler: Any, *items: object) -> None:
    """Keys and values in turn, for the dict on top of the stack."""
    target = unpickler.stack[-1]
    if not isinstance(target, dict):
        raise UnsafePickleError(f"it changes items of a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[_key(key)] = value


def _put(unpickler: Any) -> None:
    """Python's takes any number, and numbers can be chosen so that looking them up is slow."""
    number = int(unpickler.readline()[:-1])
    if not 0 <= number < MAX_KEY:
        raise UnsafePickleError(f"it numbers an object {number}")
    unpickler.memo[number] = unpickler.stack[-1]


def _plain(value: object, known: dict[int, object], depth: int) -> object:
    """With numpy's arrays in place of :class:`_Array`; ``known`` has the containers seen before."""
    if isinstance(value, _Array):
        return value.value
    if not isinstance(value, (dict, list, tuple)):
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.generic)):
            return value
        raise UnsafePickleError(f"it holds a {type(value).__name__}")
    if id(value) in known:
        return known[id(value)]
    if depth > MAX_DEPTH:
        raise UnsafePickleError(f"it is nested deeper than {MAX_DEPTH} levels")
    result: object
    if isinstance(value, dict):
        result = {key: _plain(item, known, depth + 1) for key, item in value.items()}
    else:
        result = type(value)(_plain(item, known, depth + 1) for item in value)
    known[id(value)] = result
    return result
