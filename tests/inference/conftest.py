"""A small detector with random weights, and pictures for it."""

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from resobj_d2.checkpoint import ResObjCheckpointer


@pytest.fixture(scope="session")
def test_size():
    """Overrides that keep images small."""
    return ("INPUT.MIN_SIZE_TEST", "96", "INPUT.MAX_SIZE_TEST", "128")


@pytest.fixture
def pets():
    """Name of a dataset with classes; no more of it is needed."""
    name = "predict_pets"
    MetadataCatalog.get(name).set(
        thing_classes=["cat", "dog", "cow"],
        thing_dataset_id_to_contiguous_id={3: 0, 7: 1, 11: 2},
    )
    yield name
    MetadataCatalog.remove(name)


@pytest.fixture(scope="session")
def random_model():
    """A function: config to a model whose scores differ, and many of which pass."""

    def build(cfg):
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("predictor", "stages.0.cls", "cls_score")):
                torch.nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 0.0)
        return model

    return build


@pytest.fixture
def resobj(tiny_resobj, test_size, random_model, pets):
    """Config and model of a random ResObj detector, T = 2."""
    cfg = tiny_resobj(*test_size, "DATASETS.TEST", f"('{pets}',)")
    return cfg, random_model(cfg)


@pytest.fixture
def save_run(tmp_path):
    """A function: config and model to the yaml and the checkpoint of a run without datasets."""

    def save(cfg, model, **options):
        ResObjCheckpointer(model, str(tmp_path), **options).save("model")
        yaml = tmp_path / "config.yaml"
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
        yaml.write_text(cfg.dump())
        return yaml, tmp_path / "model.pth"

    return save


@pytest.fixture
def weights(resobj, save_run):
    """``resobj`` as yaml and checkpoint."""
    return save_run(*resobj)


@pytest.fixture
def photos(tmp_path):
    """A folder of images of several sizes, modes and formats."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def save(name, height, width, mode="RGB"):
        pixels = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((width, height)).convert(mode)
        image.save(folder / name)

    save("a.png", 60, 80)
    save("b.jpg", 150, 90)
    save("c.png", 64, 64, "L")
    save("d.png", 64, 72, "RGBA")
    save("e.PNG", 200, 200, "P")
    return folder
