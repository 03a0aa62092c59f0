"""Masks and keypoints reach the training where they are trained, and boxes never leave for them."""

import logging

import pytest
from detectron2.config import get_cfg

from resobj_d2.data.keypoints import flip_map
from resobj_d2.data.register import register_datasets, training_records

pytestmark = pytest.mark.usefixtures("clean_catalogs")

POLYGON = [[1, 2, 11, 2, 11, 12]]


@pytest.fixture
def records(coco_content, write_coco):
    """Training records of the content, with KEY VALUE of the config."""

    def build(*opts):
        register_datasets([write_coco(coco_content)])
        cfg = get_cfg()
        cfg.DATASETS.TRAIN = ("pets",)
        cfg.merge_from_list(list(opts))
        return training_records(cfg)

    return build


def objects(records):
    return [item for record in records for item in record["annotations"]]


def test_box_detectors_keep_boxes_whose_masks_are_none(coco_content, records, caplog):
    for item in coco_content["annotations"]:
        item["segmentation"] = [[]]
    found = objects(records())
    assert len(found) == 3 and not any("segmentation" in item for item in found)
    assert "segmentations" not in caplog.text


def test_masks_are_left_out_where_boxes_alone_are_trained(coco_content, records):
    coco_content["annotations"][0]["segmentation"] = POLYGON
    assert not any("segmentation" in item for item in objects(records()))


def test_objects_without_a_mask_leave_the_training_of_masks_with_a_word(
    coco_content, records, caplog
):
    coco_content["annotations"][0]["segmentation"] = POLYGON
    coco_content["annotations"][1]["segmentation"] = [[1, 2, 11, 12]]
    with caplog.at_level(logging.WARNING):
        found = objects(records("MODEL.MASK_ON", True))
    assert [item["segmentation"][0].tolist() for item in found] == POLYGON
    assert "segmentations are no masks" in caplog.text and "annotation 12" in caplog.text
    assert "2 of 3 objects of DATASETS.TRAIN (pets) have no usable mask" in caplog.text


def test_training_masks_without_any_is_refused(records):
    with pytest.raises(ValueError, match=r"none of the 3 objects of DATASETS.TRAIN \(pets\) has a"):
        records("MODEL.MASK_ON", True)


def test_run_length_masks_need_bitmaps(coco_content, records):
    rle = {"size": [30, 40], "counts": [5, 10, 1185]}
    coco_content["annotations"][0]["segmentation"] = rle
    with pytest.raises(ValueError, match="1 masks .* run-length encoded: set INPUT.MASK_FORMAT"):
        records("MODEL.MASK_ON", True)


def test_objects_without_keypoints_get_invisible_ones(coco_content, records):
    coco_content["annotations"][0]["keypoints"] = [5, 6, 2, 7, 8, 1]
    opts = ("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 2)
    found = [item["keypoints"] for item in objects(records(*opts))]
    assert found[0] == [5.5, 6.5, 2, 7.5, 8.5, 1]
    assert found[1] == [0.0] * 6


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([5, 6, 2], "NUM_KEYPOINTS is 17, but an object of .*pets.* has 1 keypoints: set it"),
        (None, "no object of DATASETS.TRAIN .pets. has keypoints"),
    ],
)
def test_keypoints_that_do_not_fit_the_model_are_refused(coco_content, records, points, message):
    coco_content["annotations"][0]["keypoints"] = points
    opts = ("MODEL.KEYPOINT_ON", True, "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE", 0)
    with pytest.raises(ValueError, match=message):
        records(*opts)


def test_left_and_right_by_their_names():
    names = ["nose", "left_eye", "right_eye", "l-ear", "r-ear", "earLeft", "earRight", "Left knee"]
    names += ["LEFT_HIP", "RIGHT_HIP", "tail_l", "tail_r", "bright", "cleft", "Rwrist"]
    assert flip_map(names) == [
        ("left_eye", "right_eye"),
        ("l-ear", "r-ear"),
        ("earLeft", "earRight"),
        ("LEFT_HIP", "RIGHT_HIP"),
        ("tail_l", "tail_r"),
    ]
