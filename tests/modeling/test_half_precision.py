"""``half()`` and ``bfloat16()``: dense detectors run, two-stage ones refuse."""

import copy

import pytest
import torch

from resobj_d2.matching.octave_priors import OctaveAnchors
from tests.export.conftest import spread_out  # noqa: F401 (a fixture)
from tests.export.test_detector import FAMILIES, FLAT


@pytest.mark.parametrize("family", FAMILIES)
def test_a_detector_of_16_bits(family, method_cfg, spread_out, make_batch):  # noqa: F811
    """Losses and the best scores are those of float32 but for rounding, and have its type."""
    model = spread_out(method_cfg(*FAMILIES[family], opts=FLAT))
    batch = make_batch([(64, 96, 3)])  # float32 images
    with torch.no_grad():
        best = model(batch)[0]["instances"].scores[0]
        expected = copy.deepcopy(model).train()(batch)
    half = copy.deepcopy(model).half()
    with torch.no_grad():
        found = half(batch)[0]["instances"]
    assert found.scores.dtype == found.pred_boxes.tensor.dtype == torch.float32
    torch.testing.assert_close(found.scores[0], best, rtol=0.01, atol=1e-3)
    other = model.bfloat16().train()
    losses = other(batch)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], rtol=0.05, atol=0.01)
    sum(losses.values()).backward()
    gradients = [x.grad for x in other.parameters() if x.grad is not None]
    assert gradients and all(x.isfinite().all() for x in gradients)


def test_anchors_are_not_rounded():
    """bfloat16 would put an anchor at 1000 pixels at a multiple of 4."""
    anchors = OctaveAnchors(strides=[8], scale=4.0)
    expected = anchors([(2, 150)]).boxes
    for change in (torch.nn.Module.half, torch.nn.Module.bfloat16):
        assert torch.equal(change(copy.deepcopy(anchors))([(2, 150)]).boxes, expected)
    assert copy.deepcopy(anchors).double()([(2, 150)]).boxes.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_two_stage_detector_refuses(dtype, tiny_rcnn):
    from detectron2.modeling import build_model

    model = build_model(tiny_rcnn()).eval().to(dtype)
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"need float32 weights, got {dtype}: keep them and"):
        model([{"image": image}])
