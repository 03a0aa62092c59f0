"""The findings, each from a dataset that has that mistake, and the command around them."""

import json
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from resobj_d2.data.register import register_datasets
from resobj_d2.inspection.boxes import count_classes
from resobj_d2.inspection.check import check_datasets
from resobj_d2.inspection.command import main
from resobj_d2.inspection.contact_sheet import chosen_rows
from resobj_d2.inspection.pictures import read_contents
from resobj_d2.inspection.target import find_target

from .conftest import noise

pytestmark = pytest.mark.usefixtures("clean_catalogs")

PAIR = {"a.png": (200, 150), "b.png": (200, 150)}
OBJECTS = [(0, 0, 10, 10, 30, 30), (0, 1, 60, 60, 50, 40), (1, 0, 5, 5, 120, 100)]


def found(*entries, roles=None):
    """Kind to (level, count) of what is found in datasets, and the report."""
    register_datasets(entries)
    report = check_datasets(roles or {entry["name"]: "" for entry in entries}, workers=2)
    return {f.kind: (f.level, f.count) for f in report.findings}, report


def test_a_good_set_has_no_finding_and_its_counts_are_right(write_set):
    kinds, report = found(write_set("good", PAIR, OBJECTS))
    assert kinds == {}
    (one,) = report.datasets
    assert (one.pictures, one.crowd) == (2, 0)
    rows = [(c.name, c.objects, c.pictures, c.bands, c.input_bands, c.tiny) for c in one.classes]
    # 30^2 is small; 50 * 40 medium; 120 * 100 large
    assert rows == [("cell", 2, 2, (1, 0, 1), None, 0), ("plate", 1, 1, (0, 1, 0), None, 0)]


def test_counts_at_the_networks_input(write_set):
    register_datasets([write_set("good", PAIR, OBJECTS)])
    from resobj_d2.data.catalog import dataset_record

    scales = np.full((2, 2), 0.1)
    counts = count_classes(dataset_record("good"), scales)
    assert [c.input_bands for c in counts] == [(2, 0, 0), (1, 0, 0)]
    assert [c.tiny for c in counts] == [1, 0]  # 3 x 3; 12 x 10 and 5 x 4 are not below 4


def test_damage_sizes_and_duplicates(write_set, tmp_path):
    pictures = dict.fromkeys(("ok.png", "cut.png", "gone.png", "text.png"), (60, 40))
    pictures |= {"wrong.png": (80, 80), "exif.jpg": (60, 40), "copy.bmp": (60, 40)}
    entry = write_set("bad", pictures, [(i, i % 2, 5, 5, 20, 20) for i in range(7)])
    root = tmp_path / "images"
    (root / "cut.png").write_bytes((root / "cut.png").read_bytes()[:-400])
    (root / "text.png").write_text("not a picture")
    noise(60, 60, "other").save(root / "wrong.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    noise(60, 40, "exif").save(root / "exif.jpg", exif=turned)
    Image.open(root / "ok.png").save(root / "copy.bmp")
    register_datasets([entry])  # which looks for the first pictures
    (root / "gone.png").unlink()
    kinds, report = found(entry)
    assert kinds == {
        "unreadable": ("error", 3),
        "size": ("error", 1),
        "turned": ("error", 1),
        "duplicate": ("warning", 1),
    }
    by_kind = {f.kind: f.examples for f in report.findings}
    assert [text.rpartition("/")[2].split(":")[0] for text in by_kind["unreadable"]] == [
        "cut.png", "gone.png", "text.png",
    ]  # fmt: skip
    assert by_kind["size"][0].endswith("80x80 in the annotations, 60x60 in the file")
    assert by_kind["turned"][0].endswith("60x40 in the annotations, 40x60 in the file")
    assert by_kind["duplicate"] == (f"{root}/copy.bmp = {root}/ok.png",)


def test_boxes_that_look_like_mistakes(write_set):
    objects = [
        *OBJECTS,
        (0, 0, 10, 10, 30, 31),  # doubles the first: IoU 30 / 31
        (0, 1, 10, 10, 30, 30),  # another class
        (1, 1, 10, 10, 0, 20),  # no width
        (1, 1, 300, 10, 20, 20),  # outside
        (1, 1, 190, 140, 30, 30),  # reaches out
        (1, 1, 50, 50, 3, 20),  # 3 pixels wide
    ]
    kinds, report = found(write_set("bad", PAIR | {"c.png": (90, 90)}, objects, "abc"))
    assert kinds == {
        "no_size": ("error", 1),
        "outside": ("error", 1),
        "cut": ("warning", 1),
        "doubled": ("warning", 1),
        "tiny": ("warning", 1),
        "no_object_of_class": ("warning", 1),
        "empty": ("info", 1),
    }
    levels = [f.level for f in report.datasets[0].findings]
    assert levels == sorted(levels, key=["error", "warning", "info"].index)
    doubled = next(f for f in report.findings if f.kind == "doubled")
    assert doubled.examples[0].endswith("a.png: a 4 and 1, IoU 0.97")


def test_pictures_in_training_and_test_are_found_by_content(write_set, tmp_path):
    train = write_set("train", PAIR, OBJECTS)
    (tmp_path / "others").mkdir()
    shutil.copy(tmp_path / "images" / "a.png", tmp_path / "others" / "renamed.png")
    pictures = {"renamed.png": (200, 150), "new.png": (200, 150)}
    test = write_set(
        "test", pictures, [(0, 0, 1, 1, 9, 9), (1, 2, 1, 1, 9, 9)], "abc", folder="others"
    )
    roles = {"train": "train", "test": "test"}
    kinds, report = found(train, test, roles=roles)
    assert kinds["leak"] == ("error", 1)
    assert kinds["not_trained"] == ("warning", 2)  # a and c: the classes have other names
    assert report.across[0].examples == (
        f"{tmp_path}/images/a.png = {tmp_path}/others/renamed.png",
    )
    assert (
        found(train, test, roles={"train": "train", "test": "train"})[0]["shared"][0] == "warning"
    )
    assert found(train, roles={"train": "train and test"})[0]["leak"] == ("error", 2)


def test_sets_without_objects_or_without_annotations(write_set, tmp_path):
    entry = write_set("none", PAIR, [])
    assert found(entry)[0] == {"no_objects": ("error", 1)}
    content = json.loads((tmp_path / "none.json").read_text())
    del content["annotations"]
    (tmp_path / "hidden.json").write_text(json.dumps(content))
    hidden = {**entry, "name": "hidden", "json": str(tmp_path / "hidden.json")}
    assert found(hidden)[0] == {"not_annotated": ("info", 1)}


def test_thousands_of_objects_on_one_picture(write_set):
    random = np.random.default_rng(0)
    places = random.uniform(0, 900, (6000, 2))
    objects = [(0, 0, x, y, 20, 20) for x, y in places.tolist()]
    objects.append((0, 0, *places[17].tolist(), 20, 20))
    kinds, report = found(write_set("crowded", {"a.png": (1000, 1000)}, objects, "x"))
    near = [text for text in report.findings[0].examples if " 6001 and 18," in text]
    assert kinds["doubled"][0] == "warning" and near[0].endswith("IoU 1.00")


def test_thousands_of_equal_objects(write_set):
    """Each repeats one other: millions of pairs are not listed."""
    equal = write_set("equal", {"a.png": (99, 99)}, [(0, 0, 5, 5, 20, 20)] * 5000, "x")
    assert found(equal)[0] == {"doubled": ("warning", 4999)}


def test_reading_does_not_depend_on_the_workers(write_set):
    from resobj_d2.data.catalog import dataset_record

    pictures = {f"{i}.png": (20 + i, 30) for i in range(40)}
    register_datasets([write_set("many", pictures, OBJECTS[:1])])
    images = dataset_record("many").images
    one, four = (read_contents(images, workers=n) for n in (1, 4))
    assert (one.widths == np.arange(20, 60)).all() and (one.heights == 30).all()
    assert (one.digests == four.digests).all() and len(set(one.digests.tolist())) == 40


def test_the_command_prints_writes_and_draws(write_set, tmp_path, capsys):
    entry = write_set("cells", PAIR, [*OBJECTS, (0, 0, 10, 10, 30, 31)])
    folder = tmp_path / "sheets"
    words = [entry["json"], "--json", str(tmp_path / "r" / "report.json"), "--browse", "2"]
    assert main([*words, "--output", str(folder), "--workers", "1"]) == 0
    text = capsys.readouterr().out
    assert "cells: 2 pictures, 4 objects" in text and "findings: 1 of level warning" in text
    content = json.loads((tmp_path / "r" / "report.json").read_text())
    assert content["datasets"][0]["classes"][0]["bands"] == [2, 0, 1]
    assert content["datasets"][0]["findings"][0]["kind"] == "doubled"
    with Image.open(folder / "cells_1.png") as sheet:
        assert sheet.width > 2 * 360 and sheet.height > 270
        red, green, blue = (np.asarray(sheet)[..., i].astype(int) for i in range(3))
        assert ((red == 255) & (green == 214) & (blue == 0)).sum() > 100  # the first class's colour
    assert main([entry["json"], "--strict"]) == 1


def test_the_exit_status_of_errors(write_set, capsys):
    entry = write_set("broken", PAIR, [*OBJECTS, (0, 0, 10, 10, 0, 5)])
    assert main([entry["json"]]) == 1
    register_datasets([entry])
    capsys.readouterr()
    assert main(["broken"]) == 1  # by its registered name
    assert "broken: 2 pictures, 3 objects" in capsys.readouterr().out


CHECK = ["DATASETS.TRAIN", "('t',)", "DATASETS.TEST", "('v',)", "MODEL.DENSE.NUM_CLASSES", "2"]


def test_a_json_whose_first_pictures_are_missing_is_checked_all_the_same(
    write_set, tmp_path, capsys
):
    pictures = {f"{i}.png": (20, 20) for i in range(6)}
    entry = write_set("holes", pictures, [(i, 0, 1, 1, 9, 9) for i in range(6)])
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").unlink()
    for words in ([entry["json"]], [entry["json"], "--images", entry["images"]]):
        assert main(words) == 1
        text = capsys.readouterr().out
        assert "error   3 pictures cannot be read" in text
        assert f"{tmp_path}/images/0.png: there is no such file" in text


def test_a_configuration_with_overrides_between_options(write_set, tmp_path, capsys):
    train = write_set("t", {f"{i}.png": (200, 150) for i in range(3)}, OBJECTS)
    test = write_set("v", {"a.png": (200, 150)}, OBJECTS[:2], folder="v")
    register = ["DATASETS.REGISTER", str([train, test])]
    out = tmp_path / "report.json"
    assert main(["cells_retinanet_fl", "--json", str(out), *register, *CHECK]) == 0
    text = capsys.readouterr().out
    assert "t (train): 3 pictures" in text and "v (test): 1 picture" in text
    assert "anchors of MODEL.DENSE.PRIORS (OctaveAnchors) and the 3 training objects" in text
    content = json.loads(out.read_text())
    assert sum(content["anchors"]["sets"][0]["histogram"]) == 3
    assert content["datasets"][0]["classes"][0]["input_bands"]


def test_sheets_show_objects_first(write_set):
    from resobj_d2.data.catalog import dataset_record

    pictures = {f"{i}.png": (20, 20) for i in range(10)}
    register_datasets([write_set("s", pictures, [(i, 0, 1, 1, 9, 9) for i in (2, 3, 5, 7)])])
    record = dataset_record("s")
    assert chosen_rows(record, 2) == [2, 7]
    assert chosen_rows(record, 5) == [0, 2, 3, 5, 7]
    assert chosen_rows(record, 99) == list(range(10))


def test_files_and_folders_of_every_format(write_set, tmp_path, capsys):
    from resobj_d2.data.convert import convert

    entry = write_set("cells", PAIR, OBJECTS)
    source = {"format": "coco", "json": entry["json"], "images": entry["images"]}
    targets = {}
    for kind in ("voc", "yolo", "csv"):
        for split in ("train", "val"):
            out = tmp_path / kind
            written = convert(
                {**source, "name": f"{kind} {split}"}, to=kind, output=out, split=split
            )
            targets[kind] = written.get("yaml") or written.get("csv") or str(out)
    for kind, target in targets.items():
        for name in set(DatasetCatalog) & {"train", "val"}:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        status = main([target])
        text = capsys.readouterr().out
        if kind == "csv":
            assert status == 0 and text.count("2 pictures, 3 objects") == 1
        else:  # both splits have the same pictures
            assert status == 1 and text.count("2 pictures, 3 objects") == 2
            assert "train (train)" in text and "val (test)" in text
            assert "2 pictures of 'train' are in 'val' too" in text
    assert main([str(tmp_path)]) == 0  # a folder with one json, cells.json
    assert "cells: 2 pictures, 3 objects" in capsys.readouterr().out
    words = [f"{key}={value}" for key, value in source.items()]
    assert main(words) == 0 and "cells: 2 pictures, 3 objects" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "splits"),
    [
        ("names: [a]\ntrain: x\nval:\n  - x\ntest:  # optional\n", ["train", "val"]),
        ("path: .\ntest: x\nnames:\n  0: a\n", ["test"]),
        ('"names": [a]\n"val": x\ntest:\n', ["val"]),
    ],
)
def test_the_splits_of_a_yolo_yaml(text, splits, tmp_path):
    (tmp_path / "x").mkdir()
    noise(20, 10, 1).save(tmp_path / "x" / "a.png")
    (tmp_path / "x" / "a.txt").write_text("0 .5 .5 .4 .4\n")
    (tmp_path / "data.yaml").write_text(text)
    assert list(find_target([str(tmp_path)]).roles) == splits


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nothing_of_that_name"], "What can be checked: a registered dataset, a configuration"),
        (["{json}", "SEED", "3"], "KEY VALUE overrides belong to a configuration"),
        (["{lost}"], "is not near it: give --images"),
        (["--images", "{lost}", "{lost}"], "--images: there is no folder .*lost.json"),
    ],
)
def test_what_cannot_be_checked_is_told(words, message, write_set, tmp_path):
    entry = write_set("cells", PAIR, OBJECTS)
    lost = tmp_path / "far" / "away" / "lost.json"
    lost.parent.mkdir(parents=True)
    shutil.copy(entry["json"], lost)
    words = [word.format(json=entry["json"], lost=lost) for word in words]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(words)
