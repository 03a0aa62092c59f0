"""The losses with weights and other reductions than the sum, and focal loss of soft targets."""

import pytest
import torch
from torch import func
from torch.nn import functional as F

from resobj_d2 import ops
from resobj_d2.ops import reference
from tests.ops.operator_cases import arguments_of, change_all, floating_to

LOSSES = ["balanced_l1_loss", "ciou_loss", "diou_loss", "giou_loss", "sigmoid_focal_loss"]


def one_by_one(name, arguments):
    """Each loss as the sum of one row, column by column; and which of them count."""
    call = getattr(ops, name)
    inputs, *others = [key for key in arguments if isinstance(arguments[key], torch.Tensor)]
    losses = []
    for row in range(len(arguments[inputs])):
        own = {key: arguments[key][row : row + 1] for key in (inputs, *others)}
        losses.append(call(**{**arguments, **own}))
    return torch.stack(losses)


def loss_arguments(name, size=9, dtype=torch.float64, seed=0):
    return change_all(arguments_of(name, size, seed=seed), floating_to(dtype))


def per_row(name, losses):
    return losses.flatten(1).sum(1) if losses.dim() > 1 else losses


@pytest.mark.parametrize("name", LOSSES)
def test_unreduced_losses_are_those_of_one_row_each(name):
    arguments = loss_arguments(name)
    losses = getattr(ops, name)(**arguments, reduction="none")
    expected = one_by_one(name, arguments)
    torch.testing.assert_close(per_row(name, losses), expected)
    shape = next(iter(arguments.values())).shape
    assert losses.shape == (shape[:-1] if name[1:4] == "iou" else shape)


def number_that_count(name, arguments, losses):
    counts = arguments.get("mask", torch.ones(len(losses), dtype=torch.bool))
    if "labels" in arguments:
        counts = counts & (arguments["labels"] >= 0)
    return int(counts.sum()) * (losses.numel() // len(losses))


@pytest.mark.parametrize("name", LOSSES)
def test_weights_and_means(name):
    arguments = loss_arguments(name)
    call = getattr(ops, name)
    losses = call(**arguments, reduction="none")
    number = number_that_count(name, arguments, losses)
    assert 0 < number
    torch.testing.assert_close(call(**arguments, reduction="mean"), losses.sum() / number)
    torch.testing.assert_close(call(**arguments), losses.sum())
    weight = torch.rand(losses.shape, dtype=torch.float64).requires_grad_()
    for reduction, expected in (
        ("none", losses * weight),
        ("sum", (losses * weight).sum()),
        ("mean", (losses * weight).sum() / number),
    ):
        value = call(**arguments, weight=weight, reduction=reduction)
        torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(call(**arguments, weight=weight), weight)
    torch.testing.assert_close(gradient, losses)
    row = torch.rand(len(losses), *(1,) * (losses.dim() - 1), dtype=torch.float64)
    torch.testing.assert_close(call(**arguments, weight=row), (losses * row).sum())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_the_kernel(name, reduction, weighted):
    """Each loss depends on its own row only, so row by row the kernel's sum gives them."""
    arguments = loss_arguments(name)
    key, value = next(iter(arguments.items()))
    losses = getattr(ops, name)(**arguments, reduction="none")
    row = torch.arange(1.0, 1 + len(value), dtype=torch.float64)
    weight = row.view(-1, *(1,) * (losses.dim() - 1)) if weighted else None
    number = number_that_count(name, arguments, losses) if reduction == "mean" else 1
    leaf = value.clone().requires_grad_()
    loss = getattr(ops, name)(**{**arguments, key: leaf}, weight=weight, reduction=reduction)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    (plain,) = torch.autograd.grad(getattr(ops, name)(**{**arguments, key: leaf}), leaf)
    expected = plain * (row[:, None] if weighted else 1) / number
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", [*LOSSES, "residual_objectness_bce"])
def test_nothing_gives_zero(name, reduction):
    arguments = arguments_of(name, 0)
    key, value = next(iter(arguments.items()))
    arguments[key] = value.requires_grad_()
    result = getattr(ops, name)(**arguments, reduction=reduction)
    losses = result[0] if isinstance(result, tuple) else result
    assert not losses.isnan().any() and losses.sum() == 0 and losses.requires_grad
    losses.sum().backward()


@pytest.mark.parametrize("name", ["ciou_loss", "diou_loss", "giou_loss", "sigmoid_focal_loss"])
def test_a_weight_outside_the_mask_may_be_nan(name):
    arguments = loss_arguments(name)
    mask = arguments["mask"]
    weight = torch.rand(len(mask), dtype=torch.float64)
    broken = torch.where(mask, weight, torch.nan)
    if name == "sigmoid_focal_loss":
        weight, broken = weight[:, None], broken[:, None]
    call = getattr(ops, name)
    for reduction in ("none", "mean", "sum"):
        expected = call(**arguments, weight=weight, reduction=reduction)
        assert torch.equal(call(**arguments, weight=broken, reduction=reduction), expected)


TRANSFORMS = {
    "grad": lambda f, x, t: func.grad(lambda x: f(x).sum())(x),
    "jvp": lambda f, x, t: func.jvp(f, (x,), (t,)),
    "hessian": lambda f, x, t: func.hessian(lambda x: f(x).pow(2).sum())(x),
    "vmap": lambda f, x, t: func.vmap(f)(torch.stack((x, 0.9 * x))),
    "vmap of grad": lambda f, x, t: func.vmap(func.grad(lambda x: f(x).sum()))(
        torch.stack((x, 0.9 * x))
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", LOSSES)
def test_means_under_transforms(name, transform):
    """The mean is a kernel's and the sum of the losses plain torch; both must agree."""
    arguments = loss_arguments(name, 4)
    key, value = next(iter(arguments.items()))
    tangent = torch.randn(value.shape, dtype=value.dtype)
    losses = getattr(ops, name)(**arguments, reduction="none")
    number = number_that_count(name, arguments, losses)

    def mean(x):
        return getattr(ops, name)(**{**arguments, key: x}, reduction="mean")

    def plain(x):
        return getattr(ops, name)(**{**arguments, key: x}, reduction="none").sum() / number

    results, expected = (TRANSFORMS[transform](f, value, tangent) for f in (mean, plain))
    torch.testing.assert_close(results, expected)


@pytest.mark.parametrize("name", [*LOSSES, "residual_objectness_bce"])
def test_half_precision_is_computed_in_float32(name):
    arguments = change_all(arguments_of(name, 5), floating_to(torch.bfloat16))
    singles = change_all(arguments, floating_to(torch.float32))
    results, expected = (
        getattr(ops, name)(**x, reduction="none", weight=torch.tensor(2.0).bfloat16())
        for x in (arguments, singles)
    )
    results, expected = (x[0] if isinstance(x, tuple) else x for x in (results, expected))
    assert results.dtype == torch.float32 and torch.equal(results, expected)


@pytest.mark.parametrize("name", [*LOSSES, "residual_objectness_bce"])
def test_errors_name_the_argument(name):
    arguments, call = arguments_of(name, 5), getattr(ops, name)
    with pytest.raises(ValueError, match=f"^{name}: reduction must be none, mean or sum, got 'x'"):
        call(**arguments, reduction="x")
    with pytest.raises(TypeError, match=f"^{name}: weight must be a floating-point tensor, got"):
        call(**arguments, weight=torch.ones(5, dtype=torch.int64))
    with pytest.raises(TypeError, match=f"^{name}: weight must be a floating-point tensor, got"):
        call(**arguments, weight=2.0)
    for shape in ((3,), (1, 1, 1, 5)):
        with pytest.raises(ValueError, match=f"^{name}: weight must broadcast to the losses, "):
            call(**arguments, weight=torch.ones(shape))
    with pytest.raises(ValueError, match=f"^{name}: weight is on meta, but "):
        call(**arguments, weight=torch.ones((), device="meta"))


@pytest.mark.parametrize("scope", ["image", "batch", "level", "none"])
def test_residual_objectness(scope):
    arguments = {**loss_arguments("residual_objectness_bce", 8), "min_scope": scope}
    arguments["anchors_per_level"] = [5, 3] if scope == "level" else []
    leaves = [arguments.pop(key).requires_grad_() for key in ("logits", "residuals")]

    def compute(**options):
        return ops.residual_objectness_bce(*leaves, **arguments, **options)

    weight = torch.rand(2, 8, dtype=torch.float64)
    summed, losses = compute(), compute(reduction="none")
    assert losses.losses.shape == (3, 2, 8)
    assert not losses.losses[:, arguments["labels"] < 0].any()
    torch.testing.assert_close(losses.losses.sum(dim=(1, 2)), summed.losses)
    torch.testing.assert_close(losses[1:], summed[1:])
    torch.testing.assert_close(compute(reduction="mean").losses, summed.losses / summed.counts)
    weighted = (losses.losses * weight).sum(dim=(1, 2))
    torch.testing.assert_close(compute(weight=weight).losses, weighted)
    torch.testing.assert_close(
        compute(weight=weight, reduction="mean").losses, weighted / summed.counts
    )
    torch.testing.assert_close(
        torch.autograd.grad(losses.losses.sum(), leaves),
        torch.autograd.grad(summed.losses.sum(), leaves),
    )


# ---- soft and multi-label targets of the focal loss ----


def soft_inputs():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(7, 5, generator=generator, dtype=torch.float64)
    return logits, torch.rand(7, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (-1.0, 0.0), (0.7, 0.5)])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_soft_targets_agree_with_torchvision(reduction, alpha, gamma):
    peer = pytest.importorskip("torchvision.ops").sigmoid_focal_loss
    logits, targets = soft_inputs()
    leaves = [logits.clone().requires_grad_() for _ in range(2)]
    ours = ops.sigmoid_focal_loss(leaves[0], targets, alpha=alpha, gamma=gamma, reduction=reduction)
    theirs = peer(leaves[1], targets, alpha, gamma, reduction)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(
        *(torch.autograd.grad(x.sum(), y)[0] for x, y in zip((ours, theirs), leaves, strict=True))
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_targets_of_zero_and_one_agree_with_class_labels(impl, gamma):
    logits, _ = soft_inputs()
    labels = torch.tensor([0, 4, 5, 2, 2, 9, 1])
    targets = F.one_hot(labels.clamp(max=5), 6)[:, :5].double()
    mask = torch.arange(7) != 3
    inputs = [logits.to(impl.device).requires_grad_() for _ in range(2)]
    labels, targets, mask = (x.to(impl.device) for x in (labels, targets, mask))
    hard = impl.sigmoid_focal_loss(inputs[0], labels, mask, gamma=gamma)
    soft = ops.sigmoid_focal_loss(inputs[1], targets, mask, gamma=gamma)
    torch.testing.assert_close(hard, soft)
    torch.testing.assert_close(
        *(torch.autograd.grad(x, y)[0] for x, y in zip((hard, soft), inputs, strict=True))
    )


def test_negative_targets_and_the_mask_are_ignored_whatever_the_logits():
    logits, targets = soft_inputs()
    mask = torch.arange(7) != 3
    targets[0, 1], targets[5, 4] = -1, -1
    counts = (targets >= 0) & mask[:, None]
    clean = ops.sigmoid_focal_loss(logits, targets, reduction="none")
    expected = torch.where(counts, clean, 0.0)
    logits[~counts] = torch.nan
    logits.requires_grad_()
    losses = ops.sigmoid_focal_loss(logits, targets, mask, reduction="none")
    torch.testing.assert_close(losses, expected)
    assert not torch.autograd.grad(losses.sum(), logits)[0][~counts].any()
    mean = ops.sigmoid_focal_loss(logits, targets, mask, reduction="mean")
    torch.testing.assert_close(mean, expected.sum() / counts.sum())
    targets[6, 0] = torch.nan
    assert ops.sigmoid_focal_loss(logits, targets, mask).isnan()


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
def test_gradients_are_finite_where_the_answer_is_certain(gamma):
    logits = torch.tensor([[-200.0, 200.0], [-1e4, 1e4]], requires_grad=True)
    for labels in (torch.tensor([1, 0]), torch.tensor([[0.0, 1], [1, 0]])):
        losses = ops.sigmoid_focal_loss(logits, labels, gamma=gamma, reduction="none")
        assert torch.autograd.grad(losses.sum(), logits)[0].isfinite().all()


def test_soft_targets_work_under_transforms_and_are_constants():
    logits, targets = soft_inputs()
    f = lambda x, y: ops.sigmoid_focal_loss(x, y)  # noqa: E731
    torch.testing.assert_close(
        func.vmap(f)(logits, targets),
        ops.sigmoid_focal_loss(logits, targets, reduction="none").sum(1),
    )
    few = logits[:2].requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: f(x, targets[:2]), few)
    with pytest.raises(ValueError, match="no gradient is computed for labels; pass labels.detach"):
        f(logits, targets.requires_grad_())


def test_errors_about_soft_targets():
    logits, targets = soft_inputs()
    with pytest.raises(ValueError, match=r"labels that are soft targets must have the shape"):
        ops.sigmoid_focal_loss(logits, targets[:, :3])
    with pytest.raises(TypeError, match="labels must be a tensor of torch.int64"):
        ops.sigmoid_focal_loss(logits, targets.bool())
    with pytest.raises(ValueError, match="labels is on meta, but logits is on cpu"):
        ops.sigmoid_focal_loss(logits, targets.to("meta"))


def test_composed_losses_agree_with_the_reference_without_kernels():
    for name in ("giou_loss", "balanced_l1_loss", "sigmoid_focal_loss"):
        arguments = loss_arguments(name)
        expected = getattr(reference, name)(**arguments)
        losses = getattr(ops, name)(**arguments, reduction="none")
        torch.testing.assert_close(losses.sum(), expected)
