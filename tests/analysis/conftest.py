"""Real detections."""

import pytest

from resobj_d2.analysis.evaluation_set import EvaluationSet
from resobj_d2.analysis.results_json import read_entries
from resobj_d2.data.coco_json import read_coco_json


@pytest.fixture(scope="session")
def coco_example(shared_data):
    """COCO's own example; it is not part of the repository."""
    folder = shared_data / "coco_eval" / "val2014_100"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


@pytest.fixture(scope="session")
def real(coco_example):
    """Its objects and detections, up to 100 of an image and class."""
    record = read_coco_json(coco_example / "instances_val2014_100.json", "val", ours=False)
    results = read_entries(coco_example / "instances_val2014_fakebbox100_results.json")
    return EvaluationSet.of(record, results, limit=100)


@pytest.fixture(scope="session")
def real_persons(shared_data):
    """A Faster R-CNN's detections of persons on four images."""
    folder = shared_data / "coco_eval" / "mmpose_person4"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    record = read_coco_json(folder / "test_coco.json", "persons", ours=False)
    return EvaluationSet.of(record, read_entries(folder / "test_coco_det_AP_H_56.json"))
