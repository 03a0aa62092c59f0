"""What every operator must do, whatever it computes; a new one that is not listed here fails."""

from __future__ import annotations

import warnings

import pytest
import torch

from resobj_d2 import ops
from tests.ops.operator_cases import (
    CASES,
    COMPOSED_LOSSES,
    DIFFERENTIABLE,
    DIFFERENTIABLE_ONCE,
    arguments_of,
    change,
    change_all,
    floating_to,
    is_tensor,
)

# Their results have no shape known beforehand; all others never make the host wait.
WAIT_FOR_THE_DEVICE = {"batched_nms", "nms", "soft_nms", "weighted_box_fusion"}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


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
    public = {name for name in ops.__all__ if name.islower()}
    assert public - {"describe_operators", "expected_gradient", "native_status"} == set(CASES)
    composed = {name for name in CASES if not hasattr(torch.ops.resobj_d2, name)}
    assert composed == {name for name, case in CASES.items() if case.composed}


@pytest.mark.parametrize("name", CASES)
def test_only_the_listed_arguments_get_gradients(name, device):
    arguments = arguments_of(name, 12, device)
    for key, value in arguments.items():
        if is_tensor(value) and key in (CASES[name].gradients or arguments):
            change(value, lambda t: t.requires_grad_() if t.is_floating_point() else t)
    output = getattr(ops, name)(**arguments)
    results = output if isinstance(output, tuple) else (output,)
    assert any(result.requires_grad for result in results) == bool(CASES[name].gradients)


# The gradient of CIoU takes one of its factors for a constant, as published.
@pytest.mark.parametrize("name", [name for name in DIFFERENTIABLE if name != "ciou_loss"])
def test_gradcheck(name, device):
    arguments = change_all(arguments_of(name, 6, device), floating_to(torch.float64))
    keys = CASES[name].gradients

    def differentiable(*inputs):
        output = getattr(ops, name)(**{**arguments, **dict(zip(keys, inputs, strict=True))})
        results = output if isinstance(output, tuple) else (output,)
        return tuple(result for result in results if result.requires_grad)

    inputs = [arguments[key].requires_grad_() for key in keys]
    assert torch.autograd.gradcheck(differentiable, inputs)


@pytest.mark.parametrize("name", DIFFERENTIABLE_ONCE)
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
@pytest.mark.parametrize("name", [name for name in CASES if name not in COMPOSED_LOSSES])
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


@pytest.mark.cuda
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
    assert (waits > 0) == (name in WAIT_FOR_THE_DEVICE)
    assert waits <= 1 or name == "weighted_box_fusion"


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
