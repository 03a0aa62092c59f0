"""What a report is about: a dump, or a run that was evaluated."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from resobj_d2.analysis.dump_file import Dump, load_dump, read_about
from resobj_d2.analysis.evaluation_set import EvaluationSet
from resobj_d2.analysis.results_json import read_entries
from resobj_d2.analysis.source import RESULTS, load_source, tell_doubts
from resobj_d2.process import distinct_names

__all__ = ["Subject", "find_subjects"]

logger = logging.getLogger(__name__)

_SAME = 1e-3  # scores of the same weights, on another machine


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One detector on one dataset.

    Attributes:
        name: of the run.
        steps: ground truth and detections at steps 0..T of Residual Objectness; the last are the
            detector's.
        folder: of the run, with its ``metrics.json``; None where there is none.
        about: of the dump; empty without one.
        dump: None for a run that was evaluated only.
        anchor_ious: (N,) best IoU of any anchor with each object; None where it is not known.
    """

    name: str
    steps: list[EvaluationSet]
    folder: Path | None
    about: dict
    dump: Dump | None = None
    anchor_ious: np.ndarray | None = None

    @property
    def data(self) -> EvaluationSet:
        """Ground truth and the detector's own detections."""
        return self.steps[-1]


def find_subjects(
    paths: Sequence[str | os.PathLike],
    *,
    dataset: str | None = None,
    data: str | None = None,
    images: str | None = None,
) -> list[Subject]:
    """What the words of the command name.

    Args:
        paths: of dumps, of runs that have one or were evaluated, or of COCO results jsons.
        dataset: of a run that was evaluated on several. A dump of another one is not reported.
        data: ground truth of results jsons.
        images: folder of its pictures.

    Raises:
        FileNotFoundError: there is nothing to report.
        ValueError: a file is damaged, there is nothing of ``dataset``, or the runs are of
            different classes or images.
    """
    options = argparse.Namespace(data=data, images=images, dataset=dataset, limit=None)
    subjects = [_find(Path(path).expanduser(), options) for path in paths]
    if (data or images) and all(subject.dump is not None for subject in subjects):
        raise ValueError("a dump has its own ground truth: leave out --data and --images")
    first = subjects[0].data
    for subject in subjects[1:]:
        data = subject.data
        if data.class_names != first.class_names or data.image_ids != first.image_ids:
            raise ValueError(
                f"'{subject.name}' was made on another dataset than '{subjects[0].name}': runs "
                "in one report need the same images and classes"
            )
    own = [subject.name for subject in subjects]
    names = distinct_names([Path(path).expanduser() for path in paths], own)
    return [replace(s, name=name) for s, name in zip(subjects, names, strict=True)]


def _find(path: Path, options: argparse.Namespace) -> Subject:
    dataset = options.dataset
    if path.is_file():
        data = load_source(path, options)
        return Subject(name=data.name, steps=[data], folder=None, about={})
    if (path / "about.json").is_file():
        about = read_about(path)
        if dataset not in (None, about.get("dataset")):
            raise ValueError(f"{path} is a dump of {about.get('dataset')}, not of {dataset}")
        return _from_dump(path)
    dump = path / "dump"
    about = read_about(dump) if (dump / "about.json").is_file() else {}
    if about and dataset in (None, about.get("dataset")):
        if not _is_outdated(dump, path / "inference" / str(about.get("dataset")) / RESULTS):
            return _from_dump(dump)
        logger.warning(
            "%s has other detections than the last evaluation, which is reported instead; "
            "`resobj-d2 analyze dump` makes it again",
            dump,
        )
    data = load_source(path, options)
    return Subject(name=data.name, steps=[data], folder=path, about={})


def _is_outdated(dump: Path, results: Path) -> bool:
    """Whether an evaluation on the same dataset has found something else after the dump was made.

    Times alone do not tell: in a copied folder they are those of the copying.
    """
    made = (dump / "about.json").stat().st_mtime
    if not results.is_file() or results.stat().st_mtime <= made + 1:
        return False
    try:
        found = np.sort([float(entry["score"]) for entry in read_entries(results)])
    except (KeyError, TypeError, ValueError):  # told where the evaluation is read
        return True
    own = np.sort(load_dump(dump).detections.scores)
    return len(own) != len(found) or not np.allclose(own, found, atol=_SAME)


def _from_dump(path: Path) -> Subject:
    dump = load_dump(path)
    run = path.absolute().parent
    is_run = any((run / name).is_file() for name in ("metrics.json", "config.yaml"))
    name = run.name if path.name == "dump" else path.absolute().name
    if not dump.about.get("annotated", True):
        raise ValueError(f"{path}: its dataset has no annotations, so nothing can be judged")
    steps = [
        EvaluationSet.of_dump(replace(dump, detections=table), name=name) for table in dump.steps
    ]
    tell_doubts(steps[-1])
    return Subject(
        name=name,
        steps=steps,
        folder=run if is_run else None,
        about=dump.about,
        dump=dump,
        anchor_ious=_anchor_ious(dump),
    )


def _anchor_ious(dump: Dump) -> np.ndarray:
    """Those of the dump's objects, in the order that the analyses have them in."""
    objects = replace(dump.objects, areas=dump.objects.anchor_ious)
    return EvaluationSet.of_dump(replace(dump, objects=objects)).objects.areas
