"""COCO's AP with GIoU in the matching: by hand, and against plain loops."""

import json
import logging
import math
import random
from collections import defaultdict

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

from resobj_d2.config import add_resobj_config
from resobj_d2.evaluation import CocoEvaluator, build_coco_evaluator
from resobj_d2.evaluation.backend import evaluate_detections, load_backend
from resobj_d2.evaluation.coco import prepare_ground_truth

pytestmark = pytest.mark.usefixtures("clean_catalogs")

THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()


@pytest.fixture(params=["pycocotools", "faster-coco-eval"])
def backend(request):
    if request.param == "faster-coco-eval":
        pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is optional")
    return load_backend(request.param)


def overlap(detection, truth, crowd):
    """GIoU of two (x, y, w, h), or the share of the detection that a crowd region covers."""
    (ax, ay, aw, ah), (bx, by, bw, bh) = detection, truth
    a, b = (ax, ay, ax + aw, ay + ah), (bx, by, bx + bw, by + bh)

    def size(box):
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    shared = size([*map(max, a[:2], b[:2]), *map(min, a[2:], b[2:])])
    hull = size([*map(min, a[:2], b[:2]), *map(max, a[2:], b[2:])])
    if crowd:
        return shared / size(a) if size(a) > 0 else 0.0
    union = size(a) + size(b) - shared
    return shared / union - (hull - union) / hull


def match(detections, boxes, threshold):
    """(score, hit) of each detection that counts, in one image and class, best first."""
    taken = set()
    outcomes = []
    for item in sorted(detections, key=lambda d: -d["score"])[:100]:
        best, best_value = None, min(threshold, 1 - 1e-10)
        for number, box in enumerate(boxes):
            value = overlap(item["bbox"], box["bbox"], False)
            if not box["iscrowd"] and number not in taken and value >= best_value:
                best, best_value = number, value
        if best is not None:
            taken.add(best)
            outcomes.append((item["score"], True))
        elif not any(
            overlap(item["bbox"], b["bbox"], True) >= threshold for b in boxes if b["iscrowd"]
        ):
            outcomes.append((item["score"], False))
    return outcomes


def average_precision(outcomes, positives):
    """Over 101 recalls, of (score, hit) in the order of images."""
    precisions, recalls, hits = [], [], 0
    for rank, (_, hit) in enumerate(sorted(outcomes, key=lambda o: -o[0]), start=1):
        hits += hit
        precisions.append(hits / rank)
        recalls.append(hits / positives)
    # COCO's recalls, rounded as they are: .28000000000000003 is not reached by 7 of 25.
    points = np.linspace(0.0, 1.0, 101)
    best = [
        max((p for p, r in zip(precisions, recalls, strict=True) if r >= point), default=0.0)
        for point in points
    ]
    return sum(best) / 101


def ap_by_loops(content, detections):
    """AP of each threshold, averaged over the classes with ground truth."""
    truth, found = defaultdict(list), defaultdict(list)
    for item in content["annotations"]:
        truth[item["image_id"], item["category_id"]].append(item)
    for item in detections:
        found[item["image_id"], item["category_id"]].append(item)
    images = sorted(image["id"] for image in content["images"])
    result = []
    for threshold in THRESHOLDS:
        values = []
        for category in (c["id"] for c in content["categories"]):
            positives = sum(not b["iscrowd"] for i in images for b in truth[i, category])
            if positives:
                outcomes = [
                    outcome
                    for i in images
                    for outcome in match(found[i, category], truth[i, category], threshold)
                ]
                values.append(average_precision(outcomes, positives))
        result.append(sum(values) / len(values))
    return result


def check_against_loops(backend, content, detections):
    prepared, _ = prepare_ground_truth(content)
    expected = ap_by_loops(prepared, detections)
    index = backend.index(prepared)
    stats = evaluate_detections(backend, index, detections, "bbox", giou=True).evaluation.stats
    assert stats[:3] == pytest.approx([sum(expected) / 10, expected[0], expected[5]], abs=1e-9)
    plain = evaluate_detections(backend, index, detections, "bbox").evaluation.stats
    return stats[0], plain[0]


def box(image, category, bbox, **more):
    return {"image_id": image, "category_id": category, "bbox": bbox, **more}


def random_set(seed):
    """Six images, three classes, crowds, and detections near the boxes and far from them."""
    draw = random.Random(seed)
    content = {
        "images": [{"id": i, "width": 200, "height": 200} for i in range(6)],
        "categories": [{"id": c, "name": str(c)} for c in (2, 5, 6)],
        "annotations": [],
    }
    detections = []
    for image in range(6):
        for category in (2, 5, 6):
            for _ in range(draw.randrange(4)):
                bbox = [draw.uniform(0, 140), draw.uniform(0, 140)]
                bbox += [draw.uniform(5, 60), draw.uniform(5, 60)]
                crowd = int(draw.random() < 0.25)
                content["annotations"].append(box(image, category, bbox, iscrowd=crowd))
                for _ in range(draw.randrange(4)):
                    moved = [v + draw.gauss(0, 4) for v in bbox[:2]]
                    moved += [v * draw.uniform(0.8, 1.25) for v in bbox[2:]]
                    detections.append(box(image, category, moved, score=draw.random()))
            far = [draw.uniform(0, 150), draw.uniform(0, 150), 20.0, 20.0]
            detections.append(box(image, category, far, score=draw.random()))
    return content, detections


@pytest.mark.parametrize("seed", range(3))
def test_equals_plain_loops_on_random_boxes(backend, seed):
    content, detections = random_set(seed)
    assert any(item["iscrowd"] for item in content["annotations"])
    by_giou, by_iou = check_against_loops(backend, content, detections)
    assert by_giou < by_iou  # GIoU is never above IoU, and here it is often below


def test_equals_plain_loops_on_a_real_detectors_output(coco_eval_data, backend):
    folder = coco_eval_data / "mmpose_person4"
    content = json.loads((folder / "test_coco.json").read_text())
    found = json.loads((folder / "test_coco_det_AP_H_56.json").read_text())
    by_giou, by_iou = check_against_loops(backend, content, found)
    assert by_iou - 0.03 < by_giou < by_iou


def test_equals_plain_loops_on_real_annotations_with_crowds(coco_eval_data, backend):
    """These detections are ground truth made larger or smaller: their GIoU is their IoU."""
    folder = coco_eval_data / "val2014_100"
    content = json.loads((folder / "instances_val2014_100.json").read_text())
    found = json.loads((folder / "instances_val2014_fakebbox100_results.json").read_text())
    assert sum(item["iscrowd"] for item in content["annotations"]) == 9
    by_giou, by_iou = check_against_loops(backend, content, found)
    assert by_giou == pytest.approx(by_iou, abs=1e-4)


def register(tmp_path, annotations):
    content = {
        "images": [{"id": 1, "file_name": "1.png", "width": 300, "height": 300}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": i, **a} for i, a in enumerate(annotations, start=1)],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    metadata = MetadataCatalog.get("example")
    metadata.json_file = str(path)
    metadata.thing_classes = ["cat"]
    metadata.thing_dataset_id_to_contiguous_id = {1: 0}


def evaluate(evaluator, boxes, scores):
    instances = Instances((300, 300))
    instances.pred_boxes = Boxes(torch.tensor(boxes).float().reshape(-1, 4))
    instances.scores = torch.tensor(scores)
    instances.pred_classes = torch.zeros(len(scores), dtype=torch.int64)
    evaluator.reset()
    evaluator.process([{"image_id": 1}], [{"instances": instances}])
    return evaluator.evaluate()


def test_by_hand(tmp_path, backend):
    """Moved by (2, 1): I = 72, U = 128, C = 132: IoU .5625, GIoU .5322."""
    register(tmp_path, [box(1, 1, [0, 0, 10, 10])])
    evaluator = CocoEvaluator("example", backend_name=backend.name, giou=True)
    results = evaluate(evaluator, [[2, 1, 12, 11]], [0.9])
    assert list(results) == ["bbox", "bbox_giou"]
    assert results["bbox"]["AP"] == pytest.approx(20)  # .5 and .55
    assert results["bbox_giou"]["AP"] == pytest.approx(10)  # .5 alone
    assert set(results["bbox_giou"]) == set(results["bbox"])
    again = evaluator.evaluate()
    for task in results:
        assert again[task] == pytest.approx(results[task], nan_ok=True)


def test_crowd_regions_take_what_lies_in_them(tmp_path, backend):
    """By GIoU the size of the region would count against it, and the first be a false positive."""
    crowd = box(1, 1, [0, 0, 250, 250], iscrowd=1)
    register(tmp_path, [box(1, 1, [260, 260, 20, 20]), crowd])
    evaluator = CocoEvaluator("example", backend_name=backend.name, giou=True)
    found = [[30, 30, 40, 40], [260, 260, 280, 280], [248, 100, 258, 110]]
    results = evaluate(evaluator, found, [0.9, 0.8, 0.95])
    # The last lies in the region by a fifth only: it is wrong, and better scored than the hit.
    assert results["bbox_giou"]["AP"] == pytest.approx(50)
    assert results["bbox"]["AP"] == pytest.approx(50)


def test_a_detection_without_area_is_wrong_and_no_error(tmp_path, backend):
    register(tmp_path, [box(1, 1, [0, 0, 10, 10]), box(1, 1, [5, 5, 9, 9], iscrowd=1)])
    evaluator = CocoEvaluator("example", backend_name=backend.name, giou=True)
    results = evaluate(evaluator, [[6, 6, 6, 6], [0, 0, 10, 10]], [0.9, 0.8])
    assert results["bbox_giou"]["AP"] == pytest.approx(50)


def test_no_detection_is_zero_and_no_ground_truth_nan(tmp_path, backend):
    register(tmp_path, [box(1, 1, [0, 0, 10, 10])])
    evaluator = CocoEvaluator("example", backend_name=backend.name, giou=True)
    assert evaluate(evaluator, [], [])["bbox_giou"]["AP"] == 0
    register(tmp_path, [])
    evaluator = CocoEvaluator("example", backend_name=backend.name, giou=True)
    found = evaluate(evaluator, [[0, 0, 10, 10]], [0.5])
    assert math.isnan(found["bbox_giou"]["AP"])


@pytest.mark.parametrize("wanted", [False, True])
def test_config_key(tmp_path, wanted, caplog):
    # Where a test before this one set Detectron2's logger up, it no longer reaches pytest's.
    logging.getLogger("detectron2").propagate = True
    caplog.set_level(logging.INFO)
    register(tmp_path, [box(1, 1, [0, 0, 10, 10])])
    cfg = get_cfg()
    add_resobj_config(cfg)
    cfg.TEST.GIOU_EVAL = wanted
    results = evaluate(build_coco_evaluator(cfg, "example", None), [[0, 0, 10, 10]], [0.5])
    assert ("bbox_giou" in results) == wanted
    assert ("[ GIoU=0.50:0.95" in caplog.text) == wanted


def test_off_by_default():
    cfg = get_cfg()
    add_resobj_config(cfg)
    assert cfg.TEST.GIOU_EVAL is False
