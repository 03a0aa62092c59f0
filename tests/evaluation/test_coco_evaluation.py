"""COCO's metrics from both implementations: by hand, and against pycocotools' published numbers."""

import copy
import json
import math
import sys

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from PIL import Image

from resobj_d2.data.register import register_datasets
from resobj_d2.evaluation import CocoEvaluator, build_coco_evaluator, build_evaluator
from resobj_d2.evaluation.backend import evaluate_detections, load_backend
from resobj_d2.evaluation.ground_truth import prepare_ground_truth
from tests.evaluation.predictions import evaluate_listed

pytestmark = pytest.mark.usefixtures("clean_catalogs")


def _annotation(identity, image, category, box):
    return {"id": identity, "image_id": image, "category_id": category, "bbox": box, "iscrowd": 0}


def _example():
    """Two images; two cats on the first, a cat and a dog on the second, no bird anywhere."""
    return {
        "categories": [
            {"id": 3, "name": "cat"},
            {"id": 7, "name": "dog"},
            {"id": 9, "name": "bird"},
        ],
        "images": [{"id": i, "file_name": f"{i}.png", "width": 100, "height": 100} for i in (1, 2)],
        "annotations": [
            _annotation(0, 1, 3, [0, 0, 10, 10]),  # id 0: COCO's code alone would never match it
            _annotation(1, 1, 3, [20, 20, 10, 10]),
            _annotation(2, 2, 3, [0, 0, 10, 10]),
            _annotation(3, 2, 7, [50, 50, 10, 10]),
        ],
    }


def _register(tmp_path, content, name="example"):
    for image in content["images"]:
        Image.new("RGB", (image["width"], image["height"])).save(tmp_path / image["file_name"])
    json_file = tmp_path / f"{name}.json"
    json_file.write_text(json.dumps(content))
    register_datasets([{"name": name, "json": str(json_file), "images": str(tmp_path)}])


CAT = 0
EXAMPLE_DETECTIONS = {
    1: [((0, 0, 10, 10), CAT, 0.9)],  # exact
    2: [
        ((70, 70, 80, 80), CAT, 0.8),  # nothing there
        ((0, 0, 10, 7.2), CAT, 0.7),  # IoU .72: right up to threshold .7, wrong from .75
    ],
}


def test_example_worked_out_by_hand(tmp_path, backend_name):
    """Cats: 3 boxes, detections by score TP, FP, TP (IoU <= .7) or TP, FP, FP (above).

    Up to .7: precision 1 up to recall 1/3 (34 of COCO's 101 recall points), 2/3 up to recall 2/3
    (33 points): AP = (34 + 33 * 2/3) / 101 = 56/101. Above: 34/101. Dogs: a box, no detection: 0.
    Birds have no box and do not count.
    """
    _register(tmp_path, _example())
    evaluator = CocoEvaluator("example", backend_name=backend_name)
    results = evaluate_listed(evaluator, EXAMPLE_DETECTIONS)["bbox"]
    low, high = 100 * 56 / 101, 100 * 34 / 101
    expected = {
        "AP": (low + high) / 2 / 2,
        "AP50": low / 2,
        "AP75": high / 2,
        "AP80": high / 2,
        "AP90": high / 2,
        "APs": (low + high) / 2 / 2,  # all boxes are smaller than 32 pixels squared
        "AP-cat": (low + high) / 2,
        "AP-dog": 0.0,
        "AP50-cat": low,
        "AP50-dog": 0.0,
        # The best detection of each image and class: of the second image it is the wrong one.
        "AR@1": 100 * (1 / 3 + 0) / 2,
        **dict.fromkeys(("AR@10", "AR@100", "ARs@100"), 100 * (2 / 3 + 1 / 3) / 2 / 2),
        **{f"AP{t}": low / 2 for t in (55, 60, 65, 70)},
        **{f"AP{t}": high / 2 for t in (85, 95)},
    }
    assert {key: results[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    empty = {"APm", "APl", "ARm@100", "ARl@100", "AP-bird", "AP50-bird"}
    assert all(math.isnan(results[key]) for key in empty)
    assert set(results) == {*expected, *empty}


def test_ap_at_single_thresholds(tmp_path, backend_name):
    """Three boxes found with IoU .93, .82 and .77: AP75, AP80 and AP90 count 3, 2 and 1 of them.

    Better boxes score higher, so precision is 1 up to the last that counts: n of 3 boxes are
    1 + floor(100 n / 3) of COCO's 101 recall points.
    """
    content = _example()
    corners = [(0, 0), (30, 0), (0, 30)]
    content["annotations"] = [
        _annotation(i, 1, 3, [x, y, 10, 10]) for i, (x, y) in enumerate(corners)
    ]
    _register(tmp_path, content)
    found = [
        ((x, y, x + 10, y + 10 * iou), CAT, score)
        for (x, y), iou, score in zip(corners, (0.93, 0.82, 0.77), (0.9, 0.8, 0.7), strict=True)
    ]
    evaluator = CocoEvaluator("example", backend_name=backend_name)
    results = evaluate_listed(evaluator, {1: found, 2: []})["bbox"]
    expected = {"AP75": 100.0, "AP80": 100 * 67 / 101, "AP90": 100 * 34 / 101}
    # 3 boxes up to .75, 2 at .8, 1 at .85 and .9, none at .95.
    expected["AP"] = (6 * expected["AP75"] + expected["AP80"] + 2 * expected["AP90"]) / 10
    expected["AR@100"] = 100 * (6 * 3 + 2 + 2 * 1) / 3 / 10
    assert {key: results[key] for key in expected} == pytest.approx(expected)


def test_evaluating_twice_gives_the_same(tmp_path, backend_name):
    _register(tmp_path, _example())
    evaluator = CocoEvaluator("example", backend_name=backend_name, distributed=False)
    first = evaluate_listed(evaluator, EXAMPLE_DETECTIONS)["bbox"]
    again = evaluator.evaluate()["bbox"]
    assert again["AP"] == first["AP"] > 20
    assert evaluate_listed(evaluator, EXAMPLE_DETECTIONS)["bbox"]["AP"] == first["AP"]


def test_results_file_has_the_ids_of_the_json(tmp_path, backend_name):
    _register(tmp_path, _example())
    output = tmp_path / "inference"
    evaluator = CocoEvaluator("example", output_dir=str(output), backend_name=backend_name)
    evaluate_listed(evaluator, EXAMPLE_DETECTIONS)
    stored = json.loads((output / "coco_instances_results.json").read_text())
    assert [(item["image_id"], item["category_id"]) for item in stored] == [(1, 3), (2, 3), (2, 3)]
    assert stored[2]["bbox"] == pytest.approx([0, 0, 10, 7.2])


def test_no_detection_is_ap_zero(tmp_path, backend_name):
    _register(tmp_path, _example())
    evaluator = CocoEvaluator("example", backend_name=backend_name)
    results = evaluate_listed(evaluator, {1: [], 2: []})["bbox"]
    for key in ("AP", "AP50", "AP75", "AP80", "AP90", "AR@100", "AP-cat", "AP-dog"):
        assert results[key] == 0.0
    assert math.isnan(results["AP-bird"])


def test_images_without_ground_truth_give_nan_and_not_an_error(tmp_path, backend_name):
    content = _example()
    content["annotations"] = []
    _register(tmp_path, content)
    evaluator = CocoEvaluator("example", backend_name=backend_name)
    for detections in (EXAMPLE_DETECTIONS, {1: [], 2: []}):
        results = evaluate_listed(evaluator, detections)["bbox"]
        assert all(math.isnan(value) for value in results.values())


def test_false_positives_on_an_empty_image_count(tmp_path, backend_name):
    """One image with a box found at score .5, one empty image with a detection at .9."""
    content = _example()
    content["annotations"] = content["annotations"][2:3]
    _register(tmp_path, content)
    evaluator = CocoEvaluator("example", backend_name=backend_name)
    box = (0, 0, 10, 10)
    results = evaluate_listed(evaluator, {1: [(box, CAT, 0.9)], 2: [(box, CAT, 0.5)]})["bbox"]
    assert results["AP50"] == pytest.approx(50.0)  # precision 1/2 at every recall


def test_nothing_processed_gives_no_result(tmp_path, backend_name):
    _register(tmp_path, _example())
    assert evaluate_listed(CocoEvaluator("example", backend_name=backend_name), {}) == {}


def test_test_set_without_annotations_is_saved_and_not_evaluated(tmp_path, backend_name):
    content = _example()
    del content["annotations"]
    _register(tmp_path, content)
    output = tmp_path / "out"
    evaluator = CocoEvaluator("example", output_dir=str(output), backend_name=backend_name)
    assert evaluate_listed(evaluator, EXAMPLE_DETECTIONS) == {}
    assert len(json.loads((output / "coco_instances_results.json").read_text())) == 3


def test_class_outside_the_dataset_is_explained(tmp_path):
    _register(tmp_path, _example())
    evaluator = CocoEvaluator("example")
    with pytest.raises(ValueError, match="class 5, but dataset 'example' has 3 classes"):
        evaluate_listed(evaluator, {1: [((0, 0, 5, 5), 5, 0.9)]})


def test_image_ids_may_be_text(tmp_path, backend_name):
    content = _example()
    for item in content["images"]:
        item["id"] = f"night-{item['id']}"
    for item in content["annotations"]:
        item["image_id"] = f"night-{item['image_id']}"
    _register(tmp_path, content)
    evaluator = CocoEvaluator("example", backend_name=backend_name)
    detections = {f"night-{i}": found for i, found in EXAMPLE_DETECTIONS.items()}
    assert evaluate_listed(evaluator, detections)["bbox"]["AP50"] == pytest.approx(100 * 28 / 101)


def test_prepare_ground_truth():
    content = _example()
    content["annotations"][1]["bbox"] = [1, 1, 0, 4]
    content["annotations"][2].update(area=55.0, iscrowd=1)
    del content["annotations"][3]["iscrowd"]
    untouched = copy.deepcopy(content)
    prepared, image_ids = prepare_ground_truth(content)
    assert content == untouched
    assert image_ids == {1: 1, 2: 2}
    assert [a["id"] for a in prepared["annotations"]] == [1, 2, 3]
    assert [a["area"] for a in prepared["annotations"]] == [100, 55.0, 100]
    assert [a["iscrowd"] for a in prepared["annotations"]] == [0, 1, 0]


@pytest.mark.parametrize(
    ("folder", "truth", "detections", "task"),
    [
        (
            "val2014_100",
            "instances_val2014_100.json",
            "instances_val2014_fakebbox100_results.json",
            "bbox",
        ),
        (
            "val2014_100",
            "instances_val2014_100.json",
            "instances_val2014_fakesegm100_results.json",
            "segm",
        ),
        ("mmpose_person4", "test_coco.json", "test_coco_det_AP_H_56.json", "bbox"),
    ],
)
def test_equals_the_published_numbers(
    coco_eval_data, backend_name, folder, truth, detections, task
):
    """Real COCO annotations and detections, with the twelve numbers pycocotools gives for them."""
    folder = coco_eval_data / folder
    backend = load_backend(backend_name)
    prepared, _ = prepare_ground_truth(json.loads((folder / truth).read_text()), task)
    found = json.loads((folder / detections).read_text())
    outcome = evaluate_detections(backend, backend.index(prepared), found, task)
    expected = json.loads((folder / "expected_stats.json").read_text())[task]
    np.testing.assert_allclose(outcome.evaluation.stats[:12], expected, rtol=0, atol=1e-6)
    assert "Average Precision" in outcome.summary


def test_equals_detectron2s_own_evaluator(coco_eval_data, backend_name):
    """Real annotations and detections through both evaluators.

    The boxes pass through float32, which moves some IoUs of these detections across a threshold:
    the published AP is only close.
    """
    json_file = coco_eval_data / "val2014_100" / "instances_val2014_100.json"
    metadata = MetadataCatalog.get("val2014_100")
    metadata.json_file = str(json_file)
    categories = sorted(c["id"] for c in json.loads(json_file.read_text())["categories"])
    numbers = {identity: number for number, identity in enumerate(categories)}
    metadata.thing_dataset_id_to_contiguous_id = numbers
    metadata.thing_classes = [str(identity) for identity in categories]
    found = json_file.with_name("instances_val2014_fakebbox100_results.json")
    detections = {}
    for item in json.loads(found.read_text()):
        x, y, w, h = item["bbox"]
        entry = ((x, y, x + w, y + h), numbers[item["category_id"]], item["score"])
        detections.setdefault(item["image_id"], []).append(entry)
    ours = evaluate_listed(CocoEvaluator("val2014_100", backend_name=backend_name), detections)[
        "bbox"
    ]
    theirs = evaluate_listed(COCOEvaluator("val2014_100", use_fast_impl=False), detections)["bbox"]
    assert len(theirs) == 86  # six metrics and eighty classes
    assert {key: ours[key] for key in theirs} == pytest.approx(theirs, abs=1e-6, nan_ok=True)
    assert {"AP60", "AP80", "AP90", "AR@100", "ARl@100", "AP50-1"} <= set(ours) - set(theirs)
    assert ours["AP"] == pytest.approx(50.458, abs=0.1)


def test_restriction_to_some_images(tmp_path, backend_name):
    """On the first image alone: one cat of two found, no dog: 51 of 101 recall points."""
    _register(tmp_path, _example())
    evaluator = CocoEvaluator("example", backend_name=backend_name)
    evaluate_listed(evaluator, EXAMPLE_DETECTIONS)
    assert evaluator.evaluate(img_ids=[1])["bbox"]["AP"] == pytest.approx(100 * 51 / 101)


def test_backend_choice(monkeypatch):
    with pytest.raises(ValueError, match="TEST.COCO_BACKEND must be one of auto, .*got 'fast'"):
        load_backend("fast")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert load_backend("auto").name == "pycocotools"
    with pytest.raises(ModuleNotFoundError, match="pip install faster-coco-eval"):
        load_backend("faster-coco-eval")


def test_auto_prefers_the_faster_one_and_leaves_pycocotools_alone(tmp_path):
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is optional")
    _register(tmp_path, _example())
    cfg = get_cfg()
    cfg.TEST.COCO_BACKEND, cfg.TEST.GIOU_EVAL = "auto", False
    results = evaluate_listed(build_coco_evaluator(cfg, "example", None), EXAMPLE_DETECTIONS)
    assert results["bbox"]["AP50"] == pytest.approx(100 * 28 / 101)
    assert load_backend("auto").name == "faster-coco-eval"
    assert sys.modules["pycocotools.cocoeval"].COCOeval.__module__ == "pycocotools.cocoeval"


def test_unknown_evaluator_type_is_explained():
    MetadataCatalog.get("strange").evaluator_type = "lvis"
    with pytest.raises(ValueError, match="'strange' has evaluator_type 'lvis'; known are 'coco'"):
        build_evaluator(get_cfg(), "strange", None)
