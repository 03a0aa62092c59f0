"""COCO's AP with GIoU in the matching: by hand, and against plain loops."""

import itertools
import json
import logging
import math
import random
import sys
import textwrap
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
from resobj_d2.evaluation.ground_truth import prepare_ground_truth

pytestmark = pytest.mark.usefixtures("clean_catalogs")

THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()
# All, small, medium and large boxes, in square pixels.
AREAS = [(0, 1e10), (0, 32**2), (32**2, 96**2), (96**2, 1e10)]


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


def match(detections, boxes, threshold, area):
    """(score, hit) of each detection that counts, in one image and class, best first.

    Crowd regions and boxes outside of ``area`` (smallest, largest) are neither found nor missed:
    what lies on them does not count, and a box serves once, a region as often as needed.
    """
    taken = set()
    outcomes = []
    smallest, largest = area

    def best_of(item, ignored):
        values = {
            number: overlap(item["bbox"], b["bbox"], b["iscrowd"])
            for number, b in enumerate(boxes)
            if is_ignored(b, area) == ignored and (b["iscrowd"] or number not in taken)
        }
        best = max(values, key=values.get, default=None)
        return best if best is not None and values[best] >= threshold else None

    for item in sorted(detections, key=lambda d: -d["score"])[:100]:
        found, ignored = best_of(item, False), False
        if found is None:
            found, ignored = best_of(item, True), True
        taken.add(found)
        if found is not None and not ignored:
            outcomes.append((item["score"], True))
        elif found is None and smallest <= item["bbox"][2] * item["bbox"][3] <= largest:
            outcomes.append((item["score"], False))
    return outcomes


def is_ignored(truth, area):
    return bool(truth["iscrowd"]) or not area[0] <= truth["area"] <= area[1]


def precision_and_recall(outcomes, positives):
    """AP over 101 recalls and the last recall, of (score, hit) in the order of images."""
    precisions, recalls, hits = [], [0.0], 0
    for rank, (_, hit) in enumerate(sorted(outcomes, key=lambda o: -o[0]), start=1):
        hits += hit
        precisions.append(hits / rank)
        recalls.append(hits / positives)
    # COCO's recalls, rounded as they are: .28000000000000003 is not reached by 7 of 25.
    points = np.linspace(0.0, 1.0, 101)
    best = [
        max((p for p, r in zip(precisions, recalls[1:], strict=True) if r >= point), default=0.0)
        for point in points
    ]
    return sum(best) / 101, recalls[-1]


def results_by_loops(content, detections):
    """AP and recall, (2, thresholds, classes, areas); -1 for classes without ground truth."""
    truth, found = defaultdict(list), defaultdict(list)
    for item in content["annotations"]:
        truth[item["image_id"], item["category_id"]].append(item)
    for item in detections:
        found[item["image_id"], item["category_id"]].append(item)
    images = sorted(image["id"] for image in content["images"])
    classes = sorted(c["id"] for c in content["categories"])
    result = np.full((2, len(THRESHOLDS), len(classes), len(AREAS)), -1.0)
    for t, c, a in np.ndindex(result.shape[1:]):
        boxes = {i: truth[i, classes[c]] for i in images}
        positives = sum(not is_ignored(b, AREAS[a]) for i in images for b in boxes[i])
        if positives:
            outcomes = [
                outcome
                for i in images
                for outcome in match(found[i, classes[c]], boxes[i], THRESHOLDS[t], AREAS[a])
            ]
            result[:, t, c, a] = precision_and_recall(outcomes, positives)
    return result


def check_against_loops(backend, content, detections):
    """Every threshold, class and area; returns AP by GIoU and by IoU."""
    prepared, _ = prepare_ground_truth(content)
    precision, recall = results_by_loops(prepared, detections)
    index = backend.index(prepared)
    by_giou = evaluate_detections(backend, index, detections, "bbox", giou=True).evaluation
    # Of COCO's limits on the number of detections, 1, 10 and 100, the last.
    found = by_giou.eval["precision"][..., -1].mean(axis=1)
    np.testing.assert_allclose(found, precision, rtol=0, atol=1e-9)
    np.testing.assert_allclose(by_giou.eval["recall"][..., -1], recall, rtol=0, atol=1e-9)
    everything, valid = precision[..., 0], precision[..., 0] > -1
    assert by_giou.stats[0] == pytest.approx(everything[valid].mean(), abs=1e-9)
    plain = evaluate_detections(backend, index, detections, "bbox").evaluation
    return by_giou.stats[0], plain.stats[0]


def box(image, category, bbox, **more):
    return {"image_id": image, "category_id": category, "bbox": bbox, **more}


def random_set(seed):
    """Eight images of which one is empty, three classes of small to large boxes, and crowds.

    Detections are near the boxes and far from them. As in COCO, the area of a box is that of its
    mask.
    """
    draw = random.Random(seed)
    content = {
        "images": [{"id": i, "width": 500, "height": 500} for i in range(8)],
        "categories": [{"id": c, "name": str(c)} for c in (2, 5, 6)],
        "annotations": [],
    }
    detections = []
    for image, category in itertools.product(range(7), (2, 5, 6)):
        for _ in range(draw.randrange(4)):
            side = draw.choice((10, 40, 120))
            bbox = [draw.uniform(0, 300) for _ in "xy"]
            bbox += [side * draw.uniform(0.7, 1.6) for _ in "wh"]
            more = {"iscrowd": int(draw.random() < 0.2)}
            more["area"] = bbox[2] * bbox[3] * draw.uniform(0.5, 1)
            content["annotations"].append(box(image, category, bbox, **more))
            for _ in range(draw.randrange(4)):
                moved = [v + side * draw.gauss(0, 0.1) for v in bbox[:2]]
                moved += [v * draw.uniform(0.8, 1.25) for v in bbox[2:]]
                detections.append(box(image, category, moved, score=draw.random()))
        far = [*(draw.uniform(300, 400) for _ in "xy"), *(draw.uniform(10, 100) for _ in "wh")]
        detections.append(box(image, category, far, score=draw.random()))
    return content, detections


@pytest.mark.parametrize("seed", range(3))
def test_equals_plain_loops_on_random_boxes(backend, seed):
    content, detections = random_set(seed)
    assert any(item["iscrowd"] for item in content["annotations"])
    for area in AREAS:
        assert any(not is_ignored(item, area) for item in content["annotations"])
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
def test_config_key(tmp_path, wanted, caplog, monkeypatch):
    # Where a test before this one set Detectron2's logger up, it no longer reaches pytest's.
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
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


WORKER = """
    import json
    import sys

    import torch
    import torch.distributed as dist
    from detectron2.data import MetadataCatalog
    from detectron2.structures import Boxes, Instances

    from resobj_d2.launch import close_process_groups
    from resobj_d2.evaluation import CocoEvaluator

    rank, folder = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    metadata = MetadataCatalog.get("example")
    metadata.json_file, metadata.thing_classes = f"{folder}/truth.json", ["cat"]
    metadata.thing_dataset_id_to_contiguous_id = {1: 0}
    evaluator = CocoEvaluator("example", giou=True)
    evaluator.reset()
    instances = Instances((300, 300))
    instances.pred_boxes = Boxes(torch.tensor([[0.0, 0, 10, 10], [2, 1, 12, 11]])[rank : rank + 1])
    instances.scores = torch.tensor([0.9 - 0.1 * rank])
    instances.pred_classes = torch.zeros(1, dtype=torch.int64)
    evaluator.process([{"image_id": 1 + rank}], [{"instances": instances}])
    with open(f"{folder}/results{rank}.json", "w") as file:
        json.dump(evaluator.evaluate(), file)
    close_process_groups()
"""


@pytest.mark.slow
def test_two_processes_share_one_result(tmp_path, warm_python):
    """A box of its image found exactly by one process, the other's as in ``test_by_hand``.

    At .5 both are found; from .55 GIoU takes the first alone, which is 51 of 101 recalls.
    """
    content = {
        "images": [{"id": i, "width": 300, "height": 300} for i in (1, 2)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": i, **box(i, 1, [0, 0, 10, 10])} for i in (1, 2)],
    }
    (tmp_path / "truth.json").write_text(json.dumps(content))
    script = textwrap.dedent(WORKER)
    processes = [
        warm_python.start([sys.executable, "-c", script, str(rank), str(tmp_path)])
        for rank in (0, 1)
    ]
    assert [p.wait(timeout=120) for p in processes] == [0, 0]
    first, second = (json.loads((tmp_path / f"results{r}.json").read_text()) for r in (0, 1))
    assert not second  # the main process alone has results
    assert first["bbox"]["AP"] == pytest.approx(10 * (2 + 8 * 51 / 101))
    assert first["bbox_giou"]["AP"] == pytest.approx(10 * (1 + 9 * 51 / 101))
