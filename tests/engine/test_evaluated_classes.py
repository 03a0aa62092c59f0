"""An evaluation refuses a dataset whose classes are not the checkpoint's."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from resobj_d2.checkpoint import CheckpointError, ResObjCheckpointer
from resobj_d2.engine import evaluate


def test_classes_in_another_order_are_refused(tiny_cfg, tmp_path, clean_catalogs):
    DatasetCatalog.register("exchanged", lambda: [])
    MetadataCatalog.get("exchanged").set(thing_classes=["cat", "cow", "dog"], evaluator_type="coco")
    weights = str(tmp_path / "a.pth")
    opts = ["DATASETS.TEST", "('exchanged',)", "OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS", weights]
    cfg = tiny_cfg(*opts)
    categories = [{"id": i, "name": name} for i, name in enumerate(("cat", "dog", "cow"))]
    checkpointer = ResObjCheckpointer(
        build_model(cfg), str(tmp_path), cfg=cfg, categories=categories
    )
    checkpointer.save("a")
    with pytest.raises(
        ValueError, match="classes cat, dog, cow; dataset 'exchanged' has them in an"
    ):
        evaluate(cfg)
    other = tiny_cfg(*opts, "INPUT.FORMAT", "RGB")
    with pytest.raises(CheckpointError, match="INPUT.FORMAT 'BGR', here 'RGB'"):
        evaluate(other)
