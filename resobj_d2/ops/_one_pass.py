"""Losses whose gradient is computed with them, where the incoming gradient is known beforehand.

A loss and its gradient share most of their arithmetic, and reading the logits takes as long as
either. But a kernel can only compute both at once if it knows the factor of the gradient: scaling
the gradient afterwards would cost half of the gain. :func:`expected_gradient` says what it will be.

Nothing relies on it. The gradient is handed out once, to a backward that brings exactly the
expected one. Any other backward (a second one, one that is itself differentiated, one under a
transform, one with a factor of mixed precision that nobody announced) computes its own, as if none
had been expected; the forward has then computed one for nothing.

Only on the CPU: comparing on a GPU would make the host wait for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from ._library import EAGER, NAMESPACE, define_op, no_backward, transforms_are_active

# With fewer logits or coordinates, a second pass takes less than what comes with an expectation.
MIN_ELEMENTS = 1 << 15

# The product of the factors, in the order in which a backward multiplies them.
_product: ContextVar[Tensor | float | None] = ContextVar("expected_gradient", default=None)
_is_compiling = torch.compiler.is_compiling


def expected_gradient(factor: Tensor | float) -> contextlib.AbstractContextManager[None]:
    """Context for a loss that will be multiplied by ``factor`` before it is differentiated.

        with ops.expected_gradient(factor):
            loss = ops.sigmoid_focal_loss(logits, labels)
        (loss * factor).backward()

    On the CPU, the gradient of a loss that is a sum without a weight, and not of few numbers, is
    then computed in the same pass as the loss, in about 0.65 of the time of two passes, and kept
    until the backward. The results are the same, also if the gradient turns out to be another.
    Contexts within each other multiply.

    Args:
        factor: the incoming gradient of the loss: a number, or a tensor on its device with one
            element or the shape of the loss; of any other shape it is no hint. Multiply by it
            rather than divide by its inverse, so that it is the same to the last bit.
    """
    if _is_compiling():  # compiled code cannot compare gradients
        return contextlib.nullcontext()
    return _Expecting(factor.detach() if isinstance(factor, Tensor) else factor)


class _Expecting(contextlib.AbstractContextManager):
    def __init__(self, factor: Tensor | float) -> None:
        self.factor = factor

    def __enter__(self) -> None:
        outer, product = _product.get(), self.factor
        if outer is not None:  # rounded as a backward rounds it
            product = (outer if isinstance(outer, Tensor) else torch.tensor(outer)) * product
        self.token = _product.set(product)

    def __exit__(self, *error: object) -> None:
        _product.reset(self.token)


def define_one_pass(
    name: str,
    two_passes: Callable,
    *,
    reference: Callable,
    fake: Callable,
    backward: Callable,
    setup_context: Callable,
    num_gradients: int = 1,
    loss_shape: Callable[..., Sequence[int]] = lambda *inputs: (),
) -> Callable:
    """Define ``_<name>_with_gradient``, a loss that returns its results and then its gradients.

    Args:
        name: of an operator with a gradient.
        two_passes: what :func:`.define_op` returned for it.
        reference, fake: of the new operator, whose first argument is the expected gradient; the
            others are those of ``name``.
        backward, setup_context: of ``name``, for any other gradient.
        num_gradients: the first arguments get a gradient, so many.
        loss_shape: called with the arguments; the shape of the loss.

    Returns:
        A function that calls ``two_passes`` unless a gradient is expected and needed.
    """
    define_op(
        f"_{name}_with_gradient",
        reference=reference,
        fake=fake,
        backward=no_backward(f"_{name}_with_gradient has no gradient; call {name}"),
    )
    operators = getattr(torch.ops, NAMESPACE)
    compute = getattr(operators, f"_{name}_with_gradient").default
    num_results = len(getattr(operators, name).default._schema.returns)
    eager = EAGER[name]
    below_autograd = torch._C._AutoDispatchBelowAutograd

    def run_forward(ctx, expected, *inputs):
        with below_autograd():
            results = compute(expected, *inputs)
        output = results[0] if num_results == 1 else results[:num_results]
        setup_context(ctx, inputs, output)
        # Not among the saved tensors: it is handed out once and belongs to who got it.
        ctx.expected, ctx.gradients = expected, results[num_results:]
        return output

    def run_backward(ctx, *incoming):
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None or not _is_expected(incoming[0], ctx.expected):
            return None, *backward(ctx, *incoming)
        return None, *gradients, *(None,) * (len(ctx.needs_input_grad) - 1 - num_gradients)

    methods = {"forward": staticmethod(run_forward), "backward": staticmethod(run_backward)}
    function = type(f"{name}_one_pass", (torch.autograd.Function,), methods)

    def call(*inputs):
        if _is_compiling():  # first: code that reads the context is compiled again for another
            return two_passes(*inputs)
        product = _product.get()
        if product is None or _few(inputs[:num_gradients]):
            return two_passes(*inputs) if transforms_are_active() else eager(*inputs)
        if not torch.is_grad_enabled() or not _are_plain(inputs):
            return two_passes(*inputs)
        expected = _as_gradient(product, inputs[0], loss_shape(*inputs))
        return two_passes(*inputs) if expected is None else function.apply(expected, *inputs)

    return call


def define_one_pass_of_sum(
    name: str,
    two_passes: Callable,
    *,
    loss: Callable,
    gradient: Callable,
    backward: Callable,
    setup_context: Callable,
) -> Callable:
    """:func:`define_one_pass` for a scalar loss of one tensor.

    Args:
        name, two_passes, backward, setup_context: as there.
        loss, gradient: the references of ``name`` and of its backward.
    """

    def reference(grad_loss, *inputs):
        return loss(*inputs), gradient(grad_loss, *inputs)

    def fake(grad_loss, pred, *others):
        return pred.new_empty(()), pred.new_empty(pred.shape)

    return define_one_pass(
        name,
        two_passes,
        reference=reference,
        fake=fake,
        backward=backward,
        setup_context=setup_context,
    )


def _few(differentiated: Sequence[Tensor]) -> bool:
    numbers = 0
    for x in differentiated:
        if x.requires_grad:
            numbers += x.numel()
    return numbers < max(MIN_ELEMENTS, 1)


def _are_plain(inputs: Sequence) -> bool:
    """Whether these are tensors with values on the CPU, which nothing transforms or traces."""
    if transforms_are_active() or torch._C._len_torch_dispatch_stack() > 0:
        return False
    for x in inputs:
        if isinstance(x, Tensor) and not (type(x) in (Tensor, nn.Parameter) and x.is_cpu):
            return False
    return True


def _as_gradient(product: Tensor | float, like: Tensor, shape: Sequence[int]) -> Tensor | None:
    """The product in the shape of the loss; None if it does not fit.

    A copy, since the factor may be changed in place before the backward compares it.
    """
    if not isinstance(product, Tensor):
        return like.new_full(shape, product)
    is_like = product.dtype is like.dtype and product.is_cpu
    copied = product.clone() if is_like else product.to(like)
    if copied.shape == shape:
        return copied
    return copied.reshape(()).expand(shape).contiguous() if copied.numel() == 1 else None


def _is_expected(incoming: Tensor, expected: Tensor) -> bool:
    """Whether they are equal; False where they cannot be compared, or a graph is needed."""
    cannot = (
        torch.is_grad_enabled()  # the gradient is to be differentiated
        or _is_compiling()
        or transforms_are_active()
        or torch._C._functorch.is_legacy_batchedtensor(incoming)  # is_grads_batched
    )
    return not cannot and torch.equal(incoming, expected)
