"""Objects and anchors are counted as by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from resobj_d2.config.zoo import get_config
from resobj_d2.data.coco_json import read_coco_json
from resobj_d2.inspection.balance import COCO, main, measure_balance


@pytest.fixture
def data(tmp_path):
    """Three pictures of 64x64 with one small, one medium and no object, and a crowd region."""
    content = {
        "images": [
            {"id": k, "file_name": f"{k}.png", "width": 64, "height": 64} for k in (1, 2, 3)
        ],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100},
            {"id": 2, "image_id": 2, "category_id": 2, "bbox": [0, 0, 40, 40], "area": 1600},
            {"id": 3, "image_id": 2, "category_id": 2, "bbox": [1, 1, 9, 9], "area": 81},
            {"id": 4, "image_id": 3, "category_id": 2, "bbox": [0, 0, 60, 60], "area": 3600,
             "iscrowd": 1, "segmentation": {"size": [64, 64], "counts": [0, 4096]}},
        ],
    }  # fmt: skip
    for k in (1, 2, 3):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / f"{k}.png")
    (tmp_path / "data.json").write_text(json.dumps(content))
    return tmp_path / "data.json"


def test_objects_by_hand(data):
    found = measure_balance(read_coco_json(data, "data", str(data.parent)))
    assert (found.pictures, found.classes) == (3, 2)
    assert found.objects == 1.0 and found.empty == pytest.approx(1 / 3)
    assert found.bands == pytest.approx((2 / 3, 1 / 3, 0.0))
    assert found.anchors is None and found.anchors_per_object is None


@pytest.mark.usefixtures("clean_catalogs")
def test_anchors_by_hand(data):
    cfg = get_config(
        "scenes_retinanet_fl", training=False, INPUT__MIN_SIZE_TRAIN=(128,), MODEL__DEVICE="cpu"
    )
    found = measure_balance(read_coco_json(data, "data", str(data.parent)), cfg)
    # 128 px: 16x16 + 8x8 + 4x4 + 2x2 + 1 cells with nine anchors; areas are four times as large.
    assert found.anchors == 9 * (256 + 64 + 16 + 4 + 1)
    assert found.anchors_per_object == found.anchors
    assert found.input_bands == pytest.approx((2 / 3, 1 / 3, 0.0))


def test_the_table_has_cocos_column(data, capsys):
    assert main([str(data), "--images", str(data.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-2:] == ["COCO", "train2017"]
    (row,) = [line for line in lines if line.startswith("objects in a picture")]
    assert row.split()[-2:] == ["1.0", "7.3"]
    assert not any(line.startswith(("anchors", "the same at")) for line in lines)
    assert lines[-1] == "With a configuration in place of the data it counts anchors, too."
    assert COCO.anchors_per_object == pytest.approx(100_000 * 118_287 / 860_001)
