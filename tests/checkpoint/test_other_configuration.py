"""Weights of another configuration are refused with a few examples of what differs."""

import pytest
from detectron2.modeling import build_model

from resobj_d2.checkpoint import CheckpointError, ResObjCheckpointer


def test_tensors_of_another_shape_are_told_once_and_in_part(tiny_cfg, tmp_path):
    ResObjCheckpointer(build_model(tiny_cfg()), str(tmp_path)).save("saved")
    other = build_model(tiny_cfg("MODEL.DENSE.NUM_CLASSES", 7))
    with pytest.raises(CheckpointError, match="another configuration") as caught:
        ResObjCheckpointer(other, strict=True).load(str(tmp_path / "saved.pth"))
    text = str(caught.value)
    assert "of another shape (streams.anchors.stages.0.cls." in text and "model (" in text
    assert "not in the checkpoint" not in text and len(text) < 600
