"""What `data check` and `data convert` make of a path: splits, classes, and files that are not."""

import json

import numpy as np
import pytest
from PIL import Image

from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.convert import convert
from resobj_d2.data.register import register_datasets
from resobj_d2.inference.drawing import captioned
from resobj_d2.inspection.command import main as check
from resobj_d2.inspection.convert_command import main as convert_command
from resobj_d2.inspection.target import find_target

pytestmark = pytest.mark.usefixtures("clean_catalogs")

BOX = [4, 6, 10, 8]
SQUARE = [4, 6, 14, 6, 14, 14, 4, 14]  # its box is BOX


@pytest.fixture
def source(tmp_path):
    """Writes a json of one picture of 40 x 30; returns its entry."""

    def write(name="cat", file="a.png", **annotation):
        folder = tmp_path / "pictures"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(folder / "a.png")
        item = {"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, **annotation}
        content = {
            "images": [{"id": 1, "file_name": file, "width": 40, "height": 30}],
            "categories": [{"id": 1, "name": name}],
            "annotations": [item, {**item, "id": 2, "bbox": [20, 10, 5, 5]}][
                : len(annotation) or 2
            ],
        }
        (tmp_path / "a.json").write_text(json.dumps(content))
        return {"format": "coco", "json": str(tmp_path / "a.json"), "images": str(folder)}

    return write


@pytest.mark.parametrize("to", ["voc", "yolo"])
def test_what_convert_has_written_is_read_back_as_a_folder(source, tmp_path, to):
    out = tmp_path / "out"
    for split in ("train", "odd"):
        convert({**source(), "name": f"s {split}"}, to=to, output=out, split=split)
    assert list(find_target([str(out)]).records) == ["train", "odd"]
    words = [str(out), "--to", "csv", "--output", str(tmp_path / "back"), "--split", "odd"]
    assert convert_command(words) == 0
    lines = (tmp_path / "back" / "odd.csv").read_text().splitlines()[1:]
    assert all(line.startswith("a.png,40,30,cat,") for line in lines)
    corners = [[float(cell) for cell in line.split(",")[4:]] for line in lines]
    np.testing.assert_allclose(corners, [[4, 6, 14, 14], [20, 10, 25, 15]], atol=1e-9)


def test_lists_of_voc_that_are_of_a_class_are_no_splits(source, tmp_path):
    out = tmp_path / "out"
    convert(source(), to="voc", output=out, split="train")
    (out / "ImageSets" / "Main" / "cat_train.txt").write_text("a  1\n")
    assert list(find_target([str(out)]).records) == ["train"]
    with pytest.raises(FileNotFoundError, match=r"'split' must be one of the lists of .*: train$"):
        register_datasets([{"name": "x", "format": "voc", "root": str(out)}])


def test_a_folder_of_some_of_vocs_classes_has_those(source, tmp_path):
    convert(source(), to="voc", output=tmp_path / "out", split="train")
    assert find_target([str(tmp_path / "out")]).records["train"].class_names == ["cat"]


def yolo(root, **content):
    folder = root / "train" / "images"
    folder.mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(folder / "a.png")
    (root / "train" / "labels").mkdir()
    (root / "train" / "labels" / "a.txt").write_text("0 .5 .5 .2 .2\n")
    (root / "data.yaml").write_text(json.dumps({"names": ["cat"], **content}))
    return str(root / "data.yaml")


def test_splits_without_their_folder_are_left_out(tmp_path, caplog):
    """As Roboflow exports them; what is asked for must be there."""
    path = yolo(tmp_path / "set", train="../train/images", test="../test/images")
    assert list(find_target([path]).records) == ["train"]
    assert "'test' is left out: there is no folder or list ../test/images" in caplog.text
    out = ["--to", "csv", "--output", str(tmp_path / "out"), "--split"]
    assert convert_command([path, *out, "train"]) == 0
    with pytest.raises(FileNotFoundError, match=r"there is no folder or list .*test/images"):
        convert_command([path, *out, "test"])


def test_other_keys_of_a_yaml_are_no_splits(tmp_path):
    """Folders called as a class, a licence, and what downloads the set."""
    more = {"license": "LICENSE", "download": "x\n" * 200, "author": 3, "urls": ["http://x/y"]}
    path = yolo(tmp_path, train="train/images", names=["train", "cat"], **more)
    (tmp_path / "LICENSE").write_text("free")
    assert list(find_target([path]).records) == ["train"]
    with pytest.raises(ValueError, match="there is no split 'val'; it has train$"):
        register_datasets([{"name": "x", "format": "yolo", "yaml": path, "split": "val"}])


def test_a_yaml_without_any_split_is_told(tmp_path):
    with pytest.raises(ValueError, match="no split 'train'; it has none: 'train: FOLDER' would be"):
        find_target([yolo(tmp_path)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "\ud800"}, r"the name '\\ud800' .* is no valid text \(UTF-8\): rename it"),
        ({"file": "\udc80.png"}, r"\\udc80\.png' .* is no valid text"),
        ({"id": "\ud800"}, r"the id '\\ud800' of an annotation .* is no valid text"),
    ],
)
def test_names_that_no_terminal_can_show_are_refused(source, change, message):
    with pytest.raises(ValueError, match=message):
        check([source(**change)["json"]])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1,0.5,0.5,0.2,0.2", "the numbers must be separated by blanks, got '1,0.5,0.5"),
        (
            "1 .5 .5 .2 .2\n2 .5 .5 .2 .2",
            "line 2: .* 0 to 1, got '2'. Do the files count .* from 1",
        ),
        ("0 .5 .5 .2 .2\n2 .5 .5 .2 .2", "line 2: .* from 0 to 1, got '2'$"),
    ],
)
def test_lines_of_yolo_that_are_nearly_right(tmp_path, lines, message):
    path = yolo(tmp_path, train="train/images", names=["cat", "dog"])
    (tmp_path / "train" / "labels" / "a.txt").write_text(lines)
    with pytest.raises(ValueError, match=message):
        find_target([path])


def test_a_csv_beside_its_pictures(source, tmp_path):
    convert(source(), to="csv", output=tmp_path / "out", split="x")
    assert len(find_target([str(tmp_path / "out")]).records["x"].annotations) == 2
    (tmp_path / "out" / "y.csv").write_text("")
    with pytest.raises(ValueError, match=r"several annotation files, x\.csv, y\.csv: name one"):
        find_target([str(tmp_path / "out")])


@pytest.mark.parametrize("word", ["nope.json", "no/folder"])
def test_a_path_that_is_not_there_is_no_configuration(word):
    with pytest.raises(FileNotFoundError, match=f"there is no file or folder .*{word}. What can"):
        find_target([word])


@pytest.mark.parametrize(
    ("segmentation", "line"),
    [
        ([SQUARE], "0 0.1 0.2 0.35 0.2 0.35 0.466666666667 0.1 0.466666666667\n"),
        ([SQUARE, SQUARE], "0 0.225 0.333333333333 0.25 0.266666666667\n"),  # two polygons
        ([[4, 6, 12, 6, 12, 14]], "0 0.225 0.333333333333 0.25 0.266666666667\n"),  # another box
    ],
)
def test_polygons_that_give_the_box_are_written_to_yolo(
    source, tmp_path, caplog, segmentation, line
):
    written = convert(source(segmentation=segmentation), to="yolo", output=tmp_path / "out")
    assert (tmp_path / "out" / "labels" / "train" / "a.txt").read_text() == line
    register_datasets([{"name": "again", **written}])
    table = dataset_record("again").annotations
    np.testing.assert_allclose(table.boxes, [BOX], atol=1e-9)
    assert (table.masks[0] is None) == ("masks (1) stay out" in caplog.text) == (len(line) < 50)


def test_captions_fit_below_their_picture():
    red = Image.new("RGB", (200, 50), "red")
    short, long = captioned(red, "a.png"), captioned(red, "a" * 100 + ".png")
    assert short.size == long.size == (200, 70)
    assert np.array_equal(np.asarray(short)[:50], np.asarray(red))
    dark = [(np.asarray(x)[50:] < 100).all(axis=2).any(axis=0).sum() for x in (short, long)]
    assert 10 < dark[0] < 60 < dark[1]
    assert not (np.asarray(long)[50:, [0, -1]] < 100).any()
