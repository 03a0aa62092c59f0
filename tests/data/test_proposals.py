"""Precomputed proposals against Detectron2's loader, and pickles that it would run."""

import copy
import os
import pickle

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode

from resobj_d2.data.proposals import add_proposals
from resobj_d2.data.register import evaluation_records, training_records

RECORDS = [{"image_id": 7}, {"image_id": "b"}]


@pytest.fixture
def content():
    g = np.random.default_rng(0)
    boxes = [g.random((n, 4), dtype=np.float32) for n in (3, 0, 5)]
    return {
        "ids": ["b", 9, 7],
        "boxes": boxes,
        "objectness_logits": [g.random(len(x), dtype=np.float32) for x in boxes],
        "bbox_mode": BoxMode.XYWH_ABS.value,
    }


@pytest.fixture
def write(tmp_path):
    def build(content):
        path = tmp_path / "proposals.pkl"
        path.write_bytes(pickle.dumps(content))
        return str(path)

    return build


@pytest.mark.parametrize("mode", [BoxMode.XYWH_ABS, BoxMode.XYXY_ABS])
def test_mode_may_be_detectron2s_own(content, write, mode):
    path = write({**content, "bbox_mode": mode})
    own, stock = copy.deepcopy(RECORDS), copy.deepcopy(RECORDS)
    add_proposals(own, path)
    load_proposals_into_dataset(stock, path)
    assert [r["proposal_bbox_mode"] for r in own] == [mode, mode]
    assert [r["proposal_bbox_mode"] for r in stock] == [mode, mode]


@pytest.mark.parametrize("old_names", [False, True])
def test_what_detectron2s_loader_adds(content, write, old_names):
    if old_names:
        content = {
            "indexes": content["ids"],
            "boxes": content["boxes"],
            "scores": content["objectness_logits"],
        }
    path = write(content)
    own, stock = copy.deepcopy(RECORDS), copy.deepcopy(RECORDS)
    add_proposals(own, path)
    load_proposals_into_dataset(stock, path)
    for mine, other in zip(own, stock, strict=True):
        assert mine.keys() == other.keys() and len(mine) == 4
        assert mine["proposal_bbox_mode"] is other["proposal_bbox_mode"]
        for key in ("proposal_boxes", "proposal_objectness_logits"):
            assert np.array_equal(mine[key], other[key])
    assert len(own[0]["proposal_boxes"]) == 5


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ids": ["b", 9]}, "2 ids, 3 boxes and 3 logits"),
        ({"bbox_mode": 77}, "77 is not a valid BoxMode"),
        ({"ids": ["b", 9, 8]}, "has no proposals for image 7"),
        ({"objectness_logits": [np.zeros(2)] * 3}, r"boxes of shape \(5, 4\) and logits of shape"),
        ({"boxes": [np.full((n, 4), np.nan) for n in (3, 0, 5)]}, "image 7 has .* NaN"),
        ({"objectness_logits": [np.full(n, np.inf) for n in (3, 0, 5)]}, "image 7 has .* NaN"),
        ({"boxes": [np.full((n, 4), "x") for n in (3, 0, 5)]}, "image 7 has .* no numbers"),
        ({"ids": None}, "object of type 'NoneType' has no len|not iterable"),
    ],
)
def test_wrong_files_say_what_is_wrong(content, write, change, message):
    path = write({**content, **change})
    with pytest.raises(ValueError, match=f"^{path}.*({message})") as error:
        add_proposals(copy.deepcopy(RECORDS), path)
    assert "\n" not in str(error.value)


def test_training_and_evaluation_run_no_pickle(tiny_rcnn, content, write, tmp_path, clean_catalogs):
    harm = str(tmp_path / "harm")
    size = {"height": 8, "width": 8, "file_name": "x.png"}
    box = {"bbox": [0, 0, 4, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    DatasetCatalog.register(
        "proposed", lambda: [{**r, **size, "annotations": [box]} for r in RECORDS]
    )
    path = write(content)
    options = [
        *("MODEL.LOAD_PROPOSALS", "True"),
        *("DATASETS.TRAIN", "('proposed',)", "DATASETS.PROPOSAL_FILES_TRAIN", f"('{path}',)"),
        *("DATASETS.TEST", "('proposed',)", "DATASETS.PROPOSAL_FILES_TEST", f"('{path}',)"),
    ]
    cfg = tiny_rcnn(*options)
    for records in (training_records(cfg), evaluation_records(cfg, "proposed")):
        assert [len(r["proposal_boxes"]) for r in records] == [5, 3]
    write({**content, "boxes": Harm(harm)})
    for read in (training_records, lambda cfg: evaluation_records(cfg, "proposed")):
        with pytest.raises(ValueError, match=r"proposals.pkl: it refers to \w+.mkdir"):
            read(cfg)
    assert not os.path.exists(harm)
    for key in ("TRAIN", "TEST"):
        cfg = tiny_rcnn(*options, f"DATASETS.PROPOSAL_FILES_{key}", "()")
        with pytest.raises(ValueError, match=f"PROPOSAL_FILES_{key} has 0 files for 1 dataset:"):
            (training_records if key == "TRAIN" else lambda c: evaluation_records(c, "proposed"))(
                cfg
            )
