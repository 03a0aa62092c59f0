"""Tables as files: Parquet where pyarrow is installed, otherwise NumPy's npz.

A table is a dict of equally long columns, (n,) arrays of numbers, bools or strings.
"""

from __future__ import annotations

import importlib.util
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

__all__ = ["ColumnWriter", "read_columns"]

# Rows that are held in memory before they go to a Parquet file as one group.
_GROUP = 200_000


class ColumnWriter:
    """Writes one table part by part; Parquet needs the memory of one group of rows only.

    Args:
        folder: where ``<name>.parquet`` or ``<name>.npz`` is written.
        name: of the table.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / name
        self._parts: list[dict[str, np.ndarray]] = []
        self._held = 0
        self._file = None
        self._parquet = importlib.util.find_spec("pyarrow") is not None

    def write(self, columns: Mapping[str, np.ndarray]) -> None:
        """Add rows; every part has the same columns in the same types.

        Raises:
            ValueError: the columns differ from those of the first part.
        """
        if self._parts and list(columns) != list(self._parts[0]):
            raise ValueError(f"{self._path.name}: columns changed to {', '.join(columns)}")
        self._parts.append(dict(columns))
        self._held += len(next(iter(columns.values())))
        if self._parquet and self._held >= _GROUP:
            self._flush()

    def close(self) -> None:
        """Write the rest. A table that got no part has no file."""
        if self._parts and self._held + (self._file is None):
            self._flush()
        if self._file is not None:
            self._file.close()

    def _flush(self) -> None:
        names = list(self._parts[0])
        table = {name: np.concatenate([part[name] for part in self._parts]) for name in names}
        # An empty part keeps the names for the check of the next one.
        self._parts = [{name: column[:0] for name, column in table.items()}]
        self._held = 0
        if not self._parquet:
            with open(self._path.with_suffix(".npz"), "wb") as file:
                np.savez(file, **table)
            return
        import pyarrow
        import pyarrow.parquet

        rows = pyarrow.table(table)
        if self._file is None:
            path = self._path.with_suffix(".parquet")
            self._file = pyarrow.parquet.ParquetWriter(path, rows.schema)
        self._file.write_table(rows)


def read_columns(folder: Path, name: str) -> dict[str, np.ndarray] | None:
    """A table that :class:`ColumnWriter` wrote; None where there is none.

    Raises:
        ValueError: the file is damaged, or its columns have different lengths.
        ImportError: it is Parquet, and pyarrow is not installed.
    """
    parquet, npz = folder / f"{name}.parquet", folder / f"{name}.npz"
    if parquet.is_file():
        columns = _read_parquet(parquet)
    elif npz.is_file():
        columns = _read_npz(npz)
    else:
        return None
    if len({column.shape for column in columns.values()}) > 1 or any(
        column.ndim != 1 for column in columns.values()
    ):
        raise ValueError(f"{folder / name}: its columns have different lengths")
    return columns


def _read_parquet(path: Path) -> dict[str, np.ndarray]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{path} needs `pip install pyarrow` to be read", name="pyarrow"
        ) from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return {
        name: column.to_numpy()
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile, OSError, MemoryError, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from error
