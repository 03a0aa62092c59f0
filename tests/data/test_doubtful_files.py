"""Files that can be taken for something else: what is read, and what is refused."""

import json
import time

import numpy as np
import pytest
from PIL import Image

from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.coco_json import read_coco_content
from resobj_d2.data.json_stream import read_object
from resobj_d2.data.register import register_datasets

pytestmark = pytest.mark.usefixtures("clean_catalogs")


@pytest.fixture
def yolo(tmp_path):
    """The record of one picture of 100 x 100 with a label file."""

    def read(lines, **more):
        Image.new("RGB", (100, 100)).save(tmp_path / "p.png")
        (tmp_path / "p.txt").write_text(lines)
        content = {"train": ".", "names": ["c"], **more}
        (tmp_path / "data.yaml").write_text(json.dumps(content))
        register_datasets([{"name": "x", "format": "yolo", "yaml": str(tmp_path / "data.yaml")}])
        return dataset_record("x")

    return read


@pytest.fixture
def csv(tmp_path):
    def read(text, **more):
        Image.new("RGB", (100, 100)).save(tmp_path / "p.png")
        (tmp_path / "a.csv").write_text(text)
        entry = {"name": "x", "format": "csv", "csv": str(tmp_path / "a.csv")}
        register_datasets([{**entry, "images": str(tmp_path), **more}])
        return dataset_record("x")

    return read


def kinds(record):
    return {note.kind: note.count for note in record.notes}


@pytest.mark.parametrize(
    "line",
    [
        "0 .5 .5 .2 .2 .45 .45 .55 .55",  # two keypoints
        "0 .5 .5 .2 .2 .45 .45 1 .55 .55 0",  # with visibility
        "0 .5 .5 .2 .2 .45 .45 2 .55 .55 2",
        "0 .5 .5 .2 .2 .93 1",
        "0 .5 .5 .2 .2 .93 7",  # score and number of a track
    ],
)
def test_a_box_and_more_is_no_polygon(yolo, line):
    with pytest.raises(ValueError, match=r"1 of 1 lines .* no polygons .*p\.txt, line 1.*kpt_sh"):
        yolo(line + "\n")


def test_keypoints_need_the_number_that_the_yaml_has(yolo):
    with pytest.raises(ValueError, match=r"10 numbers follow the class, 4 of a box and 4 of"):
        yolo("0 .5 .5 .2 .2 .45 .45 .55 .55 .5 .5\n", kpt_shape=[2, 2])


def test_polygons_stay_polygons(yolo):
    """Among them small ones about the centre, which a box of their first corners would hold."""
    record = yolo(
        "0 .4 .4 .6 .4 .6 .6 .4 .6\n0 .9 .9 .1 .9 .1 .1 .9 .1\n0 .5 .5 .52 .5 .5 .52\n"
        "0 .5 .5 .2 .2 .45 .45 .55 .55\n"
    )
    assert record.annotations.boxes[:3] == pytest.approx(
        np.array([[40, 40, 20, 20], [10, 10, 80, 80], [50, 50, 2, 2]])
    )
    assert kinds(record) == {"doubtful_polygon": 1}


def test_random_polygons_are_not_doubted(yolo):
    draw, lines = np.random.default_rng(0), []
    for _ in range(300):
        centre, radius = draw.uniform(0.1, 0.9, 2), draw.uniform(0.02, 0.1)
        angles = np.sort(draw.uniform(0, 2 * np.pi, draw.integers(3, 12)))
        corners = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        lines.append("0 " + " ".join(map(str, corners.ravel())))
    assert kinds(yolo("\n".join(lines))).get("doubtful_polygon", 0) <= 3


def test_boxes_among_polygons_are_said(yolo):
    record = yolo("0 .5 .5 .2 .2\n0 .4 .4 .6 .4 .6 .6\n")
    assert record.annotations.boxes == pytest.approx(np.array([[40, 40, 20, 20]] * 2))
    assert kinds(record)["boxes_and_polygons"] == 1


@pytest.mark.parametrize("point", ["7 .55", "1 nan"])
def test_keypoints_are_checked_in_every_format(yolo, point):
    visibility, x = point.split()
    line = f"0 .5 .5 .2 .2 .45 .45 {visibility} {x} .55 1\n0 .5 .5 .2 .2 .45 .45 2 0 0 0\n"
    record = yolo(line, kpt_shape=[2, 3])
    assert record.annotations.keypoints[0] is None and kinds(record)["keypoints"] == 1
    assert record.annotations.keypoints[1].tolist() == [[44.5, 44.5, 2], [0, 0, 0]]
    assert len(record.annotations) == 2


@pytest.mark.parametrize("names", ["bw,bh", "w,h", "box_width,box_height"])
def test_csv_width_and_height_beside_the_boxs_are_the_pictures(csv, names):
    record = csv(f"filename,width,height,class,x,y,{names}\np.png,100,100,c,10,20,30,40\n")
    assert record.annotations.boxes.tolist() == [[10, 20, 30, 40]]
    assert record.images.widths.tolist() == [100]


def test_csv_width_and_height_of_unknown_meaning_are_refused(csv):
    with pytest.raises(ValueError, match="'width' and 'height' may be the box's or the picture's"):
        csv("filename,width,height,class,x,y,dx,dy\np.png,100,100,c,10,20,30,40\n")


@pytest.mark.parametrize("others", ["index,quality,image_width,image_height", "left,top,depth,max"])
def test_csv_width_and_height_are_the_boxs_beside_columns_of_other_use(csv, others):
    text = f"filename,category,x,y,width,height,{others}\np.png,c,10,20,30,40,100,100,100,100\n"
    assert csv(text).annotations.boxes.tolist() == [[10, 20, 30, 40]]


def test_csv_names_of_one_picture(csv):
    record = csv("filename,class,x,y,w,h\np.png,c,1,1,9,9\n./p.png,c,2,2,9,9\np,c,3,3,9,9\n")
    assert record.images.ids == ["p.png"]
    assert record.annotations.images.tolist() == [0, 0, 0]
    assert record.annotations.boxes[:, 0].tolist() == [1, 2, 3]


def test_images_of_one_file_are_said_however_it_is_written(coco_content, write_coco):
    coco_content["images"][1]["file_name"] = "./1.png"
    register_datasets([write_coco(coco_content)])
    assert kinds(dataset_record("pets")) == {"same_file": 1}


def test_keypoints_beyond_float64(coco_content):
    coco_content["annotations"][0]["keypoints"] = [10**400, 1, 2]
    record = read_coco_content(coco_content)
    assert record.annotations.keypoints[0] is None and kinds(record) == {"keypoints": 1}


def test_blanks_cost_nothing(tmp_path):
    (tmp_path / "a.json").write_text(" " * 20_000_000 + "{}")
    start = time.process_time()
    assert read_object(tmp_path / "a.json", {}) == {}
    assert time.process_time() - start < 1.5


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[yes, off, 1.0, 2020-01-01, 0x1F]", ["yes", "off", "1.0", "2020-01-01", "0x1F"]),
        ("{0: No, 1: 012}", ["No", "012"]),
    ],
)
def test_names_of_classes_are_as_written(tmp_path, names, expected):
    Image.new("RGB", (100, 100)).save(tmp_path / "p.png")
    (tmp_path / "p.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "data.yaml").write_text(f"train: .\nnames: {names}\n")
    register_datasets([{"name": "x", "format": "yolo", "yaml": str(tmp_path / "data.yaml")}])
    assert dataset_record("x").class_names == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("d: 2020-13-45", "a value cannot be read: month must be in 1..12"),
        ("d: " + "9" * 5000, "a number of more than 1000 characters in line 3"),
        ("names: [a, ~]", "the names of the classes must be strings, got"),
        ("d: !!python/name:os.system", "Tags that run code are refused"),
    ],
)
def test_values_that_cannot_be_read_are_told_with_their_file(tmp_path, line, message):
    names = "" if line.startswith("names") else "names: [c]\n"
    (tmp_path / "data.yaml").write_text(f"train: .\n{names}{line}\n")
    with pytest.raises(ValueError, match=message) as caught:
        register_datasets([{"name": "x", "format": "yolo", "yaml": str(tmp_path / "data.yaml")}])
    assert str(caught.value).startswith(f"dataset 'x' ({tmp_path / 'data.yaml'})")
    assert "\n" not in str(caught.value)
