import logging

import pytest
import torch

from resobj_d2.config import load_config

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
        ("TEST.AUG.ENABLED", "True", "TEST.AUG.ENABLED has no effect"),
    ],
)
def test_a_run_that_cannot_work_is_refused(repository, scenes_options, key, value, message):
    config, opts = str(repository / SCENES), [*scenes_options, "MODEL.DEVICE", "cpu", key, value]
    with pytest.raises(ValueError, match=message):
        load_config(config, opts)
    load_config(config, opts, training=False)
