"""The ``resobj_d2`` operator library: one place where an operator gets its Python half.

The schema lives here in Python, once. The pure-torch reference is registered under
``CompositeExplicitAutograd``, so it serves every device that has no kernel of its own; the shared
libraries built from ``csrc/`` add kernels under ``CPU`` and ``CUDA``, which the dispatcher prefers.
No Python code ever asks whether an extension was built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NAMESPACE = "resobj_d2"
LIB = torch.library.Library(NAMESPACE, "DEF")


def define_op(
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    backward: Callable,
    setup_context: Callable | None = None,
) -> Callable:
    """Define one operator with everything that does not need compiled code.

    Args:
        schema: ``name(arguments) -> results`` in torch's schema language.
        reference: pure-torch implementation, the fallback and the oracle of the kernels.
        fake: the same signature; returns empty results of the right shape, dtype and device.
        backward: ``backward(ctx, *grads)`` returns one gradient, or None, for each argument;
            :func:`no_backward` for an operator without a gradient.
        setup_context: ``setup_context(ctx, inputs, output)`` saves what the backward needs.

    Under autocast every operator computes in float32 (float64 inputs stay as they are).

    Returns:
        The operator as a function of positional tensors that are not in half precision, for its
        wrapper. It is ``torch.ops.resobj_d2.<name>`` without the detour through the dispatcher to
        autograd and back.
    """
    name = schema.split("(", 1)[0]
    LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIB.impl(name, reference, "CompositeExplicitAutograd")
    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, fake, lib=LIB)
    kernel = _autograd_kernel(name, backward, setup_context)
    LIB.impl(name, kernel, "Autograd")
    for device_type in ("cpu", "cuda"):
        torch.library.register_autocast(qualified, device_type, torch.float32, lib=LIB)
    operator = getattr(torch.ops.resobj_d2, name).default

    def call(*inputs):
        return operator(*inputs) if torch.compiler.is_compiling() else kernel(*inputs)

    return call


def _autograd_kernel(name: str, backward: Callable, setup_context: Callable | None) -> Callable:
    """What ``torch.library.register_autograd`` would make, in a quarter of the time.

    That matters: a loss on a few hundred boxes takes 2 us to compute and takes 40 us with it.
    """
    operator = getattr(torch.ops.resobj_d2, name).default
    arguments = operator._schema.arguments
    # The dispatcher leaves out arguments that have their default value.
    defaults = tuple(argument.default_value for argument in arguments)
    tensors = [
        position
        for position, argument in enumerate(arguments)
        if str(argument.type) in ("Tensor", "Optional[Tensor]")
    ]
    below_autograd = torch._C._AutoDispatchBelowAutograd

    def run_forward(ctx, *inputs):
        with below_autograd():
            output = operator(*inputs)
        if setup_context is not None:
            setup_context(ctx, inputs, output)
        return output

    methods = {"forward": staticmethod(run_forward), "backward": staticmethod(backward)}
    function = type(f"{name}_function", (torch.autograd.Function,), methods)

    def kernel(*inputs):
        inputs += defaults[len(inputs) :]
        if torch.is_grad_enabled():
            for position in tensors:
                tensor = inputs[position]
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    return function.apply(*inputs)
        with below_autograd():
            return operator(*inputs)

    return kernel


def no_backward(reason: str) -> Callable:
    """A backward function for :func:`define_op` that refuses, with ``reason``."""

    def backward(ctx, *grads):
        raise RuntimeError(reason)

    return backward


def mark_outputs_non_differentiable(ctx: Any, inputs: tuple, output: Any) -> None:
    """A ``setup_context`` for operators whose results carry no gradient."""
    outputs = output if isinstance(output, tuple) else (output,)
    ctx.mark_non_differentiable(*outputs)
