"""The ``resobj_d2`` operator library: one place where an operator gets its Python half.

The schema lives here in Python, once. The pure-torch reference is registered under
``CompositeExplicitAutograd``, so it serves every device that has no kernel of its own; the shared
libraries built from ``csrc/`` add kernels under ``CPU`` and ``CUDA``, which the dispatcher prefers.
No Python code ever asks whether an extension is there.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

NAMESPACE = "resobj_d2"
LIB = torch.library.Library(NAMESPACE, "DEF")


def define_op(
    schema: str,
    *,
    reference: Callable,
    fake: Callable,
    backward: Callable,
    setup_context: Callable | None = None,
) -> None:
    """Define one operator with everything that does not need compiled code.

    Args:
        schema: ``name(arguments) -> results`` in torch's schema language.
        reference: pure-torch implementation, the fallback and the oracle of the kernels.
        fake: the same signature; returns empty results of the right shape, dtype and device.
        backward: as in ``torch.library.register_autograd``; an operator without a gradient says
            so here by :func:`no_backward`.
        setup_context: as in ``torch.library.register_autograd``.

    Under autocast every operator computes in float32 (float64 inputs stay as they are).
    """
    name = schema.split("(", 1)[0]
    LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIB.impl(name, reference, "CompositeExplicitAutograd")
    qualified = f"{NAMESPACE}::{name}"
    torch.library.register_fake(qualified, fake, lib=LIB)
    torch.library.register_autograd(qualified, backward, setup_context=setup_context, lib=LIB)
    for device_type in ("cpu", "cuda"):
        torch.library.register_autocast(qualified, device_type, torch.float32, lib=LIB)


def no_backward(reason: str) -> Callable:
    """A backward function for :func:`define_op` that refuses, with ``reason``."""

    def backward(ctx, *grads):
        raise RuntimeError(reason)

    return backward


def mark_outputs_non_differentiable(ctx, inputs, output) -> None:
    """A ``setup_context`` for operators whose results carry no gradient."""
    outputs = output if isinstance(output, tuple) else (output,)
    ctx.mark_non_differentiable(*outputs)
