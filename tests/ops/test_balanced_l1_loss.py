"""balanced_l1_loss by hand, against the paper's slope, and kernels against the reference."""

import math

import pytest
import torch

from resobj_d2 import ops
from resobj_d2.ops import reference

NAN, INF = math.nan, math.inf
OPTIONS = [(0.5, 1.5, 1.0), (0.5, 1.5, 0.11), (0.2, 1.0, 2.0), (1.0, 0.5, 1.0)]
NAMES = ("alpha", "gamma", "beta")
B = math.exp(3) - 1  # for alpha 0.5, gamma 1.5


def random_inputs(shape=(900, 4), dtype=torch.float32, device="cpu", seed=0):
    """Differences on both sides of every beta in OPTIONS, some exactly 0."""
    generator = torch.Generator().manual_seed(seed)
    pred = torch.randn(shape, generator=generator, dtype=dtype)
    target = pred + torch.randn(shape, generator=generator, dtype=dtype) ** 3
    equal = torch.rand(shape, generator=generator) < 0.1
    target[equal] = pred[equal]
    return pred.to(device).requires_grad_(), target.to(device)


def gradient(loss, pred):
    return torch.autograd.grad(loss, pred)[0]


@pytest.mark.parametrize(
    "pred, target, beta, expected, slope",
    [
        (0.0, 0.0, 1.0, 0.0, 0.0),
        # b u = 1: u = 1/b, alpha / b (2 ln 2 - 1).
        (3 + 1 / B, 3.0, 1.0, 0.5 / B * (2 * math.log(2) - 1), 0.5 * math.log(2)),
        (3.0, 3 + 1 / B, 1.0, 0.5 / B * (2 * math.log(2) - 1), -0.5 * math.log(2)),
        # At beta both branches give gamma + gamma / b - alpha.
        (1.0, 0.0, 1.0, 1 + 1.5 / B, 1.5),
        (-5.0, -2.0, 1.0, 3 * 1.5 + 1.5 / B - 0.5, -1.5),
        # Stretching: the loss at beta 0.1 is a tenth of the loss of ten times the difference.
        (0.3, 0.0, 0.1, 0.1 * (3 * 1.5 + 1.5 / B - 0.5), 1.5),
        (0.0, 0.1 / B, 0.1, 0.1 * 0.5 / B * (2 * math.log(2) - 1), -0.5 * math.log(2)),
    ],
)
def test_single_difference_by_hand(impl, pred, target, beta, expected, slope):
    pred = torch.tensor([pred], dtype=torch.float64, device=impl.device, requires_grad=True)
    target = torch.tensor([target], dtype=torch.float64, device=impl.device)
    loss = impl.balanced_l1_loss(pred, target, beta=beta)
    assert loss.shape == () and loss.item() == pytest.approx(expected, rel=1e-12, abs=1e-15)
    assert gradient(loss, pred).item() == pytest.approx(slope, rel=1e-12)


@pytest.mark.parametrize("alpha, gamma, beta", OPTIONS)
def test_loss_is_the_integral_of_the_slope_in_the_paper(impl, alpha, gamma, beta):
    """Libra R-CNN, Eq. 8: alpha ln(b |x| + 1) up to 1, gamma from there."""
    x = torch.linspace(0, 3 * beta, 30001, dtype=torch.float64)
    b = math.exp(gamma / alpha) - 1
    slope = torch.where(x < beta, alpha * torch.log(b * x / beta + 1), gamma)
    expected = torch.trapezoid(slope, x).item()
    end, zero = x[-1:].to(impl.device), torch.zeros(1, dtype=torch.float64, device=impl.device)
    loss = impl.balanced_l1_loss(end, zero, alpha=alpha, gamma=gamma, beta=beta)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-6), (torch.float64, 1e-12)])
def test_kernel_agrees_with_the_reference_in_float64(native_device, dtype, tolerance, options):
    for shape in ((1,), (4001, 4)):
        pred, target = random_inputs(shape, dtype, native_device)
        loss = ops.balanced_l1_loss(pred, target, **dict(zip(NAMES, options, strict=True)))
        exact = pred.detach().double(), target.double()
        expected = reference.balanced_l1_loss(*exact, *options)
        assert loss.dtype == dtype
        assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
        three = torch.tensor(3.0, dtype=torch.float64, device=native_device)
        formula = reference.balanced_l1_loss_backward(three, *exact, *options)
        grad = gradient(3 * loss, pred).double()
        torch.testing.assert_close(grad, formula, rtol=tolerance, atol=tolerance)


def test_accuracy_in_float32_from_tiny_to_huge_differences(native_device):
    zero = torch.zeros(1, device=native_device)
    for value in [*torch.logspace(-15, 30, 400).tolist(), 1 - 1e-7, 1 + 1e-7]:
        pred = torch.tensor([value], device=native_device, requires_grad=True)
        loss = ops.balanced_l1_loss(pred, zero)
        exact = pred.detach().double()
        slope = min(0.5 * math.log1p(B * exact.item()), 1.5)
        assert gradient(loss, pred).item() == pytest.approx(slope, rel=1e-6), value
        if value > 1e-6:  # below, the reference cancels even in float64
            expected = reference.balanced_l1_loss(exact, zero.double()).item()
        else:
            expected = 0.5 * B * exact.item() ** 2 / 2
        assert loss.item() == pytest.approx(expected, rel=2e-5), value


@pytest.mark.parametrize("options", OPTIONS)
def test_backward_formula_is_the_gradient_of_the_reference(options):
    pred, target = random_inputs(dtype=torch.float64)
    loss = reference.balanced_l1_loss(pred, target, *options)
    one = torch.ones((), dtype=torch.float64)
    formula = reference.balanced_l1_loss_backward(one, pred.detach(), target, *options)
    torch.testing.assert_close(formula, gradient(loss, pred))


@pytest.mark.parametrize("alpha, gamma, beta", OPTIONS)
def test_gradcheck(impl, alpha, gamma, beta):
    pred, target = random_inputs((20, 4), torch.float64, impl.device, seed=1)
    torch.autograd.gradcheck(
        lambda x: impl.balanced_l1_loss(x, target, alpha=alpha, gamma=gamma, beta=beta), pred
    )


def test_non_finite_inputs_show_in_the_loss(native_device):
    pred = torch.tensor([NAN, INF, 1.0, -INF], device=native_device, requires_grad=True)
    target = torch.zeros(4, device=native_device)
    assert ops.balanced_l1_loss(pred, target).isnan()
    grad = gradient(ops.balanced_l1_loss(pred, target), pred)
    assert grad[0].isnan() and grad[1:].tolist() == [1.5, 1.5, -1.5]
    assert ops.balanced_l1_loss(pred[1:], target[1:]).item() == INF


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0,)])
def test_empty(impl, shape):
    pred = torch.empty(shape, device=impl.device, requires_grad=True)
    loss = impl.balanced_l1_loss(pred, pred.detach())
    assert loss.item() == 0 and gradient(loss, pred).shape == shape


def test_not_contiguous(impl):
    pred, target = random_inputs((60, 4), device=impl.device)
    expected = impl.balanced_l1_loss(pred, target)
    strided = pred.detach().t().contiguous().requires_grad_()
    wide = torch.cat((target, target), dim=1)[:, :4]
    loss = impl.balanced_l1_loss(strided.t(), wide)
    assert not wide.is_contiguous() and torch.equal(loss, expected)
    assert torch.equal(gradient(loss, strided).t(), gradient(expected, pred))


GOOD = torch.zeros(2, 4)
BAD_ARGUMENTS = [
    (dict(pred=GOOD.long()), TypeError, "pred must be a floating-point tensor, got torch.int64"),
    (dict(target=0.0), TypeError, "target must be a floating-point tensor, got float"),
    (dict(target=GOOD[0]), ValueError, r"target must have the shape of pred, \(2, 4\), got \(4,"),
    (dict(target=GOOD.to("meta")), ValueError, "target is on meta, but pred is on cpu"),
    (dict(target=GOOD.clone().requires_grad_()), ValueError, "no gradient is computed for target"),
    (dict(alpha=0.0), ValueError, "alpha must be positive, got 0.0"),
    (dict(gamma=NAN), ValueError, "gamma must be positive, got nan"),
    (dict(beta=-1.0), ValueError, "beta must be positive, got -1.0"),
    (dict(alpha=0.01), ValueError, "gamma must be at most 80 alpha, got 1.5 and alpha 0.01"),
    (dict(alpha=1.0, gamma=80.5), ValueError, "gamma must be at most 80 alpha, got 80.5 and alp"),
]


@pytest.mark.parametrize("arguments, error, message", BAD_ARGUMENTS)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match="balanced_l1_loss: " + message):
        ops.balanced_l1_loss(**{"pred": GOOD, "target": GOOD, **arguments})


@pytest.mark.parametrize(
    "pred, target, alpha, message",
    [
        (GOOD.half(), GOOD.half(), 0.5, "pred must be float32 or float64"),
        (GOOD, GOOD.double(), 0.5, "target must have the dtype of pred"),
        (GOOD, GOOD[:1], 0.5, "target must have the shape of pred"),
        (GOOD, GOOD, 0.0, "alpha, gamma and beta must be positive"),
    ],
)
def test_kernels_reject_what_the_wrapper_rejects(native_device, pred, target, alpha, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.resobj_d2.balanced_l1_loss(
            pred.to(native_device), target.to(native_device), alpha
        )
