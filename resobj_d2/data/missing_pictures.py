"""Pictures that are not there are told before a run, not in the middle of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from resobj_d2.process import agreeing, counted

__all__ = ["check_pictures_exist"]

_SHOWN = 3


def check_pictures_exist(records: Iterable[Mapping], dataset_names: Iterable[str]) -> None:
    """Ask for the files of all records, pictures and label maps, without opening them.

    Args:
        records: of Detectron2's standard form.
        dataset_names: that they are of, for records that do not know it.

    Raises:
        FileNotFoundError: some are missing; the message has their number and the first names.
    """
    known = ", ".join(map(str, dataset_names))
    total: dict[str, int] = {}
    missing: dict[str, list[str]] = {}
    for record in records:
        name = str(record.get("dataset_name", known))
        for key in ("file_name", "sem_seg_file_name"):
            path = record.get(key)
            if not path or "://" in str(path):
                continue
            total[name] = total.get(name, 0) + 1
            if not os.path.exists(path):
                missing.setdefault(name, []).append(os.path.abspath(path))
    for name, paths in missing.items():
        shown = ", ".join(paths[:_SHOWN]) + (", ..." if len(paths) > _SHOWN else "")
        files = f"{len(paths)} of {counted(total[name], 'picture')} {agreeing(len(paths), 'do')}"
        raise FileNotFoundError(
            f"dataset '{name}': {files} not exist: {shown}. Put them there, or take them out of "
            "the annotations"
        )
