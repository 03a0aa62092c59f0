"""R1: the losses of Residual Objectness and their gradients, two images."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import eager, inputs
from benchmarks.case import MIB, Call, Case, Target
from resobj_d2 import ops

IMAGES = 2


def make(steps: int, count: int = inputs.NUM_ANCHORS, images: int = IMAGES):
    def tensors(device: torch.device, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        g = inputs.generator(seed)
        logits = torch.randn(images, count, generator=g) - 4
        residuals = 0.5 * torch.randn(steps, images, count, generator=g)
        labels = inputs.objectness_labels(images, count, seed + 1)
        return (
            logits.to(device).requires_grad_(),
            residuals.to(device).requires_grad_(),
            labels.to(device),
        )

    return tensors


def with_gradients(function, logits: Tensor, residuals: Tensor, labels: Tensor) -> Call:
    learned = (logits, residuals) if len(residuals) else (logits,)

    def call() -> tuple[Tensor, ...]:
        losses = function(logits, residuals, labels)
        return losses.detach(), *torch.autograd.grad(losses.sum(), learned)

    return call


def ours(*tensors: Tensor) -> Call:
    def losses(*tensors: Tensor) -> Tensor:
        with ops.expected_gradient(1.0):  # as training, which knows the gradient beforehand
            return ops.residual_objectness_bce(*tensors).losses

    return with_gradients(losses, *tensors)


def masked(*tensors: Tensor) -> Call:
    return with_gradients(eager.residual_losses_masked, *tensors)


def indexed(*tensors: Tensor) -> Call:
    return with_gradients(eager.residual_losses_indexed, *tensors)


def compiled(*tensors: Tensor) -> Call:
    function = torch.compile(eager.residual_losses_masked, dynamic=False, fullgraph=True)
    return with_gradients(function, *tensors)


def verify(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> None:
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


def residual_case(steps: int) -> Case:
    numbers = IMAGES * inputs.NUM_ANCHORS
    gradients = 4 * (steps + 1) * numbers
    masked_target, indexed_target = Target(), Target()
    if steps == 2:
        masked_target, indexed_target = (
            Target(cpu=6, avx2=5, cuda=8),
            Target(cpu=10, avx2=6, cuda=30),
        )
    return Case(
        id="R1",
        size=f"{IMAGES} x {inputs.NUM_ANCHORS} T={steps}",
        make=make(steps),
        ours=ours,
        peers={"eager, masked": masked, "eager, indexed": indexed},
        verify=verify,
        targets={"eager, masked": masked_target, "eager, indexed": indexed_target},
        peak_mb=gradients / MIB + 6 if steps == 2 else None,
        reads=(4 * (steps + 1) + 1) * numbers,
        writes=gradients,
    )


CASES = [
    *(residual_case(steps) for steps in range(4)),
    Case(
        id="R1",
        size=f"{IMAGES} x {inputs.NUM_ANCHORS} T=2 compiled",
        make=make(2),
        ours=ours,
        peers={"torch.compile": compiled},
        verify=verify,
        targets={"torch.compile": Target(cpu=5)},
        max_threads=1,
        slow=True,
    ),
]
