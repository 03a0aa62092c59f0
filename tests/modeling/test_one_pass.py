"""Training computes losses and their gradients in one pass: the stream states the right ones."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from resobj_d2.ops import _one_pass
from tests.ops.called_operators import CalledOperators

# Weights whose products are not exact.
WEIGHTS = ["MODEL.DENSE.CLS_LOSS.WEIGHT", 0.7, "MODEL.DENSE.BOX_LOSS.WEIGHT", 1.3]
OBJECTNESS = ["MODEL.DENSE.OBJECTNESS.WEIGHT", 0.7, "MODEL.DENSE.OBJECTNESS.RESIDUAL_WEIGHT", 1.3]
RPN = [
    *("MODEL.RPN.LOSS_WEIGHT", 0.7),
    *("MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", True, "MODEL.RESOBJ_RPN.SAMPLER.NAME", "KeepAll"),
]
METHODS = {
    "rpn": RPN,
    "retinanet_cascade": WEIGHTS,
    "retinanet_giou": WEIGHTS,
    "balanced_l1": WEIGHTS,
    "retinanet_resobj": OBJECTNESS,
}


def backward(model, batch, scale=1.0):
    """The gradients of a step, and the operators that its backward calls."""
    model.zero_grad()
    torch.manual_seed(0)
    with EventStorage():
        total = sum(model(batch).values()) * scale
    with CalledOperators() as called:
        total.backward()
    return [x.grad for x in model.parameters()], set(called.names)


@pytest.mark.parametrize("method", METHODS)
def test_a_training_step_takes_one_pass(method, method_cfg, tiny_rcnn, make_batch, monkeypatch):
    monkeypatch.setattr(_one_pass, "MIN_ELEMENTS", 0)
    torch.manual_seed(0)
    opts = METHODS[method]
    cfg = tiny_rcnn(*opts) if method == "rpn" else method_cfg(method, opts=opts)
    model = build_model(cfg)
    batch = make_batch([(64, 64, 3), (48, 64, 0)])
    initial = {name: buffer.clone() for name, buffer in model.named_buffers()}
    one, called = backward(model, batch)
    assert called == set()
    model.load_state_dict(initial, strict=False)  # the normaliser's moving average
    two, called = backward(model, batch, scale=3.0)
    assert called and all(name.endswith("_backward") for name in called)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(3 * a, b, rtol=1e-4, atol=1e-6)
