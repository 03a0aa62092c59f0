"""Each family of detectors overfits a handful of real images.

python -m pytest -m slow tests/engine/test_overfit.py -k ssd
"""

import json

import pytest

# Large objects of COCO, two and five of them.
IMAGES = [425988, 294920]
# The yamls' own settings are for twice as many images of twice the area.
SMALLER = [
    "INPUT.FIXED_SIZE", "[128, 128]",
    "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.MAX_ITER", "90",
]  # fmt: skip


@pytest.fixture
def few_images(shared_data, tmp_path):
    """An entry of DATASETS.REGISTER with only those images."""
    folder = shared_data / "coco_mini"
    data = json.loads((folder / "annotations/train.json").read_text())
    data["images"] = [x for x in data["images"] if x["id"] in IMAGES]
    data["annotations"] = [x for x in data["annotations"] if x["image_id"] in IMAGES]
    assert len(data["images"]) == len(IMAGES)
    (tmp_path / "few.json").write_text(json.dumps(data))
    return {
        "name": "few_train", "format": "coco",
        "json": str(tmp_path / "few.json"), "images": str(folder / "images"),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, opts",
    [
        ("overfit_ssd", []),
        ("overfit_yolov3", ["SOLVER.STEPS", "(75,)"]),
        ("overfit_efficientdet", []),
    ],
)
def test_overfits_a_few_images(name, opts, repository, few_images, tmp_path, clean_catalogs):
    from resobj_d2.config import load_config
    from resobj_d2.engine import Trainer

    cfg = load_config(
        str(repository / f"configs/small/{name}.yaml"),
        ["DATASETS.REGISTER", str([few_images]), "OUTPUT_DIR", str(tmp_path / "out")]
        + ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", *SMALLER, *opts],
    )
    (tmp_path / "out").mkdir()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    assert trainer.train()["bbox"]["AP50"] > 90
