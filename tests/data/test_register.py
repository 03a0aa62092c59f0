"""Registration from the config: what works, and what each kind of bad input is told."""

import copy
import json
import logging
import math
import re

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, transforms
from detectron2.data.datasets import register_coco_instances

from resobj_d2.data.class_checks import check_num_classes
from resobj_d2.data.mapper import ImageErrorMapper
from resobj_d2.data.register import (
    check_available,
    register_datasets,
    training_records,
)

pytestmark = pytest.mark.usefixtures("clean_catalogs")


def _config(*train):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = train
    return cfg


def test_coco_entry_fills_the_metadata_at_once_and_maps_ids(coco_content, write_coco):
    entry = write_coco(coco_content)
    register_datasets([entry])
    metadata = MetadataCatalog.get("pets")
    assert metadata.thing_classes == ["cat", "dog"]  # by id, not by position
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert metadata.evaluator_type == "coco"
    assert (metadata.json_file, metadata.image_root) == (entry["json"], entry["images"])
    records = DatasetCatalog.get("pets")
    assert [len(record["annotations"]) for record in records] == [2, 1, 0]
    assert [a["category_id"] for a in records[0]["annotations"]] == [0, 1]
    assert records[0]["annotations"][0]["bbox"] == [1, 2, 10, 10]
    assert records[0]["file_name"] == f"{entry['images']}/1.png"


def test_entries_come_from_the_command_line(coco_content, write_coco):
    entry = write_coco(coco_content)
    cfg = get_cfg()
    cfg.DATASETS.REGISTER = []
    cfg.merge_from_list(["DATASETS.REGISTER", str([entry])])
    register_datasets(cfg.DATASETS.REGISTER)
    assert len(DatasetCatalog.get("pets")) == 3
    restored = type(cfg).load_cfg(cfg.dump())  # the config that a run stores can be read again
    register_datasets(restored.DATASETS.REGISTER)


def test_equal_entry_twice_is_fine_and_a_different_one_is_not(coco_content, write_coco):
    entry = write_coco(coco_content)
    register_datasets([entry, {**entry, "format": "coco"}])
    other = write_coco(coco_content, name="other")
    with pytest.raises(ValueError, match="'pets' is already registered as CocoEntry.*pets.json"):
        register_datasets([{**other, "name": "pets"}])


def test_name_of_a_builtin_dataset_is_taken(coco_content, write_coco):
    with pytest.raises(ValueError, match="already registered by Detectron2 or other code"):
        register_datasets([{**write_coco(coco_content), "name": "coco_2017_train"}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "x"}, r"REGISTER\[0\] \('pets'\): unknown key 'image'.*Did you mean 'images'"),
        (
            {"format": "tfrecord"},
            "unknown format 'tfrecord'; known are coco, voc, yolo, csv, scenes",
        ),
        ({"images": None}, "'images' must be a non-empty string, got None"),
        ({"name": ""}, "'name' must be a non-empty string"),
    ],
)
def test_malformed_entry(coco_content, write_coco, change, message):
    with pytest.raises(ValueError, match=message):
        register_datasets([{**write_coco(coco_content), **change}])


def test_missing_key_is_named():
    with pytest.raises(ValueError, match="format 'coco' needs the key 'images'"):
        register_datasets([{"name": "a", "json": "a.json"}])


@pytest.mark.parametrize("entries", ["pets", {"name": "pets"}, 3])
def test_register_wants_a_list(entries):
    with pytest.raises(ValueError, match="must be a list of dicts"):
        register_datasets(entries)


def test_missing_json_is_named_with_its_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = f"dataset 'a' ({tmp_path}/no.json): there is no such json file"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        register_datasets([{"name": "a", "json": "no.json", "images": "."}])


def test_missing_image_folder_and_missing_images(coco_content, write_coco, tmp_path):
    entry = write_coco(coco_content)
    message = re.escape(f"'pets': there is no image folder {tmp_path}/nowhere")
    with pytest.raises(FileNotFoundError, match=message):
        register_datasets([{**entry, "images": str(tmp_path / "nowhere")}])
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path}/1.png does not exist")):
        register_datasets([{**entry, "images": str(tmp_path)}])
    assert "pets" not in DatasetCatalog


def test_broken_json(tmp_path):
    (tmp_path / "a.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"'a' \(.*a.json\): not valid json: .*line 1"):
        register_datasets([{"name": "a", "json": str(tmp_path / "a.json"), "images": "."}])


def test_results_file_instead_of_a_dataset(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list. Is it a results file"):
        register_datasets([{"name": "a", "json": str(tmp_path / "a.json"), "images": "."}])


def _without(key):
    return lambda content: content.pop(key)


def _set(key, position, **values):
    return lambda content: content[key][position].update(values)


def _drop(key, position, name):
    return lambda content: content[key][position].pop(name)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("images"), "the list 'images' is missing; the file has 'categories', 'annot"),
        (_without("categories"), "the list 'categories' is missing"),
        (lambda content: content.update(images=[]), "'images' is empty"),
        (lambda content: content.update(annotations={}), "the list 'annotations' is missing"),
        (
            _set("annotations", 1, category_id=0),
            r"annotation 12 on image 1 \('1.png'\) has category_id 0, .*\(7=dog, 3=cat\)",
        ),
        (_set("annotations", 2, image_id=9), "annotation 13 is on image 9, which is not in"),
        (_set("annotations", 1, id=11), "1 ids occur twice in 'annotations', .* 11"),
        (_set("images", 1, id=1), "1 ids occur twice in 'images', for instance 1"),
        (_set("categories", 1, id=7), "1 ids occur twice in 'categories'"),
        (_drop("annotations", 0, "id"), r"annotations\[0\] must be an object with 'id'"),
        (_drop("annotations", 0, "bbox"), "annotation 11 on image 1 .* four numbers.*got None"),
        (_set("annotations", 0, bbox=[1, 2, 3]), r"four numbers .*got \[1, 2, 3\]"),
        (_drop("images", 2, "height"), "image 3 has no height"),
        (_drop("categories", 0, "name"), "a non-empty string as 'name', got {'id': 7}"),
    ],
)
def test_inconsistent_json(coco_content, write_coco, spoil, message):
    entry = write_coco(coco_content)
    spoil(coco_content)
    with open(entry["json"], "w") as file:
        json.dump(coco_content, file)
    with pytest.raises(ValueError, match=message) as caught:
        register_datasets([entry])
    assert str(caught.value).startswith("dataset 'pets' (")
    assert "pets" not in DatasetCatalog


def test_degenerate_boxes_are_reported_and_dropped(coco_content, write_coco, caplog):
    for identity, box in ((21, [1, 1, 0, 5]), (22, [1, 1, 5, -2]), (23, [math.nan, 1, 5, 5])):
        spoiled = {**coco_content["annotations"][0], "id": identity, "bbox": box}
        coco_content["annotations"].append(spoiled)
    with caplog.at_level(logging.WARNING):
        register_datasets([write_coco(coco_content)])
    assert "boxes have no positive finite size" in caplog.text
    assert "evaluation (3 in all), for instance" in caplog.text
    assert "annotation 21 of image 1: [1, 1, 0, 5]" in caplog.text
    assert [len(record["annotations"]) for record in DatasetCatalog.get("pets")] == [2, 1, 0]


@pytest.mark.parametrize("absent", [("annotations",), ("annotations", "categories")])
def test_test_set_json_serves_prediction_but_not_training(coco_content, write_coco, absent):
    for key in absent:
        del coco_content[key]
    register_datasets([write_coco(coco_content)])
    assert [record["image_id"] for record in DatasetCatalog.get("pets")] == [1, 2, 3]
    check_num_classes({} if "categories" in absent else {"K": 2}, ["pets"])
    with pytest.raises(ValueError, match=r"DATASETS.TRAIN \(pets\) has 3 images and no usable box"):
        training_records(_config("pets"))


@pytest.mark.parametrize(("filter_empty", "expected"), [(True, 2), (False, 3)])
def test_training_keeps_single_empty_images_when_asked(
    coco_content, write_coco, filter_empty, expected
):
    register_datasets([write_coco(coco_content)])
    cfg = _config("pets")
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
    assert len(training_records(cfg)) == expected


def test_training_set_of_crowds_alone_is_refused(coco_content, write_coco):
    for annotation in coco_content["annotations"]:
        annotation["iscrowd"] = 1
    register_datasets([write_coco(coco_content)])
    with pytest.raises(ValueError, match="3 images and no usable box"):
        training_records(_config("pets"))


def test_unregistered_and_absent_datasets(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        training_records(_config())
    with pytest.raises(ValueError, match="'coco_2017_trian'.*Did you mean 'coco_2017_train'"):
        training_records(_config("coco_2017_trian"))
    monkeypatch.chdir(tmp_path)
    register_coco_instances("gone", {}, "gone.json", "images")
    MetadataCatalog.get("gone").json_file = "gone.json"
    message = f"dataset 'gone' of DATASETS.TEST: {tmp_path}/gone.json does not exist"
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        check_available(["gone"], "DATASETS.TEST")


def test_class_count_mismatch_names_key_dataset_classes_and_remedy(coco_content, write_coco):
    register_datasets([write_coco(coco_content)])
    check_num_classes({"MODEL.DENSE.NUM_CLASSES": 2}, ["pets"])
    message = (
        "MODEL.DENSE.NUM_CLASSES is 80, but dataset 'pets' has 2 classes: cat, dog. Set it in the "
        "config file or add to the command line: MODEL.DENSE.NUM_CLASSES 2"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        check_num_classes({"A": 2, "MODEL.DENSE.NUM_CLASSES": 80}, ["pets"])
    check_num_classes({"MODEL.DENSE.NUM_CLASSES": 80}, ["coco_2017_val"])


def test_class_count_of_a_dataset_registered_by_other_code(coco_content, write_coco):
    entry = write_coco(coco_content)
    register_coco_instances("plain", {}, entry["json"], entry["images"])
    with pytest.raises(ValueError, match="K is 3, but dataset 'plain' has 2 classes: cat, dog"):
        check_num_classes({"K": 3}, ["plain"])


def test_different_class_lists_are_refused(coco_content, write_coco):
    register_datasets([write_coco(coco_content)])
    swapped = copy.deepcopy(coco_content)
    swapped["categories"] = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    register_datasets([write_coco(swapped, name="swapped")])
    with pytest.raises(ValueError, match="'pets' and 'swapped' .*: cat, dog and dog, cat"):
        check_num_classes({"K": 2}, ["pets", "swapped"])
    swapped["categories"] = [{"id": 3, "name": "Cat"}, {"id": 7, "name": "dog "}]
    register_datasets([write_coco(swapped, name="written otherwise")])
    check_num_classes({"K": 2}, ["pets", "written otherwise"])


def test_unreadable_images_name_dataset_and_path(coco_content, write_coco, tmp_path):
    register_datasets([write_coco(coco_content)])
    mapper = ImageErrorMapper(DatasetMapper(is_train=False, augmentations=[], image_format="BGR"))
    records = DatasetCatalog.get("pets")
    assert mapper(records[0])["image"].shape == (3, 30, 40)
    path = tmp_path / "images" / "2.png"
    path.write_bytes(b"no picture")
    with pytest.raises(OSError, match=re.escape(f"'pets': image 2, {path}, cannot be read")):
        mapper(records[1])
    path.unlink()
    with pytest.raises(OSError, match=re.escape(f"'pets': image 2, {path}, does not exist")):
        mapper(records[1])


def test_train_mapper_accepts_the_records(coco_content, write_coco):
    register_datasets([write_coco(coco_content)])
    augmentations = [transforms.ResizeShortestEdge(60, 100)]
    mapper = DatasetMapper(is_train=True, augmentations=augmentations, image_format="BGR")
    instances = mapper(training_records(_config("pets"))[0])["instances"]
    assert instances.gt_classes.tolist() == [0, 1]
    assert instances.gt_boxes.tensor[0].tolist() == [2.0, 4.0, 22.0, 24.0]


def test_scenes_entry_generates_and_registers(tmp_path):
    entry = {"format": "scenes", "root": str(tmp_path), "image_size": 96}
    entry |= {"num_train": 3, "num_val": 2}
    names = [{**entry, "name": f"scenes_{split}", "split": split} for split in ("train", "val")]
    register_datasets(names)
    assert len(DatasetCatalog.get("scenes_train")) == 3
    assert len(DatasetCatalog.get("scenes_val")) == 2
    assert MetadataCatalog.get("scenes_val").thing_classes[0] == "disc"
    with pytest.raises(ValueError, match="must be one of train, val, got 'test'"):
        register_datasets([{**entry, "name": "scenes_test", "split": "test"}])


def test_scenes_are_generated_when_they_are_needed_and_not_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    small = {"format": "scenes", "image_size": 64, "num_train": 2, "num_val": 1}
    entries = [
        {**small, "name": f"{split}_{folder}", "folder": folder, "split": split}
        for folder in ("loaded", "checked")
        for split in ("train", "val")
    ]
    register_datasets(entries)
    register_datasets(entries)
    metadata = MetadataCatalog.get("val_loaded")
    assert metadata.thing_classes[-1] == "heart" and len(metadata.thing_classes) == 8
    assert metadata.thing_dataset_id_to_contiguous_id == {i + 1: i for i in range(8)}
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(
        tmp_path / "elsewhere"
    )  # "datasets" is relative to where they were registered
    (record,) = DatasetCatalog.get("val_loaded")
    assert record["file_name"] == f"{tmp_path}/datasets/loaded/val/000001.png"
    assert not (tmp_path / "datasets/checked").exists()
    check_available(["train_checked"], "DATASETS.TRAIN")
    content = json.loads((tmp_path / "datasets/checked/train.json").read_text())
    ids = {category["id"]: category["name"] for category in content["categories"]}
    numbers = MetadataCatalog.get("train_checked").thing_dataset_id_to_contiguous_id
    assert {i: metadata.thing_classes[numbers[i]] for i in ids} == ids


def test_scenes_that_cannot_be_used_are_refused_at_registration(tmp_path):
    entry = {"name": "a", "format": "scenes", "root": str(tmp_path), "split": "train"}
    with pytest.raises(ValueError, match="image_size must be a whole number >= 64, got 32"):
        register_datasets([{**entry, "image_size": 32}])
    (tmp_path / "scenes").mkdir()
    with pytest.raises(FileExistsError, match="not written by the scene generator"):
        register_datasets([entry])
