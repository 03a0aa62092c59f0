"""Operators under torch.compile: one graph without a break, few compilations for many batches."""

import random

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils import _pytree as pytree

from resobj_d2 import ops
from tests.ops.operator_cases import CASES, boxes

BATCHES = 50
RULE = {"thresholds": [0.4, 0.5], "labels": [0, -1, 1]}


def match(draw, images):
    """Sizes of 0 and 1 among them, and ignore regions."""
    counts = [draw.randint(0, 6) for _ in range(images - 1)] + [draw.randint(2, 6)]
    regions = [draw.randint(0, 2) for _ in range(images - 1)] + [2]
    return {
        "anchors": boxes(draw.randint(50, 400)),
        "gt_boxes": boxes(sum(counts)),
        "gt_sizes": torch.tensor(counts),
        "ignore_boxes": boxes(sum(regions)),
        "ignore_sizes": torch.tensor(regions),
    }


def reassign(draw, images):
    arguments = match(draw, images)
    return {**arguments, "deltas": 0.1 * torch.randn(images, len(arguments["anchors"]), 4)}


def dense(draw, images):
    height, width = draw.randint(7, 20), draw.randint(7, 20)
    shapes = [(height, width), ((height + 1) // 2, (width + 1) // 2)]
    sizes = [[draw.randint(30, 99), draw.randint(30, 99)] for _ in range(images)]
    return {
        "cls_logits": [torch.randn(images, 9, h, w) for h, w in shapes],
        "deltas": [torch.randn(images, 12, h, w) for h, w in shapes],
        "anchors": [boxes(3 * h * w) for h, w in shapes],
        "image_sizes": torch.tensor(sizes),
    }


def residual(draw, images):
    levels = [draw.randint(20, 300), draw.randint(5, 50)]
    shape = images, sum(levels)
    return {
        "logits": torch.randn(shape, requires_grad=True),
        "residuals": torch.randn(2, *shape, requires_grad=True),
        "labels": torch.randint(-1, 2, shape, dtype=torch.int8),
        "anchors_per_level": levels,
    }


def image_residual(draw, images):
    arguments = residual(draw, images)
    del arguments["anchors_per_level"]
    return arguments


DENSE = {"num_classes": 3, "score_thresh": 0.3, "topk": 50, "nms_thresh": 0.5, "max_detections": 9}
BATCHED = {
    "match_anchors": ("match_anchors", match, RULE),
    "reassign_anchors": ("reassign_anchors", reassign, RULE),
    "dense_detections": ("dense_detections", dense, DENSE),
    "residual_objectness_bce": ("residual_objectness_bce", image_residual, {}),
    "residual_objectness_bce by level": (
        "residual_objectness_bce",
        residual,
        {"min_scope": "level", "detach": "none"},
    ),
}


@pytest.fixture
def compiled():
    """A function: a function to its compiled form and a counter of its compilations."""
    torch._dynamo.reset()

    def compile_function(function):
        counter = CompileCounter()
        return torch.compile(function, dynamic=True, fullgraph=True, backend=counter), counter

    yield compile_function
    torch._dynamo.reset()


def assert_same(results, expected):
    for a, b in zip(pytree.tree_leaves(results), pytree.tree_leaves(expected), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", BATCHED)
def test_at_most_two_compilations_for_batches_of_any_size(compiled, name):
    operator, make, options = BATCHED[name]
    draw = random.Random(0)
    torch.manual_seed(0)

    def function(arguments):
        return tuple(getattr(ops, operator)(**arguments, **options))

    call, counter = compiled(function)
    for i in range(BATCHES):
        # torch itself compiles again for dimensions of 0 and 1.
        arguments = make(draw, draw.randint(2, 5) if i else 3)
        assert_same(call(arguments), function(arguments))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", sorted(set(CASES) - {op for op, *_ in BATCHED.values()}))
def test_the_others_too(compiled, name):
    make = CASES[name].make
    torch.manual_seed(0)
    arguments = make(7)
    tensors = [key for key, value in arguments.items() if isinstance(value, torch.Tensor)]
    options = {key: value for key, value in arguments.items() if key not in tensors}

    def function(arguments):
        return getattr(ops, name)(**arguments, **options)

    call, counter = compiled(function)
    for size in range(10, 60):
        arguments = {key: value for key, value in make(size).items() if key in tensors}
        assert_same(call(arguments), function(arguments))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", ["balanced_l1_loss", "ciou_loss", "giou_loss"])
def test_weighted_means_too(compiled, name):
    def function(arguments, weight):
        return getattr(ops, name)(**arguments, weight=weight, reduction="mean")

    call, counter = compiled(function)
    for size in range(10, 30):
        arguments, weight = CASES[name].make(size), torch.tensor(0.5)
        assert_same(call(arguments, weight), function(arguments, weight))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", ["match_anchors", "reassign_anchors", "dense_detections"])
def test_tensors_of_sizes_are_lists_of_sizes(name):
    operator, make, options = BATCHED[name]
    arguments = make(random.Random(1), 3)
    lists = {k: v.tolist() if k.endswith("sizes") else v for k, v in arguments.items()}
    results = getattr(ops, operator)(**arguments, **options)
    assert_same(results, getattr(ops, operator)(**lists, **options))
    halves = {k: v.int() if k.endswith("sizes") else v for k, v in arguments.items()}
    assert_same(results, getattr(ops, operator)(**halves, **options))


def test_lists_of_sizes_are_symbols_of_the_graph(compiled):
    def function(anchors, gt_boxes, gt_sizes):
        return tuple(ops.match_anchors(anchors, gt_boxes, gt_sizes, **RULE))

    call, counter = compiled(function)
    for first in range(2, 12):
        arguments = boxes(60), boxes(first + 13), [first, 13]
        assert_same(call(*arguments), function(*arguments))
    assert counter.frame_count <= 2


@pytest.mark.parametrize(
    "name, key, wrong, error, message",
    [
        ("match_anchors", "gt_sizes", torch.ones(2), TypeError, "must be a tensor of integers"),
        ("match_anchors", "gt_sizes", torch.ones(2, 1).int(), ValueError, r"have shape \(images,"),
        ("match_anchors", "gt_sizes", torch.tensor([-1, 5]), ValueError, "non-negative and sum to"),
        ("match_anchors", "gt_sizes", torch.tensor([2**62] * 4), ValueError, "negative and sum to"),
        (
            "match_anchors",
            "gt_sizes",
            torch.ones(2, dtype=torch.int64, device="meta"),
            ValueError,
            "must be on the CPU, got meta",
        ),
        ("reassign_anchors", "ignore_sizes", torch.tensor([9, 9]), ValueError, "and sum to the"),
        ("dense_detections", "image_sizes", torch.ones(2, 3).int(), ValueError, r"\(images, 2\)"),
        ("dense_detections", "image_sizes", -torch.ones(2, 2).int(), ValueError, "between 0 and"),
        ("dense_detections", "image_sizes", torch.ones(3, 2).int(), ValueError, "of 2 images, got"),
    ],
)
def test_errors_about_tensors_of_sizes(compiled, name, key, wrong, error, message):
    operator, make, options = BATCHED[name]
    arguments = {**make(random.Random(1), 2), key: wrong}
    with pytest.raises(error, match=f"{operator}: {key} {message}|{operator}: {key} .*{message}"):
        getattr(ops, operator)(**arguments, **options)


def test_sizes_that_do_not_fit_are_refused_when_a_compiled_function_runs(compiled):
    call, _ = compiled(lambda arguments: tuple(ops.match_anchors(**arguments, **RULE)))
    arguments = match(random.Random(1), 3)
    call(arguments)
    arguments["gt_sizes"] = arguments["gt_sizes"] + 1
    with pytest.raises(ValueError, match="^match_anchors: gt_sizes must be non-negative and sum"):
        call(arguments)
