"""VOC's relatives, YOLO and CSV: what is found, what it means, and what bad files are told."""

import json
import logging
import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.picture_files import picture_size
from resobj_d2.data.pictures import read_picture
from resobj_d2.data.register import register_datasets
from resobj_d2.data.text_files import read_text

pytestmark = pytest.mark.usefixtures("clean_catalogs")

XML = """<annotation><filename>{file}</filename>{size}<object><name>cat</name>
<bndbox><xmin>{x}</xmin><ymin>1</ymin><xmax>20</xmax><ymax>15</ymax></bndbox></object></annotation>
"""
SIZE = "<size><width>40</width><height>30</height></size>"


def picture(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    return path


def xml_file(path, file="a.jpg", size=SIZE, x=1, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    declared = f'<?xml version="1.0" encoding="{encoding}"?>'
    path.write_bytes((declared + XML.format(file=file, size=size, x=x)).encode(encoding))


def record_of(**entry):
    register_datasets([{"name": "x", **entry}])
    return dataset_record("x")


def notes_of(record):
    return {note.kind: note.count for note in record.notes}


@pytest.fixture
def voc(tmp_path):
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations").mkdir()

    def write(list_of_images, **files):
        """files: image id to file name of the picture."""
        for identity, file in files.items():
            picture(tmp_path / "JPEGImages" / file)
            xml_file(tmp_path / "Annotations" / f"{identity}.xml", file)
        (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes(list_of_images)
        return {"format": "voc", "root": str(tmp_path), "split": "train", "classes": ["cat", "dog"]}

    return write


@pytest.mark.parametrize("file", ["a.JPG", "a.bmp", "a.Png", "a.tif", "a.webp", "a.jpeg"])
def test_voc_pictures_of_any_ending(voc, tmp_path, file):
    record = record_of(**voc(b"a\n", a=file))
    assert record.images.files == [str(tmp_path / "JPEGImages" / file)]
    assert notes_of(record) == {"absent_class": 1}  # there is no dog


@pytest.mark.parametrize(
    "content",
    [
        b"a -1\nb  1\n",
        b"a\r\nb\r\n\r\n",
        "a\nb\n".encode("utf-16"),
        b"\xef\xbb\xbfa\nb",
    ],
)
def test_voc_lists_as_they_are_found(voc, content):
    record = record_of(**voc(content, a="a.jpg", b="b.jpg"))
    assert record.images.ids == ["a", "b"]
    assert record.annotations.boxes.tolist() == [[0, 0, 20, 15]] * 2


def test_voc_names_with_spaces_and_repeated_lines(voc):
    record = record_of(**voc(b"my cat 1\nmy cat 1 -1\n", **{"my cat 1": "my cat 1.png"}))
    assert record.images.ids == ["my cat 1"]
    assert notes_of(record)["listed_twice"] == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8", "latin-1", "gbk"])
def test_xml_of_any_encoding(voc, tmp_path, encoding):
    entry = voc(b"a\n", a="a.jpg")
    xml_file(tmp_path / "Annotations" / "a.xml", "ü.jpg" if encoding != "gbk" else "猫.jpg",
             encoding=encoding)  # fmt: skip
    assert len(record_of(**entry).annotations) == 1


def test_xml_that_expands_is_refused(voc, tmp_path):
    entry = voc(b"a\n", a="a.jpg")
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]><annotation>&a;</annotation>'
    (tmp_path / "Annotations" / "a.xml").write_text(bomb)
    with pytest.raises(ValueError, match=r"a\.xml\): annotations .* define no entities"):
        record_of(**entry)


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_missing_sizes_are_those_of_the_picture(voc, tmp_path, size):
    entry = voc(b"a\n", a="a.jpg")
    xml_file(tmp_path / "Annotations" / "a.xml", size=size)
    record = record_of(**entry)
    assert (record.images.widths[0], record.images.heights[0]) == (40, 30)
    assert notes_of(record)["size_from_picture"] == 1


def test_voc_that_counts_from_0(voc, tmp_path):
    entry = voc(b"a\n", a="a.jpg")
    xml_file(tmp_path / "Annotations" / "a.xml", x=0)
    record = record_of(**entry)
    assert notes_of(record) == {"first_pixel": 1, "cut": 1, "absent_class": 1}
    assert record.annotations.boxes.tolist() == [[0, 0, 20, 15]]
    register_datasets([{**entry, "name": "y", "first_pixel": 0}])
    assert dataset_record("y").annotations.boxes.tolist() == [[0, 1, 20, 14]]


def test_labelimg_folder_without_image_sets(tmp_path):
    """Xml files and pictures in one folder; the picture is called as <filename> says."""
    picture(tmp_path / "b.png")
    picture(tmp_path / "shot 2.bmp")
    xml_file(tmp_path / "b.xml", "b.png")
    xml_file(tmp_path / "c.xml", "shot 2.bmp")
    record = record_of(format="voc", root=str(tmp_path), classes=["cat"])
    assert record.images.ids == ["b", "c"]
    assert record.images.files == [str(tmp_path / "b.png"), str(tmp_path / "shot 2.bmp")]
    assert MetadataCatalog.get("x").evaluator_type == "pascal_voc"


def test_folders_of_splits_and_of_parts(tmp_path):
    picture(tmp_path / "val" / "images" / "a.png")
    xml_file(tmp_path / "val" / "annotations" / "a.xml")
    record = record_of(format="voc", root=str(tmp_path), split="val", classes=["cat"])
    assert record.images.files == [str(tmp_path / "val" / "images" / "a.png")]
    with pytest.raises(FileNotFoundError, match="neither a list .*test.txt nor a folder"):
        register_datasets([{"name": "y", "format": "voc", "root": str(tmp_path), "split": "test"}])
    with pytest.raises(FileNotFoundError, match="there is no xml file in"):
        register_datasets([{"name": "y", "format": "voc", "root": str(tmp_path)}])


def test_voc_classes_pick_and_order(voc, tmp_path, caplog):
    entry = {**voc(b"a\n", a="a.jpg"), "classes": ["dog"]}
    with caplog.at_level(logging.WARNING):
        record = record_of(**entry)
    assert len(record.annotations) == 0 and record.images.ids == ["a"]
    assert notes_of(record) == {"other_class": 1, "absent_class": 1}
    assert (
        "for instance cat" in caplog.text
        and "is a name misspelt? (1 in all), for instance dog" in caplog.text
    )


def yolo(root, labels, names=("cat", "dog"), **more):
    """labels: text of each picture's label file; None for none."""
    for stem, text in labels.items():
        picture(root / "images" / "train" / f"{stem}.png")
        if text is not None:
            path = root / "labels" / "train" / f"{stem}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    content = {"train": "images/train", "names": list(names), **more}
    (root / "data.yaml").write_text(json.dumps(content))  # json is yaml
    return {"format": "yolo", "yaml": str(root / "data.yaml"), "split": "train"}


def test_yolo_by_hand(tmp_path):
    """Pictures of 40 x 30: centre (.5, .5) and size (.5, .2) are 20 x 6 pixels at (10, 12)."""
    labels = {"a": "1 0.5 0.5 0.5 0.2\n0 0.25 0.5 0.5 1\n", "b": "", "sub/c": None}
    record = record_of(**yolo(tmp_path, labels))
    assert record.images.ids == ["images/train/a", "images/train/b", "images/train/sub/c"]
    assert record.annotations.boxes == pytest.approx(np.array([[10, 12, 20, 6], [0, 0, 20, 30]]))
    assert record.annotations.classes.tolist() == [1, 0]
    assert notes_of(record) == {"no_label_file": 1}
    assert [len(d["annotations"]) for d in DatasetCatalog.get("x")] == [2, 0, 0]
    assert MetadataCatalog.get("x").thing_classes == ["cat", "dog"]


def test_yolo_polygons_are_masks_with_their_box(tmp_path):
    record = record_of(**yolo(tmp_path, {"a": "0 0.25 0.1 0.75 0.1 0.5 0.9\n"}))
    assert record.annotations.boxes == pytest.approx(np.array([[10, 3, 20, 24]]))
    assert record.annotations.masks[0][0] == pytest.approx(np.array([10, 3, 30, 3, 20, 27]))


@pytest.mark.parametrize("box_format", [None, "normalized_xyxy", "normalized_xywh", "xyxy"])
def test_yolo_polygons_have_their_box_in_every_format(tmp_path, box_format):
    """Pictures of 40 x 30."""
    scale = np.array([40, 30]) if box_format == "xyxy" else 1
    points = (np.array([[0.1, 0.2], [0.9, 0.2], [0.9, 0.6]]) * scale).ravel().tolist()
    entry = yolo(tmp_path, {"a": "0 " + " ".join(map(str, points))})
    record = record_of(**entry, **({"box_format": box_format} if box_format else {}))
    assert record.annotations.boxes == pytest.approx(np.array([[4, 6, 32, 12]]))


def test_yolo_keypoints(tmp_path):
    text = "0 0.5 0.5 0.5 0.2 0.25 0.5 2 0 0 0\n"
    record = record_of(**yolo(tmp_path, {"a": text}, kpt_shape=[2, 3]))
    assert record.annotations.keypoints[0].tolist() == [[9.5, 14.5, 2], [0, 0, 0]]
    assert record.annotations.masks == [None]


def test_yolo_without_a_yaml(tmp_path):
    entry = yolo(tmp_path, {"a": "1 0.5 0.5 0.5 0.2\n"})
    images = str(tmp_path / "images" / "train")
    with pytest.raises(ValueError, match="needs either the key 'yaml' or the key 'images'"):
        register_datasets([{"name": "y", **entry, "images": images}])
    entry = {"name": "y", "format": "yolo", "images": images}
    with pytest.raises(FileNotFoundError, match="give 'yaml' or 'classes', or put them into"):
        register_datasets([entry])
    register_datasets([{**entry, "classes": ["cat", "dog"]}])
    assert dataset_record("y").images.ids == ["a"]
    (tmp_path / "labels" / "train" / "classes.txt").write_text("cat\ndog\n")
    register_datasets([{**entry, "name": "z", "classes": ["dog"]}])
    assert dataset_record("z").annotations.classes.tolist() == [0]
    assert MetadataCatalog.get("z").thing_dataset_id_to_contiguous_id == {1: 0}


def test_yolo_splits_that_are_lists_or_elsewhere(tmp_path):
    yolo(tmp_path, {"a": "1 0.5 0.5 0.5 0.2\n", "b": ""})
    (tmp_path / "val.txt").write_text("./images/train/b.png\nimages/train/a.png\n")
    content = {
        "path": "/moved/away",
        "val": "val.txt",
        "test": "../images",
        "names": {0: "cat", 1: "dog"},
    }
    (tmp_path / "data.yaml").write_text(repr(content))
    entry = {"format": "yolo", "yaml": str(tmp_path / "data.yaml")}
    record = record_of(**entry, split="val")
    assert record.images.ids == ["images/train/b", "images/train/a"]
    register_datasets([{"name": "y", **entry, "split": "test"}])
    assert len(dataset_record("y").images) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2 0.5 0.5 0.5 0.2", r"a\.txt, line 1: the class must be a number from 0 to 1, got '2'"),
        ("\ncat 0.5 0.5 0.5 0.2", r"a\.txt, line 2: the class must be a number .* got 'cat'"),
        ("0 0.5 x 0.5 0.2", r"line 1: 'x' is no number"),
        ("0 0.5 0.5 0.5", "3 numbers follow the class, 4 of a box, or a polygon were expected"),
        ("0 0.5 0.5 0.5 0.2 0.9", "5 numbers follow .*Is it a file of predictions with scores"),
        ("0 20 15 20 6\n1 38 10 4 4\n1 30 28 4 4", "but fit as the centre, width, height"),
    ],
)
def test_bad_yolo_lines(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        record_of(**yolo(tmp_path, {"a": text}))


def test_yaml_that_expands_is_refused(tmp_path):
    entry = yolo(tmp_path, {"a": ""})
    text = "a: &a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]\ntrain: images/train\n"
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match="aliases .* are refused"):
        register_datasets([{"name": "y", **entry}])
    (tmp_path / "data.yaml").write_text("names: " + "[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        register_datasets([{"name": "y", **entry}])
    (tmp_path / "data.yaml").write_text("names: [a]\n" * 100_000)
    with pytest.raises(ValueError, match="a yaml of 1100000 characters is no list of classes"):
        register_datasets([{"name": "y", **entry}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": None}, "'names' must be a list or a dict"),
        ({"names": ["a", "a"]}, "two classes are called 'a'"),
        ({"names": {"0": "a", "2": "b"}}, r"numbers of 'names' must be 0 to 1, got \['0', '2'\]"),
        ({"nc": 3}, "'nc' is 3, but 'names' has 2 names"),
        ({"nc": 3, "names": ["cat"]}, "'nc' is 3, but 'names' has 1 name$"),
        ({"train": None}, "there is no split 'train'; it has val"),
        ({"train": "nowhere"}, "there is no folder or list .*nowhere"),
        ({"kpt_shape": 17}, "'kpt_shape' must be"),
    ],
)
def test_bad_yaml(tmp_path, change, message):
    entry = yolo(tmp_path, {"a": ""}, val="images/train")
    content = json.loads((tmp_path / "data.yaml").read_text())
    (tmp_path / "data.yaml").write_text(json.dumps({**content, **change}))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        register_datasets([{"name": "y", **entry}])


def test_a_pipe_in_place_of_a_list_is_refused(tmp_path):
    """Reading it would wait for ever, and a device as /dev/zero would fill the memory."""
    entry = yolo(tmp_path, {"a": ""})
    os.mkfifo(tmp_path / "pipe")
    content = json.loads((tmp_path / "data.yaml").read_text())
    (tmp_path / "data.yaml").write_text(json.dumps({**content, "train": "pipe"}))
    with pytest.raises(ValueError, match="pipe is not a file"):
        register_datasets([{"name": "y", **entry}])
    with pytest.raises(ValueError, match="pipe is not a file"):
        read_text(tmp_path / "pipe", "x")


def test_yaml_that_would_run_code_is_refused(tmp_path):
    entry = yolo(tmp_path, {"a": ""})
    marker = tmp_path / "ran"
    text = f"names: !!python/object/apply:os.mkdir ['{marker}']\n"
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(ValueError, match="not valid yaml"):
        register_datasets([{"name": "y", **entry}])
    assert not marker.exists()


def test_pictures_without_any_label_are_refused(tmp_path):
    with pytest.raises(ValueError, match="1 picture and no label file; for instance"):
        record_of(**yolo(tmp_path, {"a": None}))


def csv_entry(tmp_path, text):
    for name in ("a.png", "b.png", "c.jpg"):
        picture(tmp_path / "images" / name)
    (tmp_path / "boxes.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return {"format": "csv", "csv": str(tmp_path / "boxes.csv"), "images": str(tmp_path / "images")}


CENTRES = """file,class_name,cx,cy,w,h
a.png,dog,20,15,20,6
a.png,cat,10,15,20,30
b.png,,,,,
"""
WITHOUT_ENDINGS = "image,class,x1,y1,x2,y2\na,dog,10,12,30,18\na,cat,0,0,20,30\nb,,,,,\n"
CSVS = {
    "corners with sizes": """filename,width,height,class,xmin,ymin,xmax,ymax
a.png,40,30,dog,10,12,30,18
a.png,40,30,cat,0,0,20,30
b.png,40,30,,,,,
""",
    "no header": "a.png,10,12,30,18,dog\na.png,0,0,20,30,cat\nb.png,,,,,\n",
    "semicolons": "Image;Label;x;y;w;h\na.png;dog;10;12;20;6\na.png;cat;0;0;20;30\nb.png;;;;;\n",
    "centres and tabs": CENTRES.replace(",", "\t"),
    "utf-16": WITHOUT_ENDINGS.encode("utf-16"),
}


@pytest.mark.parametrize("case", CSVS)
def test_csv_by_hand(tmp_path, case):
    record = record_of(**csv_entry(tmp_path, CSVS[case]))
    assert [path.rpartition("/")[2] for path in record.images.files] == ["a.png", "b.png"]
    assert record.annotations.boxes.tolist() == [[10, 12, 20, 6], [0, 0, 20, 30]]
    assert record.class_names == ["cat", "dog"]
    assert record.annotations.classes.tolist() == [1, 0]
    assert record.images.widths.tolist() == [40, 40] and record.notes == ()


def test_csv_of_parts_of_the_picture_is_refused_until_said(tmp_path):
    text = "ImageID,LabelName,XMin,XMax,YMin,YMax\na,cat,0.25,0.75,0.1,0.9\n"
    entry = csv_entry(tmp_path, text)
    with pytest.raises(ValueError, match="between 0 and 1.*box_format: .*normalized_xyxy"):
        record_of(**entry)
    record = record_of(**entry, box_format="normalized_xyxy", classes=["cat"])
    assert record.annotations.boxes == pytest.approx(np.array([[10, 3, 20, 24]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("a,b,c\n1,2,3\n", "no column names the picture"),
        ("image,class,foo\n", "there is no column for the box"),
        ("image,x1,y1,x2,y2\n", r"there is no column for the class"),
        ("image,class,x1,y1,x2,y2\na.png,cat,1,2,3\n", "line 2 has 5 columns, 6 are needed"),
        ("image,class,x1,y1,x2,y2\n\na.png,cat,1,2,x,4\n", "line 3: 'x' is no number"),
        ("image,class,x1,y1,x2,y2\na.png,,1,2,3,4\n", "line 2 has a box without a class"),
        ("image,class,x1,y1,x2,y2\nz.png,cat,1,2,3,4\n", "line 2: there is no picture .*z.png"),
        ("image,class,x1,y1,x1,x2,y2\n", "two columns are called 'x1'"),
        (b"image,class\xff\xfe\xfa", "not text in utf-8"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        record_of(**csv_entry(tmp_path, text))
    assert str(caught.value).startswith("dataset 'x' (") and "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_sizes_are_those_that_reading_gives(tmp_path, file, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 30)).save(tmp_path / file, exif=exif)
    height, width, _ = read_picture(tmp_path / file).shape
    assert picture_size(tmp_path / file) == (width, height)
    assert (width < height) == (orientation in (6, 8))
