"""Pictures of the detections of each evaluation in a training, always the same ones."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.structures import Boxes, Instances
from PIL import Image

from resobj_d2.analysis.results_json import read_entries
from resobj_d2.analysis.source import RESULTS
from resobj_d2.command import explain
from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.pictures import read_picture
from resobj_d2.data.record import Record
from resobj_d2.inference.drawing import (
    BoxStyle,
    class_color,
    draw_boxes,
    draw_detections,
    grid,
    save_picture,
)

__all__ = ["FOLDER", "SampleHook", "draw_samples"]

FOLDER = "samples"
_SIDE = 480  # longer side of each picture in pixels
_CONFIDENCE = 0.3

logger = logging.getLogger(__name__)


class SampleHook(HookBase):
    """After each evaluation draws some pictures with their ground truth and detections.

    They go to ``OUTPUT_DIR/samples`` and to TensorBoard. It reads what the evaluation wrote, so it
    costs no pass of the model; it has to come after the evaluation's hook, on the main process.

    Args:
        cfg: of the run.
    """

    def __init__(self, cfg) -> None:
        self._number = cfg.TEST.SAMPLE_PICTURES
        self._folder = Path(cfg.OUTPUT_DIR)
        self._results = {
            name: self._folder / "inference" / name / RESULTS for name in cfg.DATASETS.TEST
        }
        self._seen: dict[str, int] = {}

    def before_train(self) -> None:
        self._seen = {name: _stamp(path) for name, path in self._results.items()}

    def after_step(self) -> None:
        self._draw_new()

    def after_train(self) -> None:
        self._draw_new()

    def _draw_new(self) -> None:
        for name, path in self._results.items():
            stamp = _stamp(path)
            if stamp == self._seen[name]:
                continue
            self._seen[name] = stamp
            try:
                self._draw(name, path)
            except Exception as error:  # pictures are worth no failed training
                logger.warning("the samples of '%s' were not drawn: %s", name, explain(error))

    def _draw(self, name: str, path: Path) -> None:
        iteration = min(self.trainer.iter + 1, self.trainer.max_iter)
        drawn = draw_samples(dataset_record(name), path, number=self._number)
        if drawn is None:
            return
        safe = re.sub(r"[^\w.-]+", "_", name)
        folder = self._folder / FOLDER
        folder.mkdir(exist_ok=True)
        save_picture(drawn, folder / f"{iteration:07d}_{safe}.jpg")
        pixels = torch.from_numpy(np.array(drawn)).permute(2, 0, 1)
        self.trainer.storage.put_image(f"samples/{safe}", pixels)


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def draw_samples(record: Record, results: Path, *, number: int) -> Image.Image | None:
    """Pictures of a dataset, spread evenly over those with objects: ground truth, detections.

    Args:
        record: of the dataset.
        results: a COCO results json of it.
        number: of pictures.

    Returns:
        A sheet with a row for each picture; None where there is none to draw.

    Raises:
        ValueError, ImageError, OSError: the json or a picture cannot be read.
    """
    by_image = record.rows_by_image()
    rows = [row for row, own in enumerate(by_image) if len(own)] or list(range(len(by_image)))
    places = np.linspace(0, len(rows) - 1, min(number, len(rows))).round().astype(int)
    chosen = [rows[place] for place in dict.fromkeys(places.tolist())]
    if not chosen:
        return None
    found: dict = {record.images.ids[row]: [] for row in chosen}
    for entry in read_entries(results):
        if entry["image_id"] in found:
            found[entry["image_id"]].append(entry)
    sheet = []
    for row in chosen:
        picture = read_picture(record.images.files[row])
        instances = _instances(record, found[record.images.ids[row]], picture.shape[:2])
        sheet.append(
            [
                _ground_truth(record, by_image[row], picture),
                draw_detections(
                    picture,
                    instances,
                    record.class_names,
                    confidence_threshold=_CONFIDENCE,
                    side=_SIDE,
                ),
            ]
        )
    return grid(sheet, ["ground truth", f"detections of {_CONFIDENCE} or more"])


def _ground_truth(record: Record, rows: np.ndarray, picture: np.ndarray) -> Image.Image:
    table, names = record.annotations, record.class_names
    styles = [BoxStyle(names[k], class_color(k)) for k in table.classes[rows].tolist()]
    return draw_boxes(picture, _corners(table.boxes[rows]), styles, side=_SIDE)


def _instances(record: Record, entries: list[dict], size: tuple[int, int]) -> Instances:
    numbers = record.class_numbers
    boxes = np.array([entry["bbox"] for entry in entries], dtype=float).reshape(-1, 4)
    return Instances(
        size,
        pred_boxes=Boxes(torch.from_numpy(_corners(boxes)).float()),
        scores=torch.tensor([float(entry["score"]) for entry in entries]),
        pred_classes=torch.tensor(
            [numbers[entry["category_id"]] for entry in entries], dtype=torch.int64
        ),
    )


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)
