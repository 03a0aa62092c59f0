"""A results json that does not fit is refused with the entry, and what would make it fit."""

import pytest

from resobj_d2.analysis.results_json import check_entries
from tests.analysis import plain_loops

BOX = [100, 100, 100, 100]


def entry(**changed):
    return {"image_id": 0, "category_id": 10, "bbox": [1, 2, 3, 4], "score": 0.5, **changed}


@pytest.mark.parametrize(
    "item, message",
    [
        (entry(score=float("nan")), r"has a score of NaN or inf: nan"),
        (entry(bbox=[1, 2, float("inf"), 4]), r"has a box with NaN or inf: \[1, 2, inf, 4\]"),
        (entry(bbox=[9, 9, -1, 4]), r"has a box of negative size: \[9, 9, -1, 4\]"),
    ],
)
def test_what_no_metric_can_judge_is_told_with_file_and_entry(item, message):
    with pytest.raises(ValueError, match=rf"f.json: detection 1 \(image 0\) {message}"):
        check_entries([entry(), item], plain_loops.record([(0, 0, BOX)]), "f.json")


@pytest.mark.parametrize(
    "item, message",
    [
        (entry(image_id=0.0), "image_id must be an id of the dataset, .* got 0.0"),
        (entry(image_id=False), "image_id must be an id of the dataset, .* got False"),
        (entry(category_id=True), "category_id must be an id of the dataset, .* got True"),
        (entry(score="0.5"), "score must be a number, got '0.5'"),
        (entry(score=True), "score must be a number, got True"),
        (entry(bbox=[1, 2, "3", 4]), r"bbox must be four numbers, got \[1, 2, '3', 4\]"),
        ({"image_id": 0, "score": 1}, "needs image_id, category_id, bbox, score, got {'image_id'"),
    ],
)
def test_a_value_of_another_kind_is_told_with_its_place(item, message):
    with pytest.raises(ValueError, match=f"^f.json: detection 1:? {message}"):
        check_entries([entry(), item], plain_loops.record([(0, 0, BOX)]), "f.json")


@pytest.mark.parametrize(
    "items, message",
    [
        ([entry(category_id=9), entry(category_id=10)],
         "category_id 9, .* its own are 10, 11. With 1 added they fit"),
        ([entry(category_id=12), entry(category_id=11)], "With 1 subtracted they fit"),
        ([entry(image_id="0"), entry(image_id="1")],
         "image_id '0', '1', .* its own are 0, 1. They are written as text"),
        ([entry(image_id="0.png")], "They are names of the pictures"),
        ([entry(category_id="a")], "category_id 'a', .* They are names of the classes"),
        ([entry(category_id=3), entry(category_id=9)], "It is of another dataset"),
    ],
)  # fmt: skip
def test_unknown_ids_are_told_with_what_would_fit(items, message):
    with pytest.raises(ValueError, match=message):
        check_entries(items, plain_loops.record([(0, 0, BOX), (1, 0, BOX)]), "f.json")
