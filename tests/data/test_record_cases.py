"""What registration does with each kind of input: the rows of the table in docs/datasets.md."""

import logging
import math
import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.notes import KINDS
from resobj_d2.data.register import check_names, register_datasets

pytestmark = pytest.mark.usefixtures("clean_catalogs")

# The three boxes of coco_content as they are written: 11, 12 on image 1 and 13 on image 2.
BOXES = [[1, 2, 10, 10], [5, 5, 20, 20], [0, 0, 40, 30]]


def annotation(content, number):
    return content["annotations"][number]


def kinds(record):
    return {note.kind: note.count for note in record.notes}


@pytest.fixture
def read(coco_content, write_coco, caplog):
    """Spoils the content, registers it and gives the record."""

    def register(spoil, **entry):
        spoil(coco_content)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            register_datasets([{**write_coco(coco_content), **entry}])
        return dataset_record("pets")

    return register


def change(number, **values):
    return lambda content: annotation(content, number).update(values)


def test_a_sound_json_has_nothing_to_note(read, caplog):
    record = read(lambda content: None)
    assert record.notes == () and caplog.text == ""
    assert record.annotations.boxes.tolist() == BOXES
    assert record.class_names == ["cat", "dog"] and record.class_numbers == {3: 0, 7: 1}
    assert record.annotations.classes.tolist() == [0, 1, 1]
    assert record.images.ids == [1, 2, 3] and record.images.widths.tolist() == [40, 40, 40]


MENDED = {
    "bbox of texts": (change(0, bbox=["1", "2", "10.0", " 10 "]), "text_number"),
    "area as text": (change(0, area="100"), "text_number"),
    "image_id as text": (change(0, image_id="1"), "text_number"),
    "category_id as text": (change(0, category_id="3"), "text_number"),
    "category_id as fraction": (change(0, category_id=3.0), None),  # equal to 3, as json has it
    "image width as text": (lambda c: c["images"][0].update(width="40"), "text_number"),
    "image height as fraction": (lambda c: c["images"][0].update(height=30.0), "text_number"),
    "image id as fraction": (lambda c: c["images"][0].update(id=1.0), "text_number"),
    "category id as text": (lambda c: c["categories"][1].update(id="3"), "text_number"),
    "area null": (change(0, area=None), "area"),
    "area NaN": (change(0, area=math.nan), "area"),
    "area negative": (change(0, area=-5), "area"),
    "area 0": (change(0, area=0), "area"),
    "area of 400 digits": (change(0, area=10**400), "area"),
    "area a list": (change(0, area=[]), "area"),
    "area missing": (lambda c: annotation(c, 0).pop("area"), None),
    "iscrowd missing": (lambda c: annotation(c, 0).pop("iscrowd"), None),
    "iscrowd '0'": (change(0, iscrowd="0"), "flag"),
    "iscrowd 'false'": (change(0, iscrowd="false"), "flag"),
    "iscrowd null": (change(0, iscrowd=None), "flag"),
    "iscrowd 0.0": (change(0, iscrowd=0.0), "flag"),
    "iscrowd false": (change(0, iscrowd=False), None),
    "ignore 0": (change(0, ignore=0), None),
    "ignore null": (change(0, ignore=None), "flag"),
    "difficult 0": (change(0, difficult=0), None),
    "segmentation [[]]": (change(0, segmentation=[[]]), "mask"),
    "segmentation of four numbers": (change(0, segmentation=[[1, 2, 11, 12]]), "mask"),
    "segmentation of odd length": (change(0, segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "mask"),
    "segmentation of texts": (change(0, segmentation=[["a"] * 6]), "mask"),
    "segmentation as text": (change(0, segmentation="polygon"), "mask"),
    "segmentation of another size": (
        change(0, segmentation={"size": [5, 5], "counts": [25]}),
        "mask",
    ),
    "segmentation of broken runs": (
        change(0, segmentation={"size": [30, 40], "counts": [0, 10**18]}),
        "mask",
    ),
    "segmentation null": (change(0, segmentation=None), None),
    "keypoints not by three": (change(0, keypoints=[1, 2]), "keypoints"),
    "keypoints of texts": (change(0, keypoints=["1", "2", "2"]), "keypoints"),
    "other keys": (change(0, attributes={"a": 1}, score=0.5), None),
}


@pytest.mark.parametrize("case", MENDED)
def test_values_are_mended_and_the_boxes_stay(read, caplog, case):
    spoil, kind = MENDED[case]
    record = read(spoil)
    assert record.annotations.boxes.tolist() == BOXES
    assert record.annotations.areas.tolist() == [100, 400, 1200]
    assert record.annotations.classes.tolist() == [0, 1, 1]
    assert record.annotations.images.tolist() == [0, 0, 1]
    assert not record.annotations.crowd.any()
    assert record.annotations.masks == record.annotations.keypoints == [None] * 3
    assert kinds(record) == ({} if kind is None else {kind: 1})
    said = kind is not None and not KINDS[kind].needed_for
    assert said == (KINDS[kind].text + " (1 in all)" in caplog.text if kind else False)
    assert len(DatasetCatalog.get("pets")[0]["annotations"]) == 2


REFUSED = {
    "bbox null": (change(0, bbox=None), "'bbox' of four numbers"),
    "bbox with null": (change(0, bbox=[1, None, 3, 4]), "four numbers .*got .1, None, 3, 4"),
    "bbox empty": (change(0, bbox=[]), r"four numbers .*got \[\]"),
    "bbox with a bool": (change(0, bbox=[1, True, 3, 4]), "four numbers"),
    "bbox as object": (change(0, bbox={"x": 1}), "four numbers"),
    "bbox beyond numbers": (change(0, bbox=[10**400, 1, 2, 3]), "beyond all limits"),
    "iscrowd 2": (change(0, iscrowd=2), "'iscrowd' must be 0 or 1, got 2"),
    "iscrowd a text": (change(0, iscrowd="maybe"), "'iscrowd' must be 0 or 1, got 'maybe'"),
    "iscrowd a list": (change(0, iscrowd=[]), "'iscrowd' must be 0 or 1"),
    "ignore 7": (change(0, ignore=7), "'ignore' must be 0 or 1"),
    "annotation id null": (change(0, id=None), r"annotations\[0\]: 'id' must be a whole number"),
    "annotation id a list": (change(0, id=[1]), r"annotations\[0\]: 'id' must be a whole number"),
    "annotation no object": (lambda c: c["annotations"].append(3), r"annotations\[3\] must be an"),
    "image_id missing": (lambda c: annotation(c, 0).pop("image_id"), "11 is on image None"),
    "image_id a list": (change(0, image_id=[1]), r"11 is on image \[1\], which is not"),
    "image_id true": (change(0, image_id=True), "11 is on image True, which is not"),
    "category_id null": (change(0, category_id=None), "has category_id None, .*7=dog"),
    "image id null": (lambda c: c["images"][0].update(id=None), r"images\[0\]: 'id' must be"),
    "image id true": (lambda c: c["images"][0].update(id=True), r"images\[0\]: 'id' must be"),
    "width null": (lambda c: c["images"][0].update(width=None), "'width' must be a whole number"),
    "width 0": (lambda c: c["images"][0].update(width=0), "'width' .* at least 1, got 0"),
    "width 12.5": (lambda c: c["images"][0].update(width=12.5), "'width' must be a whole number"),
    "height negative": (lambda c: c["images"][0].update(height=-3), "'height' must be a whole"),
    "file_name null": (lambda c: c["images"][0].update(file_name=None), "'file_name' must be a"),
    "file_name empty": (lambda c: c["images"][0].update(file_name=" "), "'file_name' must be a"),
    "category id a word": (lambda c: c["categories"][0].update(id="x"), "a whole number as 'id'"),
    "category id 1.5": (lambda c: c["categories"][0].update(id=1.5), r"categories\[0\]: 'id' must"),
    "category name empty": (lambda c: c["categories"][0].update(name=""), "non-empty string as"),
    "category name null": (lambda c: c["categories"][0].update(name=None), "non-empty string as"),
    "two categories of a name": (
        lambda c: c["categories"][0].update(name="cat"),
        "the categories 3 and 7 are both called 'cat' and both have annotations",
    ),
    "the same id as text": (
        lambda c: c["categories"].append({"id": "7", "name": "bird"}),
        "the id 7 occurs twice in 'categories'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_one_meaning_is_refused(coco_content, write_coco, case):
    spoil, message = REFUSED[case]
    entry = write_coco(coco_content)
    spoil(coco_content)
    rewrite(entry, coco_content)
    with pytest.raises(ValueError, match=message) as caught:
        register_datasets([entry])
    assert str(caught.value).startswith("dataset 'pets' (") and "\n" not in str(caught.value)
    assert "pets" not in DatasetCatalog


def rewrite(entry, content):
    import json

    with open(entry["json"], "w") as file:
        json.dump(content, file)


def test_ignored_annotations_are_like_crowd_regions(read):
    record = read(change(0, ignore=1))
    assert record.annotations.crowd.tolist() == [True, False, False]
    assert kinds(record) == {"ignored": 1}
    assert DatasetCatalog.get("pets")[0]["annotations"][0]["iscrowd"] == 1


def test_difficult_objects_are_trained_on(read):
    record = read(change(0, difficult=1))
    assert record.annotations.difficult.tolist() == [True, False, False]
    first = DatasetCatalog.get("pets")[0]["annotations"][0]
    assert (first["iscrowd"], first["difficult"]) == (0, 1)


def test_the_unused_one_of_two_categories_of_a_name_is_left_out(read):
    record = read(
        lambda c: c["categories"].append({"id": 0, "name": "dog", "supercategory": "none"})
    )
    assert record.class_names == ["cat", "dog"] and record.class_numbers == {3: 0, 7: 1}
    assert kinds(record) == {"twin_category": 1}


def test_backslashes_and_files_of_two_images(read, tmp_path):
    from PIL import Image

    (tmp_path / "images" / "sub").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "sub" / "1.png")

    def spoil(content):
        content["images"][0]["file_name"] = "sub\\1.png"
        content["images"][2]["file_name"] = "2.png"

    record = read(spoil)
    assert kinds(record) == {"backslash": 1, "same_file": 1}
    assert record.images.files[0] == str(tmp_path / "images" / "sub" / "1.png")


def test_repeated_annotations_are_said_and_used(read, caplog):
    def spoil(content):
        content["annotations"].append({**annotation(content, 0), "id": 14})
        content["annotations"].append({**annotation(content, 0), "id": 15, "category_id": 7})

    record = read(spoil)
    assert kinds(record) == {"twice": 1} and len(record.annotations) == 5
    assert "for instance annotation 14 of image 1: [1, 2, 10, 10]" in caplog.text


def test_boxes_out_of_the_picture_are_cut_or_left_out(read, caplog):
    def spoil(content):
        boxes = {
            21: [35, 5, 10, 10],
            22: [50, 5, 10, 10],
            23: [-3, -3, 10.4, 10],
            24: [30, 5, 10.4, 5],
        }
        for identity, box in boxes.items():
            content["annotations"].append(
                {"id": identity, "image_id": 3, "category_id": 3, "bbox": box}
            )
        for number in range(30):  # a few stray boxes are no other convention
            content["annotations"].append(
                {"id": 100 + number, "image_id": 3, "category_id": 3, "bbox": [number, 1, 5, 5.5]}
            )

    record = read(spoil)
    assert kinds(record) == {"outside": 1, "cut": 2}
    assert "for instance annotation 21 of image 3: [35, 5, 10, 10]; annotation 23" in caplog.text
    rows = {identity: row for row, identity in enumerate(record.annotations.ids)}
    assert 22 not in rows
    assert record.annotations.boxes[rows[21]].tolist() == [35, 5, 5, 10]
    assert record.annotations.boxes[rows[23]] == pytest.approx([0, 0, 7.4, 7])
    assert record.annotations.boxes[rows[24]].tolist() == [30, 5, 10.4, 5]  # rounding is none
    assert record.annotations.areas[rows[21]] == 50


def test_classes_pick_a_subset_and_an_order(read, caplog):
    record = read(
        lambda c: c["categories"].append({"id": 9, "name": "bird"}), classes=["bird", "dog"]
    )
    assert record.class_numbers == {9: 0, 7: 1}
    assert record.annotations.classes.tolist() == [1, 1]
    assert len(record.images) == 3
    assert "annotations are of classes that 'classes' does not list" in caplog.text
    assert "they are left out (1 in all), for instance" in caplog.text
    metadata = MetadataCatalog.get("pets")
    assert metadata.thing_classes == ["bird", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {9: 0, 7: 1}


def test_classes_that_are_not_there_are_refused(coco_content, write_coco):
    with pytest.raises(ValueError, match="has no class 'bird' of 'classes'; it has cat, dog"):
        register_datasets([{**write_coco(coco_content), "classes": ["bird"]}])


def test_masks_are_kept_as_they_are(read):
    polygon = [1, 2, 11, 2, 11, 12]
    # A column-wise mask of 30 x 40: 5 pixels off, 10 on, the rest off.
    rle = {"size": [30, 40], "counts": [5, 10, 1185]}

    def spoil(content):
        annotation(content, 0)["segmentation"] = [polygon, [1, 2, 3, 4]]
        annotation(content, 1)["segmentation"] = rle
        annotation(content, 2)["segmentation"] = polygon  # without its outer list

    record = read(spoil)
    masks = record.annotations.masks
    assert [p.tolist() for p in masks[0]] == [p.tolist() for p in masks[2]] == [polygon]
    from pycocotools import mask

    decoded = mask.decode(masks[1])
    assert decoded.shape == (30, 40) and decoded.sum() == 10 and decoded.T.ravel()[5:15].all()
    assert "segmentation" in DatasetCatalog.get("pets")[0]["annotations"][0]


def test_keypoints_come_with_their_metadata(read):
    def spoil(content):
        for category in content["categories"]:
            category["keypoints"] = ["nose", "left_eye", "right_eye"]
            category["skeleton"] = [[1, 2], [1, 3]]
        annotation(content, 0)["keypoints"] = [5, 6, 2, 4, 5, 1, 0, 0, 0]
        annotation(content, 1)["keypoints"] = [5, 6, 2]  # one of three

    record = read(spoil)
    assert kinds(record) == {"keypoints": 1}
    assert record.annotations.keypoints[0].tolist() == [[5, 6, 2], [4, 5, 1], [0, 0, 0]]
    assert record.annotations.keypoints[1] is None
    first = DatasetCatalog.get("pets")[0]["annotations"][0]
    assert first["keypoints"] == [5.5, 6.5, 2, 4.5, 5.5, 1, 0.5, 0.5, 0]  # as Detectron2 has them
    metadata = MetadataCatalog.get("pets")
    assert metadata.keypoint_names == ["nose", "left_eye", "right_eye"]
    assert metadata.keypoint_flip_map == [("left_eye", "right_eye")]
    assert [rule[:2] for rule in metadata.keypoint_connection_rules] == [
        ("nose", "left_eye"),
        ("nose", "right_eye"),
    ]


def test_a_list_of_keypoints_that_is_none_is_left_out(read):
    record = read(lambda c: c["categories"][0].update(keypoints=["a", "a"], skeleton=[[1, 9]]))
    assert kinds(record) == {"category_keypoints": 1} and not record.categories[1].keypoints


def test_sets_of_detectron2s_functions_are_read_here_too(coco_content, write_coco, tmp_path):
    """Its own reader leaves out boxes whose mask is none, and keeps what lies outside."""
    for number, item in enumerate(coco_content["annotations"]):
        item.update(segmentation=[[]], iscrowd="0", area=None, id=str(number))
    coco_content["annotations"][1]["bbox"] = [35, 5, 20, 20]
    entry = write_coco(coco_content)
    register_coco_instances("theirs", {}, entry["json"], entry["images"])
    check_names(["theirs"], "DATASETS.TRAIN")
    assert MetadataCatalog.get("theirs").get("thing_classes") is None  # nothing is read yet
    boxes = [[a["bbox"] for a in record["annotations"]] for record in DatasetCatalog.get("theirs")]
    assert boxes == [[[1, 2, 10, 10], [35, 5, 5, 20]], [[0, 0, 40, 30]], []]
    assert MetadataCatalog.get("theirs").thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    record = dataset_record("theirs")
    assert record is dataset_record("theirs") and kinds(record)["mask"] == 3

    register_coco_instances("other", {"thing_classes": ["dog"]}, entry["json"], entry["images"])
    with pytest.raises(ValueError, match="thing_classes of its metadata is .'dog'., but .* has"):
        dataset_record("other")


def test_sets_of_other_functions_stay_as_they_are(coco_content, write_coco):
    entry = write_coco(coco_content)
    dicts = [{"file_name": "1.png", "image_id": 1, "width": 40, "height": 30, "annotations": []}]
    DatasetCatalog.register("own", lambda: dicts)
    MetadataCatalog.get("own").set(thing_classes=["cat"], evaluator_type="coco")
    check_names(["own"], "DATASETS.TRAIN")
    assert DatasetCatalog.get("own") is dicts
    assert dataset_record("own").class_names == ["cat"]
    MetadataCatalog.get("own").set(json_file=entry["json"])
    assert len(dataset_record("own").annotations) == 3  # the evaluation's, as in Detectron2


def test_every_kind_of_note_has_its_row(repository):
    text = (repository / "docs" / "datasets.md").read_text()
    for kind in KINDS:
        assert re.search(rf"\| `{kind}` \|", text), kind
