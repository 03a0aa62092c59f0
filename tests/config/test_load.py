import logging
import os

import pytest
import torch
from detectron2.config import get_cfg

from resobj_d2.config import add_resobj_config, load_config
from resobj_d2.config.yaml_file import ConfigFileError, load_yaml_with_base

SCENES = "configs/small/scenes_retinanet_fl.yaml"


@pytest.fixture
def scenes_options(tmp_path):
    """Registers a few small generated scenes under a name of this test's own."""
    name = f"scenes_{tmp_path.name}"
    entries = [
        {"name": f"{name}_{split}", "format": "scenes", "split": split, "root": str(tmp_path),
         "image_size": 64, "num_train": 4, "num_val": 2}
        for split in ("train", "val")
    ]  # fmt: skip
    return [
        "DATASETS.REGISTER", str(entries),
        "DATASETS.TRAIN", f"('{name}_train',)",
        "DATASETS.TEST", f"('{name}_val',)",
    ]  # fmt: skip


def test_missing_config_file():
    with pytest.raises(FileNotFoundError, match="config file not found: /.*nothing.yaml"):
        load_config("nothing.yaml")


def test_odd_number_of_overrides():
    with pytest.raises(ValueError, match="pairs of KEY VALUE"):
        load_config("", ["MODEL.DEVICE"])


@pytest.mark.parametrize("late", [["--resume"], ["--num-gpus", "2"]])
def test_options_behind_the_overrides_are_told(late):
    with pytest.raises(ValueError, match=f"in front of the first KEY VALUE: put {late[0]} there"):
        load_config("", ["MODEL.DEVICE", "cpu", *late])


def test_a_pipe_is_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ConfigFileError, match="a.yaml is not a configuration: it is not a file"):
        load_yaml_with_base(tmp_path / "a.yaml")


def test_class_count_is_checked_against_the_dataset(repository, scenes_options):
    config = str(repository / SCENES)
    assert load_config(config, scenes_options).MODEL.DENSE.NUM_CLASSES == 8
    with pytest.raises(ValueError, match="MODEL.DENSE.NUM_CLASSES is 5.*8 classes.*disc"):
        load_config(config, [*scenes_options, "MODEL.DENSE.NUM_CLASSES", "5"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a GPU")
def test_without_a_gpu_the_cpu_is_used(repository, scenes_options, caplog):
    with caplog.at_level(logging.WARNING):
        cfg = load_config(str(repository / SCENES), scenes_options)
    assert cfg.MODEL.DEVICE == "cpu"
    assert "no GPU" in caplog.text


@pytest.mark.parametrize(
    "architecture, key",
    [("RetinaNet", "MODEL.RETINANET"), ("GeneralizedRCNN", "MODEL.ROI_HEADS")],
)
def test_class_count_of_stock_heads_is_checked(scenes_options, architecture, key):
    options = [*scenes_options, "MODEL.META_ARCHITECTURE", architecture]
    load_config("", [*options, f"{key}.NUM_CLASSES", "8"])
    with pytest.raises(ValueError, match=f"{key}.NUM_CLASSES is 20"):
        load_config("", [*options, f"{key}.NUM_CLASSES", "20"])


def test_mistyped_dataset_is_explained(repository, scenes_options):
    options = [*scenes_options, *(x.replace("_train", "_trian") for x in scenes_options[2:4])]
    with pytest.raises(ValueError, match="DATASETS.TRAIN names '.*_trian'.*Did you mean"):
        load_config(str(repository / SCENES), options)
    assert load_config(str(repository / SCENES), options, training=False).DATASETS.TRAIN == ()


@pytest.mark.parametrize("where", ["file", "list"])
def test_misspelt_key_is_explained(tmp_path, where):
    yaml = tmp_path / "misspelt.yaml"
    yaml.write_text("MODEL: {DENSE: {OBJECTNES: {STEPS: 1}}}" if where == "file" else "SEED: 1")
    opts = ["MODEL.DENSE.OBJECTNES.STEPS", "1"] if where == "list" else []
    source = str(yaml) if where == "file" else "the overrides KEY VALUE"
    with pytest.raises(ValueError, match="there is no key MODEL.DENSE.OBJECTNES") as caught:
        load_config(str(yaml), opts)
    assert str(caught.value).startswith(source)
    assert "Did you mean MODEL.DENSE.OBJECTNESS" in str(caught.value)


def test_data_that_are_not_registered_are_told_how_to():
    with pytest.raises(ValueError, match="'cells_train', which is not registered. Your own") as e:
        load_config("small/cells_retinanet_fl")
    assert "[{'name': 'cells_train', 'json': 'FILE.json', 'images': 'FOLDER'}]" in str(e.value)


def test_one_iteration_has_no_steps(repository, scenes_options):
    opts = [*scenes_options, "SOLVER.MAX_ITER", "1"]
    with pytest.raises(ValueError, match=r'give SOLVER.STEPS "\(\)", a constant rate$'):
        load_config(str(repository / SCENES), opts)


def test_key_like_no_other_gets_no_suggestion():
    with pytest.raises(ValueError, match="there is no key QQQQQQQQ$"):
        load_config("", ["QQQQQQQQ", "1"])


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("SOLVER.IMS_PER_BATCH", "0", "SOLVER.IMS_PER_BATCH must be .*got 0"),
        ("SOLVER.BASE_LR", "-0.1", "SOLVER.BASE_LR must be .*got -0.1"),
        ("SOLVER.STEPS", "(500, 1000)", r"not all below SOLVER.MAX_ITER 1000.*\(444, 888\)"),
        ("SOLVER.MAX_ITER", "750", r"SOLVER.STEPS \(750, 900\) are not all below"),
        ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.ENABLED needs a GPU, but MODEL.DEVICE is cpu"),
        ("SOLVER.EMA_DECAY", "2.0", r"SOLVER.EMA_DECAY must be in \[0, 1\), got 2.0"),
    ],
)
def test_a_run_that_cannot_work_is_refused(repository, scenes_options, key, value, message):
    config, opts = str(repository / SCENES), [*scenes_options, "MODEL.DEVICE", "cpu", key, value]
    with pytest.raises(ValueError, match=message):
        load_config(config, opts)
    load_config(config, opts, training=False)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.DEVICE", "gpu", "MODEL.DEVICE must be cpu, cuda or cuda:N, got 'gpu'"),
        ("MODEL.DENSE.STAGES", "[{'WEIGHTX': 1}]", r"STAGES\[0\]: has unknown keys \['WEIGHTX'\]"),
    ],
)
def test_values_that_no_command_can_use(repository, scenes_options, key, value, message):
    with pytest.raises(ValueError, match=message):
        load_config(str(repository / SCENES), [*scenes_options, key, value], training=False)


@pytest.mark.parametrize("where", ["mine.yaml", "base.yaml"])
def test_a_yaml_that_would_run_code_is_refused(tmp_path, where):
    (tmp_path / "base.yaml").write_text("SEED: 3")
    (tmp_path / "mine.yaml").write_text("_BASE_: base.yaml")
    harm = f"SEED: !!python/object/apply:pathlib.Path.touch ['{tmp_path / 'harm'}']"
    (tmp_path / where).write_text(harm)
    with pytest.raises(ValueError, match="Tags that run code are refused"):
        load_config(str(tmp_path / "mine.yaml"), ["DATASETS.TEST", "()", "DATASETS.TRAIN", "()"])
    cfg = get_cfg()
    add_resobj_config(cfg)
    with pytest.raises(ConfigFileError, match="Tags that run code are refused"):
        cfg.merge_from_file(str(tmp_path / "mine.yaml"))
    assert not (tmp_path / "harm").exists()


def test_modules_of_the_command_line_are_in_the_configuration(repository, scenes_options):
    cfg = load_config(str(repository / SCENES), scenes_options, imports=["json"])
    assert cfg.IMPORTS == ["json"]
