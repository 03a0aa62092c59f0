"""COCO's evaluation of boxes and masks, by faster-coco-eval or by pycocotools.

Both give the same numbers; faster-coco-eval is many times faster on large sets. Detectron2's own
fast version is not among them, because it needs Detectron2's compiled extension.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from .giou import match_by_giou
from .metrics import CocoFigures

BACKENDS = ("auto", "faster-coco-eval", "pycocotools")
_MEASURES = {"bbox": "IoU", "segm": "IoU", "keypoints": "OKS"}


@dataclass(frozen=True)
class CocoBackend:
    """An implementation of COCO's index (``COCO``) and evaluation (``COCOeval``)."""

    name: str
    new_index: Callable
    new_evaluation: Callable

    def index(self, dataset: dict):
        """COCO's index over the content of a COCO json; it keeps and may extend the dicts."""
        index = self.new_index()
        index.dataset = dataset
        with contextlib.redirect_stdout(io.StringIO()):
            index.createIndex()
        return index


@dataclass(frozen=True)
class CocoOutcome:
    """A finished evaluation.

    Attributes:
        evaluation: the ``COCOeval`` object; ``stats`` has COCO's numbers.
        figures: what it found.
        summary: COCO's table.
    """

    evaluation: object
    figures: CocoFigures
    summary: str


def load_backend(name: str) -> CocoBackend:
    """Choose an implementation: one of ``BACKENDS``; "auto" is the faster one where installed.

    Raises:
        ValueError: the name is unknown.
        ModuleNotFoundError: it is not installed; the message says how to install it.
    """
    if name not in BACKENDS:
        raise ValueError(f"TEST.COCO_BACKEND must be one of {', '.join(BACKENDS)}, got {name!r}")
    installed = importlib.util.find_spec("faster_coco_eval") is not None
    if name == "pycocotools" or (name == "auto" and not installed):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return CocoBackend("pycocotools", COCO, COCOeval)
    if not installed:
        raise ModuleNotFoundError(
            "TEST.COCO_BACKEND is 'faster-coco-eval', which is not installed. Install it with "
            "'pip install faster-coco-eval', or set TEST.COCO_BACKEND auto"
        )
    from faster_coco_eval import COCO, COCOeval_faster

    return CocoBackend("faster-coco-eval", COCO, partial(COCOeval_faster, print_function=print))


def evaluate_detections(
    backend: CocoBackend,
    ground_truth,
    detections: Sequence[dict],
    task: str,
    image_ids: Sequence[int] | None = None,
    *,
    giou: bool = False,
    limits: Sequence[int] | None = None,
    keypoint_sigmas: Sequence[float] = (),
) -> CocoOutcome:
    """Run COCO's evaluation.

    Args:
        backend: the implementation that made ``ground_truth``.
        ground_truth: an index from ``backend.index``.
        detections: entries of a COCO results json; none is a result too (AP 0).
        task: "bbox", "segm" or "keypoints".
        image_ids: restrict the evaluation to these images.
        giou: match boxes by GIoU; see :func:`.giou.match_by_giou`.
        limits: how many detections of an image and class count, ascending; COCO's by default: 1, 10
            and 100, for keypoints 20.
        keypoint_sigmas: COCO's for persons by default.
    """
    # Copies, since loading adds keys. It takes the area from the first of box, mask and keypoints:
    # that of a mask is its own, that of keypoints their box's, as in Detectron2.
    dropped = {"segm": "bbox", "keypoints": "segmentation"}.get(task)
    copies = [{k: v for k, v in item.items() if k != dropped} for item in detections]
    with contextlib.redirect_stdout(io.StringIO()):
        if copies:
            loaded = ground_truth.loadRes(copies)
        else:  # pycocotools cannot load an empty list
            truth = ground_truth.dataset
            empty = {"images": truth["images"], "categories": truth["categories"]}
            loaded = backend.index({**empty, "annotations": []})
        evaluation = backend.new_evaluation(ground_truth, loaded, task)
        # faster-coco-eval leaves out classes without objects where keypoints are evaluated.
        evaluation.params.catIds = sorted(ground_truth.getCatIds())
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        if limits is not None:
            evaluation.params.maxDets = list(limits)
        if keypoint_sigmas:
            evaluation.params.kpt_oks_sigmas = np.asarray(keypoint_sigmas, dtype=np.float64)
        if giou:
            match_by_giou(evaluation)
        evaluation.evaluate()
        evaluation.accumulate()
    figures = CocoFigures.of(evaluation)
    evaluation.stats = figures.stats()
    return CocoOutcome(evaluation, figures, figures.summary("GIoU" if giou else _MEASURES[task]))
