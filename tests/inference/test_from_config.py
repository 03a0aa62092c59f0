"""Predictors from a config and a checkpoint, and what their classes are called."""

import logging

import pytest
from detectron2.data import MetadataCatalog

from resobj_d2.inference import Predictor
from resobj_d2.inference.predictor import load_prediction_config

CATEGORIES = [{"id": 5, "name": "ant"}, {"id": 6, "name": "bee"}, {"id": 9, "name": "elk"}]


@pytest.fixture
def run_with_names(resobj, save_run):
    """Yaml and checkpoint of a run whose checkpoint knows its classes."""
    return save_run(*resobj, categories=CATEGORIES)


def test_a_notebooks_three_lines(resobj, weights, photos):
    yaml, checkpoint = weights
    predictor = Predictor.from_config(yaml, weights=checkpoint, device="cpu")
    detections = predictor(photos / "a.png")
    expected = Predictor(*resobj)(photos / "a.png")
    assert detections.scores.tolist() == expected.scores.tolist() and len(detections) > 5


def test_options_change_the_config(weights, photos):
    yaml, checkpoint = weights
    options = {"opts": ["TEST.DETECTIONS_PER_IMAGE", "3"], "batch_size": 4}
    predictor = Predictor.from_config(str(yaml), weights=str(checkpoint), **options)
    assert len(predictor(photos / "a.png")) == 3 and predictor.batch_size == 4


def test_a_config_in_memory_stays_as_it_is(resobj, weights, photos):
    cfg, _ = resobj
    cfg.freeze()
    predictor = Predictor.from_config(cfg, weights=weights[1], opts=["INPUT.MIN_SIZE_TEST", "64"])
    assert cfg.MODEL.WEIGHTS == "" and cfg.INPUT.MIN_SIZE_TEST == 96 and cfg.is_frozen()
    assert predictor.class_names == ["cat", "dog", "cow"]
    assert len(predictor(photos / "a.png")) > 5


def test_weights_are_needed(weights):
    with pytest.raises(ValueError, match="give --weights FILE, or set MODEL.WEIGHTS"):
        Predictor.from_config(weights[0])
    with pytest.raises(FileNotFoundError, match="checkpoint not found: .*absent.pth"):
        Predictor.from_config(weights[0], weights="absent.pth")
    with pytest.raises(FileNotFoundError, match="config file not found|absent.yaml"):
        Predictor.from_config("absent.yaml", weights=weights[1])


def test_names_of_the_checkpoint(run_with_names, photos, caplog):
    yaml, checkpoint = run_with_names
    with caplog.at_level(logging.WARNING):
        predictor = Predictor.from_config(yaml, weights=checkpoint)
    assert predictor.class_names == ["ant", "bee", "elk"]
    assert predictor.categories() == CATEGORIES
    assert predictor.category_id(2) == 9
    assert "classes" not in caplog.text
    names = {item["class_name"] for item in predictor.to_dicts(predictor(photos / "a.png"))}
    assert names and names <= {"ant", "bee", "elk"}


def test_names_of_the_data_set_that_agree(resobj, save_run, caplog):
    cfg, _ = resobj
    categories = [{"id": i, "name": name} for i, name in ((1, "cat"), (2, "dog"), (3, "cow"))]
    _, checkpoint = save_run(*resobj, categories=categories)
    with caplog.at_level(logging.WARNING):
        predictor = Predictor.from_config(cfg, weights=checkpoint)
    assert predictor.class_names == ["cat", "dog", "cow"] and predictor.category_id(0) == 3
    assert "classes" not in caplog.text


def test_the_checkpoint_is_right_where_the_data_set_disagrees(resobj, run_with_names, caplog):
    cfg, _ = resobj
    with caplog.at_level(logging.WARNING):
        predictor = Predictor.from_config(cfg, weights=run_with_names[1])
    assert predictor.categories() == CATEGORIES
    assert (
        "trained for the classes ant, bee, elk, but dataset 'predict_pets' has cat" in caplog.text
    )


def test_no_names_anywhere(weights, photos, caplog):
    with caplog.at_level(logging.WARNING):
        predictor = Predictor.from_config(weights[0], weights=weights[1])
    assert "neither DATASETS.TEST nor the checkpoint names the classes" in caplog.text
    assert predictor.class_names == [] == predictor.categories()
    items = predictor.to_dicts(predictor(photos / "a.png"))
    assert all(item["class_name"] == f"class {item['class_index']}" for item in items) and items


def test_names_that_are_given(weights, run_with_names):
    yaml, checkpoint = run_with_names
    predictor = Predictor.from_config(yaml, weights=checkpoint, class_names=("x", "y", "z"))
    assert predictor.class_names == ["x", "y", "z"]
    assert predictor.categories()[2] == {"id": 9, "name": "z"}
    with pytest.raises(ValueError, match="2 class_names were given, but MODEL.DENSE.NUM_CLASSES"):
        Predictor.from_config(yaml, weights=checkpoint, class_names=["x", "y"])


@pytest.mark.parametrize("stored", [CATEGORIES[:2], [{"supercategory": "animal"}] * 3, "abc"])
def test_what_another_program_stored_is_ignored(resobj, save_run, stored, caplog):
    yaml, checkpoint = save_run(*resobj, categories=stored)
    with caplog.at_level(logging.WARNING):
        predictor = Predictor.from_config(yaml, weights=checkpoint)
    assert predictor.class_names == []
    assert "'categories' are not the classes of its model" in caplog.text


@pytest.mark.usefixtures("clean_catalogs")
@pytest.mark.parametrize(
    "datasets, reason",
    [
        (["DATASETS.REGISTER", "[{'name': 'gone', 'json': 'no.json', 'images': 'no'}]",
          "DATASETS.TEST", "('gone',)"], "there is no such json file"),
        (["DATASETS.TEST", "('python_only',)"], "'python_only', which is not registered"),
    ],
)  # fmt: skip
def test_data_sets_that_are_elsewhere_are_not_needed(
    run_with_names, resobj, datasets, reason, caplog
):
    yaml, checkpoint = run_with_names
    cfg = resobj[0].clone()
    cfg.merge_from_list(["DATASETS.TRAIN", "()", *datasets])
    yaml.write_text(cfg.dump())
    with caplog.at_level(logging.WARNING):
        predictor = Predictor.from_config(yaml, weights=checkpoint)
    assert predictor.categories() == CATEGORIES
    assert "predicting without the config's datasets" in caplog.text and reason in caplog.text
    # What the caller names must be there.
    with pytest.raises((FileNotFoundError, ValueError), match=reason):
        load_prediction_config(str(yaml), datasets)


def test_other_errors_of_the_config_are_not_hidden(weights):
    with pytest.raises(ValueError, match="there is no key MODEL.DENSE.TYPO"):
        load_prediction_config(str(weights[0]), ["MODEL.DENSE.TYPO", "1"])


@pytest.mark.usefixtures("clean_catalogs")
def test_prediction_generates_no_scenes(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    yaml = repository / "configs/small/scenes_retinanet_resobj_t2.yaml"
    cfg = load_prediction_config(str(yaml))
    assert MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes[0] == "disc"
    assert list(tmp_path.iterdir()) == []
