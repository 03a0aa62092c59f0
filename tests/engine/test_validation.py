"""Validation losses against those of a training forward."""

import json
import pickle

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode
from detectron2.utils.events import EventStorage
from torch import nn

from resobj_d2.data.augmentation import build_size_augmentations
from resobj_d2.data.catalog import dataset_record
from resobj_d2.data.mapper import PictureMapper
from resobj_d2.data.register import register_datasets, training_records
from resobj_d2.engine import Trainer
from resobj_d2.engine.validation import _add_objectness, validation_losses, validation_records


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


def test_objectness_is_the_mean_over_all_anchors(scenes_trainer):
    trainer = scenes_trainer(
        "run", "DATASETS.TEST", "('tiny_val',)", "SOLVER.IMS_PER_BATCH", 2,
        "MODEL.DENSE.OBJECTNESS.ENABLED", True,
    )  # fmt: skip
    model, cfg = trainer.model, trainer.cfg
    found = validation_losses(cfg, model, seed=0)
    mapper = PictureMapper(cfg, True, augmentations=build_size_augmentations(cfg, is_train=False))
    images = [mapper(record) for record in DatasetCatalog.get("tiny_val")]
    stream = model.streams["anchors"]
    scores = {(t, label): [] for t in range(3) for label in (0, 1)}
    for image in images:
        with torch.no_grad(), EventStorage():
            output = model.predict(model._preprocess([image]))["anchors"]
            labels = (
                stream.stages[0]
                .assigner(
                    output.priors, output.stages[0].anchors, model._ground_truth([image]), None
                )
                .binary_labels
            )
        for t, label in scores:
            o = stream.branches["objectness"].score_logits(output.branches["objectness"], t)
            scores[t, label].append(torch.sigmoid(o[labels == label]))
    for t in range(3):
        for label, name in enumerate(("negative", "positive")):
            expected = torch.cat(scores[t, label]).mean().item()
            assert found[f"objectness/step{t}/{name}"] == pytest.approx(expected, rel=1e-4)
    assert "objectness/step0/selected" not in found


def test_objectness_of_an_rpn_is_weighed_by_its_positives():
    rpn, sums = nn.Module(), {}
    for per_image, mean in ((1.0, 0.2), (3.0, 0.6)):
        rpn.statistics = {
            "objectness/step1/positive": torch.tensor(mean),
            "objectness/step1/negative": torch.tensor(mean),
            "rpn/num_pos_anchors": torch.tensor(per_image),
        }
        _add_objectness(nn.Sequential(rpn), 2, sums)
    means = {name.rpartition("/")[2]: value / weight for name, (value, weight) in sums.items()}
    assert means["positive"] == pytest.approx((0.2 + 3 * 0.6) / 4)
    assert means["negative"] == pytest.approx((0.2 + 0.6) / 2)


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


def test_images_without_annotations_do_not_count(scenes_trainer, tmp_path):
    """A test set that is published without them is not a set of empty images."""
    trainer = scenes_trainer("run", "DATASETS.TEST", "('tiny_val',)")
    model, cfg = trainer.model, trainer.cfg
    record = dataset_record("tiny_val")
    content = {
        "images": [
            {"id": i, "file_name": name, "width": 64, "height": 64}
            for i, name in enumerate(record.images.files)
        ],
        "categories": [{"id": c.id, "name": c.name} for c in record.categories],
    }
    path = tmp_path / "plain.json"
    path.write_text(json.dumps(content))
    register_datasets([{"name": "plain", "json": str(path), "images": str(tmp_path)}])
    assert len(DatasetCatalog.get("plain")) == 5
    expected = validation_losses(cfg, model, seed=0)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = ("tiny_val", "plain")
    assert validation_losses(cfg, model, seed=0) == expected
    cfg.DATASETS.TEST = ("plain",)
    assert validation_losses(cfg, model, seed=0) == {}
    cfg.DATASETS.TRAIN = ("tiny_train", "plain")
    with pytest.raises(ValueError, match="'plain' of DATASETS.TRAIN has no annotations"):
        training_records(cfg)


@pytest.fixture
def rcnn_options(tmp_path, clean_catalogs):
    """Options of a dataset of two images with boxes; its proposals are in p.pkl."""
    box = {"bbox": [0, 0, 4, 4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    records = [
        {"file_name": "x.png", "image_id": i, "height": 8, "width": 8, "annotations": [dict(box)]}
        for i in range(2)
    ]
    DatasetCatalog.register("boxes", lambda: pickle.loads(pickle.dumps(records)))
    register_as_coco("boxes")
    boxes = [np.float32([[0, 0, 4, 4], [1, 1, 3, 3]])] * 2
    content = {"ids": [0, 1], "boxes": boxes, "objectness_logits": [np.float32([1, 2])] * 2}
    (tmp_path / "p.pkl").write_bytes(pickle.dumps(content))
    return [
        *("DATASETS.TRAIN", "('boxes',)", "DATASETS.TEST", "('boxes',)"),
        *("TEST.VALIDATION_LOSS", "True", "OUTPUT_DIR", str(tmp_path / "out")),
    ]


def register_as_coco(name):
    from detectron2.data import MetadataCatalog

    MetadataCatalog.get(name).set(evaluator_type="coco", thing_classes=["a", "b", "c"])


def test_proposals_come_with_the_images(tiny_rcnn, rcnn_options, tmp_path):
    files = f"('{tmp_path / 'p.pkl'}',)"
    options = [*rcnn_options, "MODEL.LOAD_PROPOSALS", "True", "DATASETS.PROPOSAL_FILES_TEST"]
    records = validation_records(tiny_rcnn(*options, files))
    assert [r["proposal_boxes"].tolist()[0] for r in records] == [[1, 1, 3, 3]] * 2


@pytest.mark.parametrize(
    "options, message",
    [
        (["MODEL.LOAD_PROPOSALS", "True"], "DATASETS.PROPOSAL_FILES_TEST has 0 files for 1"),
        (["MODEL.MASK_ON", "True"], r"none of the 2 objects of DATASETS.TEST \(boxes\) has a mask"),
        (["MODEL.KEYPOINT_ON", "True"], r"no object of DATASETS.TEST \(boxes\) has keypoints"),
    ],
)
def test_what_lacks_is_said_before_the_training(
    tiny_rcnn, rcnn_options, tmp_path, options, message
):
    with pytest.raises(ValueError, match=message):
        Trainer(tiny_rcnn(*rcnn_options, *options))
    assert not (tmp_path / "out").exists()
