"""Sliced prediction with SAHI, against the slices predicted one by one."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from resobj_d2.inference import Predictor

pytest.importorskip("sahi", reason="SAHI is not installed (pip install sahi)")
from sahi.predict import get_prediction, get_sliced_prediction  # noqa: E402

from resobj_d2.inference.sahi import SahiModel  # noqa: E402


@pytest.fixture
def image():
    """(128, 192, 3) uint8 RGB."""
    blocks = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    return np.array(Image.fromarray(blocks).resize((192, 128)))


def rows(objects):
    """What SAHI found, sorted: class, name, score, box."""
    return sorted(
        (o.category.id, o.category.name, o.score.value, *o.bbox.to_xyxy()) for o in objects
    )


def expected_rows(predictor, image, threshold, shift=(0, 0)):
    items = predictor.to_dicts(predictor(image, channels="RGB"))
    x, y = shift
    return sorted(
        (
            item["class_index"], item["class_name"], item["score"],
            item["box"][0] + x, item["box"][1] + y, item["box"][2] + x, item["box"][3] + y,
        )
        for item in items
        if item["score"] >= threshold
    )  # fmt: skip


def assert_same(found, expected):
    assert len(found) == len(expected) > 3
    for own, other in zip(found, expected, strict=True):
        assert own[:2] == other[:2]
        assert own[2:] == pytest.approx(other[2:], abs=1e-3)


def test_one_image(resobj, image, tmp_path):
    predictor = Predictor(*resobj)
    threshold = float(predictor(image, channels="RGB").scores.median())
    model = SahiModel(predictor, confidence_threshold=threshold)
    expected = expected_rows(predictor, image, threshold)
    assert_same(rows(get_prediction(image, model).object_prediction_list), expected)
    Image.fromarray(image).save(tmp_path / "x.png")
    result = get_prediction(str(tmp_path / "x.png"), model)
    assert_same(rows(result.object_prediction_list), expected)
    assert {o.category.name for o in result.object_prediction_list} <= {"cat", "dog", "cow"}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_slices_are_shifted_to_their_place(resobj, image, batch_size):
    predictor = Predictor(*resobj)
    model = SahiModel(predictor, confidence_threshold=0.3)
    result = get_sliced_prediction(
        image, model, slice_height=64, slice_width=96, overlap_height_ratio=0,
        overlap_width_ratio=0, perform_standard_pred=False, postprocess_type="NMS",
        postprocess_match_metric="IOU", postprocess_match_threshold=1.1,  # suppresses nothing
        batch_size=batch_size, verbose=0,
    )  # fmt: skip
    expected = []
    for y in (0, 64):
        for x in (0, 96):
            part = np.ascontiguousarray(image[y : y + 64, x : x + 96])
            expected += expected_rows(predictor, part, 0.3, (x, y))
    assert_same(rows(result.object_prediction_list), sorted(expected))


def test_class_names_where_none_are_known(tiny_resobj, test_size, random_model, image):
    cfg = tiny_resobj(*test_size, "DATASETS.TEST", "()")
    model = SahiModel(Predictor(cfg, random_model(cfg)), confidence_threshold=0.0)
    objects = get_prediction(image, model).object_prediction_list
    assert objects and all(o.category.name == f"class {o.category.id}" for o in objects)


def test_categories_are_remapped(resobj, image):
    mapping = {"0": 7, "1": 8, "2": 9}
    model = SahiModel(Predictor(*resobj), confidence_threshold=0.0, category_remapping=mapping)
    objects = get_prediction(image, model).object_prediction_list
    ids = {"cat": 7, "dog": 8, "cow": 9}
    assert objects and all(o.category.id == ids[o.category.name] for o in objects)


def test_masks_become_polygons_and_a_mask_of_one_pixel_keeps_its_box(resobj, image, monkeypatch):
    detections = Instances((128, 192))
    detections.pred_boxes = Boxes(torch.tensor([[10.0, 20, 40, 50], [60, 60, 61, 61]]))
    detections.scores = torch.tensor([0.9, 0.8])
    detections.pred_classes = torch.tensor([1, 0])
    masks = torch.zeros(2, 128, 192, dtype=torch.bool)
    masks[0, 20:50, 10:40] = True
    masks[1, 60, 60] = True
    detections.pred_masks = masks
    monkeypatch.setattr(Predictor, "__call__", lambda self, images, channels: [detections])
    large, tiny = get_prediction(image, SahiModel(Predictor(*resobj))).object_prediction_list
    assert np.array_equal(large.mask.bool_mask, masks[0].numpy())
    assert tiny.mask is None and tiny.bbox.to_xyxy() == [60, 60, 61, 61]


def test_tiles_of_the_predictor_are_sahis(resobj, image):
    """The same windows, suppressed by the same metric; what SAHI leaves out scores lower."""
    cfg, model = resobj
    threshold = float(Predictor(cfg, model)(image, channels="RGB").scores.median())
    sliced = get_sliced_prediction(
        image, SahiModel(Predictor(cfg, model), confidence_threshold=threshold),
        slice_height=80, slice_width=80, overlap_height_ratio=0.25, overlap_width_ratio=0.25,
        postprocess_type="NMS", postprocess_match_metric="IOS", postprocess_match_threshold=0.5,
    )  # fmt: skip
    cfg.merge_from_list(["PREDICT.TILE", "80", "PREDICT.TILE_OVERLAP", "0.25"])
    tiled = expected_rows(Predictor(cfg, model), image, threshold)
    assert_same(rows(sliced.object_prediction_list), tiled)
