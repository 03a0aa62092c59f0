"""residual_objectness_bce: kernels against the reference, gradients, precision and shapes."""

import math

import pytest
import torch
from torch.nn import functional as F

from resobj_d2 import ops
from resobj_d2.ops import reference

INF = math.inf
DETACH = ("all", "objectness", "none")
SCOPES = ("image", "batch", "level", "none")
UNSELECTED = ("update", "keep")


def random_inputs(device, dtype, steps=2, images=2, anchors=3000, seed=0, foreground=0.01):
    """On a grid of quarters, so that many logits tie with a threshold."""
    generator = torch.Generator().manual_seed(seed)

    def quarters(*shape):
        return (torch.randn(shape, generator=generator, dtype=dtype) * 6).round() / 4

    logits, residuals = quarters(images, anchors) - 1, quarters(steps, images, anchors)
    draw = torch.rand(images, anchors, generator=generator)
    labels = torch.zeros(images, anchors, dtype=torch.int8)
    labels[draw < 0.2] = -1
    labels[draw > 1 - foreground] = 1
    logits, residuals = logits.to(device), residuals.to(device)
    return logits.requires_grad_(), residuals.requires_grad_(), labels.to(device)


def anchors_per_level_for(scope, anchors):
    return [anchors - anchors // 4, 0, anchors // 4] if scope == "level" else []


def gradients(output, logits, residuals):
    """Gradients of a sum that weighs every step differently, so that steps cannot be mixed up."""
    weights = torch.arange(1, len(output.losses) + 1, device=logits.device, dtype=logits.dtype)
    total = (weights * output.losses).sum()
    return torch.autograd.grad(
        total, (logits, residuals), allow_unused=True, materialize_grads=True
    )


@pytest.mark.parametrize("unselected", UNSELECTED)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("detach", DETACH)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-13)])
def test_kernel_agrees_with_the_reference(
    native_device, dtype, tolerance, detach, scope, unselected
):
    for steps in (1, 3):
        logits, residuals, labels = random_inputs(native_device, dtype, steps)
        options = (detach, scope, unselected, anchors_per_level_for(scope, logits.shape[1]))
        expected = ops.ResidualObjectnessOutput(
            *reference.residual_objectness_bce(logits, residuals, labels, *options)
        )
        output = ops.ResidualObjectnessOutput(
            *torch.ops.resobj_d2.residual_objectness_bce(logits, residuals, labels, *options)
        )
        assert output.counts[-1] < labels.numel()
        for exact in ("counts", "thresholds", "num_background_foreground"):
            assert torch.equal(getattr(output, exact), getattr(expected, exact)), exact
        for close in ("losses", "score_sums"):
            actual, wanted = getattr(output, close), getattr(expected, close)
            torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=0)
        torch.testing.assert_close(
            gradients(output, logits, residuals), gradients(expected, logits, residuals),
            rtol=tolerance, atol=tolerance,
        )  # fmt: skip


@pytest.mark.parametrize("unselected", UNSELECTED)
@pytest.mark.parametrize("scope", SCOPES)
def test_kernel_agrees_with_the_reference_on_infinite_values(native_device, scope, unselected):
    """All foreground of the first image, or of both, is +inf; many residuals are odd."""
    logits, residuals, labels = random_inputs("cpu", torch.float64, steps=3)
    generator = torch.Generator().manual_seed(1)
    odd = torch.tensor([INF, -INF, math.nan, 0.5])[
        torch.randint(4, (3, 2, 3000), generator=generator)
    ]
    is_odd = torch.rand(3, 2, 3000, generator=generator) < 0.3
    residuals = torch.where(is_odd, odd.double(), residuals.detach())
    weights = torch.arange(1.0, 5.0, dtype=torch.float64)
    for images in (1, 2):
        infinite = (labels > 0) & (torch.arange(2) < images)[:, None]
        tensors = logits.detach().masked_fill(infinite, INF), residuals, labels
        options = ("none", scope, unselected, anchors_per_level_for(scope, 3000))
        expected = reference.residual_objectness_bce(*tensors, *options)
        minima = expected[2]
        expected += reference.residual_objectness_bce_backward(weights, *tensors, minima, *options)
        tensors = tuple(x.to(native_device) for x in tensors)
        output = torch.ops.resobj_d2.residual_objectness_bce(*tensors, *options)
        output += torch.ops.resobj_d2._residual_objectness_bce_backward(
            weights.to(native_device), *tensors, output[2], *options
        )
        for actual, wanted in zip(output, expected, strict=True):
            torch.testing.assert_close(actual.cpu(), wanted, equal_nan=True)


@pytest.mark.parametrize("unselected", UNSELECTED)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("detach", DETACH)
def test_backward_formula_is_the_gradient_of_the_reference(detach, scope, unselected):
    logits, residuals, labels = random_inputs("cpu", torch.float64, steps=3, anchors=200)
    options = (detach, scope, unselected, anchors_per_level_for(scope, 200))
    output = ops.ResidualObjectnessOutput(
        *reference.residual_objectness_bce(logits, residuals, labels, *options)
    )
    weights = torch.arange(1.0, 5.0, dtype=torch.float64)
    formula = reference.residual_objectness_bce_backward(
        weights, logits.detach(), residuals.detach(), labels, output.thresholds, *options
    )
    torch.testing.assert_close(formula, gradients(output, logits, residuals))


@pytest.mark.parametrize("unselected", UNSELECTED)
@pytest.mark.parametrize("scope", SCOPES)
def test_gradcheck(impl, scope, unselected):
    """Without detaching, the gradient is that of the function's value."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 9, generator=generator, dtype=torch.float64).to(impl.device)
    residuals = torch.randn(2, 2, 9, generator=generator, dtype=torch.float64).to(impl.device)
    labels = torch.tensor([[1, 0, -1] * 3, [0, 1, 0] * 3], dtype=torch.int8, device=impl.device)

    def losses(logits, residuals):
        return impl.residual_objectness_bce(
            logits, residuals, labels,
            detach="none", min_scope=scope, unselected=unselected,
            anchors_per_level=anchors_per_level_for(scope, 9),
        ).losses  # fmt: skip

    torch.autograd.gradcheck(losses, (logits.requires_grad_(), residuals.requires_grad_()))


def test_detached_steps_do_not_change_the_objectness_gradient(impl):
    logits, residuals, labels = random_inputs(impl.device, torch.float32)
    for detach in ("all", "objectness"):
        total = impl.residual_objectness_bce(logits, residuals, labels, detach=detach).losses.sum()
        alone = impl.residual_objectness_bce(logits, residuals[:0], labels).losses.sum()
        with_steps = torch.autograd.grad(total, logits)[0]
        assert torch.equal(with_steps, torch.autograd.grad(alone, logits)[0])


def test_without_steps_it_is_binary_cross_entropy(impl):
    logits, residuals, labels = random_inputs(impl.device, torch.float64, steps=0)
    output = impl.residual_objectness_bce(logits, residuals, labels)
    valid = labels >= 0
    expected = F.binary_cross_entropy_with_logits(
        logits[valid], labels[valid].double(), reduction="sum"
    )
    torch.testing.assert_close(output.losses, expected[None])
    assert output.counts.tolist() == [valid.sum().item()]
    assert output.thresholds.shape == (0, 2) and output.score_sums.shape == (1, 2)


@pytest.mark.parametrize("label", [0, 1])
def test_accuracy_in_float32_over_the_whole_range(impl, label):
    values = torch.cat((torch.linspace(-110, 110, 881), torch.tensor([-1e4, -3e38, 1e4, 3e38])))
    labels = torch.tensor([[label]], dtype=torch.int8, device=impl.device)
    none = torch.empty(0, 1, 1, device=impl.device)
    for value in values.tolist():
        logit = torch.tensor([[value]], device=impl.device, requires_grad=True)
        loss = impl.residual_objectness_bce(logit, none, labels).losses[0]
        exact = -F.logsigmoid(logit.detach().double() * (2 * label - 1)).item()
        assert loss.item() == pytest.approx(exact, rel=5e-7, abs=1.5e-38), value
        gradient = torch.autograd.grad(loss, logit)[0].item()
        expected = (torch.sigmoid(logit.detach().double()) - label).item()
        # Where sigmoid(o) - 1 cancels, the kernel is more accurate than a float32 reference.
        assert gradient == pytest.approx(expected, rel=5e-7, abs=1e-7), value


@pytest.mark.parametrize("logit", [-80.0, -30.0, -16.0, -4.0, 0.0, 3.0])
def test_accuracy_of_sums_in_float32(impl, logit):
    generator = torch.Generator().manual_seed(0)
    logits = (logit + torch.rand(1, 5000, generator=generator)).to(impl.device)
    none = torch.empty(0, 1, 5000, device=impl.device)
    labels = torch.zeros(1, 5000, dtype=torch.int8, device=impl.device)
    loss = impl.residual_objectness_bce(logits, none, labels).losses[0]
    exact = F.softplus(logits.double()).sum().item()
    assert loss.item() == pytest.approx(exact, rel=5e-7)


def test_no_foreground_gives_exactly_zero_and_a_zero_gradient(impl):
    logits, residuals, _ = random_inputs(impl.device, torch.float32)
    for value in (0, -1):
        labels = torch.full_like(logits, value, dtype=torch.int8)
        output = impl.residual_objectness_bce(logits, residuals, labels, detach="none")
        assert output.losses[1:].tolist() == [0, 0] and output.counts[1:].tolist() == [0, 0]
        assert (output.thresholds == INF).all()
        grad_logits, grad_residuals = gradients(output, logits, residuals)
        assert not grad_residuals.any() and grad_logits.any() == (value == 0)


@pytest.mark.parametrize("steps, images, anchors", [(2, 0, 5), (2, 3, 0), (0, 2, 5), (0, 0, 0)])
@pytest.mark.parametrize("scope", SCOPES)
def test_empty(impl, scope, steps, images, anchors):
    inputs = random_inputs(impl.device, torch.float32, steps, images, anchors)
    output = impl.residual_objectness_bce(
        *inputs, min_scope=scope, anchors_per_level=[anchors, 0] if scope == "level" else []
    )
    groups = {"image": images, "level": 2}.get(scope, 1)
    assert output.thresholds.shape == (steps, groups)
    assert output.score_sums.shape == (steps + 1, 2) and output.num_background_foreground.shape == (
        2,
    )
    if images * anchors == 0:
        assert output.losses.tolist() == [0] * (steps + 1) == output.counts.tolist()
        expected = -INF if scope == "none" else INF
        assert (output.thresholds == expected).all() and not output.score_sums.any()
    assert [g.shape for g in gradients(output, *inputs[:2])] == [i.shape for i in inputs[:2]]


def test_eight_steps(impl):
    logits, residuals, labels = random_inputs(impl.device, torch.float64, steps=8, anchors=300)
    output = impl.residual_objectness_bce(logits, residuals, labels, min_scope="none")
    o = logits.detach() + residuals.detach().sum(0)
    valid = labels >= 0
    scores = [o[labels == label].sigmoid().sum() for label in (0, 1)]
    torch.testing.assert_close(output.score_sums[8], torch.stack(scores))
    assert output.num_background_foreground.tolist() == [
        (labels == label).sum().item() for label in (0, 1)
    ]
    expected = F.binary_cross_entropy_with_logits(
        o[valid], (labels[valid] > 0).double(), reduction="sum"
    )
    torch.testing.assert_close(output.losses[8], expected)


def test_not_contiguous(impl):
    logits, residuals, labels = random_inputs(impl.device, torch.float32, anchors=64)
    expected = impl.residual_objectness_bce(logits, residuals, labels)
    strided = logits.detach().t().contiguous().t().requires_grad_()
    permuted = residuals.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    wide = torch.stack((labels, labels), dim=2)[..., 0]
    assert not (strided.is_contiguous() or permuted.is_contiguous() or wide.is_contiguous())
    output = impl.residual_objectness_bce(strided, permuted, wide)
    assert all(torch.equal(a, b) for a, b in zip(output, expected, strict=True))
    for a, b in zip(
        gradients(output, strided, permuted), gradients(expected, logits, residuals), strict=True
    ):
        assert torch.equal(a, b)
