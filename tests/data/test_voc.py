"""Pascal VOC's folders, registered and read as Detectron2 reads them."""

import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.register import register_datasets

pytestmark = pytest.mark.usefixtures("clean_catalogs")


def test_voc_entry(write_voc):
    root = write_voc({"a": [("rose", 0, (1, 1, 40, 30))], "b": [("tulip", 1, (11, 6, 20, 15))]})
    entry = {"name": "flowers", "format": "voc", "root": str(root), "split": "train"}
    register_datasets([{**entry, "classes": ["tulip", "rose"]}])
    metadata = MetadataCatalog.get("flowers")
    assert metadata.evaluator_type == "pascal_voc"
    assert (metadata.thing_classes, metadata.year) == (["tulip", "rose"], 2012)
    first, second = DatasetCatalog.get("flowers")
    assert first["file_name"] == f"{root}/JPEGImages/a.jpg"
    assert (first["image_id"], first["height"], first["width"]) == ("a", 30, 40)
    assert first["annotations"] == [
        {
            "bbox": [0.0, 0.0, 40.0, 30.0],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 1,
            "difficult": 0,
        }
    ]
    assert second["annotations"][0]["bbox"] == [10.0, 5.0, 20.0, 15.0]
    assert second["annotations"][0]["difficult"] == 1
    register_datasets([{**entry, "classes": ("tulip", "rose")}])  # a tuple is the same entry


@pytest.mark.parametrize("first_pixel", [0, 1])
def test_voc_with_centres(write_voc, first_pixel):
    """Of the whole picture and of columns 10 to 19, rows 4 to 5, where pixels count from 1."""
    shift = 0.5 * (1 - first_pixel)  # from 0 on, a picture 40 wide has its centre at 20
    boxes = [(20.5, 15.5, 40, 30), (14.5, 4.5, 10, 2)]
    written = [("cat", 0, (x - shift, y - shift, w, h)) for x, y, w, h in boxes]
    entry = {"format": "voc", "root": str(write_voc({"a": written})), "split": "train"}
    entry = {**entry, "box_format": "cxcywh", "first_pixel": first_pixel, "name": "centres"}
    register_datasets([entry])
    found = [x["bbox"] for x in DatasetCatalog.get("centres")[0]["annotations"]]
    assert found == [[0, 0, 40, 30], [9, 3, 19, 5]]
    kinds = {note.kind for note in dataset_record("centres").notes}
    assert "first_pixel" not in kinds and "cut" not in kinds


def test_voc_errors_name_the_file(write_voc):
    root = write_voc({"a": [("rose", 0, (1, 1, 40, 30))]})
    entry = {"name": "flowers", "format": "voc", "root": str(root), "split": "train"}
    register_datasets([entry])
    with pytest.raises(ValueError, match=r"a\.xml\): class 'rose' is not among .*tvmonitor"):
        DatasetCatalog.get("flowers")
    again = "<object><name>cat</name><name>dog</name><bndbox/></object>"
    (root / "Annotations" / "a.xml").write_text(f"<annotation>{again}</annotation>")
    with pytest.raises(ValueError, match=r"a\.xml\): an object has more than one <name>"):
        DatasetCatalog.get("flowers")
    (root / "Annotations" / "a.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"a\.xml\): not valid XML"):
        DatasetCatalog.get("flowers")
    (root / "Annotations" / "a.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.xml\): there is no such file"):
        DatasetCatalog.get("flowers")
    with pytest.raises(FileNotFoundError, match=r"no list of images .*Main/val\.txt"):
        register_datasets([{**entry, "name": "b", "split": "val"}])
    with pytest.raises(FileNotFoundError, match="there is no folder .*nowhere"):
        register_datasets([{**entry, "name": "c", "root": str(root / "nowhere")}])
    with pytest.raises(ValueError, match="'year' must be 2007 or 2012, got 2010"):
        register_datasets([{**entry, "name": "d", "year": 2010}])
    with pytest.raises(ValueError, match="'classes' must be a list of distinct strings"):
        register_datasets([{**entry, "name": "e", "classes": ["x", "x"]}])


def test_voc_agrees_with_detectron2s_reader(write_voc):
    from detectron2.data.datasets import load_voc_instances

    root = write_voc({f"{i:03d}": [("cat", i % 2, (1 + i, 2, 20 + i, 25))] for i in range(3)})
    register_datasets([{"name": "v", "format": "voc", "root": str(root), "split": "train"}])
    theirs = load_voc_instances(str(root), "train", MetadataCatalog.get("v").thing_classes)
    for ours, other in zip(DatasetCatalog.get("v"), theirs, strict=True):
        annotations = ours.pop("annotations")
        for annotation in annotations:
            annotation.pop("difficult")
        assert annotations == other.pop("annotations")
        assert ours.pop("dataset_name") == "v"
        assert ours == other


def test_voc_degenerate_box_is_dropped(write_voc, caplog):
    # (10, 5) to (9, 20) in pixels from 1: no width even with both ends included.
    root = write_voc({"a": [("cat", 0, (10, 5, 9, 20)), ("dog", 0, (1, 1, 9, 9))]})
    register_datasets([{"name": "v", "format": "voc", "root": str(root), "split": "train"}])
    with caplog.at_level(logging.WARNING):
        (record,) = DatasetCatalog.get("v")
    assert len(record["annotations"]) == 1
    assert "for instance annotation a.xml object 1 of image a" in caplog.text
    assert (
        "boxes have no positive finite size and are left out of training and evaluation (1 in all)"
        in caplog.text
    )
