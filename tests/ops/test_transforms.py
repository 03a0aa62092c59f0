"""Every operator under every transform of torch: as its reference under it, or an error by name.

Derivatives are compared with those that torch finds for the reference, in float64.
"""

from __future__ import annotations

import inspect
import os
import re
import sys

import pytest
import torch
from torch import func
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from resobj_d2 import ops
from tests.ops.conftest import REFERENCES, SCALE_CLAMP
from tests.ops.operator_cases import (
    CASES,
    COMPOSED_LOSSES,
    DIFFERENTIABLE,
    DIFFERENTIABLE_ONCE,
    arguments_of,
    change_all,
    floating_to,
)

WITHOUT_GRADIENT = [name for name in CASES if name not in DIFFERENTIABLE]
# As many rows as boxes are left; the padded forms work.
NO_VMAP = {
    "batched_nms": "batched_nms does not work under .*; use batched_nms_padded",
    "nms": "batched_nms does not work under .*; use batched_nms_padded",
    "soft_nms": "soft_nms does not work under .*; use soft_nms_padded",
    "weighted_box_fusion": "weighted_box_fusion does not work under .*",
}
# Where the schema has no default, or another form than the wrapper.
SCHEMA_ONLY = {
    "dense_detections": {
        "factor_logits": [],
        "exponents": [1.0],
        "floors": [0.0],
        "image_sizes": [],
        "scale_clamp": SCALE_CLAMP,
        "weights": [1.0] * 4,
    }
}


def call_registered(name):
    """``torch.ops.resobj_d2.<name>`` with the arguments of the wrapper."""
    if CASES[name].composed:
        pytest.skip("only a wrapper")
    operator = getattr(torch.ops.resobj_d2, name).default
    names = [argument.name for argument in operator._schema.arguments]
    parameters = inspect.signature(getattr(ops, name)).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}

    def call(**arguments):
        own = {**defaults, **SCHEMA_ONLY.get(name, {}), **arguments}
        return operator(*(own[key] for key in names))

    return call


@pytest.fixture(params=["wrapper", "registered"])
def find(request):
    return call_registered if request.param == "registered" else lambda name: getattr(ops, name)


def doubles(name, seed=0, size=5):
    return change_all(arguments_of(name, size, seed=seed), floating_to(torch.float64))


def floating(output):
    results = output if isinstance(output, tuple) else (output,)
    return tuple(result for result in results if result.is_floating_point())


class Function:
    """An operator as a function of the arguments that get a gradient.

    Attributes:
        inputs: their values.
        tangents: a direction.
        batches: three values of each.
    """

    def __init__(self, name, operator):
        self.operator, self.keys = operator, CASES[name].gradients
        self.arguments = doubles(name)
        self.inputs = tuple(self.arguments[key] for key in self.keys)
        generator = torch.Generator().manual_seed(1)
        self.tangents = tuple(
            torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in self.inputs
        )
        self.batches = tuple(torch.stack((x, 0.9 * x, x + 0.1)) for x in self.inputs)
        self.argnums = tuple(range(len(self.inputs)))

    def __call__(self, *inputs):
        """The floating-point results."""
        named = dict(zip(self.keys, inputs, strict=True))
        return floating(self.operator(**{**self.arguments, **named}))

    def total(self, *inputs):
        """A number that weights the elements of all results differently."""
        return sum(
            (torch.arange(1, result.numel() + 1).view_as(result) * result).sum()
            for result in self(*inputs)
        )

    def leaves(self):
        return tuple(x.clone().requires_grad_() for x in self.inputs)


def vjp(f):
    outputs, pull_back = func.vjp(f, *f.inputs)
    return outputs, pull_back(tuple(torch.ones_like(output) for output in outputs))


def dual_numbers(f, differentiate=lambda total, inputs: total):
    with forward_ad.dual_level():
        inputs = [forward_ad.make_dual(x, t) for x, t in zip(f.leaves(), f.tangents, strict=True)]
        results = pytree.tree_leaves(differentiate(f.total(*inputs), inputs))
        return [forward_ad.unpack_dual(result).tangent for result in results]


def forward_over_reverse(f):
    return dual_numbers(f, lambda total, inputs: torch.autograd.grad(total, inputs))


def vmap_inside_an_expression(f):
    inputs = tuple(x.clone().requires_grad_() for x in f.batches)
    outputs = func.vmap(f)(*inputs)
    return outputs, torch.autograd.grad(sum(output.pow(2).sum() for output in outputs), inputs)


def gradient_of_vmap(f):
    return func.grad(lambda *x: sum(r.sum() for r in func.vmap(f)(*x)), f.argnums)(*f.batches)


TRANSFORMS = {
    "grad": lambda f: func.grad(f.total, f.argnums)(*f.inputs),
    "grad_and_value": lambda f: func.grad_and_value(f.total, f.argnums)(*f.inputs),
    "vjp": vjp,
    "jvp": lambda f: func.jvp(f, f.inputs, f.tangents),
    "jacrev": lambda f: func.jacrev(f, f.argnums)(*f.inputs),
    "jacfwd": lambda f: func.jacfwd(f, f.argnums)(*f.inputs),
    "hessian": lambda f: func.hessian(f.total, f.argnums)(*f.inputs),
    "reverse over reverse": lambda f: func.jacrev(func.grad(f.total, f.argnums), f.argnums)(
        *f.inputs
    ),
    "dual numbers": dual_numbers,
    "forward over reverse": forward_over_reverse,
    "vmap": lambda f: func.vmap(f)(*f.batches),
    "vmap inside an expression": vmap_inside_an_expression,
    "vmap of grad": lambda f: func.vmap(func.grad(f.total, f.argnums))(*f.batches),
    "grad of vmap": gradient_of_vmap,
    "vmap of jvp": lambda f: func.vmap(lambda *x: func.jvp(f, x, f.tangents))(*f.batches),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_derivatives_are_those_of_the_reference(find, name, transform):
    results, expected = (
        pytree.tree_leaves(TRANSFORMS[transform](Function(name, operator)))
        for operator in (find(name), REFERENCES[name])
    )
    assert any(value.any() for value in expected)
    torch.testing.assert_close(results, expected)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_all_ways_to_the_first_derivative_agree(name):
    f = Function(name, getattr(ops, name))
    inputs = f.leaves()
    gradients = torch.autograd.grad(f.total(*inputs), inputs)
    for way in (func.grad, func.jacrev, func.jacfwd):
        torch.testing.assert_close(way(f.total, f.argnums)(*f.inputs), gradients)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_checkpoints(find, name, reentrant):
    f = Function(name, find(name))
    inputs = f.leaves()
    expected = torch.autograd.grad(f.total(*inputs), inputs)
    checkpoint(f.total, *inputs, use_reentrant=reentrant).backward()
    torch.testing.assert_close([x.grad for x in inputs], list(expected), rtol=0, atol=0)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_a_batch_of_incoming_gradients(find, name):
    f = Function(name, find(name))

    def jacobian(vectorize):
        return torch.autograd.functional.jacobian(f.total, f.inputs, vectorize=vectorize)

    torch.testing.assert_close(jacobian(True), jacobian(False))


@pytest.mark.parametrize("name", DIFFERENTIABLE_ONCE)
def test_a_second_derivative_through_the_kernel_is_refused_by_name(find, name):
    f = Function(name, find(name))
    with pytest.raises(RuntimeError, match=f"^{name} can be differentiated once, not twice"):
        torch.autograd.functional.hessian(f.total, f.inputs)


CONSTANTS = [
    (name, key)
    for name in DIFFERENTIABLE
    for key, value in doubles(name).items()
    if isinstance(value, torch.Tensor)
    and value.is_floating_point()
    and key not in CASES[name].gradients
]


@pytest.mark.parametrize("name, key", CONSTANTS)
def test_a_gradient_that_is_not_computed_is_refused_by_name(find, name, key):
    arguments = doubles(name)
    value = arguments.pop(key)
    batch = torch.stack((value, value)).requires_grad_()
    refusal = f"^{name}: no gradient is computed for {key}; pass {key}.detach\\(\\)$"
    with pytest.raises(ValueError, match=refusal):
        find(name)(**arguments, **{key: value.requires_grad_()})
    if name in COMPOSED_LOSSES:  # torch computes it there
        return
    with pytest.raises(ValueError, match=refusal):
        func.vmap(lambda own: find(name)(**arguments, **{key: own}))(batch)


def with_tensors(name, operator, arguments):
    """The operator as a function of all tensors in its arguments, and these tensors."""
    leaves, structure = pytree.tree_flatten(arguments)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

    def function(*tensors):
        own = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            own[place] = tensor
        return operator(**pytree.tree_unflatten(own, structure))

    return function, [leaves[place] for place in places]


@pytest.mark.parametrize("name", [name for name in CASES if name not in NO_VMAP])
def test_vmap_is_a_loop(find, name):
    items = [with_tensors(name, find(name), doubles(name, seed)) for seed in range(3)]
    function, (first, *others) = items[0][0], items[0][1]
    batches = [torch.stack(parts) for parts in zip(*(tensors for _, tensors in items), strict=True)]
    reference = with_tensors(name, REFERENCES[name], doubles(name))[0]

    def loop(*rows):
        results = [pytree.tree_leaves(reference(*row)) for row in rows]
        return [torch.stack(parts) for parts in zip(*results, strict=True)]

    results = pytree.tree_leaves(func.vmap(function)(*batches))
    torch.testing.assert_close(results, loop(*zip(*batches, strict=True)))
    # Only the first is batched, along another dimension.
    dims = (first.dim(), *(None for _ in others))
    batch = torch.stack([tensors[0] for _, tensors in items], dim=-1)
    results = pytree.tree_leaves(func.vmap(function, dims)(batch, *others))
    torch.testing.assert_close(results, loop(*((tensors[0], *others) for _, tensors in items)))
    # Batches of batches.
    nested = func.vmap(func.vmap(function))(*(batch[None] for batch in batches))
    results = [result[0] for result in pytree.tree_leaves(nested)]
    torch.testing.assert_close(results, loop(*zip(*batches, strict=True)))


@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in (*NO_VMAP, *COMPOSED_LOSSES)]
)
def test_vmap_over_nothing_is_refused_by_name(find, name):
    function, tensors = with_tensors(name, find(name), doubles(name))
    refused = "batched_nms_padded" if name == "nms_padded" else name
    with pytest.raises(ValueError, match=f"^{refused} does not work under torch.vmap over 0 items"):
        func.vmap(function)(*(tensor.new_empty((0, *tensor.shape)) for tensor in tensors))


@pytest.mark.parametrize("name", NO_VMAP)
def test_vmap_is_refused_for_results_of_any_length(find, name):
    function, tensors = with_tensors(name, find(name), doubles(name))
    with pytest.raises(RuntimeError, match=f"^{NO_VMAP[name]}$"):
        func.vmap(function)(*(torch.stack((tensor, tensor)) for tensor in tensors))


def test_vmap_is_refused_for_out():
    boxes = torch.rand(3, 2, 4)
    with pytest.raises(RuntimeError, match="^_pairwise_box_iou_out does not work .* without out$"):
        func.vmap(lambda b: ops.pairwise_box_iou(b, b, out=torch.empty(2, 2)))(boxes)


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_results_without_a_gradient_are_constants(find, name):
    """They add nothing to the derivatives of an expression: 2 sum(inputs)."""
    arguments = doubles(name)
    function, tensors = with_tensors(name, find(name), arguments)
    inputs = tuple(tensor for tensor in tensors if tensor.is_floating_point())
    constants = tuple(tensor for tensor in tensors if not tensor.is_floating_point())
    assert [*inputs, *constants] == tensors
    expected = pytree.tree_leaves(REFERENCES[name](**arguments))
    seen = []

    def total(*inputs):
        results = pytree.tree_leaves(function(*inputs, *constants))
        seen.append(results)
        return 2 * sum(x.sum() for x in inputs) + sum(result.double().sum() for result in results)

    argnums = tuple(range(len(inputs)))
    twos = tuple(torch.full_like(x, 2) for x in inputs)
    leaves = tuple(x.clone().requires_grad_() for x in inputs)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, torch.ones_like(x)) for x in inputs]
        tangent = forward_ad.unpack_dual(total(*duals)).tangent
        torch.testing.assert_close([forward_ad.unpack_dual(r)[0] for r in seen.pop()], expected)
    assert tangent == 2 * sum(x.numel() for x in inputs)
    for gradients in (
        torch.autograd.grad(total(*leaves), leaves),
        torch.autograd.grad(checkpoint(total, *leaves, use_reentrant=False), leaves),
        func.grad(total, argnums)(*inputs),
        func.jacrev(total, argnums)(*inputs),
        func.jvp(func.grad(total, argnums), inputs, twos)[0],
        *((func.jacfwd(total, argnums)(*inputs),) if name not in NO_VMAP else ()),
    ):
        torch.testing.assert_close(gradients, twos)


@pytest.mark.slow
def test_without_kernels(warm_python):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "tests.ops.without_kernels", __file__, "-k", "not without_kernels"]
    result = warm_python.run(command, env={**os.environ, "RESOBJ_REQUIRE_NATIVE": ""})
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 250
