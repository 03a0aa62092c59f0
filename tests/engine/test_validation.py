"""Validation losses against those of a training forward."""

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.events import EventStorage
from torch import nn

from resobj_d2.data.augmentation import build_size_augmentations
from resobj_d2.data.mapper import PictureMapper
from resobj_d2.engine.validation import validation_losses


def test_it_is_the_mean_over_images_of_the_training_losses(scenes_trainer):
    """Five images in batches of two: the last one counts half."""
    trainer = scenes_trainer(
        "run",
        *["DATASETS.TEST", "('tiny_val',)", "SOLVER.IMS_PER_BATCH", 2],
        *["MODEL.DENSE.NORMALIZER.NAME", "ForegroundEMA"],
    )
    model, cfg = trainer.model, trainer.cfg
    found = validation_losses(cfg, model, seed=0)
    assert validation_losses(cfg, model, seed=0) == found
    assert model.training and all(module.training for module in model.modules())
    mapper = PictureMapper(cfg, True, augmentations=build_size_augmentations(cfg, is_train=False))
    images = [mapper(record) for record in DatasetCatalog.get("tiny_val")]
    mean = model.streams["anchors"].stages[0].normalizer.mean
    total = 0.0
    for batch in (images[:2], images[2:4], images[4:]):
        model.streams["anchors"].stages[0].normalizer.mean = mean
        with torch.no_grad(), EventStorage():
            total += float(sum(model(batch).values())) * len(batch)
    assert found["total_loss"] == pytest.approx(total / 5, rel=1e-5)


def test_layers_evaluate(scenes_trainer):
    """Normalisation uses its running statistics and leaves them; dropout drops nothing."""
    trainer = scenes_trainer("run", "DATASETS.TEST", "('tiny_val',)")
    trainer.model.backbone.bottom_up.res3[1] = nn.Sequential(nn.BatchNorm2d(8), nn.Dropout(0.5))
    found = validation_losses(trainer.cfg, trainer.model, seed=0)
    assert validation_losses(trainer.cfg, trainer.model, seed=1) == found
    before = {name: x.clone() for name, x in trainer.model.state_dict().items()}
    validation_losses(trainer.cfg, trainer.model, seed=0)
    again = trainer.model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in before.items())
    for module in trainer.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var *= 9.0
    assert validation_losses(trainer.cfg, trainer.model, seed=0) != found
