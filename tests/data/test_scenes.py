"""The scene generator: reproducible, well formed, varied, and never half written."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from resobj_d2.command import run_command
from resobj_d2.data.scenes import dataset as scenes
from resobj_d2.data.scenes.dataset import ensure_scenes
from resobj_d2.data.scenes.render import MIN_SIDE, render_scene
from resobj_d2.data.scenes.shapes import CLASS_NAMES, OBJECT_OUTLINES, draw_mask

SMALL = {"image_size": 96, "num_train": 4, "num_val": 2}


def _file_hashes(folder):
    """Content hash of every file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def statistics_set(tmp_path_factory):
    """A set large enough to look at distributions."""
    root = tmp_path_factory.mktemp("datasets")
    return ensure_scenes(root, image_size=160, num_train=160, num_val=2)["train"]


def test_equal_seed_gives_equal_files_and_other_seed_other_files(tmp_path):
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        np.random.seed(len(folder) + seed)  # the global state must not matter
        ensure_scenes(tmp_path / folder, seed=seed, **SMALL)
    first, second, other = (_file_hashes(tmp_path / folder / "scenes") for folder in "abc")
    assert len(first) == 4 + 2 + 3  # pictures, two json files, the parameters
    assert first == second
    assert first.keys() == other.keys()
    assert not set(first.values()) & set(other.values())


def test_picture_does_not_depend_on_the_number_of_pictures(tmp_path):
    few = ensure_scenes(tmp_path, name="few", **SMALL)["train"]
    more = ensure_scenes(tmp_path, name="more", **{**SMALL, "num_train": 6})["train"]
    for number in range(1, 5):
        name = f"{number:06d}.png"
        assert (few.image_root / name).read_bytes() == (more.image_root / name).read_bytes()


def test_train_and_val_pictures_differ(tmp_path):
    paths = ensure_scenes(tmp_path, **SMALL)
    hashes = [
        hashlib.sha256(path.read_bytes()).digest()
        for split in ("train", "val")
        for path in paths[split].image_root.iterdir()
    ]
    assert len(set(hashes)) == 6


def test_existing_scenes_are_reused(tmp_path, monkeypatch):
    ensure_scenes(tmp_path, **SMALL)
    monkeypatch.setattr(scenes, "render_scene", None)  # drawing again would fail
    paths = ensure_scenes(tmp_path, **SMALL)
    assert paths["val"].json_file == tmp_path / "scenes" / "val.json"


def test_other_parameters_are_refused_by_name(tmp_path):
    ensure_scenes(tmp_path, **SMALL)
    with pytest.raises(FileExistsError, match="seed=0 there, seed=9 asked for"):
        ensure_scenes(tmp_path, seed=9, **SMALL)


def test_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not written by the scene generator"):
        ensure_scenes(tmp_path, **SMALL)
    assert (tmp_path / "scenes" / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize("meta", [b"", b"[]", b"5", b"[" * 50_000, b"\xff"])
def test_a_foreign_description_is_not_taken_for_the_generators(tmp_path, meta):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "meta.json").write_bytes(meta)
    with pytest.raises(FileExistsError, match="has no readable meta.json"):
        ensure_scenes(tmp_path, **SMALL)


@pytest.mark.parametrize(
    "wrong", [{"image_size": 32}, {"num_train": 0}, {"num_val": 1.5}, {"seed": -1}, {"name": "a/b"}]
)
def test_bad_parameter_is_named(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ensure_scenes(tmp_path, **{**SMALL, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_default_root_follows_detectron2s_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "elsewhere"))
    assert ensure_scenes(**SMALL)["train"].json_file == tmp_path / "elsewhere/scenes/train.json"


def test_exception_while_writing_leaves_no_pictures(tmp_path, monkeypatch):
    drawn = []

    def failing(size, rng, style):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(size)
        return render_scene(size, rng)

    monkeypatch.setattr(scenes, "render_scene", failing)
    with pytest.raises(KeyboardInterrupt):
        ensure_scenes(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == [".scenes.lock"]
    monkeypatch.undo()
    assert len(list(ensure_scenes(tmp_path, **SMALL)["train"].image_root.iterdir())) == 4


def test_killed_run_leaves_nothing_that_looks_finished(tmp_path):
    command = [
        sys.executable,
        "-u",
        "-m",
        "resobj_d2.data.scenes.dataset",
        "--output",
        str(tmp_path),
    ]
    process = subprocess.Popen(
        command + ["--num-train", "100000"], stdout=subprocess.PIPE, text=True
    )
    lines = [process.stdout.readline() for _ in range(2)]  # the second comes after two seconds
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert "100200" in lines[1]
    assert not (tmp_path / "scenes").exists()
    paths = ensure_scenes(tmp_path, **SMALL)  # replaces the partial folder, does not keep its files
    assert len(list(paths["train"].image_root.iterdir())) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scenes.lock", "scenes"]


def _ensure_small(root, results):
    ensure_scenes(root, **SMALL)
    results.put(os.getpid())


def test_simultaneous_processes_share_one_result(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_ensure_small, args=(tmp_path, results)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list((tmp_path / "scenes" / "train").iterdir())) == 4


def test_json_loads_in_pycocotools_and_boxes_are_inside(statistics_set):
    from pycocotools.coco import COCO

    coco = COCO(str(statistics_set.json_file))
    assert len(coco.imgs) == 160
    assert [coco.cats[i]["name"] for i in sorted(coco.cats)] == list(CLASS_NAMES)
    for image in coco.imgs.values():
        with Image.open(statistics_set.image_root / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (160, 160)
            assert picture.mode == "RGB"
    for annotation in coco.anns.values():
        left, top, width, height = annotation["bbox"]
        assert left >= 0 and top >= 0 and left + width <= 160 and top + height <= 160
        assert min(width, height) >= MIN_SIDE
        assert 0 < annotation["area"] <= width * height


def test_distributions(statistics_set):
    content = json.loads(statistics_set.json_file.read_text())
    per_image = dict.fromkeys((image["id"] for image in content["images"]), 0)
    per_class = dict.fromkeys((category["id"] for category in content["categories"]), 0)
    for annotation in content["annotations"]:
        per_image[annotation["image_id"]] += 1
        per_class[annotation["category_id"]] += 1
    counts = np.array(list(per_image.values()))
    # Chosen with probability .05 and .1: within four standard deviations of 160 draws.
    assert 1 <= (counts == 0).sum() <= 19
    assert 1 <= (counts >= 30).sum() <= 31
    assert 2 <= np.median(counts) <= 10
    shares = np.array(list(per_class.values())) / counts.sum()
    assert shares.min() > 0.6 / len(CLASS_NAMES) and shares.max() < 1.5 / len(CLASS_NAMES)
    longest = np.array([max(annotation["bbox"][2:]) for annotation in content["annotations"]])
    assert longest.min() <= 9 and longest.max() >= 0.5 * 160
    assert 0.08 < (longest < 16).mean() < 0.5 and (longest >= 48).mean() > 0.1


def test_objects_hide_each_other(statistics_set):
    """Some boxes of one picture overlap, so the pictures do contain occlusion."""
    content = json.loads(statistics_set.json_file.read_text())
    boxes = {}
    for annotation in content["annotations"]:
        boxes.setdefault(annotation["image_id"], []).append(annotation["bbox"])
    overlapping = 0
    for group in boxes.values():
        x, y, w, h = np.array(group, dtype=float).T
        across = np.minimum((x + w)[:, None], x + w) - np.maximum(x[:, None], x)
        down = np.minimum((y + h)[:, None], y + h) - np.maximum(y[:, None], y)
        shared = np.clip(across, 0, None) * np.clip(down, 0, None)
        np.fill_diagonal(shared, 0.0)
        overlapping += bool((shared > 0.2 * np.minimum(w * h, (w * h)[:, None])).any())
    assert overlapping > 0.2 * len(boxes)


def test_mask_of_a_square_has_the_area_of_the_square():
    outline = OBJECT_OUTLINES["square"](np.random.default_rng(0))
    mask = draw_mask(outline, np.diag([20.0, 20.0]))  # half diagonal 20: area 800
    assert mask.sum() == pytest.approx(800.0, rel=0.04)
    assert mask.min() == 0.0 and mask.max() == 1.0


def test_mask_of_a_ring_has_a_hole():
    mask = draw_mask(OBJECT_OUTLINES["ring"](np.random.default_rng(0)), np.diag([20.0, 20.0]))
    middle = mask.shape[0] // 2
    assert mask[middle, middle] == 0.0
    assert mask[middle].max() == 1.0


def test_command_line_writes_a_preview(tmp_path, capsys):
    preview = tmp_path / "preview.png"
    arguments = ["--output", str(tmp_path), "--size", "96", "--num-train", "3", "--num-val", "1"]
    scenes.main(arguments + ["--preview", str(preview)])
    assert "scenes: done" in capsys.readouterr().out
    with Image.open(preview) as sheet:
        assert sheet.size == (6 * 244, 4 * 244)


def test_command_line_error_is_one_message(tmp_path, capsys):
    arguments = ["--output", str(tmp_path), "--size", "10"]
    assert run_command(scenes.main, arguments, uses_operators=False) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: scenes: image_size must be")
