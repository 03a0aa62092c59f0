"""The names of results that are known before an evaluation are those that it has."""

import copy
import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances

from resobj_d2.config import add_resobj_config
from resobj_d2.data.register import register_datasets
from resobj_d2.evaluation import build_evaluator, result_names

pytestmark = pytest.mark.usefixtures("clean_catalogs")

CATEGORIES = ["cat", "dog", "cat/dog"]


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_resobj_config(cfg)
    return cfg


def register(folder, kind="coco", annotated=True):
    square = [10, 10, 60, 10, 60, 60, 10, 60]
    item = {
        "id": 1, "image_id": 1, "category_id": 2, "bbox": [10, 10, 50, 50], "area": 2500,
        "iscrowd": 0, "segmentation": [square], "keypoints": [20, 20, 2] * 17, "num_keypoints": 17,
    }  # fmt: skip
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 100, "height": 100}],
        "categories": [{"id": i, "name": name} for i, name in enumerate(CATEGORIES, 1)],
        "annotations": [item],
    }
    if not annotated:
        del content["annotations"]
    (folder / "a.json").write_text(json.dumps(content))
    (folder / "1.png").touch()
    register_datasets([{"name": "a", "json": str(folder / "a.json"), "images": str(folder)}])
    from detectron2.data import MetadataCatalog

    del MetadataCatalog.get("a").evaluator_type
    MetadataCatalog.get("a").evaluator_type = kind


def evaluated(evaluator):
    found = Instances((100, 100))
    found.pred_boxes = Boxes(torch.tensor([[10.0, 10, 60, 60]]))
    found.scores, found.pred_classes = torch.tensor([0.9]), torch.tensor([1])
    found.pred_masks = torch.zeros(1, 100, 100, dtype=torch.bool)
    found.pred_masks[:, 10:60, 10:60] = True
    found.pred_keypoints = torch.tensor([[[20.5, 20.5, 1.0]] * 17])
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    results = copy.deepcopy(evaluator.evaluate())
    return [f"{table}/{name}" for table, values in results.items() for name in values]


@pytest.mark.parametrize("kind", ["coco", "pascal_voc"])
@pytest.mark.parametrize("backend", ["pycocotools", "faster-coco-eval"])
@pytest.mark.parametrize("limit", [5, 100, 300])
def test_they_are_those_of_the_evaluation(cfg, tmp_path, kind, backend, limit):
    if backend == "faster-coco-eval":
        pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is optional")
    register(tmp_path, kind)
    cfg.TEST.COCO_BACKEND, cfg.TEST.DETECTIONS_PER_IMAGE = backend, limit
    cfg.TEST.GIOU_EVAL = cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = True
    names = result_names(cfg, "a")
    rest = [name for name in names if not name.startswith("box_proposals/")]
    assert sorted(rest) == sorted(evaluated(build_evaluator(cfg, "a", None)))
    assert "bbox/AP50-cat/dog" in rest and "box_proposals/ARs@1000" in names


def test_data_without_annotations_have_none(cfg, tmp_path):
    register(tmp_path, annotated=False)
    assert result_names(cfg, "a") == []
