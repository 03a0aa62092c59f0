"""Predictions and small sets for the tests of the evaluation."""

import json

import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from resobj_d2.data.register import register_datasets


def instances(boxes, scores=None, classes=None, size=(300, 300), **more):
    found = Instances(size)
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    number = len(found.pred_boxes)
    found.scores = torch.tensor(scores if scores is not None else [0.9] * number)
    found.pred_classes = torch.tensor(classes if classes is not None else [0] * number).long()
    for name, value in more.items():
        found.set(name, value)
    return found


def evaluate(evaluator, found):
    evaluator.reset()
    for image, detections in found.items():
        evaluator.process([{"image_id": image}], [{"instances": detections}])
    return evaluator.evaluate()


def register(tmp_path, annotations, images=(1,), categories=("cat",), size=300, **entry):
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": size, "height": size} for i in images
        ],
        "categories": [
            c if isinstance(c, dict) else {"id": i, "name": c} for i, c in enumerate(categories, 1)
        ],
        "annotations": [
            {"id": i, "image_id": images[0], "category_id": 1, **a}
            for i, a in enumerate(annotations, 1)
        ],
    }
    for i in images:
        Image.new("RGB", (size, size)).save(tmp_path / f"{i}.png")
    (tmp_path / "truth.json").write_text(json.dumps(content))
    entry = {"name": "set", "json": str(tmp_path / "truth.json"), "images": str(tmp_path), **entry}
    register_datasets([entry])


def listed_instances(detections):
    """Instances from (x0, y0, x1, y1), class number, score."""
    instances = Instances((100, 100))
    boxes = torch.tensor([box for box, _, _ in detections], dtype=torch.float32).reshape(-1, 4)
    instances.pred_boxes = Boxes(boxes)
    instances.pred_classes = torch.tensor([label for _, label, _ in detections]).long()
    instances.scores = torch.tensor([score for _, _, score in detections])
    return instances


def evaluate_listed(evaluator, detections_of_images):
    evaluator.reset()
    for image_id, detections in detections_of_images.items():
        evaluator.process([{"image_id": image_id}], [{"instances": listed_instances(detections)}])
    return evaluator.evaluate()
