"""The evaluation counts what the model gives, of what the record has, and refuses the rest."""

import copy
import json
import logging
import math

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.evaluation import COCOEvaluator

from resobj_d2.evaluation import CocoEvaluator, build_evaluator
from tests.evaluation.predictions import evaluate, instances, register

pytestmark = pytest.mark.usefixtures("clean_catalogs")

BACKENDS = ("pycocotools", "faster-coco-eval")


def grid(number):
    """Boxes of 8 pixels that do not touch, XYXY."""
    corners = [(10 * (i % 29), 10 * (i // 29)) for i in range(number)]
    return [[x, y, x + 8, y + 8] for x, y in corners]


def xywh(box):
    x0, y0, x1, y1 = box
    return {"bbox": [x0, y0, x1 - x0, y1 - y0]}


def test_all_that_the_model_gives_counts(tmp_path, backend_name, caplog):
    """300 objects, all found: 100 of them would be a recall of 1/3 (34 of 101 points of AP)."""
    boxes = grid(300)
    register(tmp_path, map(xywh, boxes))
    scores = np.linspace(0.9, 0.1, 300).tolist()
    evaluator = CocoEvaluator("set", backend_name=backend_name, detections_per_image=300)
    with caplog.at_level(logging.INFO):
        results = evaluate(evaluator, {1: instances(boxes, scores)})["bbox"]
    assert results["AP"] == pytest.approx(100)
    assert results["AR@300"] == pytest.approx(100)
    assert results["ARs@300"] == pytest.approx(100)
    assert results["AP@100"] == pytest.approx(100 * 34 / 101)
    assert results["AR@100"] == pytest.approx(100 / 3)
    assert results["AR@10"] == pytest.approx(100 / 30)
    assert "300 detections of an image and class count, 100 in COCO's own" in caplog.text
    assert "maxDets=300" in caplog.text and "more objects than" not in caplog.text


def test_images_with_more_objects_than_detections_are_said(tmp_path, backend_name, caplog):
    register(tmp_path, map(xywh, grid(12)))
    evaluator = CocoEvaluator("set", backend_name=backend_name, detections_per_image=5)
    results = evaluate(evaluator, {1: instances(grid(5))})["bbox"]
    assert results["AR@5"] == pytest.approx(100 * 5 / 12)
    assert "'set' has 1 image with more objects than TEST.DETECTIONS_PER_IMAGE 5" in caplog.text
    assert "the most, 12, has image 1" in caplog.text


def test_no_limit_is_as_many_as_there_are(tmp_path, backend_name):
    register(tmp_path, map(xywh, grid(150)))
    evaluator = CocoEvaluator("set", backend_name=backend_name, detections_per_image=-1)
    results = evaluate(evaluator, {1: instances(grid(150))})["bbox"]
    assert results["AR@150"] == pytest.approx(100)


def test_the_config_gives_limit_and_tasks(tmp_path):
    register(tmp_path, [{"bbox": [0, 0, 10, 10], "segmentation": square(0, 0, 10)}])
    cfg = get_cfg()
    cfg.TEST.COCO_BACKEND, cfg.TEST.GIOU_EVAL = "pycocotools", True
    cfg.TEST.DETECTIONS_PER_IMAGE, cfg.MODEL.MASK_ON = 7, True
    results = evaluate(build_evaluator(cfg, "set", None), {1: instances([])})
    assert list(results) == ["bbox", "segm", "bbox_giou"]
    assert all(task["AP"] == task["AR@7"] == 0 for task in results.values())


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({1: ([[0, 0, 9, 9]], [math.nan])}, "1 detection with a score of NaN or inf, on image 1"),
        ({1: ([[0, 0, 9, 9]], [math.inf])}, "score of NaN or inf"),
        ({1: ([[0, 0, math.nan, 9]], [0.5])}, "box with NaN or inf"),
        ({1: ([[0, 0, 9, 9], [0, 0, math.inf, 9]], [0.5, 0.4])}, "1 detection with a box with"),
        ({1: ([[9, 0, 0, 9]], [0.5])}, "a box of negative size, on image 1"),
        (
            {2: ([[0, 0, 9, 9]], [0.5])},
            "predictions of 1 image that dataset 'set' does not have, .* 2",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(tmp_path, backend_name, found, message):
    register(tmp_path, [{"bbox": [0, 0, 10, 10]}])
    evaluator = CocoEvaluator("set", backend_name=backend_name)
    with pytest.raises(ValueError, match=message):
        evaluate(evaluator, {image: instances(*x) for image, x in found.items()})


def test_an_image_evaluated_twice_is_refused(tmp_path):
    register(tmp_path, [{"bbox": [0, 0, 10, 10]}])
    evaluator = CocoEvaluator("set")
    evaluate(evaluator, {1: instances([[0, 0, 10, 10]])})
    evaluator.process([{"image_id": 1}], [{"instances": instances([[0, 0, 10, 10]])}])
    with pytest.raises(ValueError, match="1 image of dataset 'set' got predictions from two"):
        evaluator.evaluate()


def test_images_that_were_not_shown_are_said(tmp_path, caplog):
    register(tmp_path, [{"bbox": [0, 0, 10, 10]}], images=(1, 2, 3))
    evaluate(CocoEvaluator("set"), {1: instances([])})
    assert "'set' has 2 images (of 3) that the model was not shown" in caplog.text


def test_text_in_the_json_is_evaluated_as_numbers(tmp_path, backend_name):
    """Findings of 0 and 100: crowd flags as text, areas that are null, ids as text."""
    odd = {"bbox": ["0", "0", "10", "10"], "iscrowd": "0", "area": None, "image_id": "1"}
    register(tmp_path, [odd, {"bbox": [50, 50, 20, 20], "iscrowd": "1", "category_id": "1"}])
    found = {1: instances([[0, 0, 10, 10], [52, 52, 60, 60]], [0.8, 0.9])}
    results = evaluate(CocoEvaluator("set", backend_name=backend_name), found)["bbox"]
    assert results["AP"] == pytest.approx(100)
    assert results["APs"] == pytest.approx(100)


def test_boxes_are_cut_for_the_evaluation_as_for_the_training(tmp_path, backend_name):
    register(tmp_path, [{"bbox": [250, 0, 100, 100]}])
    found = {1: instances([[250, 0, 300, 100]])}
    results = evaluate(CocoEvaluator("set", backend_name=backend_name), found)["bbox"]
    assert results["AP"] == pytest.approx(100)


def test_results_have_the_ids_of_the_source(tmp_path, backend_name):
    categories = ({"id": 44, "name": "cat"}, {"id": 7, "name": "dog"})
    boxes = [{"bbox": [0, 0, 10, 10], "category_id": 44, "image_id": "night 1"}]
    register(tmp_path, boxes, images=("night 1",), categories=categories, classes=["cat", "dog"])
    output = tmp_path / "out"
    evaluator = CocoEvaluator("set", output_dir=str(output), backend_name=backend_name)
    found = {"night 1": instances([[0, 0, 10, 10], [5, 5, 9, 9]], [0.9, 0.5], [0, 1])}
    results = evaluate(evaluator, found)["bbox"]
    assert results["AP-cat"] == pytest.approx(100) and math.isnan(results["AP-dog"])
    stored = json.loads((output / "coco_instances_results.json").read_text())
    assert [(x["image_id"], x["category_id"]) for x in stored] == [("night 1", 44), ("night 1", 7)]
    assert not list(output.glob("*.tmp"))


def test_results_are_replaced_as_a_whole(tmp_path, monkeypatch):
    register(tmp_path, [{"bbox": [0, 0, 10, 10]}])
    output = tmp_path / "out"
    evaluator = CocoEvaluator("set", output_dir=str(output))
    evaluate(evaluator, {1: instances([[0, 0, 10, 10]])})
    before = (output / "coco_instances_results.json").read_text()

    def fail(content, file):
        file.write("[{")
        raise OSError("the disk is full")

    monkeypatch.setattr("resobj_d2.evaluation.coco.json.dump", fail)
    with pytest.raises(OSError, match="disk is full"):
        evaluate(evaluator, {1: instances([])})
    assert (output / "coco_instances_results.json").read_text() == before


def square(x, y, side):
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def mask_of(x, y, side):
    mask = torch.zeros(300, 300, dtype=torch.bool)
    mask[y : y + side, x : x + side] = True
    return mask


def test_objects_without_a_mask_are_ignored_for_masks_alone(tmp_path, backend_name):
    """The second has a box and no mask: found as a box, neither found nor missed as a mask."""
    annotations = [
        {"bbox": [0, 0, 10, 10], "segmentation": square(0, 0, 10)},
        {"bbox": [50, 50, 20, 20], "segmentation": [[]]},
    ]
    register(tmp_path, annotations)
    masks = torch.stack([mask_of(0, 0, 10), mask_of(50, 50, 20)])
    found = {1: instances([[0, 0, 10, 10], [50, 50, 70, 70]], [0.8, 0.9], pred_masks=masks)}
    results = evaluate(CocoEvaluator("set", backend_name=backend_name), found)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(100)
    masks[0] = mask_of(0, 0, 6)  # IoU .36
    found[1].pred_masks = masks
    results = evaluate(CocoEvaluator("set", backend_name=backend_name), found)
    assert results["bbox"]["AP"] == pytest.approx(100) and results["segm"]["AP"] == 0


KEYPOINTS = [f"k{i}" for i in range(3)]


def keypoint_set(tmp_path, backend_name="auto", sigmas=3):
    points = [10, 10, 2, 40, 10, 2, 40, 40, 1]
    category = {"id": 1, "name": "cat", "keypoints": KEYPOINTS}
    annotations = [
        {"bbox": [0, 0, 50, 50], "keypoints": points},
        {"bbox": [100, 100, 50, 50]},  # without keypoints: ignored for them
        {"bbox": [200, 100, 50, 50], "keypoints": [0, 0, 0] * 3},
    ]
    register(tmp_path, annotations, categories=(category,))
    return CocoEvaluator(
        "set",
        tasks=("bbox", "keypoints"),
        keypoint_sigmas=[0.05] * sigmas,
        backend_name=backend_name,
    )


def predicted(points):
    points = torch.tensor(points, dtype=torch.float32).reshape(1, 3, 3)
    return instances([[0, 0, 50, 50]], pred_keypoints=points)


def test_keypoints_by_hand(tmp_path, backend_name):
    """Detectron2's predictions are half a pixel beyond COCO's pixel indices.

    One keypoint of three moved by d has the similarity exp(-d^2 / (2 area (2 sigma)^2)), with an
    area of 2500: d = 10 gives exp(-2) = .135, so their mean is .712: found at .5 to .7.
    """
    evaluator = keypoint_set(tmp_path, backend_name)
    exact = [10.5, 10.5, 1, 40.5, 10.5, 1, 40.5, 40.5, 1]
    results = evaluate(evaluator, {1: predicted(exact)})
    assert results["keypoints"]["AP"] == pytest.approx(100)
    assert results["keypoints"]["AR@20"] == pytest.approx(100)
    moved = [20.5, *exact[1:]]
    results = evaluate(evaluator, {1: predicted(moved)})
    assert results["keypoints"]["AP"] == pytest.approx(50)
    assert results["keypoints"]["AP70"] == pytest.approx(100)
    assert results["keypoints"]["AP75"] == 0


def test_keypoints_without_a_detection_are_zero(tmp_path, backend_name):
    evaluator = keypoint_set(tmp_path, backend_name)
    results = evaluate(evaluator, {1: instances([])})
    assert results["keypoints"]["AP"] == results["keypoints"]["AR@20"] == 0
    assert results["bbox"]["AP"] == 0


def test_numbers_of_keypoints_that_differ_are_refused(tmp_path):
    evaluator = keypoint_set(tmp_path, sigmas=4)
    with pytest.raises(ValueError, match=r"has \[3\] keypoints .*KEYPOINT_OKS_SIGMAS is for 4"):
        evaluate(evaluator, {1: predicted([1.0] * 9)})


def test_masks_and_keypoints_are_those_of_detectron2s_evaluator(tmp_path, backend_name):
    draw = np.random.default_rng(5)
    names = [f"k{i}" for i in range(17)]
    annotations, found = [], {}
    for image in (1, 2, 3):
        boxes, masks, points = [], [], []
        for _ in range(5):
            x, y, side = (int(v) for v in draw.integers([0, 0, 10], [200, 200, 100]))
            keypoints = np.column_stack(
                [
                    draw.integers(x, x + side, 17),
                    draw.integers(y, y + side, 17),
                    draw.integers(0, 3, 17),
                ]
            )
            annotations.append(
                {
                    "image_id": image,
                    "bbox": [x, y, side, side],
                    "area": 0.8 * side * side,
                    "iscrowd": int(draw.random() < 0.2),
                    "segmentation": square(x, y, side),
                    "keypoints": keypoints.ravel().tolist(),
                    "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                }
            )
            moved = [max(0, int(v)) for v in (x, y) + draw.integers(-4, 5, 2)]
            boxes.append([*moved, moved[0] + side, moved[1] + side])
            masks.append(mask_of(*moved, side))
            points.append(keypoints + draw.normal(0, 2, keypoints.shape))
        found[image] = instances(
            boxes,
            draw.random(5).tolist(),
            pred_masks=torch.stack(masks),
            pred_keypoints=torch.tensor(np.array(points), dtype=torch.float32),
        )
    category = {"id": 1, "name": "cat", "keypoints": names}
    register(tmp_path, annotations, images=(1, 2, 3), categories=(category,))
    evaluator = CocoEvaluator("set", backend_name=backend_name)
    ours = evaluate(evaluator, copy.deepcopy(found))
    theirs = evaluate(COCOEvaluator("set", use_fast_impl=False), copy.deepcopy(found))
    assert set(ours) == set(theirs) == {"bbox", "segm", "keypoints"}
    for task, figures in theirs.items():
        assert 5 < figures["AP"] < 95
        shown = {key: ours[task][key] for key in figures}
        assert shown == pytest.approx(figures, abs=1e-9, nan_ok=True)


def random_content(seed):
    """Boxes of all sizes in classes with gaps, some crowd, some without area, and detections."""
    draw = np.random.default_rng(seed)
    images = draw.choice(10**9, 5, replace=False).tolist()
    ids = sorted(draw.choice(200, 4, replace=False).tolist())
    annotations, found = [], []
    for image in images:
        for _ in range(draw.integers(0, 12)):
            size = draw.uniform(3, 150, 2)
            box = np.round([*draw.uniform(0, 300 - size), *size], 1)
            annotation = {"image_id": image, "bbox": box.tolist()}
            annotation["category_id"] = int(draw.choice(ids[:3]))  # the last class has no object
            annotation["iscrowd"] = int(draw.random() < 0.2)
            if draw.random() < 0.7:
                annotation["area"] = float(box[2] * box[3] * draw.uniform(0.2, 1))
            annotation["keypoints"] = draw.integers(0, 300, 9).tolist()
            annotation["keypoints"][2::3] = draw.integers(0, 3, 3).tolist()
            annotation["segmentation"] = square(*box[:2], float(box[2]))
            annotations.append({"id": len(annotations), **annotation})
            for _ in range(draw.integers(0, 3)):
                moved = np.round(box + draw.normal(0, 4, 4), 1).clip(0)
                item = {"image_id": image, "category_id": annotation["category_id"]}
                item |= {"bbox": moved.tolist(), "score": float(draw.choice([0.5, draw.random()]))}
                points = np.array(annotation["keypoints"], dtype=float)
                points[:2] += draw.normal(0, 5, 2)
                found.append({**item, "keypoints": points.tolist()})
    categories = [{"id": i, "name": str(i)} for i in ids]
    sizes = [{"id": i, "width": 300, "height": 300} for i in images]
    return {"images": sizes, "categories": categories, "annotations": annotations}, found


@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
@pytest.mark.parametrize("seed", range(4))
def test_both_implementations_agree(task, seed):
    pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is optional")
    from pycocotools import mask

    from resobj_d2.evaluation.backend import evaluate_detections, load_backend
    from resobj_d2.evaluation.ground_truth import prepare_ground_truth

    content, found = random_content(seed)
    truth, _ = prepare_ground_truth(content, task)
    for item in found:
        x, y, w, _ = item["bbox"]
        rle = mask.merge(mask.frPyObjects(square(x, y, w + 1), 300, 300))
        item["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    options = {"keypoint_sigmas": [0.05] * 3} if task == "keypoints" else {}
    for limits in ([3], [1, 2, 5], [1, 10, 100, 500]):
        figures = [
            evaluate_detections(
                backend,
                backend.index(copy.deepcopy(truth)),
                copy.deepcopy(found),
                task,
                limits=limits,
                **options,
            ).figures
            for backend in map(load_backend, BACKENDS)
        ]
        for name in ("precision", "recall"):
            first, second = (getattr(f, name) for f in figures)
            np.testing.assert_allclose(first, second, rtol=0, atol=1e-9)
        assert figures[0].category_ids == figures[1].category_ids
        assert figures[0].ap() > 0
