"""The small report that an evaluation ends with."""

from __future__ import annotations

import logging
from pathlib import Path

from resobj_d2.analysis.evaluation_set import EvaluationSet
from resobj_d2.analysis.results_json import read_entries
from resobj_d2.analysis.source import RESULTS
from resobj_d2.command import explain
from resobj_d2.data.catalog import dataset_record
from resobj_d2.process import replacing

from .judge import judge
from .page import render
from .subject import Subject

__all__ = ["report_evaluation"]

logger = logging.getLogger(__name__)

_PICTURES = 12


def report_evaluation(cfg) -> list[Path]:
    """Write the report of what an evaluation has left in ``OUTPUT_DIR``.

    ``TEST.REPORT`` switches it off. It needs no model: ``report.html`` is made of the detections
    that the evaluation wrote. With several datasets each has one in its folder below
    ``inference``. What goes wrong is a warning, since the run that it is about has ended well.

    Args:
        cfg: of the run; its datasets are registered.

    Returns:
        The files.
    """
    if not cfg.TEST.REPORT:
        return []
    folder = Path(cfg.OUTPUT_DIR)
    written = []
    for name in cfg.DATASETS.TEST:
        results = folder / "inference" / name / RESULTS
        if not results.is_file():
            continue
        output = (folder if len(cfg.DATASETS.TEST) == 1 else results.parent) / "report.html"
        try:
            if _write(name, results, folder, output):
                written.append(output)
        except Exception as error:
            logger.warning("the report on '%s' was not written: %s", name, explain(error))
    return written


def _write(dataset: str, results: Path, folder: Path, output: Path) -> bool:
    record = dataset_record(dataset)
    if not record.annotated:
        return False
    title = folder.absolute().name
    data = EvaluationSet.of(record, read_entries(results), name=title)
    about = {"dataset": dataset}
    subject = Subject(name=title, steps=[data], folder=folder, about=about)
    text = render([judge(subject)], pictures=_PICTURES)
    with replacing(output) as file:
        file.write(text)
    return True
