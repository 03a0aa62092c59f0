"""Classes that were changed after the configuration was loaded are compared before training."""

import pytest

from resobj_d2.config import get_config
from resobj_d2.engine import Trainer


def test_another_number_of_classes_is_refused_before_anything_is_made(tmp_path):
    entries = [
        {"name": f"counted_{split}", "format": "scenes", "split": split, "root": str(tmp_path),
         "image_size": 64, "num_train": 2, "num_val": 2}
        for split in ("train", "val")
    ]  # fmt: skip
    cfg = get_config(
        "small/scenes_retinanet_fl",
        DATASETS__REGISTER=entries,
        DATASETS__TRAIN=("counted_train",),
        DATASETS__TEST=("counted_val",),
        OUTPUT_DIR=tmp_path / "out",
    )
    cfg.MODEL.DENSE.NUM_CLASSES = 5
    with pytest.raises(ValueError, match="MODEL.DENSE.NUM_CLASSES is 5, but .* has 8 classes"):
        Trainer(cfg)
    assert not (tmp_path / "out").exists()
