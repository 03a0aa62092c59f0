"""From image files to pictures and COCO results, against the model called directly."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO

from resobj_d2.inference import predict_options
from resobj_d2.inference.predict import draw_samples, find_images, main, predict_images
from resobj_d2.inference.predictor import ImageError, Predictor

IDS = [3, 7, 11]  # the dataset's category ids of classes 0, 1, 2


def read_json(path):
    return json.loads(path.read_text())


def expected_results(cfg, model, path, image_id):
    """Detectron2's mapper, the model, and the conversion to COCO's format written out."""
    batch = [DatasetMapper(cfg, False)({"file_name": str(path)})]
    with torch.no_grad():
        detections = model(batch)[0]["instances"]
    return [
        {
            "image_id": image_id,
            "category_id": IDS[label],
            "bbox": pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=1e-3),
            "score": pytest.approx(score, abs=1e-6),
        }
        for (x0, y0, x1, y1), label, score in zip(
            detections.pred_boxes.tensor.tolist(),
            detections.pred_classes.tolist(),
            detections.scores.tolist(),
            strict=True,
        )
    ]


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_results_hold_what_the_model_returns(resobj, photos, tmp_path, image_format):
    cfg, model = resobj
    cfg.INPUT.FORMAT = image_format
    paths = find_images([str(photos)])
    files = predict_images(Predictor(cfg, model), paths, tmp_path / "out")
    expected = []
    for number, path in enumerate(paths, start=1):
        one = expected_results(cfg, model, path, number)
        assert len(one) > 5 and any(item["score"] != one[0]["score"] for item in one)
        expected += one
    assert read_json(files.results) == expected
    assert files.failed == {}


def test_results_load_in_pycocotools(resobj, photos, tmp_path):
    files = predict_images(Predictor(*resobj), find_images([str(photos)]), tmp_path / "out")
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO(str(files.images))
        results = dataset.loadRes(str(files.results))
    assert [image["id"] for image in dataset.loadImgs(results.getImgIds())] == [1, 2, 3, 4, 5]
    portrait = dataset.imgs[2]
    assert portrait["file_name"] == str(photos / "b.jpg")
    assert (portrait["width"], portrait["height"]) == (90, 150)
    names = {category["id"]: category["name"] for category in dataset.cats.values()}
    assert names == {3: "cat", 7: "dog", 11: "cow"}
    for item in results.anns.values():
        image = dataset.imgs[item["image_id"]]
        x, y, width, height = item["bbox"]
        assert x >= 0 and x + width <= image["width"] + 1e-3
        assert y >= 0 and y + height <= image["height"] + 1e-3


def test_pictures(resobj, photos, tmp_path):
    output = tmp_path / "out"
    files = predict_images(Predictor(*resobj), [photos / "a.png", photos / "b.jpg"], output)
    names = ["a.png", "a_steps.png", "b.png", "b_steps.png"]
    assert files.pictures == [output / name for name in names]
    assert Image.open(output / "a.png").size == (640, 480)
    assert Image.open(output / "b.png").size == (384, 640)
    steps = Image.open(output / "a_steps.png")  # three panels 448 wide, 8 around them
    header = steps.height - (round(448 * 60 / 80) + 8)
    assert steps.width == 3 * 448 + 4 * 8 and 14 < header < 60
    left = 8
    panels = [steps.crop((x, header, x + 448, steps.height)) for x in (left, 464, 920)]
    assert panels[0].tobytes() != panels[1].tobytes() != panels[2].tobytes()


def test_last_step_is_the_result(resobj, photos):
    _, steps = Predictor(*resobj).detect(photos / "a.png")
    assert len(steps) == 3
    expected = expected_results(*resobj, photos / "a.png", 1)
    assert steps[2].scores.tolist() == [item["score"] for item in expected]
    assert steps[0].scores.tolist() != steps[2].scores.tolist()


def test_confidence_threshold_changes_pictures_alone(resobj, photos, tmp_path, caplog):
    predictor = Predictor(*resobj)
    low, high = (
        predict_images(predictor, [photos / "a.png"], tmp_path / str(t), confidence_threshold=t)
        for t in (0.1, 1.0)
    )
    assert read_json(low.results) == read_json(high.results)
    plain = Image.open(photos / "a.png").resize((640, 480), Image.Resampling.LANCZOS)
    assert Image.open(high.pictures[0]).tobytes() == plain.tobytes()
    assert Image.open(low.pictures[0]).tobytes() != plain.tobytes()
    assert "nothing is drawn: the best score is 0." in caplog.text


def test_detectron2s_own_detectors(tiny_cfg, test_size, random_model, pets, photos, tmp_path):
    cfg = tiny_cfg(
        *test_size,
        *("DATASETS.TEST", f"('{pets}',)", "MODEL.META_ARCHITECTURE", "RetinaNet"),
        *("MODEL.RETINANET.NUM_CLASSES", "3", "MODEL.RETINANET.NUM_CONVS", "1"),
    )
    model = random_model(cfg)
    files = predict_images(Predictor(cfg, model), [photos / "b.jpg"], tmp_path / "out")
    assert files.pictures == [tmp_path / "out" / "b.png"]  # no steps
    results = read_json(files.results)
    assert results == expected_results(cfg, model, photos / "b.jpg", 1) and results


def test_resobj_rpn(tiny_rcnn, test_size, random_model, pets, photos, tmp_path):
    """Faster R-CNN: the objectness ranks proposals, so detections have no steps."""
    cfg = tiny_rcnn(
        *test_size,
        *("DATASETS.TEST", f"('{pets}',)", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
        *("MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", "True"),
        *("MODEL.RESOBJ_RPN.SAMPLER.NAME", "KeepAll"),
    )
    model = random_model(cfg)
    files = predict_images(Predictor(cfg, model), [photos / "b.jpg"], tmp_path / "out")
    assert files.pictures == [tmp_path / "out" / "b.png"]
    results = read_json(files.results)
    assert results == expected_results(cfg, model, photos / "b.jpg", 1) and results


def test_objectness_without_residuals_has_no_steps(
    tiny_resobj, test_size, random_model, photos, tmp_path
):
    cfg = tiny_resobj(*test_size, "DATASETS.TEST", "()", "MODEL.DENSE.OBJECTNESS.STEPS", "0")
    files = predict_images(Predictor(cfg, random_model(cfg)), [photos / "a.png"], tmp_path / "out")
    assert [path.name for path in files.pictures] == ["a.png"]
    # Without a dataset categories are class numbers.
    assert {item["category_id"] for item in read_json(files.results)} <= {0, 1, 2}
    assert read_json(files.images)["categories"] == []


def test_more_classes_than_the_dataset_has(resobj, pets, photos, tmp_path):
    MetadataCatalog.remove(pets)
    MetadataCatalog.get(pets).set(thing_dataset_id_to_contiguous_id={3: 0})
    with pytest.raises(ValueError, match="the model was made for other classes"):
        predict_images(Predictor(*resobj), [photos / "a.png"], tmp_path / "out")


def test_exif_orientation(resobj, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (80, 40), "red").save(path, exif=exif)
    files = predict_images(Predictor(*resobj), [path], tmp_path / "out")
    image = read_json(files.images)["images"][0]
    assert (image["width"], image["height"]) == (40, 80)
    assert Image.open(files.pictures[0]).size == (320, 640)


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_read_gives_rgb(resobj, tmp_path, image_format):
    cfg, model = resobj
    cfg.INPUT.FORMAT = image_format
    Image.new("RGB", (4, 3), (250, 100, 5)).save(tmp_path / "orange.png")
    image = Predictor(cfg, model).read(tmp_path / "orange.png")
    assert image.shape == (3, 4, 3) and image.dtype == np.uint8
    assert image[0, 0].tolist() == [250, 100, 5]


@pytest.mark.parametrize("kind", ["text", "empty", "cut png", "cut jpg", "missing"])
def test_broken_images_are_left_out(resobj, photos, tmp_path, kind, caplog):
    broken = photos / ("broken.jpg" if "jpg" in kind else "broken.png")
    source = (photos / ("b.jpg" if "jpg" in kind else "a.png")).read_bytes()
    content = {"text": b"no image", "empty": b"", "missing": None}.get(
        kind, source[: len(source) // 2]
    )
    if content is not None:
        broken.write_bytes(content)
    predictor = Predictor(*resobj)
    with pytest.raises(ImageError, match="broken"):
        predictor.read(broken)
    files = predict_images(predictor, [broken, photos / "b.jpg"], tmp_path / "out")
    assert list(files.failed) == [broken]
    assert str(broken) in caplog.text and "BufferedReader" not in caplog.text
    if kind == "text":
        assert "not an image in a format" in caplog.text
    assert [path.name for path in files.pictures] == ["b.png", "b_steps.png"]
    assert read_json(files.results) == expected_results(*resobj, photos / "b.jpg", 2)
    assert [image["id"] for image in read_json(files.images)["images"]] == [2]


def test_equal_names_from_several_folders(resobj, photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for name in ("a.jpg", "a_steps.png", "A.png"):
        Image.new("RGB", (40, 40)).save(other / name)
    files = predict_images(Predictor(*resobj), find_images([str(photos / "a.png"), str(other)]),
                           tmp_path / "out")  # fmt: skip
    assert len(files.pictures) == 8 == len({str(path).lower() for path in files.pictures})
    assert all(path.is_file() for path in files.pictures)
    assert Image.open(tmp_path / "out" / "a.png").size == (640, 480)


def test_inputs_are_not_overwritten(resobj, photos):
    before = (photos / "a.png").read_bytes()
    with pytest.raises(FileExistsError, match="choose another output folder"):
        predict_images(Predictor(*resobj), [photos / "a.png"], photos)
    assert (photos / "a.png").read_bytes() == before


def test_find_images(photos):
    (photos / "notes.txt").write_text("")
    deeper = photos / "deeper"
    deeper.mkdir()
    Image.new("RGB", (8, 8)).save(deeper / "f.webp")
    Image.new("RGB", (8, 8)).save(photos / "x[1].png")
    names = ["a.png", "b.jpg", "c.png", "d.png", "e.PNG", "x[1].png"]
    assert [p.name for p in find_images([str(photos)])] == names
    assert [p.name for p in find_images([str(photos / "*.jpg"), str(photos)])] == [
        "b.jpg", "a.png", *names[2:],
    ]  # fmt: skip
    assert [p.name for p in find_images([str(photos / "x[1].png")])] == ["x[1].png"]
    everything = find_images([str(photos / "**")])
    assert sorted(p.name for p in everything) == sorted([*names, "f.webp"])
    # A file that is named is taken whatever its suffix.
    assert find_images([str(photos / "notes.txt")]) == [photos / "notes.txt"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("absent.jpg", "absent.jpg is not a file, not a folder"),
        ("absent/*.jpg", "not a pattern that matches one"),
        ("folder", r"no image in the folder .*folder; looked for .*\.png.*folder/\*\*"),
        ("MODEL.WEIGHTS", "KEY VALUE pairs must follow another option"),
    ],
)
def test_no_image_found(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder" / "deeper").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=message):
        find_images([text])


def test_draw_samples(resobj, photos, tmp_path):
    boxes = [{"bbox": [5, 5, 30, 30], "bbox_mode": 0, "category_id": 1}]
    records = [
        {"file_name": str(photos / "c.png"), "annotations": boxes},
        {"file_name": str(photos / "e.PNG"), "annotations": []},
        {"file_name": str(photos / "c.png")},
    ]
    predictor = Predictor(*resobj)
    sheet = Image.open(draw_samples(predictor, records, tmp_path / "a.png", side=100))
    assert sheet.width == 2 * 100 + 3 * 8  # ground truth, detections
    wide = Image.open(
        draw_samples(predictor, records, tmp_path / "b.png", side=100, samples_per_row=2)
    )
    assert wide.width == 4 * 100 + 5 * 8 and sheet.height - wide.height == 108
    steps = Image.open(
        draw_samples(predictor, records[:1], tmp_path / "new" / "c.png", side=100, steps=True)
    )
    assert steps.width == 4 * 100 + 5 * 8  # ground truth, steps 0, 1, 2


def arguments(weights, photos, output, *opts):
    yaml, checkpoint = weights
    return [
        *("--config-file", str(yaml), "--input", str(photos), "--output", str(output)),
        *("MODEL.WEIGHTS", str(checkpoint), *opts),
    ]


def test_weights_are_given_as_in_other_commands():
    given = ["--config-file", "a", "--weights", "b.pth", "--input", "c", "--output", "d"]
    options = predict_options.parser().parse_args([*given, "--tile", "320", "SEED", "1"])
    assert options.overrides == ["PREDICT.TILE", "320", "SEED", "1", "MODEL.WEIGHTS", "b.pth"]


def test_command(weights, resobj, photos, tmp_path, capsys):
    output = tmp_path / "out"
    pattern = photos / "[ab]*"
    assert main(arguments(weights, pattern, output)) == 0
    assert f"4 pictures, results.json and images.json are in {output}" in capsys.readouterr().out
    results = read_json(output / "results.json")
    cfg, model = resobj
    expected = expected_results(cfg, model, photos / "a.png", 1)
    scores = [item["score"] for item in results if item["image_id"] == 1]
    assert scores == [item["score"] for item in expected]

    (photos / "broken.png").write_bytes(b"")
    assert main(arguments(weights, pattern, output)) == 1
    captured = capsys.readouterr()
    assert "4 pictures" in captured.out
    assert "1 of 3 images was left out" in captured.err and "broken.png" in captured.err


def test_command_with_a_score_for_each_class(weights, resobj, photos, tmp_path, caplog):
    cfg, model = resobj
    scores = sorted(Predictor(cfg, model)(photos / "a.png").scores.tolist())
    lowest = [0.0, scores[len(scores) // 2], 1.0]
    output = tmp_path / "out"
    options = ["PREDICT.SCORE_THRESH", str(lowest)]
    with caplog.at_level("INFO"):
        assert main([*arguments(weights, photos / "a.png", output), *options]) == 0
    found = read_json(output / "results.json")
    assert 0 < len(found) < len(scores)
    assert all(item["score"] >= lowest[item["category_id"]] for item in found)
    assert f"{len(found)} detections of at least 0" in caplog.text  # all of them are drawn


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.WEIGHTS", ""], "give --weights FILE, or set MODEL.WEIGHTS"),
        (["MODEL.WEIGHTS", "absent.pth"], "absent.pth"),
        (["MODEL.DENSE.NUM_CLASSES", "5"], "another configuration"),
        (["MODEL.DENSE.TYPO", "5"], "TYPO"),
        (["MODEL.DEVICE"], "KEY VALUE"),
        (["DATASETS.TEST", "('unheard_of',)"], "append DATASETS.REGISTER '[]' DATASETS.TEST '()'"),
    ],
)
def test_command_explains_wrong_settings(weights, photos, tmp_path, capsys, opts, message):
    assert main(arguments(weights, photos, tmp_path / "out", *opts)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_command_needs_no_training_data(weights, photos, tmp_path):
    opts = ["DATASETS.TRAIN", "('unheard_of',)"]
    assert main(arguments(weights, photos / "a.png", tmp_path / "out", *opts)) == 0


def test_command_refuses_wrong_arguments(weights, photos, tmp_path, capsys):
    # The name of the folder is no reason to talk about datasets.
    nothing = photos / "nothing" / "dataset"
    assert main(arguments(weights, nothing, tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert str(photos / "nothing") in error and "DATASETS.REGISTER" not in error
    assert main(arguments(weights, photos, photos)) == 2
    assert "would be overwritten" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--confidence-threshold", "30", *arguments(weights, photos, tmp_path / "out")])
    assert "between 0 and 1" in capsys.readouterr().err
