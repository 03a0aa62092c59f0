"""Detectors under torch.compile: what a detector predicts and its losses make one graph."""

import random

import pytest
import torch
from detectron2.modeling import build_model
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental import _config as symbolic_shapes
from torch.utils import _pytree as pytree

FAMILIES = {
    "retinanet": [],
    "resobj": ["retinanet_resobj"],
    "conf": ["retinanet_conf"],
    "consistent": ["retinanet_consistent"],
    "fsaf": ["fsaf"],
    "everything": ["everything_fsaf"],
    "ssd": ["ssd"],
    "yolov3": ["yolov3"],
    "efficientdet": ["efficientdet"],
}


@pytest.fixture
def training(method_cfg, make_batch):
    """A function: a family to a detector, normalised images, and the losses as a function of them.

    A batch has one image, since tracing takes time for every box of every image.
    """
    torch._dynamo.reset()

    def make(family):
        torch.manual_seed(0)
        model = build_model(method_cfg(*FAMILIES[family]))
        batch = make_batch([(64, 64, 2)])
        images, ground_truth = model._preprocess(batch), model._ground_truth(batch)
        return model, images, lambda images: model._losses(model.predict(images), ground_truth)

    yield make
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_predictions_and_losses_are_one_graph(family, training):
    _, images, losses = training(family)
    explained = torch._dynamo.explain(losses)(images)
    assert explained.graph_count == 1 and explained.graph_break_count == 0


@pytest.mark.slow
def test_a_compiled_step_is_the_eager_one(training):
    model, images, losses = training("resobj")

    def step(losses):
        values = losses(images)
        return values, torch.autograd.grad(sum(values.values()), list(model.parameters()))

    state = {name: value.clone() for name, value in model.state_dict().items()}
    expected = step(losses)
    model.load_state_dict(state)  # the normaliser's average
    results = step(torch.compile(losses, fullgraph=True, backend="eager"))
    torch.testing.assert_close(pytree.tree_leaves(results), pytree.tree_leaves(expected))


@pytest.mark.slow
def test_batches_of_any_sizes_take_one_compilation(training, make_batch):
    """As docs/training.md says: also with 0 and 1 boxes, and with maps of one cell."""
    model, *_ = training("retinanet")
    counter = CompileCounter()

    def losses(images, ground_truth):
        return model._losses(model.predict(images), ground_truth)

    compiled = torch.compile(losses, dynamic=True, fullgraph=True, backend=counter)
    draw = random.Random(0)
    with symbolic_shapes.patch(backed_size_oblivious=True, use_duck_shape=False):
        for i in range(50):
            size = [32 * draw.randint(1, 5) for _ in range(2)] if i else (64, 96)
            batch = make_batch([(*size, draw.randint(0, 6) if i else 2 + j) for j in range(2)])
            arguments = model._preprocess(batch), model._ground_truth(batch)
            state = {name: value.clone() for name, value in model.state_dict().items()}
            expected = losses(*arguments)
            model.load_state_dict(state)  # the normaliser's average
            torch.testing.assert_close(compiled(*arguments), expected)
    assert counter.frame_count == 1
