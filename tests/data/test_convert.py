"""Datasets go from format to format and come back as they were."""

import ast
import dataclasses
import itertools
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.convert import convert
from resobj_d2.data.register import register_datasets
from resobj_d2.inspection.convert_command import main

pytestmark = pytest.mark.usefixtures("clean_catalogs")

FORMATS = ("coco", "voc", "yolo", "csv")


@pytest.fixture
def source(tmp_path):
    """Pictures in two folders, one of them empty; fractions of pixels; a difficult object."""
    draw = np.random.default_rng(0)
    images, annotations = [], []
    for i, (name, width, height) in enumerate(
        [("a/1.png", 64, 48), ("a/2.jpg", 33, 77), ("b/3.bmp", 50, 50)], start=1
    ):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (i, 0, 0)).save(path)
        images.append({"id": 10 * i, "file_name": name, "width": width, "height": height})
        for _ in range(0 if i == 2 else 4):
            size = draw.uniform(2, [width / 2, height / 2])
            corner = draw.uniform(0, [width, height] - size)
            annotations.append(
                {
                    "id": 100 + len(annotations),
                    "image_id": 10 * i,
                    "category_id": int(draw.choice([2, 5, 9])),
                    "bbox": np.round([*corner, *size], 3).tolist(),
                }
            )
    names = {2: "zebra", 5: "ant", 9: "magpie of Asia"}
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in names.items()],
    }
    (tmp_path / "source.json").write_text(json.dumps(content))
    images_folder = str(tmp_path / "pictures")
    return {"format": "coco", "json": str(tmp_path / "source.json"), "images": images_folder}


def read(entry, name):
    register_datasets([{"name": name, **entry}])
    return dataset_record(name)


def content_of(record):
    """Size of every picture, with the names and boxes in it, whatever order and ids are."""
    names, table = record.class_names, record.annotations
    pictures = {}
    for row, rows in enumerate(record.rows_by_image()):
        colour = Image.open(record.images.files[row]).convert("RGB").getpixel((0, 0))[0]
        boxes = [(names[table.classes[i]], *np.round(table.boxes[i], 4)) for i in rows]
        size = (record.images.widths[row], record.images.heights[row])
        pictures[colour] = (size, sorted(boxes))
    return pictures


@pytest.mark.parametrize(("first", "second"), list(itertools.product(FORMATS, FORMATS)))
def test_there_and_on_and_back(source, tmp_path, first, second):
    original = read(source, "original")
    one = convert("original", to=first, output=tmp_path / "one", split="train")
    two = convert(one, to=second, output=tmp_path / "two", split="val")
    record = read(two, "two")
    assert len(record.annotations) == 8 and len(record.images) == 3
    assert content_of(record) == content_of(original)
    assert record.notes == ()
    if "csv" not in (first, second):  # whose classes are in alphabetical order of themselves
        assert record.class_names == original.class_names


@pytest.mark.parametrize("to", FORMATS)
def test_a_folder_takes_several_splits_and_overwrites_none(source, tmp_path, to):
    output = tmp_path / "out"
    entries = [convert(source, to=to, output=output, split=split) for split in ("train", "val")]
    for entry, name in zip(entries, ("x", "y"), strict=True):
        assert len(read(entry, name).annotations) == 8
    with pytest.raises(FileExistsError, match="is there already"):
        convert(source, to=to, output=output, split="val")


def test_coco_keeps_everything(tmp_path):
    content = {
        "images": [{"id": 7, "file_name": "1.png", "width": 40, "height": 30}],
        "categories": [{"id": 3, "name": "cat", "keypoints": ["a", "b"], "skeleton": [[1, 2]]}],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 3,
                "bbox": [1, 2, 10, 10],
                "area": 44.5,
                "segmentation": [[1, 2, 11, 2, 11, 12]],
                "keypoints": [5, 6, 2, 0, 0, 0],
                "difficult": 1,
            },
            {
                "id": 2,
                "image_id": 7,
                "category_id": 3,
                "bbox": [0, 5, 1, 10],
                "iscrowd": 1,
                "segmentation": {"size": [30, 40], "counts": [5, 10, 1185]},
            },
        ],
    }
    Image.new("RGB", (40, 30)).save(tmp_path / "1.png")
    (tmp_path / "source.json").write_text(json.dumps(content))
    source = {"json": str(tmp_path / "source.json"), "images": str(tmp_path)}
    record = read(source, "original")
    entry = convert("original", to="coco", output=tmp_path / "out", pictures="none")
    assert entry["images"] == str(tmp_path) and not (tmp_path / "out" / "images").exists()
    again = read(entry, "again")
    assert again.categories == record.categories and again.images.ids == record.images.ids
    for field in dataclasses.fields(record.annotations):
        if field.name not in ("masks", "keypoints"):
            before = getattr(record.annotations, field.name)
            assert np.array_equal(getattr(again.annotations, field.name), before), field.name
    assert again.annotations.masks[1] == record.annotations.masks[1]
    assert again.annotations.masks[0][0].tolist() == [1, 2, 11, 2, 11, 12]
    assert again.annotations.keypoints[0].tolist() == [[5, 6, 2], [0, 0, 0]]


@pytest.mark.parametrize("to", ["voc", "yolo", "csv"])
def test_what_a_format_cannot_hold_is_said(tmp_path, caplog, to):
    content = {
        "images": [{"id": 7, "file_name": "1.png", "width": 40, "height": 30}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 10, 10], "iscrowd": 1},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [1, 2, 9, 9], "difficult": 1},
        ],
    }
    Image.new("RGB", (40, 30)).save(tmp_path / "1.png")
    (tmp_path / "source.json").write_text(json.dumps(content))
    source = {"json": str(tmp_path / "source.json"), "images": str(tmp_path)}
    entry = convert(source, to=to, output=tmp_path / "out", pictures="copy")
    assert "crowd regions (1)" in caplog.text
    assert ("marks of difficult objects (1)" in caplog.text) == (to != "voc")
    record = read(entry, "again")
    assert record.annotations.boxes == pytest.approx(np.array([[1, 2, 9, 9]]))
    assert record.annotations.difficult.tolist() == [to == "voc"]


def test_masks_and_keypoints_that_are_none_are_said(tmp_path, caplog):
    """Which registration keeps for those who train them: here they would vanish in silence."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 2, 9, 9], "segmentation": [[1]]}
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    entry = {"format": "coco", "json": str(tmp_path / "a.json"), "images": str(tmp_path)}
    convert(entry, to="coco", output=tmp_path / "out")
    assert "are no masks" in caplog.text and "(1 in all), for instance annotation 7" in caplog.text


def test_splits_of_other_classes_do_not_mix(source, tmp_path):
    convert(source, to="yolo", output=tmp_path / "out", split="train")
    fewer = {**source, "name": "fewer", "classes": ["ant"]}
    with pytest.raises(ValueError, match="data.yaml is of other classes"):
        convert(fewer, to="yolo", output=tmp_path / "out", split="val")


def printed(capsys):
    """The entries that were printed, for a configuration and for the command line."""
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    (entry,) = (yaml.safe_load(line) for line in lines if line.startswith("- {"))
    (words,) = (shlex.split(line) for line in lines if line.startswith("DATASETS.REGISTER "))
    assert ast.literal_eval(words[1]) == entry
    return entry[0], lines


def test_the_command_prints_the_entry(source, tmp_path, capsys):
    words = [f"{key}={value}" for key, value in source.items()] + ["classes=[ant, zebra]"]
    assert main([*words, "--to", "voc", "--output", str(tmp_path / "ants"), "--split", "val"]) == 0
    entry, _ = printed(capsys)
    assert entry["name"] == "ants_val" and entry["classes"] == ["ant", "zebra"]
    register_datasets([entry])
    assert dataset_record("ants_val").class_names == ["ant", "zebra"]
    picture = tmp_path / "ants" / "JPEGImages" / "a_1.png"
    assert picture.is_symlink() and picture.resolve() == tmp_path / "pictures" / "a" / "1.png"


def test_words_in_any_order_and_the_split_of_the_file(source, tmp_path, capsys):
    words = [f"{key}={value}" for key, value in source.items()]
    options = ["--to", "coco", "--output", str(tmp_path / "gr\u00f6\u00dfe")]
    assert main([words[0], *options, *words[1:]]) == 0
    entry, lines = printed(capsys)
    assert (entry["name"], Path(entry["json"]).name) == ("gr\u00f6\u00dfe_source", "source.json")
    assert sum("gr\u00f6\u00dfe_source" in line for line in lines) == 2
    assert any(line.startswith("3 pictures and 8 boxes are written") for line in lines)


def test_a_bare_path_is_read_as_by_the_check(source, tmp_path, capsys):
    json_file = tmp_path / "pictures" / "val.json"
    shutil.copy(source["json"], json_file)
    assert main([str(json_file), "--to", "yolo", "--output", str(tmp_path / "yolo")]) == 0
    entry, _ = printed(capsys)
    assert (entry["name"], entry["split"]) == ("yolo_val", "val")
    assert main([entry["yaml"], "--to", "csv", "--output", str(tmp_path / "csv")]) == 0
    entry, _ = printed(capsys)
    assert entry["name"] == "csv_val"
    convert(source, to="yolo", output=tmp_path / "yolo", split="train")
    both = [str(tmp_path / "yolo"), "--to", "csv", "--output", str(tmp_path / "both")]
    with pytest.raises(ValueError, match="several datasets, train, val: choose one with --split"):
        main(both)
    assert main([*both, "--split", "train"]) == 0
    assert printed(capsys)[0]["name"] == "both_train"


def test_refused_conversions_leave_no_folder(source, tmp_path):
    (tmp_path / "pictures" / "a" / "1.png").rename(tmp_path / "pictures" / "a" / "2.png")
    content = json.loads((tmp_path / "source.json").read_text())
    content["images"][0]["file_name"] = "a/2.png"
    (tmp_path / "source.json").write_text(json.dumps(content))
    for to in ("voc", "yolo"):
        with pytest.raises(ValueError, match="dataset 'source'.* do not differ"):
            convert(source, to=to, output=tmp_path / "out", split="train")
    with pytest.raises(ValueError, match=r"^the source \('source'\): unknown format"):
        convert({"format": "x"}, to="voc", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_words_that_are_no_source(tmp_path):
    with pytest.raises(ValueError, match="KEY=VALUE ..., got 'b' among others"):
        main(["a=1", "b", "--to", "voc", "--output", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="coco_2017_vl"):
        main(["coco_2017_vl", "--to", "voc", "--output", str(tmp_path)])
