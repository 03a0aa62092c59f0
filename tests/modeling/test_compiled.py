"""Detectors under torch.compile: what a detector predicts and its losses make one graph, once."""

import random

import pytest
import torch
from detectron2.modeling import build_model
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental import _config as symbolic_shapes
from torch.utils import _pytree as pytree

from docs.generators.compilations import (
    SETTINGS,
    Count,
    batches,
    count,
    random_batch,
    raw_maps,
    training_losses,
)

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
def test_predictions_and_losses_are_one_graph_that_serves_batches_of_all_sizes(family, training):
    model, *_ = training(family)
    counted = count(training_losses(model), batches(model, 5))
    # With FSAF's objectness, of one channel, up to three more, as docs/training.md says.
    most = 4 if family == "everything" else 1
    assert counted.graphs == 1 and 1 <= counted.compilations <= most


@pytest.mark.slow
def test_losses_of_an_rpn_with_residual_objectness_are_one_graph(tiny_rcnn):
    torch.manual_seed(0)
    model = build_model(
        tiny_rcnn(
            "MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED",
            "True",
            "MODEL.RESOBJ_RPN.SAMPLER.NAME",
            "KeepAll",
        )  # fmt: skip
    )
    # Detectron2's anchors ask of every map whether it has one row, or one column.
    made = [((160, 192), (2, 3)), ((192, 256), (0, 1)), ((256, 160), (0, 0))]
    calls = [random_batch(model, size, counts) for size, counts in made]
    assert count(training_losses(model), calls) == Count(graphs=1, compilations=1)


def test_the_maps_are_one_graph_that_serves_batches_of_all_sizes(training):
    model, *_ = training("retinanet")
    assert count(raw_maps(model), batches(model, 5)) == Count(graphs=1, compilations=1)


def test_breaks_and_recompilations_are_counted():
    def broken(x):
        x = x + 1
        torch._dynamo.graph_break()
        return x + 1

    def counted_in_python(x, number):
        return x + number

    sizes = [(torch.zeros(n),) for n in (3, 4, 1, 0)]
    assert count(broken, sizes) == Count(graphs=2, compilations=2)
    assert count(broken, sizes, settings=False).compilations > 2
    flags = [(torch.zeros(3), flag) for flag in (True, False, True)]
    assert count(counted_in_python, flags) == Count(graphs=1, compilations=2)


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
    with symbolic_shapes.patch(**SETTINGS):
        for i in range(50):
            size = [32 * draw.randint(1, 5) for _ in range(2)] if i else (64, 96)
            batch = make_batch([(*size, draw.randint(0, 6) if i else 2 + j) for j in range(2)])
            arguments = model._preprocess(batch), model._ground_truth(batch)
            state = {name: value.clone() for name, value in model.state_dict().items()}
            expected = losses(*arguments)
            model.load_state_dict(state)  # the normaliser's average
            torch.testing.assert_close(compiled(*arguments), expected)
    assert counter.frame_count == 1
