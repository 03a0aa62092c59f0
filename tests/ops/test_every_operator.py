"""What every operator must do, whatever it computes; a new one that is not listed here fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from resobj_d2 import ops


@dataclass(frozen=True)
class Case:
    """Arguments of one operator.

    Attributes:
        make: arguments by name, for inputs of about a given size; empty for size 0.
        gradients: arguments that get a gradient.
        many: a size large enough for several threads.
    """

    make: Callable[[int], dict]
    gradients: tuple[str, ...] = ()
    many: int = 50000


def rand(*shape):
    return torch.rand(shape)


def boxes(number):
    corner = rand(number, 2) * 50
    return torch.cat((corner, corner + 1 + rand(number, 2) * 20), dim=1)


def overlap_arguments(size):
    return {"boxes1": boxes(min(size, 100)), "boxes2": boxes(size), "kind": "giou"}


def pair_arguments(size):
    return {"pred": boxes(size), "target": boxes(size)}


def aligned_arguments(size):
    return {**pair_arguments(size), "kind": "giou"}


def giou_arguments(size):
    return {**pair_arguments(size), "mask": rand(size) < 0.7}


def focal_arguments(size):
    labels = torch.randint(-1, 7, (size,))
    return {"logits": torch.randn(size, 6), "labels": labels, "mask": rand(size) < 0.7}


def residual_arguments(size):
    return {
        "logits": torch.randn(2, size),
        "residuals": torch.randn(2, 2, size),
        "labels": torch.randint(-1, 2, (2, size), dtype=torch.int8),
        "detach": "none",
        "unselected": "keep",
    }


def match_arguments(size):
    sizes = [3, 4] if size else [0, 0]
    return {
        "anchors": boxes(size),
        "gt_boxes": boxes(sum(sizes)),
        "gt_sizes": sizes,
        "thresholds": [0.4, 0.5],
        "labels": [0, -1, 1],
        "ignore_boxes": boxes(sizes[0]),
        "ignore_sizes": [sizes[0], 0],
    }


def reassign_arguments(size):
    deltas = 0.2 * torch.randn(2, size, 4)
    return {**match_arguments(size), "deltas": deltas, "weights": [10.0, 10.0, 5.0, 5.0]}


def candidate_arguments(size):
    return {"boxes": boxes(size), "scores": rand(size), "idxs": torch.randint(0, 3, (size,))}


def nms_arguments(size):
    return {**candidate_arguments(size), "iou_threshold": 0.5}


def dense_arguments(size):
    return {
        "cls_logits": [torch.randn(2, 2 * 3, size, 1)],
        "deltas": [torch.randn(2, 2 * 4, size, 1)],
        "anchors": [boxes(2 * size)],
        "num_classes": 3,
        "score_thresh": 0.3,
        "topk": 50,
        "nms_thresh": 0.5,
        "max_detections": 10,
    }


CASES = {
    "balanced_l1_loss": Case(pair_arguments, ("pred",)),
    "batched_nms": Case(nms_arguments),
    "batched_nms_padded": Case(nms_arguments),
    "box_iou_aligned": Case(aligned_arguments, ("pred", "target")),
    "dense_detections": Case(dense_arguments, many=20000),
    "giou_loss": Case(giou_arguments, ("pred",)),
    "match_anchors": Case(match_arguments, many=20000),
    "matrix_nms": Case(candidate_arguments, many=4500),
    "pairwise_box_iou": Case(overlap_arguments, many=5000),
    "reassign_anchors": Case(reassign_arguments, many=20000),
    "residual_objectness_bce": Case(residual_arguments, ("logits", "residuals"), many=40000),
    "sigmoid_focal_loss": Case(focal_arguments, ("logits",)),
    "soft_nms": Case(candidate_arguments, many=4500),
    "soft_nms_padded": Case(candidate_arguments, many=4500),
}
# Their results have no shape known beforehand; all others never make the host wait.
WAIT_FOR_THE_DEVICE = {"batched_nms", "soft_nms"}
DIFFERENTIABLE = [name for name, case in CASES.items() if case.gradients]


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def change(value, function):
    """``value`` with ``function`` applied to each tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list):
        return [change(item, function) for item in value]
    return value


def change_all(arguments, function):
    return {name: change(value, function) for name, value in arguments.items()}


def floating_to(dtype):
    return lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor


def arguments_of(name, size, device="cpu"):
    torch.manual_seed(0)
    return change_all(CASES[name].make(size), lambda tensor: tensor.to(device))


def is_tensor(value):
    return isinstance(value, Tensor) or (isinstance(value, list) and isinstance(value[0], Tensor))


def results_of(name, arguments):
    """The operator's results, and the gradients of a weighted sum of them."""
    arguments = change_all(arguments, lambda tensor: tensor.detach())
    inputs = [arguments[key].requires_grad_() for key in CASES[name].gradients]
    output = getattr(ops, name)(**arguments)
    results = list(output) if isinstance(output, tuple) else [output]
    total = [
        (result * torch.arange(1, result.numel() + 1, device=result.device).view_as(result)).sum()
        for result in results
        if result.requires_grad
    ]
    gradients = torch.autograd.grad(sum(total), inputs) if inputs else ()
    return [result.detach() for result in results] + list(gradients)


def assert_same_bits(results, expected):
    for a, b in zip(results, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_every_operator_is_listed():
    public = {name for name in ops.__all__ if hasattr(torch.ops.resobj_d2, name)}
    assert public == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_only_the_listed_arguments_get_gradients(name, device):
    arguments = arguments_of(name, 12, device)
    for key, value in arguments.items():
        if is_tensor(value) and key in (CASES[name].gradients or arguments):
            change(value, lambda t: t.requires_grad_() if t.is_floating_point() else t)
    output = getattr(ops, name)(**arguments)
    results = output if isinstance(output, tuple) else (output,)
    assert any(result.requires_grad for result in results) == bool(CASES[name].gradients)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradcheck(name, device):
    arguments = change_all(arguments_of(name, 6, device), floating_to(torch.float64))
    keys = CASES[name].gradients

    def differentiable(*inputs):
        output = getattr(ops, name)(**{**arguments, **dict(zip(keys, inputs, strict=True))})
        results = output if isinstance(output, tuple) else (output,)
        return tuple(result for result in results if result.requires_grad)

    inputs = [arguments[key].requires_grad_() for key in keys]
    assert torch.autograd.gradcheck(differentiable, inputs)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_second_derivative_is_an_error(name, device):
    arguments = arguments_of(name, 6, device)
    inputs = [arguments[key].requires_grad_() for key in CASES[name].gradients]
    output = getattr(ops, name)(**arguments)
    total = (output[0] if isinstance(output, tuple) else output).sum()
    gradients = torch.autograd.grad(total, inputs, create_graph=True)
    with pytest.raises(RuntimeError, match="once, not twice"):
        gradients[0].sum().backward()


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_shapes_are_known_without_values(name):
    results = results_of(name, arguments_of(name, 12, "meta"))
    for a, b in zip(results, results_of(name, arguments_of(name, 12)), strict=True):
        assert a.is_meta and a.shape == b.shape and a.dtype == b.dtype


@pytest.mark.parametrize("name", CASES)
def test_empty(name, device):
    arguments = arguments_of(name, 0, device)
    results = results_of(name, arguments)
    assert not any(result.isnan().any() for result in results)
    gradients = results[len(results) - len(CASES[name].gradients) :]
    for key, gradient in zip(CASES[name].gradients, gradients, strict=True):
        assert gradient.shape == arguments[key].shape


@pytest.mark.parametrize("name", CASES)
def test_not_contiguous(name, device):
    arguments = arguments_of(name, 40, device)
    strided = change_all(arguments, lambda tensor: torch.stack((tensor, tensor), dim=-1)[..., 0])
    assert_same_bits(results_of(name, strided), results_of(name, arguments))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_computed_in_float32(name, dtype, device):
    halves = change_all(arguments_of(name, 40, device), floating_to(dtype))
    expected = results_of(name, change_all(halves, floating_to(torch.float32)))
    first = len(expected) - len(CASES[name].gradients)
    expected[first:] = [gradient.to(dtype) for gradient in expected[first:]]
    assert_same_bits(results_of(name, halves), expected)
    with torch.autocast(device, torch.bfloat16):
        assert_same_bits(results_of(name, halves), expected)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_results_do_not_depend_on_the_number_of_threads(name, threads):
    if ops.native_status()["cpu"] != "native":
        pytest.skip("torch's own sums depend on the number of threads")
    arguments = arguments_of(name, CASES[name].many)
    before, expected = torch.get_num_threads(), results_of(name, arguments)
    try:
        torch.set_num_threads(threads)
        assert_same_bits(results_of(name, arguments), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CASES)
def test_the_host_waits_for_cuda_only_if_it_must(name):
    arguments = arguments_of(name, 40, "cuda")
    results_of(name, arguments)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            results_of(name, arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = sum("called a synchronizing" in str(warning.message) for warning in caught)
    assert waits == (name in WAIT_FOR_THE_DEVICE)


@pytest.mark.parametrize("name", CASES)
def test_errors_name_the_argument_with_a_wrong_device_or_dtype(name):
    arguments = arguments_of(name, 12)
    call = getattr(ops, name)
    for key in [key for key, value in arguments.items() if is_tensor(value)]:
        elsewhere = change(arguments[key], lambda tensor: tensor.to("meta"))
        with pytest.raises(ValueError, match=rf"^{name}: .*\b{key}\b"):
            call(**{**arguments, key: elsewhere})
        wrong = change(arguments[key], lambda t: t.long() if t.is_floating_point() else t.double())
        with pytest.raises(TypeError, match=rf"^{name}: .*\b{key}\b"):
            call(**{**arguments, key: wrong})
