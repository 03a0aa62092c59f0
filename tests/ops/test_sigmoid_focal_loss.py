"""sigmoid_focal_loss by hand, against fvcore and torchvision, and kernels against the reference."""

import math

import pytest
import torch
from torch.nn import functional as F

from resobj_d2 import ops
from resobj_d2.ops import reference

NAN, INF = math.nan, math.inf
OPTIONS = [(0.25, 2.0), (-1.0, 0.0), (0.5, 0.0), (0.25, 1.5), (-1.0, 2.0), (1.0, 5.0), (0.0, 0.3)]


def random_inputs(shape=(2, 700), classes=7, dtype=torch.float32, device="cpu", seed=0):
    """Background, ignored and masked anchors, and labels beyond the background; mask (...) too."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, classes, generator=generator, dtype=dtype) * 4
    labels = torch.randint(-2, classes + 3, shape, generator=generator)
    mask = torch.rand(shape, generator=generator) < 0.7
    return logits.to(device).requires_grad_(), labels.to(device), mask.to(device)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


# Logit ln 3. Present class: p = 3/4, wrong 1/4. Absent class: wrong 3/4.
HIT, MISS = math.log(4 / 3), math.log(4)


@pytest.mark.parametrize(
    "label, alpha, gamma, expected",
    [
        (0, -1.0, 0.0, HIT),
        (1, -1.0, 0.0, MISS),  # background
        (9, -1.0, 0.0, MISS),  # beyond the background is background
        (-1, -1.0, 0.0, 0.0),
        (-7, 0.25, 2.0, 0.0),
        (0, 0.25, 0.0, 0.25 * HIT),
        (1, 0.25, 0.0, 0.75 * MISS),
        (0, 0.25, 2.0, 0.25 * HIT / 16),
        (1, 0.25, 2.0, 0.75 * MISS * 9 / 16),
        (0, -1.0, 1.0, HIT / 4),
        (1, 1.0, 1.0, 0.0),
        (1, 0.0, 0.5, MISS * math.sqrt(0.75)),
    ],
)
def test_one_logit_by_hand(impl, label, alpha, gamma, expected):
    logits = torch.tensor([[math.log(3)]], dtype=torch.float64, device=impl.device)
    labels = torch.tensor([label], device=impl.device)
    loss = impl.sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    assert loss.shape == () and loss.item() == pytest.approx(expected, rel=1e-14)


def test_gradient_by_hand(impl):
    # p = 1/2 everywhere. Absent, wrong = x: q^2 (2 (1 - q) ln 2 + q); present: the negative of it.
    logits = torch.zeros(2, 3, device=impl.device, requires_grad=True)
    labels = torch.tensor([1, 3], device=impl.device)
    slope = 0.25 * (math.log(2) + 0.5)
    absent, present = 0.75 * slope, -0.25 * slope
    grad = gradient(3 * impl.sigmoid_focal_loss(logits, labels), logits)
    expected = torch.tensor([[absent, present, absent], [absent, absent, absent]]) * 3
    torch.testing.assert_close(grad.cpu(), expected)


@pytest.mark.parametrize("alpha, gamma", OPTIONS)
def test_equals_fvcore_and_torchvision_with_one_hot_targets(impl, alpha, gamma):
    fvcore = pytest.importorskip("fvcore.nn").sigmoid_focal_loss
    torchvision = pytest.importorskip("torchvision.ops").sigmoid_focal_loss
    logits, labels, mask = random_inputs(dtype=torch.float64, device=impl.device)
    loss = impl.sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma, mask=mask)
    counts = mask & (labels >= 0)
    one_hot = F.one_hot(labels[counts].clamp(max=7), 8)[:, :7].double()
    grad = gradient(loss, logits)
    # fvcore always computes in float32, and both suffer from cancellation in 1 - p_t.
    for theirs, tolerance in ((fvcore, 1e-4), (torchvision, 1e-9)):
        expected = theirs(logits[counts], one_hot, alpha, gamma, "sum").double()
        torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
        torch.testing.assert_close(grad, gradient(expected, logits), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("alpha, gamma", OPTIONS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 3e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("classes", [1, 7, 80, 5000])
def test_kernel_agrees_with_the_reference(native_device, classes, dtype, tolerance, alpha, gamma):
    anchors = 6000 // classes + 3
    logits, labels, mask = random_inputs((2, anchors), classes, dtype, native_device)
    for chosen in (None, mask):
        expected = reference.sigmoid_focal_loss(logits, labels, chosen, alpha, gamma)
        loss = ops.sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma, mask=chosen)
        torch.testing.assert_close(loss, expected, rtol=tolerance, atol=0)
        torch.testing.assert_close(
            gradient(loss, logits), gradient(expected, logits), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("alpha, gamma", OPTIONS)
def test_backward_formula_is_the_gradient_of_the_reference(alpha, gamma):
    logits, labels, mask = random_inputs(dtype=torch.float64)
    loss = reference.sigmoid_focal_loss(logits, labels, mask, alpha, gamma)
    formula = reference.sigmoid_focal_loss_backward(
        torch.tensor(3.0, dtype=torch.float64), logits.detach(), labels, mask, alpha, gamma
    )
    torch.testing.assert_close(formula, gradient(3 * loss, logits))


@pytest.mark.parametrize("alpha, gamma", OPTIONS)
def test_gradcheck(impl, alpha, gamma):
    logits, labels, mask = random_inputs((2, 5), 3, torch.float64, impl.device)
    torch.autograd.gradcheck(
        lambda x: impl.sigmoid_focal_loss(x, labels, alpha=alpha, gamma=gamma, mask=mask), logits
    )


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("label", [0, 1])
def test_accuracy_in_float32_over_the_whole_range(impl, label, gamma):
    values = torch.cat((torch.linspace(-85, 85, 341), torch.tensor([-1e4, -1e38, 1e4, 1e38])))
    for value in values.tolist():
        logits = torch.tensor([[value]], device=impl.device, requires_grad=True)
        labels = torch.tensor([label], device=impl.device)
        loss = impl.sigmoid_focal_loss(logits, labels, alpha=-1.0, gamma=gamma)
        exact_logits = logits.detach().double().requires_grad_()
        exact = reference.sigmoid_focal_loss(exact_logits, labels, None, -1.0, gamma)
        # q^1.5 is exp(1.5 ln q), so the error grows with ln q.
        rel = 2e-5 if gamma == 1.5 else 3e-6
        assert loss.item() == pytest.approx(exact.item(), rel=rel, abs=1e-37), value
        slope, expected = gradient(loss, logits).item(), gradient(exact, exact_logits).item()
        assert slope == pytest.approx(expected, rel=rel, abs=1e-37), value


def test_anchors_outside_the_mask_contribute_nothing_even_if_not_finite(impl):
    logits, labels, mask = random_inputs(device=impl.device)
    counts = mask & (labels >= 0)
    expected = impl.sigmoid_focal_loss(logits, labels, mask=mask)
    spoiled = logits.detach().clone()
    bad = torch.tensor([NAN, INF, -INF], device=impl.device)
    spoiled[~counts] = bad[torch.arange((~counts).sum().item(), device=impl.device) % 3][:, None]
    spoiled.requires_grad_()
    loss = impl.sigmoid_focal_loss(spoiled, labels, mask=mask)
    assert torch.equal(loss, expected)
    grad = gradient(loss, spoiled)
    assert not grad[~counts].any()
    assert torch.equal(grad[counts], gradient(expected, logits)[counts])


def test_nan_inside_the_mask_shows_in_the_loss(impl):
    logits = torch.tensor([[0.0, NAN], [1.0, 2.0]], device=impl.device, requires_grad=True)
    for label in (0, 1, 2):
        loss = impl.sigmoid_focal_loss(logits, torch.tensor([label, 2], device=impl.device))
        assert loss.isnan()
        assert gradient(loss, logits).isnan().tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("shape, classes", [((0,), 4), ((3, 0), 4), ((5,), 0), ((0,), 0)])
def test_empty(impl, shape, classes):
    logits, labels, mask = random_inputs(shape, classes, device=impl.device)
    loss = impl.sigmoid_focal_loss(logits, labels, mask=mask)
    assert loss.item() == 0 and gradient(loss, logits).shape == logits.shape


def test_single_anchor_without_leading_dimensions(impl):
    logits = torch.zeros(2, device=impl.device)
    loss = impl.sigmoid_focal_loss(logits, torch.tensor(1, device=impl.device), alpha=-1, gamma=0)
    assert loss.item() == pytest.approx(2 * math.log(2))


def test_an_empty_mask_gives_zero(impl):
    logits, labels, mask = random_inputs(device=impl.device)
    loss = impl.sigmoid_focal_loss(logits, labels, mask=torch.zeros_like(mask))
    assert loss.item() == 0 and not gradient(loss, logits).any()


def test_not_contiguous(impl):
    logits, labels, mask = random_inputs((4, 60), 6, device=impl.device)
    expected = impl.sigmoid_focal_loss(logits, labels, mask=mask)
    # As a convolution returns them: classes before positions.
    channels = logits.detach().transpose(1, 2).contiguous().requires_grad_()
    wide = torch.stack((labels, labels), dim=2)[..., 0]
    flipped = mask.t().contiguous().t()
    assert not (wide.is_contiguous() or flipped.is_contiguous())
    loss = impl.sigmoid_focal_loss(channels.transpose(1, 2), wide, mask=flipped)
    assert torch.equal(loss, expected)
    assert torch.equal(gradient(loss, channels).transpose(1, 2), gradient(expected, logits))


LOGITS, LABELS = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long)
BAD_ARGUMENTS = [
    (dict(logits=LOGITS.long()), TypeError, "logits must be a floating-point tensor, got"),
    (dict(labels=LABELS.int()), TypeError, "labels must be a tensor of torch.int64, got"),
    (dict(labels=[0]), TypeError, "labels must be a tensor of torch.int64, got list"),
    (dict(mask=LABELS), TypeError, "mask must be a tensor of torch.bool, got torch.int64"),
    (dict(logits=torch.tensor(1.0)), ValueError, r"logits must have shape \(..., classes\)"),
    (dict(labels=LABELS[0]), ValueError, r"labels must have the shape .* \(2, 3\), got \(3,\)"),
    (dict(mask=LABELS[:1].bool()), ValueError, "mask must have the shape of logits without"),
    (dict(labels=LABELS.to("meta")), ValueError, "labels is on meta, but logits is on cpu"),
    (dict(mask=LABELS.bool().to("meta")), ValueError, "mask is on meta, but logits is on cpu"),
    (dict(alpha=1.5), ValueError, "alpha must be at most 1"),
    (dict(alpha=NAN), ValueError, "alpha must be at most 1"),
    (dict(gamma=-1.0), ValueError, "gamma must be at least 0, got -1.0"),
]


@pytest.mark.parametrize("arguments, error, message", BAD_ARGUMENTS)
def test_errors_name_the_argument(arguments, error, message):
    with pytest.raises(error, match="sigmoid_focal_loss: " + message):
        ops.sigmoid_focal_loss(**{"logits": LOGITS, "labels": LABELS, **arguments})


@pytest.mark.parametrize(
    "logits, labels, mask, gamma, message",
    [
        (LOGITS.half(), LABELS, None, 2.0, "logits must be float32 or float64"),
        (LOGITS, LABELS.int(), None, 2.0, "labels must be int64"),
        (LOGITS, LABELS[:1], None, 2.0, "labels must have the shape of logits"),
        (LOGITS, LABELS, LABELS, 2.0, "mask must be bool"),
        (LOGITS, LABELS, LABELS[:, :2].bool(), 2.0, "mask must have the shape of logits"),
        (LOGITS, LABELS, None, -1.0, "gamma must not be negative"),
    ],
)
def test_kernels_reject_what_the_wrapper_rejects(
    native_device, logits, labels, mask, gamma, message
):
    mask = None if mask is None else mask.to(native_device)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.resobj_d2.sigmoid_focal_loss(
            logits.to(native_device), labels.to(native_device), mask, 0.25, gamma
        )
