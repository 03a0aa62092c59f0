"""Losses under an expected gradient: the same results, whatever the gradient turns out to be."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, func
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from resobj_d2 import ops
from resobj_d2.ops import _one_pass, reference
from tests.ops.called_operators import CalledOperators
from tests.ops.operator_cases import CASES, ONE_PASS, arguments_of, change_all, floating_to

# In float32 neither the factor nor its product with a number is exact.
FACTOR = torch.tensor(1.0) / 7.3
RESIDUAL_OPTIONS = [
    {"detach": detach, "unselected": unselected, "min_scope": scope}
    for detach in ("all", "objectness", "none")
    for unselected in ("update", "keep")
    for scope in ("image", "none")
]
OPTIONS = [
    *(("balanced_l1_loss", x) for x in ({}, {"alpha": 0.3, "gamma": 1.0, "beta": 2.0})),
    *(("giou_loss", x) for x in ({}, {"mask": None})),
    *(("residual_objectness_bce", x) for x in RESIDUAL_OPTIONS),
    *(
        ("sigmoid_focal_loss", x)
        for x in ({}, {"mask": None, "gamma": 0.0}, {"gamma": 1.5, "alpha": -1.0})
    ),
]


@pytest.fixture(autouse=True)
def also_for_few(monkeypatch):
    monkeypatch.setattr(_one_pass, "MIN_ELEMENTS", 0)


def learned(name, size=3000, dtype=torch.float32, **options):
    """Arguments, some of which require a gradient."""
    arguments = change_all({**arguments_of(name, size), **options}, floating_to(dtype))
    for key in CASES[name].gradients:
        arguments[key].requires_grad_()
    return arguments


def loss_of(name, arguments, *factors):
    """The loss or losses, computed in a context for each factor."""
    with contextlib.ExitStack() as contexts:
        for factor in factors:
            contexts.enter_context(ops.expected_gradient(factor))
        output = getattr(ops, name)(**arguments)
    return output[0] if isinstance(output, tuple) else output


def total_of(name, arguments, *factors):
    total = loss_of(name, arguments, *factors)
    for factor in reversed(factors):
        total = total * factor
    return total.sum()


def gradients_of(total, arguments, **options) -> tuple[Tensor, ...]:
    inputs = [x for x in arguments.values() if isinstance(x, Tensor) and x.requires_grad]
    return torch.autograd.grad(total, inputs, **options)


def backward_calls(total, arguments):
    """The gradients, and the operators that the backward called."""
    with CalledOperators() as called:
        gradients = gradients_of(total, arguments)
    return gradients, called.names


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_the_same_bits_in_one_pass(name, options, dtype):
    arguments = learned(name, dtype=dtype, **options)
    two = (loss_of(name, arguments) * FACTOR).sum()
    one = total_of(name, arguments, FACTOR)
    if ops.native_status()["cpu"] == "native":
        assert torch.equal(one, two)
    gradients, called = backward_calls(one, arguments)
    assert called == []
    assert_same(gradients, gradients_of(two, arguments))
    assert all(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", ONE_PASS)
def test_all_results_are_the_same(name):
    with ops.expected_gradient(FACTOR):
        one = getattr(ops, name)(**learned(name))
    two = getattr(ops, name)(**learned(name))
    assert_same(*((x if isinstance(x, tuple) else (x,)) for x in (one, two)))


def test_a_factor_for_each_step():
    name = "residual_objectness_bce"
    arguments = learned(name)
    factors = torch.tensor([0.3, 0.0, -0.7])
    gradients, called = backward_calls(total_of(name, arguments, factors), arguments)
    assert called == []
    assert_same(gradients, gradients_of((loss_of(name, arguments) * factors).sum(), arguments))


@pytest.mark.parametrize("name", ONE_PASS)
def test_contexts_multiply_and_end(name):
    arguments = learned(name)
    gradients, called = backward_calls(total_of(name, arguments, 65536.0, 0.3, FACTOR), arguments)
    assert called == []
    two = (loss_of(name, arguments) * FACTOR * 0.3 * 65536.0).sum()
    expected, called = backward_calls(two, arguments)
    assert called == [f"_{name}_backward"]
    assert_same(gradients, expected)


@pytest.mark.parametrize("name", ONE_PASS)
def test_a_factor_that_changes_in_place_is_another(name):
    arguments = learned(name)
    factor = torch.ones(loss_of(name, arguments).shape)
    loss = loss_of(name, arguments, factor)
    factor.fill_(3.0)
    gradients, called = backward_calls((loss * factor).sum(), arguments)
    assert called == [f"_{name}_backward"]
    assert_same(gradients, gradients_of((loss_of(name, arguments) * factor).sum(), arguments))


@pytest.mark.parametrize("name", ONE_PASS)
@pytest.mark.parametrize("shape", [(1,), (1, 1), (7, 1)])
def test_a_factor_of_another_shape(name, shape):
    arguments = learned(name)
    factor = torch.rand(shape)
    gradients, called = backward_calls(total_of(name, arguments, factor), arguments)
    assert called == ([] if factor.numel() == 1 else [f"_{name}_backward"])
    assert_same(gradients, gradients_of((loss_of(name, arguments) * factor).sum(), arguments))


@pytest.mark.parametrize("name", ONE_PASS)
def test_any_other_gradient_is_computed_again(name):
    arguments = learned(name)
    for other in (FACTOR * 2, 0.0, float("inf")):
        total = (loss_of(name, arguments, FACTOR) * other).sum()
        gradients, called = backward_calls(total, arguments)
        assert called == [f"_{name}_backward"]
        two = (loss_of(name, arguments) * other).sum()
        for a, b in zip(gradients, gradients_of(two, arguments), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_the_scale_of_mixed_precision():
    arguments = learned("sigmoid_focal_loss")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**13)
    scaled = scaler.scale(total_of("sigmoid_focal_loss", arguments, FACTOR))
    (gradient,) = gradients_of(scaled, arguments)
    expected = gradients_of(total_of("sigmoid_focal_loss", arguments), arguments)[0]
    torch.testing.assert_close(gradient, expected * FACTOR * 2.0**13)


def test_few_numbers_take_two_passes(monkeypatch):
    monkeypatch.setattr(_one_pass, "MIN_ELEMENTS", 601)
    for size, calls in ((100, ["_sigmoid_focal_loss_backward"]), (101, [])):  # 6 classes
        arguments = learned("sigmoid_focal_loss", size)
        total = total_of("sigmoid_focal_loss", arguments, FACTOR)
        assert backward_calls(total, arguments)[1] == calls


@pytest.mark.parametrize("name", ONE_PASS)
def test_a_second_backward_has_a_gradient_of_its_own(name):
    arguments = learned(name)
    total = total_of(name, arguments, FACTOR)
    first = gradients_of(total, arguments, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.zero_()
    assert_same(gradients_of(total, arguments, retain_graph=True), kept)
    assert_same(gradients_of(total, arguments), kept)
    with pytest.raises(RuntimeError, match="second time"):
        gradients_of(total, arguments)


@pytest.mark.parametrize("name", ONE_PASS)
def test_a_second_derivative_is_an_error(name):
    arguments = learned(name, 6)
    gradients = gradients_of(total_of(name, arguments, FACTOR), arguments, create_graph=True)
    with pytest.raises(RuntimeError, match="once, not twice"):
        gradients[0].sum().backward()


@pytest.mark.parametrize("name", ONE_PASS)
def test_without_a_gradient_there_is_only_the_loss(name):
    for arguments, no_gradient in ((arguments_of(name, 50), False), (learned(name, 50), True)):
        with torch.set_grad_enabled(not no_gradient):
            loss = loss_of(name, arguments, FACTOR)
        assert not loss.requires_grad
        assert_same([loss], [loss_of(name, arguments).detach()])


def test_only_what_requires_a_gradient_gets_one():
    name = "residual_objectness_bce"
    arguments = learned(name)
    arguments["logits"] = arguments["logits"].detach()
    gradients, called = backward_calls(total_of(name, arguments, FACTOR), arguments)
    assert called == [] and len(gradients) == 1
    assert_same(gradients, gradients_of((loss_of(name, arguments) * FACTOR).sum(), arguments))


@pytest.mark.parametrize("name", ONE_PASS)
@pytest.mark.parametrize("options", [{"reduction": "mean"}, {"reduction": "none"}])
def test_other_reductions(name, options):
    arguments = {**learned(name, 50), **options}
    one = gradients_of(total_of(name, arguments, FACTOR), arguments)
    for a, b in zip(
        one, gradients_of((loss_of(name, arguments) * FACTOR).sum(), arguments), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ONE_PASS)
def test_half_precision(name):
    for dtype in (torch.float16, torch.bfloat16):
        arguments = learned(name, 50, dtype)
        gradients, called = backward_calls(total_of(name, arguments, FACTOR), arguments)
        assert called == []
        expected = gradients_of((loss_of(name, arguments) * FACTOR).sum(), arguments)
        assert_same(gradients, expected)


@pytest.mark.parametrize("name", ONE_PASS)
def test_empty(name):
    arguments = learned(name, 0)
    gradients = gradients_of(total_of(name, arguments, FACTOR), arguments)
    for key, gradient in zip(CASES[name].gradients, gradients, strict=True):
        assert gradient.shape == arguments[key].shape


@pytest.mark.parametrize("name", ONE_PASS)
def test_not_contiguous(name):
    arguments = learned(name, 50)
    strided = {
        key: torch.stack((value, value), dim=-1)
        .detach()[..., 0]
        .requires_grad_(value.requires_grad)
        if isinstance(value, Tensor)
        else value
        for key, value in arguments.items()
    }
    # torch computes strided numbers one by one, others in vectors: a last bit may differ.
    is_native = ops.native_status()["cpu"] == "native"
    check = assert_same if is_native else torch.testing.assert_close
    check(
        gradients_of(total_of(name, strided, FACTOR), strided),
        gradients_of(total_of(name, arguments, FACTOR), arguments),
    )


@pytest.mark.parametrize("name", ONE_PASS)
def test_results_do_not_depend_on_the_number_of_threads(name):
    if ops.native_status()["cpu"] != "native":
        pytest.skip("torch's own sums depend on the number of threads")
    arguments = learned(name, CASES[name].many)
    before, totals = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            total = total_of(name, arguments, FACTOR)
            totals.append((total.detach(), *gradients_of(total, arguments)))
    finally:
        torch.set_num_threads(before)
    assert_same(*totals)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed(use_reentrant):
    arguments = learned("sigmoid_focal_loss")
    logits = arguments.pop("logits")

    def total(logits):
        return total_of("sigmoid_focal_loss", {"logits": logits, **arguments}, FACTOR)

    with ops.expected_gradient(1.0):
        recomputed = checkpoint(total, logits, use_reentrant=use_reentrant)
    expected = torch.autograd.grad(total(logits), logits)
    recomputed.backward()
    assert_same([logits.grad], expected)


def test_transforms_and_batched_gradients():
    arguments = learned("sigmoid_focal_loss", 40)
    logits = arguments.pop("logits")

    def total(logits):
        return total_of("sigmoid_focal_loss", {"logits": logits, **arguments}, FACTOR)

    expected = torch.autograd.grad(total(logits), logits)[0]
    torch.testing.assert_close(func.grad(total)(logits.detach()), expected)
    weights = torch.tensor([1.0, 2.0])
    (batch,) = torch.autograd.grad(total(logits), logits, weights, is_grads_batched=True)
    torch.testing.assert_close(batch, expected * weights[:, None, None])


def test_compiled_code_and_other_modes_take_two_passes():
    arguments = learned("sigmoid_focal_loss", 40)
    expected = gradients_of(total_of("sigmoid_focal_loss", arguments, FACTOR), arguments)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def compiled(arguments):
        with ops.expected_gradient(FACTOR):
            loss = ops.sigmoid_focal_loss(**arguments)
        return loss * FACTOR

    assert_same(gradients_of(compiled(arguments), arguments), expected)
    with CalledOperators() as called:
        total_of("sigmoid_focal_loss", arguments, FACTOR)
    assert called.names == ["sigmoid_focal_loss"]


def test_one_compilation_serves_all_factors():
    arguments = learned("sigmoid_focal_loss", 40)
    counter = CompileCounter()
    compiled = torch.compile(ops.sigmoid_focal_loss, backend=counter, fullgraph=True)
    for factors in ((), (0.3,), (FACTOR,), (0.3, FACTOR)):
        with contextlib.ExitStack() as contexts:
            for factor in factors:
                contexts.enter_context(ops.expected_gradient(factor))
            compiled(**arguments)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ONE_PASS)
def test_the_reference_agrees(name):
    arguments = learned(name, 40, torch.float64)
    operator = getattr(torch.ops.resobj_d2, f"_{name}_with_gradient")
    schema = [argument.name for argument in operator.default._schema.arguments][1:]
    options = {key: arguments.get(key) for key in schema if key in arguments}
    public = getattr(torch.ops.resobj_d2, name).default._schema.arguments
    defaults = {argument.name: argument.default_value for argument in public}
    plain = [options.get(key, defaults.get(key)) for key in schema]
    factor = torch.tensor(0.3, dtype=torch.float64)
    if name == "residual_objectness_bce":
        factor = torch.tensor([0.3, 0.0, 2.0], dtype=torch.float64)
    plain = [x.detach() if isinstance(x, Tensor) else x for x in plain]
    results = operator(factor, *plain)
    learned_inputs = [x.clone().requires_grad_() for x in plain[: len(CASES[name].gradients)]]
    output = getattr(reference, name)(*learned_inputs, *plain[len(learned_inputs) :])
    first = output[0] if isinstance(output, tuple) else output
    torch.testing.assert_close(results[0], first.detach())
    expected = torch.autograd.grad((first * factor).sum(), learned_inputs)
    for a, b in zip(results[-len(expected) :], expected, strict=True):
        torch.testing.assert_close(a, b)
