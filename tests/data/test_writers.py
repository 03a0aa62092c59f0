"""Sets that a format cannot hold as they are: nothing is lost, overwritten or read as another."""

import json

import pytest
from PIL import Image

from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.convert import convert
from resobj_d2.data.register import register_datasets

pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture
def make(tmp_path):
    """Writes a json with an image entry for each name, the n-th with a box at (n, n)."""

    def write(names, name="source", categories=("cat",), **annotation):
        folder = tmp_path / "pictures"
        images, annotations = [], []
        for number, file in enumerate(names, start=1):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            ending = {".jfif": "JPEG"}.get((folder / file).suffix)
            if not (folder / file).exists():
                Image.new("RGB", (100, 100), (number, 0, 0)).save(folder / file, format=ending)
            images.append({"id": number, "file_name": file, "width": 100, "height": 100})
            box = [number, number, 30, 40]
            annotations.append(
                {"id": number, "image_id": number, "category_id": 1, "bbox": box, **annotation}
            )
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": n} for i, n in enumerate(categories, start=1)],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return {"name": name, "json": str(tmp_path / f"{name}.json"), "images": str(folder)}

    return write


def read(entry, name="result"):
    register_datasets([{"name": name, **entry}])
    return dataset_record(name)


def boxes_of(record):
    """File name to the places of its boxes."""
    return {
        record.images.files[row].rpartition("/")[2]: record.annotations.boxes[rows, 0].tolist()
        for row, rows in enumerate(record.rows_by_image())
    }


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_pictures_that_differ_in_their_ending_are_refused(make, tmp_path, to):
    source = make(["a.jpg", "a.png", "b.jpg"])
    with pytest.raises(ValueError, match=r"a\.jpg and .*a\.png do not differ in their names"):
        convert(source, to=to, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_endings_that_yolo_does_not_find_are_refused(make, tmp_path):
    source = make(["a.jfif", "b.jpg"])
    with pytest.raises(ValueError, match=r"a\.jfif has none of \.jpg"):
        convert(source, to="yolo", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    record = read(convert("source", to="voc", output=tmp_path / "voc"))
    assert boxes_of(record) == {"a.jfif": [1], "b.jpg": [2]}


@pytest.mark.parametrize(
    "names", [["s1/images/a.jpg", "s2/images/b.jpg"], ["images/a.jpg", "b.jpg"]]
)
def test_folders_called_images_inside(make, tmp_path, names):
    record = read(convert(make(names), to="yolo", output=tmp_path / "out"))
    assert boxes_of(record) == {"a.jpg": [1], "b.jpg": [2]}
    assert record.notes == ()


@pytest.mark.parametrize("to", ["voc", "yolo", "csv"])
def test_images_of_one_file_are_joined(make, tmp_path, caplog, to):
    source = make(["a.jpg", "a.jpg", "b.jpg"])
    record = read(convert(source, to=to, output=tmp_path / "out"))
    assert boxes_of(record) == {"a.jpg": [1, 2], "b.jpg": [3]}
    assert (
        "'source': images of a file that another image has are joined with it (1 in all)"
        in caplog.text
    )


def test_coco_keeps_images_of_one_file_apart(make, tmp_path):
    record = read(convert(make(["a.jpg", "a.jpg"]), to="coco", output=tmp_path / "out"))
    assert record.images.ids == [1, 2] and record.annotations.boxes[:, 0].tolist() == [1, 2]


def test_a_second_voc_split_does_not_take_the_boxes_of_the_first(make, tmp_path):
    train = convert(make(["x.jpg", "y.jpg"]), to="voc", output=tmp_path / "out", split="train")
    other = make(["y.jpg", "x.jpg"], name="other")
    with pytest.raises(FileExistsError, match=r"[xy]\.xml is there with other content"):
        convert(other, to="voc", output=tmp_path / "out", split="val")
    assert boxes_of(read(train)) == {"x.jpg": [1], "y.jpg": [2]}
    assert not (tmp_path / "out" / "ImageSets" / "Main" / "val.txt").exists()


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_layouts_that_hold_the_pictures_cannot_leave_them(make, tmp_path, to):
    with pytest.raises(ValueError, match="layout holds the pictures: link or copy them"):
        convert(make(["a.jpg", "b.jpg"]), to=to, output=tmp_path / "out", pictures="none")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["voc", "yolo", "csv"])
@pytest.mark.parametrize("name", [" cat", "cat\u2028", "c\ufffeat"])
def test_class_names_that_would_change_are_refused(make, tmp_path, to, name):
    with pytest.raises(ValueError, match="would be read back as another one"):
        convert(make(["a.jpg"], categories=[name]), to=to, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_splits_of_a_csv_have_the_classes_of_the_set(make, tmp_path):
    """The training set has no eel, the other one no dog: numbers must mean the same."""
    names, records = ("cat", "dog", "eel"), []
    for split, used in (("train", 2), ("val", 3)):
        source = make(["a.jpg"], name=split, categories=names, category_id=used)
        entry = convert(source, to="csv", output=tmp_path / "out", split=split)
        assert entry["classes"] == ["cat", "dog", "eel"]
        records.append(read(entry, f"{split}_csv"))
    assert [record.class_names for record in records] == [list(names)] * 2
    assert [record.annotations.classes.tolist() for record in records] == [[1], [2]]
    (note,) = [note for note in records[0].notes if note.kind == "absent_class"]
    assert note.count == 2 and note.examples == ("cat", "eel")


def test_ids_of_coco_stay(make, tmp_path):
    source = make(["a.jpg", "b.jpg"])
    content = json.loads((tmp_path / "source.json").read_text())
    for item, identity in zip(content["annotations"], (70, 5), strict=True):
        item["id"] = identity
    (tmp_path / "source.json").write_text(json.dumps(content))
    entry = convert(source, to="coco", output=tmp_path / "out")
    written = json.loads((tmp_path / "out" / "train.json").read_text())
    assert [item["id"] for item in written["annotations"]] == [70, 5]
    assert read(entry).annotations.ids == [70, 5]
