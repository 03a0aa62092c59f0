"""What is told where the number of classes, and the classes of datasets, do not agree."""

import copy
import re

import pytest

from resobj_d2.data.class_checks import check_num_classes
from resobj_d2.data.register import register_datasets

pytestmark = pytest.mark.usefixtures("clean_catalogs")
KEY = "MODEL.DENSE.NUM_CLASSES"


def message(count, *names):
    with pytest.raises(ValueError) as caught:
        check_num_classes({KEY: count}, names)
    return str(caught.value)


def test_a_folder_of_voc_without_its_classes(write_voc):
    root = write_voc({"a": [("WBC", 0, (1, 1, 40, 30))], "b": [("RBC", 1, (11, 6, 20, 15))]})
    entry = {"name": "cells", "format": "voc", "root": str(root), "split": "train"}
    register_datasets([entry])
    assert message(2, "cells") == (
        "dataset 'cells': class 'RBC' is not among VOC's 20: list the classes of its files in its "
        "entry of DATASETS.REGISTER, classes: [RBC, WBC], and set the number of classes to 2"
    )
    register_datasets([{**entry, "name": "named", "classes": ["RBC", "WBC"]}])
    assert "class 'RBC' is not among VOC's 20" in message(2, "named", "cells")
    check_num_classes({KEY: 2}, ["named"])


def test_a_folder_of_voc_with_some_of_its_classes_has_all_20(write_voc):
    root = write_voc({"a": [("cat", 0, (1, 1, 40, 30))], "b": []})
    register_datasets([{"name": "pets", "format": "voc", "root": str(root), "split": "train"}])
    assert f"{KEY} is 1, but dataset 'pets' has 20 classes" in message(1, "pets")


@pytest.fixture
def with_bird(coco_content, write_coco):
    """A dataset of the classes bird, cat and dog that has no bird."""
    content = copy.deepcopy(coco_content)
    content["categories"].append({"id": 1, "name": "bird"})
    register_datasets([write_coco(content, name="train"), write_coco(coco_content, name="val")])


@pytest.mark.parametrize("count", [2, 3])
def test_one_set_has_a_class_without_objects(with_bird, count):
    assert message(count, "train", "val") == (
        "datasets 'train' and 'val' have different classes, so class numbers mean different "
        "things: bird, cat, dog and cat, dog. Dataset 'train' alone has bird, without any object. "
        "Give both the same 'classes' in their entries of DATASETS.REGISTER: classes: [cat, dog]"
    )
    assert re.search("'val' and 'train'.*'train' alone has bird.*", message(2, "val", "train"))


def test_all_sets_have_a_class_without_objects(with_bird):
    text = message(2, "train")
    assert text.startswith(f"{KEY} is 2, but dataset 'train' has 3 classes: bird, cat, dog. Set ")
    assert text.endswith(
        f"{KEY} 3. There is no object of bird: 'classes' in the entries of DATASETS.REGISTER "
        "leaves that out, classes: [cat, dog] and 2"
    )
    check_num_classes({KEY: 3}, ["train"])


def test_a_class_with_objects_is_not_advised_away(coco_content, write_coco):
    fewer = copy.deepcopy(coco_content)
    fewer["categories"] = fewer["categories"][:1]
    kept = fewer["categories"][0]["id"]
    fewer["annotations"] = [a for a in fewer["annotations"] if a["category_id"] == kept]
    register_datasets([write_coco(coco_content, name="all"), write_coco(fewer, name="fewer")])
    assert message(2, "all", "fewer").endswith("in their entries of DATASETS.REGISTER")
