"""What ``VIS_PERIOD`` shows of a training: what a batch has, beside what the detector finds."""

from __future__ import annotations

import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage

__all__ = ["is_due", "put_training_picture"]

_MOST_BOXES = 20
_NAME = f"Top: GT bounding boxes; Bottom: {_MOST_BOXES} Highest Scoring Results"


def is_due(period: int) -> bool:
    """Whether this iteration has a picture; only the process that writes events draws.

    Args:
        period: ``VIS_PERIOD``; 0 for none.
    """
    return period > 0 and comm.is_main_process() and get_event_storage().iter % period == 0


def put_training_picture(inputs: dict, detections: Instances, input_format: str) -> None:
    """Put a picture into the event storage, under the name that Detectron2's RetinaNet has for it.

    Args:
        inputs: one image of a batch, with ``image`` (C, H, W) and ``instances``.
        detections: best first, in pixels of that image.
        input_format: order of its channels, ``INPUT.FORMAT``.
    """
    from detectron2.utils.visualizer import Visualizer  # with matplotlib, which few trainings need

    image = convert_image_to_rgb(inputs["image"].permute(1, 2, 0), input_format)
    boxes = (
        inputs["instances"].gt_boxes.tensor,
        detections.pred_boxes.tensor[:_MOST_BOXES].float(),
    )
    drawn = [
        Visualizer(image, None).overlay_instances(boxes=x.cpu().numpy()).get_image() for x in boxes
    ]
    get_event_storage().put_image(_NAME, np.vstack(drawn).transpose(2, 0, 1))
