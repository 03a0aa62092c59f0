"""FCOS, ATSS, PAA, GFL, varifocal loss and TOOD with the methods of this package."""

import pytest
import torch
from detectron2.modeling import build_model

WITH = {
    "resobj": {"OBJECTNESS.ENABLED": True, "OBJECTNESS.STEPS": 2},
    "consistent": {"STAGES": [{}]},
    "conf": {"QUALITY.ENABLED": True, "QUALITY.READS": "cls", "QUALITY.TARGET": "iou"},
}
WITH["all"] = WITH["resobj"] | WITH["consistent"] | WITH["conf"]
PAIRS = [(x, "all") for x in ("fcos", "atss", "paa", "gfl", "varifocal", "tood")]
PAIRS += [("gfl", x) for x in ("resobj", "consistent", "conf")]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("BOX_LOSS.WEIGHED_BY", "score", "TaskAlignedAssigner weighs the boxes already"),
        ("BOX_LOSS.WEIGHED_BY", "iou", "TaskAlignedAssigner weighs the boxes already"),
        ("BOX_LOSS.NAME", "SmoothL1Loss", "weighs the boxes, but BOX_LOSS SmoothL1Loss cannot"),
    ],
)
def test_weights_of_boxes_are_not_dropped(method_cfg, key, value, message):
    with pytest.raises(ValueError, match=message):
        build_model(method_cfg("tood", opts=[f"MODEL.DENSE.{key}", value]))


def test_what_refined_boxes_cannot_learn_is_refused(method_cfg):
    opts = ["MODEL.DENSE.STAGES", [{}], "MODEL.DENSE.BOX_LOSS.WEIGHED_BY", "none"]
    with pytest.raises(ValueError, match="QUALITY: TARGET centerness is nearly 1"):
        build_model(method_cfg("fcos", opts=opts))


@pytest.mark.parametrize("method, other", PAIRS)
def test_they_train_and_detect_together(method_cfg, make_batch, method, other):
    options = {**WITH[other], "POSTPROCESS.SCORE_THRESH": 0.0}
    stages = 2 if other in ("consistent", "all") else 1
    box_terms = stages
    if stages == 2 and method == "gfl":  # distributions refine no boxes
        options["STAGES"], box_terms = [{"BOX": "none"}], 1
    elif stages == 2 and method in ("fcos", "atss"):
        options["BOX_LOSS.WEIGHED_BY"] = "iou"  # refined boxes lie on their objects' centres
    opts = [x for key, value in options.items() for x in (f"MODEL.DENSE.{key}", value)]
    torch.manual_seed(0)
    model = build_model(method_cfg(method, opts=opts))
    batch = make_batch([(128, 128, 3), (128, 128, 0)])
    losses = model(batch)
    assert sum(name.startswith("loss_box_reg") for name in losses) == box_terms
    assert sum("residual" in name for name in losses) == (
        0 if other in ("consistent", "conf") else 2 * stages
    )
    assert ("loss_quality" in losses) == (other in ("conf", "all"))
    assert all(torch.isfinite(x) for x in losses.values())
    assert model.statistics["num_foreground"] > 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    with torch.no_grad():
        (found, _) = model.eval()(batch)
    assert len(found["instances"]) > 0
    fields = found["instances"].get_fields()
    assert ("objectness_score" in fields) == (other in ("resobj", "all"))
    assert ("quality_score" in fields) == (other in ("conf", "all"))
