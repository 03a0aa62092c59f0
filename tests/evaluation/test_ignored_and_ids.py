"""Difficult objects are ignored by IoU; category ids may be of any size."""

import json

import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from resobj_d2.data.register import register_datasets
from resobj_d2.evaluation import CocoEvaluator

pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture(params=["pycocotools", "faster-coco-eval"])
def evaluate(request, tmp_path):
    """COCO's metrics of [(XYXY box, score)] on a picture with objects; ``ids`` of the classes."""
    if request.param == "faster-coco-eval":
        pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is optional")

    def run(objects, found, ids=(1, 2), **options):
        Image.new("RGB", (100, 100)).save(tmp_path / "1.png")
        annotations = [
            {"id": i, "image_id": 1, "category_id": ids[0], **item}
            for i, item in enumerate(objects)
        ]
        content = {
            "images": [{"id": 1, "file_name": "1.png", "width": 100, "height": 100}],
            "categories": [{"id": i, "name": name} for i, name in zip(ids, "ab", strict=True)],
            "annotations": annotations,
        }
        (tmp_path / "truth.json").write_text(json.dumps(content))
        entry = {"name": "set", "json": str(tmp_path / "truth.json"), "images": str(tmp_path)}
        register_datasets([entry])
        evaluator = CocoEvaluator(
            "set", backend_name=request.param, output_dir=str(tmp_path / "out"), **options
        )
        instances = Instances((100, 100))
        instances.pred_boxes = Boxes(torch.tensor([box for box, _ in found]).float())
        instances.scores = torch.tensor([score for _, score in found])
        instances.pred_classes = torch.zeros(len(found)).long()
        evaluator.process([{"image_id": 1}], [{"instances": instances}])
        return evaluator.evaluate()

    return run


OBJECT = {"bbox": [10, 10, 40, 40]}
DIFFICULT = {"bbox": [0, 0, 100, 100], "difficult": 1}
RIGHT = ([10, 10, 50, 50], 0.9)


@pytest.mark.parametrize("giou", [False, True])
def test_a_false_positive_inside_a_difficult_object_counts(evaluate, giou):
    """It comes first, so the precision is 1/2 up to recall 1."""
    results = evaluate([OBJECT, DIFFICULT], [RIGHT, ([80, 80, 84, 84], 0.95)], giou=giou)
    assert results["bbox"]["AP"] == pytest.approx(50)
    if giou:
        assert results["bbox_giou"]["AP"] == pytest.approx(50)


def test_a_found_difficult_object_is_neither_right_nor_wrong(evaluate):
    """At an IoU of .81 it is ignored up to .8, and a false positive in front of .85, .9 and .95."""
    results = evaluate([OBJECT, DIFFICULT], [RIGHT, ([0, 0, 90, 90], 0.95)])["bbox"]
    assert results["AP80"] == pytest.approx(100) and results["AP85"] == pytest.approx(50)
    assert results["AR@100"] == pytest.approx(100)


def test_a_crowd_region_forgives_what_lies_in_it(evaluate):
    crowd = {"bbox": [0, 0, 100, 100], "iscrowd": 1}
    found = [RIGHT, ([80, 80, 84, 84], 0.95)]
    assert evaluate([OBJECT, crowd], found)["bbox"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("ids", [(2**63, 2**63 + 1), (10**30, 10**31), (-5, 7), (0, 1)])
def test_category_ids_of_any_size(evaluate, tmp_path, ids):
    results = evaluate([OBJECT], [RIGHT, ([60, 60, 70, 70], 0.95)], ids=ids)["bbox"]
    assert results["AP-a"] == results["AP"] == pytest.approx(50)
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert {item["category_id"] for item in written} == {ids[0]}
