"""Detectors under torch.compile: the predictions are one graph, the losses of a batch another."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.utils import _pytree as pytree

FAMILIES = {
    "retinanet": [],
    "softmax": ["retinanet_ce"],
    "resobj": ["retinanet_resobj"],
    "conf": ["retinanet_conf"],
    "consistent": ["retinanet_consistent"],
    "gated_cascade": ["retinanet_gated_cascade"],
    "ghm": ["retinanet_ghm"],
    "ohem": ["retinanet_ohem"],
    "iou_balanced": ["retinanet_iou_balanced", "retinanet_ciou"],
    "fsaf": ["fsaf"],
    "everything": ["everything_fsaf"],
    "ssd": ["ssd"],
    "yolov3": ["yolov3"],
    "efficientdet": ["efficientdet"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_and_losses_are_one_graph_each(family, method_cfg, make_batch):
    torch.manual_seed(0)
    model = build_model(method_cfg(*FAMILIES[family]))
    batch = make_batch([(96, 96, 3), (96, 64, 2)])
    images, ground_truth = model._preprocess(batch), model._ground_truth(batch)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(model.predict)(images)
    assert explained.graph_count == 1 and explained.graph_break_count == 0

    def losses(outputs):
        return model._losses(outputs, ground_truth)

    explained = torch._dynamo.explain(losses)(model.predict(images))
    assert explained.graph_count == 1 and explained.graph_break_count == 0
    torch._dynamo.reset()


@pytest.mark.parametrize("family", ["resobj", "consistent"])
def test_a_compiled_step_is_the_eager_one(family, method_cfg, make_batch):
    torch.manual_seed(0)
    model = build_model(method_cfg(*FAMILIES[family]))
    batch = make_batch([(96, 96, 3), (96, 64, 2)])
    images, ground_truth = model._preprocess(batch), model._ground_truth(batch)

    def step(images):
        losses = model._losses(model.predict(images), ground_truth)
        return losses, torch.autograd.grad(sum(losses.values()), list(model.parameters()))

    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = step(images)
    model.load_state_dict(state)  # the normaliser's average
    torch._dynamo.reset()
    losses = torch.compile(
        lambda images: model._losses(model.predict(images), ground_truth),
        fullgraph=True,
        backend="aot_eager",
    )(images)
    gradients = torch.autograd.grad(sum(losses.values()), list(model.parameters()))
    torch._dynamo.reset()
    torch.testing.assert_close(
        pytree.tree_leaves((losses, gradients)), pytree.tree_leaves(expected)
    )
