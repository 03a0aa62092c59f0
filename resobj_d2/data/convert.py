"""Converting datasets between formats.

What is written is the checked record: mended where registration mends, with the same warnings.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from resobj_d2.process import counted
from resobj_d2.process.yaml_text import parse_yaml

from .entries import parse_entry
from .notes import KINDS, refuse_lossy
from .record import Record
from .writers import WRITERS

__all__ = ["convert", "parse_source"]

logger = logging.getLogger(__name__)


def convert(
    source: str | dict | Record,
    *,
    to: str,
    output: Path,
    split: str = "train",
    pictures: str = "link",
) -> dict:
    """Write a dataset in another format.

    Args:
        source: name of a registered dataset, an entry of ``DATASETS.REGISTER``, or a record.
        to: one of :data:`.writers.WRITERS`.
        output: folder, which may hold other splits of the set.
        split: what the result is called there.
        pictures: one of :data:`.writers.PICTURES`.

    Returns:
        The entry that registers the result, without its name.

    Raises:
        ValueError, FileNotFoundError: the source cannot be registered, or not be written so that it
            is read back whole.
        FileExistsError: the split is there already.
    """
    from .writing import join_images_of_a_file

    record = source if isinstance(source, Record) else _record_of(source)
    refuse_lossy(record.notes)
    for note in record.notes:  # of masks and keypoints, which nobody has needed until now
        if KINDS[note.kind].needed_for:
            logger.warning(note.message)
    if to != "coco":  # the others know a picture by its file
        record = join_images_of_a_file(record)
    with _no_empty_folder(output):
        output.mkdir(parents=True, exist_ok=True)
        entry = WRITERS[to](record, output.absolute(), split, pictures)
    written = _check_written(record, entry, f"{record.name} as {to}")
    images = counted(len(written.images), "picture")
    boxes = counted(len(written.annotations), "box")
    logger.info("%s and %s are written to %s", images, boxes, output)
    return entry


def _record_of(source: str | dict) -> Record:
    from .catalog import dataset_record
    from .register import check_available, register_datasets

    if isinstance(source, dict):
        source = {"name": "source", **source}
        register_datasets([source], "the source")
        source = str(source["name"])
    check_available([source], "the source")
    return dataset_record(source)


@contextlib.contextmanager
def _no_empty_folder(output: Path):
    """Where writing is refused, folders that it has made and that are empty go."""
    there = output.exists()
    try:
        yield
    except Exception:
        if not there:
            for folder, _, _ in os.walk(output, topdown=False):
                with contextlib.suppress(OSError):  # it has files
                    os.rmdir(folder)
        raise


def _check_written(record: Record, entry: dict, name: str) -> Record:
    """Read the result, and refuse it where something is missing."""
    from .open_entry import open_entry

    again = open_entry(parse_entry({"name": name, **entry}, "the result")).read()
    crowd = record.annotations.crowd.sum() - again.annotations.crowd.sum()
    pairs = {
        "pictures": (len(record.images), len(again.images)),
        "boxes": (len(record.annotations) - int(crowd), len(again.annotations)),
        "class names": (record.class_names, again.class_names),
    }
    for kind, (before, after) in pairs.items():
        if before != after:
            raise ValueError(
                f"dataset '{record.name}' has {kind} {before}, but what was written is read as "
                f"{after}: do not use {again.source}"
            )
    return again


def parse_source(words: Sequence[str]) -> str | dict:
    """Words of a command line: a name, or an entry of ``DATASETS.REGISTER`` as KEY=VALUE ...

    Raises:
        ValueError: they are neither.
    """
    if len(words) == 1 and "=" not in words[0]:
        return words[0]
    entry = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign:
            raise ValueError(f"the source is a name or KEY=VALUE ..., got {word!r} among others")
        # Lists and numbers as in a config; everything else is text.
        entry[key] = parse_yaml(value, key) if value[:1] == "[" or value.isdecimal() else value
    return entry
