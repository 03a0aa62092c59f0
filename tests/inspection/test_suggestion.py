"""Suggested keys: k-means by hand, and that they fit better in a configuration loaded anew."""

import numpy as np
import pytest

from resobj_d2.config import load_config
from resobj_d2.data.catalog import dataset_record
from resobj_d2.inspection.check import check_anchors
from resobj_d2.inspection.clusters import cluster_shapes, shape_ious
from resobj_d2.inspection.input_size import input_objects
from resobj_d2.inspection.suggestion import input_overrides, sample_objects

from .test_anchors import objects_of


def test_shape_ious_by_hand():
    ious = shape_ious(np.array([[2.0, 4.0]]), np.array([[4.0, 2.0], [2.0, 2.0], [2.0, 4.0]]))
    assert ious.tolist() == [[4 / 12, 1 / 2, 1.0]]


def test_clusters_are_the_means_of_groups_that_lie_apart():
    groups = [[(10, 10), (12, 8), (11, 12)], [(40, 90), (44, 86)], [(200, 190), (220, 210)]]
    sizes = np.array([size for group in groups for size in group], dtype=float)
    centres = cluster_shapes(sizes, 3)
    expected = [np.mean(group, axis=0) for group in groups]
    np.testing.assert_allclose(centres, expected)
    weights = np.array([8.0, 1, 1, 1, 1, 1, 1])
    weighted = cluster_shapes(sizes, 3, weights=weights)
    np.testing.assert_allclose(weighted[0], [(8 * 10 + 12 + 11) / 10, (8 * 10 + 8 + 12) / 10])


def test_fewer_shapes_than_clusters():
    assert cluster_shapes(np.array([[30.0, 30], [10, 10], [30, 30]]), 9).tolist() == [
        [10, 10],
        [30, 30],
    ]


def test_a_sample_has_as_many_of_each_class():
    objects = objects_of(np.tile([0.0, 0, 9, 9], (10_000, 1)), classes=[0] * 9_900 + [1] * 100)
    sample = sample_objects(objects, 400)
    assert np.bincount(sample.classes).tolist() == [200, 100]
    assert sample_objects(objects, 10_000) is objects


@pytest.fixture
def small_and_large(write_set, clean_catalogs):
    """12 pictures of 256 x 256, each with 5 cells of about 50 pixels and 10 plates of about 16."""
    random = np.random.default_rng(1)
    pictures = {f"{i}.png": (256, 256) for i in range(12)}
    objects = []
    for image in range(12):
        for number, side in ((0, 50), (1, 16), (1, 17)) * 5:
            width, height = side * random.uniform(0.9, 1.1, 2)
            x, y = random.uniform(0, 200, 2)
            objects.append((image, number, x, y, width, height))
    return write_set("mixed", pictures, objects, folder="small")


DETECTORS = {
    "OctaveAnchors": (
        "cells_retinanet_fl",
        ["MODEL.DENSE.PRIORS.SCALE", "4.0"],
        {"MODEL.DENSE.PRIORS.SCALE"},
    ),
    "SSDAnchors": (
        "cells_ssd_plain",
        [
            "MODEL.DENSE.PRIORS.MIN_SIZES",
            "[64, 100, 150, 200, 250]",
            "INPUT.FIXED_SIZE",
            "[256, 256]",
        ],
        {"MODEL.DENSE.PRIORS.MIN_SIZES"},
    ),
    "YOLOAnchors": (
        "cells_yolov3_obj",
        ["MODEL.DENSE.PRIORS.SIZES", str([[[116, 90], [156, 198], [373, 326]]] * 3)],
        {"MODEL.DENSE.PRIORS.SIZES"},
    ),
    "DefaultAnchorGenerator": (
        "cells_faster_rcnn_sampling",
        ["MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64], [128], [256], [512]]"],
        {"MODEL.ANCHOR_GENERATOR.SIZES"},
    ),
}


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_suggestion_fits_better_and_is_what_the_configuration_then_has(kind, small_and_large):
    name, overrides, keys = DETECTORS[kind]
    data = ["DATASETS.REGISTER", str([small_and_large]), "DATASETS.TRAIN", "('mixed',)",
            "DATASETS.TEST", "()", "MODEL.DEVICE", "cpu"]  # fmt: skip
    node = "ROI_HEADS" if kind == "DefaultAnchorGenerator" else "DENSE"
    data += [f"MODEL.{node}.NUM_CLASSES", "2"]
    cfg = load_config(name, [*data, *overrides])
    records = [dataset_record("mixed")]
    report = check_anchors(cfg, records)
    ((before, suggestions),) = report.fits
    assert before.anchors.kind == kind
    assert before.share_by_class()["plate"] < 0.3
    assert any(text.startswith("plate: ") for text in report.findings[0].examples)
    suggestion = suggestions[0]
    assert set(suggestion.overrides) == keys and suggestion.cost == 1
    assert suggestion.fit.share_by_class()["plate"] > 0.9
    assert suggestion.fit.mean_over_classes() > before.mean_over_classes()

    # The words for the command line, where they replace what was there.
    words = {key: str(value) for key, value in suggestion.overrides.items()}
    kept = dict(zip(overrides[::2], overrides[1::2], strict=True)) | words
    again = load_config(name, [*data, *(word for pair in kept.items() for word in pair)])
    ((now, nothing_more),) = check_anchors(again, records).fits
    np.testing.assert_array_equal(now.ious, suggestion.fit.ious)
    assert all(one.cost > 1 for one in nothing_more)  # no other anchors, once these are there


def test_a_larger_input_is_suggested_where_no_anchor_is_dense_enough(write_set, clean_catalogs):
    """Objects of 6 pixels, which a grid of 8 pixels misses; twice as large it meets them."""
    random = np.random.default_rng(2)
    pictures = {f"{i}.png": (128, 128) for i in range(20)}
    objects = [
        (image, 0, *random.uniform(0, 120, 2), 6, 6) for image in range(20) for _ in range(10)
    ]
    entry = write_set("dots", pictures, objects, ("dot",), folder="dots")
    cfg = load_config(
        "cells_retinanet_fl",
        ["DATASETS.REGISTER", str([entry]), "DATASETS.TRAIN", "('dots',)", "DATASETS.TEST", "()",
         "MODEL.DENSE.NUM_CLASSES", "1", "INPUT.MIN_SIZE_TRAIN", "(128,)", "MODEL.DEVICE", "cpu"],
    )  # fmt: skip
    ((before, suggestions),) = check_anchors(cfg, [dataset_record("dots")]).fits
    larger = suggestions[-1]
    assert larger.overrides["INPUT.MIN_SIZE_TRAIN"][0] > 128
    assert larger.cost == (larger.overrides["INPUT.MIN_SIZE_TRAIN"][0] / 128) ** 2
    assert larger.fit.share() > before.share() + 0.05
    factor = larger.fit.objects.boxes / before.objects.boxes
    np.testing.assert_allclose(factor, larger.cost**0.5)


SIZES = {
    "shortest edge": [],
    "stretched": ["INPUT.FIXED_SIZE", "[128, 160]"],
    "jitter": ["INPUT.SCALE_JITTER", "[0.5, 2.0]"],
    "multi-scale": ["INPUT.MULTI_SCALE", "[128, 160, 192]"],
}


@pytest.mark.parametrize("kind", SIZES)
def test_keys_of_a_larger_input_are_accepted_and_have_that_effect(kind, write_set, clean_catalogs):
    entry = write_set("one", {"a.png": (128, 96)}, [(0, 0, 10, 10, 20, 20)], ("dot",))
    given = dict(zip(SIZES[kind][::2], SIZES[kind][1::2], strict=True))
    data = ["DATASETS.REGISTER", str([entry]), "DATASETS.TRAIN", "('one',)", "DATASETS.TEST", "()",
            "MODEL.DENSE.NUM_CLASSES", "1", "MODEL.DEVICE", "cpu"]  # fmt: skip
    cfg = load_config("cells_retinanet_fl", [*data, *SIZES[kind]])
    changed = given | {key: str(value) for key, value in input_overrides(cfg.INPUT, 2.0).items()}
    larger = load_config("cells_retinanet_fl", [*data, *(x for kv in changed.items() for x in kv)])
    records = [dataset_record("one")]
    before, after = (input_objects(c, records) for c in (cfg, larger))
    np.testing.assert_allclose(after.boxes / before.boxes, 2, atol=0.05)
