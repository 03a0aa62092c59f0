"""What one bad picture, a full disk, an interruption leave of a run of ``predict``."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from resobj_d2.inference.predict import find_images, main, predict_images
from resobj_d2.inference.predictor import ImageError, Predictor


def read_json(path):
    return json.loads(path.read_text())


@pytest.fixture
def expected(resobj, photos, tmp_path):
    """Results by image id of a run in which nothing fails."""
    files = predict_images(Predictor(*resobj), find_images([str(photos)]), tmp_path / "expected")
    results = read_json(files.results)
    return {i: [item for item in results if item["image_id"] == i] for i in range(1, 6)}


def test_a_picture_that_cannot_be_written_loses_no_results(
    resobj, photos, tmp_path, expected, caplog
):
    output = tmp_path / "out"
    (output / "b.png").mkdir(parents=True)  # no file can have this name
    paths = find_images([str(photos)])
    files = predict_images(Predictor(*resobj), paths, output)
    assert read_json(files.results) == sum(expected.values(), [])
    assert [image["id"] for image in read_json(files.images)["images"]] == [1, 2, 3, 4, 5]
    assert files.failed == {} and list(files.not_drawn) == [photos / "b.jpg"]
    assert "b.jpg is not drawn" in caplog.text
    assert f"{photos / 'b.jpg'}: its picture cannot be written: " in files.not_drawn[paths[1]]
    names = ("a", "c", "d", "e")
    assert files.pictures == [output / f"{n}{end}.png" for n in names for end in ("", "_steps")]
    assert all(picture.is_file() for picture in files.pictures)


def test_a_first_picture_that_is_written_is_counted_where_the_second_is_not(
    resobj, photos, tmp_path
):
    (tmp_path / "out" / "a_steps.png").mkdir(parents=True)
    files = predict_images(Predictor(*resobj), [photos / "a.png"], tmp_path / "out")
    assert files.pictures == [tmp_path / "out" / "a.png"]
    assert list(files.not_drawn) == [photos / "a.png"]


def test_images_that_the_model_cannot_take_are_left_out_by_name(
    resobj, photos, tmp_path, expected, monkeypatch
):
    cfg, model = resobj
    Image.new("RGB", (3000, 2)).save(photos / "aa.png")  # between a.png and b.jpg
    predictor = Predictor(cfg, model)
    detect = predictor.detect

    def no_memory_for_c(path):
        if path.name == "c.png":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return detect(path)

    monkeypatch.setattr(predictor, "detect", no_memory_for_c)
    files = predict_images(predictor, find_images([str(photos)]), tmp_path / "out")
    assert list(files.failed) == [photos / "aa.png", photos / "c.png"]
    assert files.failed[photos / "c.png"] == f"{photos / 'c.png'}: CUDA out of memory"
    assert str(photos / "aa.png") in files.failed[photos / "aa.png"]
    kept = [(1, 1), (2, 3), (4, 5), (5, 6)]  # id there, id here
    results = [{**item, "image_id": new} for old, new in kept for item in expected[old]]
    assert read_json(files.results) == results


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_ends_a_run_loses_nothing(resobj, photos, tmp_path, expected, monkeypatch, error):
    predictor = Predictor(*resobj)
    detect = predictor.detect
    output = tmp_path / "out"
    partial = []

    def end_at_d(path):
        if path.name == "d.png":
            # What a process that is killed here leaves: every line, not the end.
            partial.extend(json.loads((output / "results.json.partial").read_text() + "]"))
            raise error
        return detect(path)

    monkeypatch.setattr(predictor, "detect", end_at_d)
    with pytest.raises(error):
        predict_images(predictor, find_images([str(photos)]), output)
    assert read_json(output / "results.json") == partial == expected[1] + expected[2] + expected[3]
    assert [image["id"] for image in read_json(output / "images.json")["images"]] == [1, 2, 3]
    assert not list(output.glob("*.partial"))


def arguments(weights, photos, output):
    yaml, checkpoint = weights
    return [
        *("--config-file", str(yaml), "--input", str(photos), "--output", str(output)),
        *("MODEL.WEIGHTS", str(checkpoint)),
    ]


def test_the_command_tells_what_failed(weights, photos, tmp_path, capsys):
    output = tmp_path / "out"
    (output / "b.png").mkdir(parents=True)
    (photos / "broken.png").write_bytes(b"")
    assert main(arguments(weights, photos, output)) == 1
    error = capsys.readouterr().err
    assert "1 of 6 images was left out:" in error
    assert f"{photos / 'broken.png'}: the file is empty" in error
    assert "1 of 6 images is in the results but not drawn:" in error
    assert f"{photos / 'b.jpg'}: its picture cannot be written" in error


def test_an_interrupted_command_says_where_the_results_are(
    weights, photos, tmp_path, monkeypatch, capsys
):
    detect = Predictor.detect

    def interrupted(self, path):
        if path.name == "b.jpg":
            raise KeyboardInterrupt
        return detect(self, path)

    monkeypatch.setattr(Predictor, "detect", interrupted)
    output = tmp_path / "out"
    assert main(arguments(weights, photos, output)) == 130
    assert f"interrupted: {output} has the results" in capsys.readouterr().err
    assert {item["image_id"] for item in read_json(output / "results.json")} == {1}


def test_a_module_of_ones_own_is_imported_or_named(weights, photos, tmp_path, monkeypatch, capsys):
    module = tmp_path / "my_predict_module.py"
    module.write_text("from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    options = arguments(weights, photos / "a.png", tmp_path / "out")
    assert main(["--import", "my_predict_module", *options]) == 0
    assert module.with_suffix(".ran").exists()
    assert main(["--import", "no_such_module", *options]) == 2
    assert "no_such_module" in capsys.readouterr().err.splitlines()[-1]


def test_an_output_that_is_no_folder(weights, photos, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(arguments(weights, photos, tmp_path / "file")) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert (tmp_path / "file").read_text() == ""


def test_names_and_ids_of_the_checkpoint_are_in_images_json(resobj, save_run, photos, tmp_path):
    categories = [{"id": 5, "name": "ant"}, {"id": 6, "name": "bee"}, {"id": 9, "name": "elk"}]
    run = save_run(*resobj, categories=categories)
    assert main(arguments(run, photos / "a.png", tmp_path / "out")) == 0
    assert read_json(tmp_path / "out/images.json")["categories"] == categories
    ids = {item["category_id"] for item in read_json(tmp_path / "out/results.json")}
    assert ids and ids <= {5, 6, 9}


def test_predict_reads_as_the_reader_does(resobj, tmp_path, caplog):
    """Sixteen bits are not white: the model sees what the eight-bit version has."""
    grey = np.random.default_rng(0).integers(0, 256, (60, 60), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "eight.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    predictor = Predictor(*resobj)
    with caplog.at_level(logging.WARNING):
        paths = [tmp_path / name for name in ("eight.png", "sixteen.png", "float.tif")]
        files = predict_images(predictor, paths, tmp_path / "out")
    results = read_json(files.results)
    eight, sixteen = (
        [(item["bbox"], item["score"]) for item in results if item["image_id"] == i] for i in (1, 2)
    )
    assert eight == sixteen and len(eight) > 5
    assert list(files.failed) == [tmp_path / "float.tif"]
    with pytest.raises(ImageError, match="floating-point"):
        predictor.read(tmp_path / "float.tif")


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.png", "HTTPS://127.0.0.1:9/a.png"])
def test_pictures_are_not_downloaded(resobj, address, capsys):
    with pytest.raises(ImageError, match="from the disk alone: download it first"):
        Predictor(*resobj)(address)
    assert main(["--config-file", "no.yaml", "--input", address, "--output", "out"]) == 2
    assert f"{address} is not on this machine: download it first" in capsys.readouterr().err


def test_an_output_that_is_a_file_is_told_before_the_model_is_loaded(photos, tmp_path, capsys):
    output = tmp_path / "out"
    output.write_text("mine")
    arguments = ["--config-file", "no.yaml", "--input", str(photos), "--output", str(output)]
    assert main(arguments) == 2
    assert f"--output {output} is a file: give the name of a folder" in capsys.readouterr().err
