"""residual_objectness_bce: Algorithm 1 traced by hand, odd values, and invalid arguments."""

import math

import pytest
import torch

from resobj_d2 import ops

NAN, INF = math.nan, math.inf
UNSELECTED = ("update", "keep")

# Two images, six anchors in two levels of three, T = 2. In the first image anchor 3 is below the
# threshold at step 1 and, with "update", is selected again at step 2; anchor 4 ties with the
# minimum; anchor 5 is ignored. The second image has no foreground.
LABELS = [[1, 1, 0, 0, 0, -1], [0, 0, -1, 0, 0, 0]]
LOGITS = [[2, -1, 0, -2, -1, 5], [3, -1, 0, 1, -4, 0]]
RESIDUALS = [
    [[-1, 0.5, -3, 4, 1, 9], [-1, 2, 0, -3, 1, 0.5]],
    [[0.5, 1, 1, -1, 2, 7], [0, -1, 0, 5, 1, -0.5]],
]
# BCE, from softplus(-4) = .018150, (-3) .048587, (-2) .126928, (-1.5) .201413, (-1) .313262,
# (-.5) .474077, (0) .693147, (.5) .974077, (1) 1.313262, (2) 2.126928, (3) 3.048587:
# step 0: image 0  .126928 + 1.313262 + .693147 + .126928 + .313262            = 2.573527
#         image 1  3.048587 + .313262 + 1.313262 + .018150 + .693147           = 5.386408
# step 1: image 0  anchors 0 1 2 4: .313262 + .974077 + .048587 + .693147      = 2.029073
# step 2: image 0  "update": anchors 0 1 3 4: .201413 + .474077 + 1.313262 + 2.126928 = 4.115680
#                  "keep": anchors 0 1 4: .201413 + .474077 + 2.126928         = 2.802418
# Over the batch the second image is compared with the minimum of the first:
# step 1: image 1  anchors 0 1 3 5: 2.126928 + 1.313262 + .126928 + .974077    = 4.541195
# step 2: image 1  anchors 0 1 5: 2.126928 + .693147 + .693147                 = 3.513222
# By level, only the first three anchors have foreground:
# step 1: .313262 + .974077 + .048587 + 2.126928 + 1.313262                    = 4.776116
# step 2: .201413 + .474077 + 2.126928 + .693147                               = 3.495565
# Without selection:
# step 1: image 0  .313262 + .974077 + .048587 + 2.126928 + .693147            = 4.156001
#         image 1  2.126928 + 1.313262 + .126928 + .048587 + .974077           = 4.589781
# step 2: image 0  .201413 + .474077 + .126928 + 1.313262 + 2.126928           = 4.242608
#         image 1  2.126928 + .693147 + 3.048587 + .126928 + .693147           = 6.688737
STEP_0 = 7.959935
TRACES = [
    ("image", "update", [STEP_0, 2.029073, 4.115680], [10, 4, 4], [[-1, INF], [-0.5, INF]]),
    ("image", "keep", [STEP_0, 2.029073, 2.802418], [10, 4, 3], [[-1, INF], [-0.5, INF]]),
    ("batch", "update", [STEP_0, 6.570268, 7.628902], [10, 8, 7], [[-1], [-0.5]]),
    ("level", "update", [STEP_0, 4.776116, 3.495565], [10, 5, 4], [[-1, INF], [-0.5, INF]]),
    ("none", "update", [STEP_0, 8.745782, 10.931345], [10, 10, 10], [[-INF], [-INF]]),
]
# o_1 and o_2 with scope "image"; the second image keeps o_0 with "keep":
#   "update": [1 -.5 -3 2 0 .]  [2 1 . -2 -3 .5];   [1.5 .5 -2 1 2 .]   [2 0 . 3 -2 0]
#   "keep":   [1 -.5 -3 -2 0 .];                    [1.5 .5 -3 -2 2 .]
# Sum of sigmoid(o_t) over the 8 background and the 2 foreground anchors, from sigmoid(1) = .731059,
# (-1) .268941, (2) .880797, (-2) .119203, (3) .952574, (-3) .047426, (-4) .017986, (.5) .622459,
# (-.5) .377541, (1.5) .817574.
SCORES_0 = [3.358704, 1.149738]
SCORE_SUMS = {
    "update": [SCORES_0, [3.829167, 1.108600], [4.683633, 1.440033]],
    "keep": [SCORES_0, [3.137189, 1.108600], [3.517986, 1.440033]],
}
# sigmoid(o) - label where selected, first image, scope "image", detach "all".
GRAD_LOGITS_0 = [-0.119203, -0.731059, 0.5, 0.119203, 0.268941, 0]
GRAD_RESIDUAL_1_0 = [-0.268941, -0.622459, 0.047426, 0, 0.5, 0]
GRAD_RESIDUAL_2_0 = {
    "update": [-0.182426, -0.377541, 0, 0.731059, 0.880797, 0],
    "keep": [-0.182426, -0.377541, 0, 0, 0.880797, 0],
}


def hand_inputs(device, dtype=torch.float32):
    logits = torch.tensor(LOGITS, dtype=dtype, device=device).requires_grad_()
    residuals = torch.tensor(RESIDUALS, dtype=dtype, device=device).requires_grad_()
    return logits, residuals, torch.tensor(LABELS, dtype=torch.int8, device=device)


def close(actual, expected, tolerance=1e-5):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach().double().cpu(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("scope, unselected, losses, counts, thresholds", TRACES)
def test_trace_by_hand(impl, scope, unselected, losses, counts, thresholds):
    logits, residuals, labels = hand_inputs(impl.device)
    output = impl.residual_objectness_bce(
        logits, residuals, labels,
        min_scope=scope, unselected=unselected,
        anchors_per_level=[3, 3] if scope == "level" else [],
    )  # fmt: skip
    close(output.losses, losses)
    assert output.counts.tolist() == counts
    close(output.thresholds, thresholds)
    if scope == "image":
        close(output.score_sums, SCORE_SUMS[unselected])
        assert output.num_background_foreground.tolist() == [8, 2]


@pytest.mark.parametrize("unselected", UNSELECTED)
def test_gradients_by_hand(impl, unselected):
    logits, residuals, labels = hand_inputs(impl.device)
    output = impl.residual_objectness_bce(logits, residuals, labels, unselected=unselected)
    output.losses.sum().backward()
    close(logits.grad[0], GRAD_LOGITS_0)
    close(residuals.grad[0, 0], GRAD_RESIDUAL_1_0)
    close(residuals.grad[1, 0], GRAD_RESIDUAL_2_0[unselected])
    assert not residuals.grad[:, 1].any()  # no foreground in that image


# One foreground that drops below a background anchor, which is selected again at step 2 either way.
# Background: sigmoid(-1) = .268941, then sigmoid(12) = .999994 or sigmoid(2) = .880797.
# Foreground: sigmoid(0) - 1 = -.5, sigmoid(-2) - 1 = -.880797, sigmoid(-1) - 1 = -.731059.
RE_ENTERING = [
    ("update", "all", [-0.5, 0.268941], [-0.880797, 0], [-0.731059, 0.999994]),
    ("update", "objectness", [-0.5, 0.268941], [-1.611856, 0.999994], [-0.731059, 0.999994]),
    ("update", "none", [-2.111856, 1.268935], [-1.611856, 0.999994], [-0.731059, 0.999994]),
    ("keep", "all", [-0.5, 0.268941], [-0.880797, 0], [-0.731059, 0.880797]),
    ("keep", "objectness", [-0.5, 0.268941], [-1.611856, 0], [-0.731059, 0.880797]),
    ("keep", "none", [-2.111856, 1.149738], [-1.611856, 0], [-0.731059, 0.880797]),
]


@pytest.mark.parametrize("unselected, detach, of_logits, of_first, of_second", RE_ENTERING)
def test_an_anchor_that_is_selected_late(impl, unselected, detach, of_logits, of_first, of_second):
    device = impl.device
    logits = torch.tensor([[0.0, -1.0]], device=device, requires_grad=True)
    residuals = torch.tensor([[[-2.0, 10.0]], [[1.0, 3.0]]], device=device, requires_grad=True)
    labels = torch.tensor([[1, 0]], dtype=torch.int8, device=device)
    output = impl.residual_objectness_bce(
        logits, residuals, labels, unselected=unselected, detach=detach
    )
    entered = 12.000006 if unselected == "update" else 2.126928
    close(output.losses, [0.693147 + 0.313262, 2.126928, 1.313262 + entered])
    assert output.counts.tolist() == [2, 1, 2]
    output.losses.sum().backward()
    close(logits.grad[0], of_logits)
    close(residuals.grad[0, 0], of_first)
    close(residuals.grad[1, 0], of_second)


def test_only_losses_carry_a_gradient(impl):
    output = impl.residual_objectness_bce(*hand_inputs(impl.device))
    assert [value.requires_grad for value in output] == [True, False, False, False, False]


def test_the_loss_of_infinite_logits_is_the_limit(impl):
    logits = torch.tensor([[INF, -INF], [-INF, 0.0], [0.0, INF]], device=impl.device)
    labels = torch.tensor([[1, 0], [1, -1], [-1, 0]], dtype=torch.int8, device=impl.device)
    losses = [
        impl.residual_objectness_bce(logits[i : i + 1], logits[:0, None, :], labels[i : i + 1])
        for i in range(3)
    ]
    assert [output.losses.item() for output in losses] == [0.0, INF, INF]


# Step 1 takes the foreground anchor of the first image to +inf, which selects nothing at step 2:
# with "keep" it stays, with "update" it becomes inf - inf. In the second image all are selected.
# step 0: .313262 + .693147 + .313262 + 2.126928                               = 3.446599
# step 1: 0 + .126928 + 3.048587; step 2: .048587 + 4.018150; step 3: .018150 + 1.313262
INFINITE = [("keep", 1.331412, 2, INF), ("update", NAN, 4, NAN)]


@pytest.mark.parametrize("unselected, loss, count, threshold", INFINITE)
def test_foreground_at_infinity_is_not_selected(impl, unselected, loss, count, threshold):
    device = impl.device
    logits = torch.tensor([[1.0, 0.0], [1.0, 2.0]], device=device)
    residuals = torch.tensor(
        [[[INF, 5], [1, 1]], [[-INF, 5], [1, 1]], [[2, 2], [1, -3]]], device=device
    ).requires_grad_()
    labels = torch.tensor([[1, 0], [1, 0]], dtype=torch.int8, device=device)
    output = impl.residual_objectness_bce(
        logits, residuals, labels, unselected=unselected, detach="none"
    )
    expected = torch.tensor([[1, 1], [INF, 2], [threshold, 3]])
    torch.testing.assert_close(output.thresholds.cpu(), expected, equal_nan=True)
    losses = torch.tensor([3.446599, 3.175515, 4.066737, loss])
    torch.testing.assert_close(output.losses.detach().cpu(), losses, equal_nan=True)
    assert output.counts.tolist() == [4, 3, 2, count]
    if unselected == "keep":
        close(output.score_sums[1:, 1], [1.880797, 1.952574, 1.982014])
        output.losses.sum().backward()
        assert not residuals.grad[:, 0].any()


def test_nan_foreground_selects_its_group_and_shows_in_every_loss(impl):
    logits, residuals, labels = hand_inputs(impl.device)
    with torch.no_grad():
        logits[0, 1] = NAN
    output = impl.residual_objectness_bce(logits, residuals, labels)
    assert output.losses.isnan().all()
    assert output.thresholds[:, 0].isnan().all() and (output.thresholds[:, 1] == INF).all()
    assert output.counts.tolist() == [10, 5, 5]


def test_nan_residual_shows_in_the_first_loss_that_includes_it(impl):
    logits, residuals, labels = hand_inputs(impl.device)
    with torch.no_grad():
        residuals[0, 0, 3] = NAN  # unselected at step 1: only o_1 becomes NaN
    output = impl.residual_objectness_bce(logits, residuals, labels)
    assert output.losses.isnan().tolist() == [False, False, True]
    kept = impl.residual_objectness_bce(logits, residuals, labels, unselected="keep")
    assert kept.losses.isfinite().all()  # it never entered


def test_nan_at_an_ignored_anchor_has_no_effect(impl):
    logits, residuals, labels = hand_inputs(impl.device)
    with torch.no_grad():
        logits[0, 5] = NAN
        residuals[:, 1, 2] = NAN
    output = impl.residual_objectness_bce(logits, residuals, labels, detach="none")
    assert output.losses.isfinite().all()
    output.losses.sum().backward()
    assert logits.grad.isfinite().all() and residuals.grad.isfinite().all()


def test_nan_without_foreground_shows_in_the_objectness_loss(impl):
    logits, residuals, labels = hand_inputs(impl.device)
    with torch.no_grad():
        logits[1, 0] = NAN
    output = impl.residual_objectness_bce(logits[1:], residuals[:, 1:], labels[1:])
    assert output.losses[0].isnan() and output.losses[1:].tolist() == [0, 0]


def test_other_labels_count_by_their_sign(impl):
    logits, residuals, labels = hand_inputs(impl.device)
    expected = impl.residual_objectness_bce(logits, residuals, labels)
    output = impl.residual_objectness_bce(logits, residuals, labels * 127)
    assert all(torch.equal(a, b) for a, b in zip(output, expected, strict=True))


def test_as_many_levels_as_are_allowed(impl):
    """One anchor on each: a foreground anchor is its own minimum, a background one has none."""
    labels = (torch.arange(32) % 2).to(torch.int8)[None].to(impl.device)
    logits = torch.linspace(-1, 1, 32, device=impl.device)[None]
    result = impl.residual_objectness_bce(
        logits, logits[None], labels, min_scope="level", anchors_per_level=[1] * 32
    )
    assert result.counts.tolist() == [32, 16]
    assert torch.equal(result.thresholds[0, 1::2], logits[0, 1::2])


L, R, Y = torch.zeros(2, 6), torch.zeros(1, 2, 6), torch.zeros(2, 6, dtype=torch.int8)
BAD_ARGUMENTS = [
    ((L.long(), R, Y), {}, TypeError, "logits must be floating point, got torch.int64"),
    ((L, R.int(), Y), {}, TypeError, "residuals must be floating point, got torch.int32"),
    ((L, R, Y.long()), {}, TypeError, r"labels must be int8 .* labels.to\(torch.int8\)"),
    ((L[0], R, Y), {}, ValueError, r"logits must have shape .* got \(6,\)"),
    ((L, R[0], Y), {}, ValueError, r"residuals must have shape \(steps, 2, 6\) .* got \(2, 6\)"),
    ((L, R.expand(9, 2, 6), Y), {}, ValueError, "residuals must have at most 8 steps, got 9"),
    ((L, R, Y[:1]), {}, ValueError, r"labels must have the shape of logits, \(2, 6\)"),
    ((L, R.to("meta"), Y), {}, ValueError, "residuals is on meta, but logits is on cpu"),
    ((L, R, Y.to("meta")), {}, ValueError, "labels is on meta, but logits is on cpu"),
    ((L, R, Y), {"detach": "yes"}, ValueError, "detach must be one of all, objectness, none"),
    ((L, R, Y), {"min_scope": "gpu"}, ValueError, "min_scope must be one of image, batch"),
    ((L, R, Y), {"unselected": "drop"}, ValueError, "unselected must be one of update, keep"),
    (
        (L, R, Y),
        {"anchors_per_level": [6]},
        ValueError,
        "anchors_per_level is only for min_scope='level'",
    ),
    ((L, R, Y), {"min_scope": "level"}, ValueError, "anchors_per_level must be 1 to 32"),
    ((L, R, Y), {"min_scope": "level", "anchors_per_level": [7, -1]}, ValueError, "non-negative"),
    (
        (L, R, Y),
        {"min_scope": "level", "anchors_per_level": [4, 4]},
        ValueError,
        "sum to 8, .* has 6",
    ),
]


@pytest.mark.parametrize("arguments, options, error, message", BAD_ARGUMENTS)
def test_errors_name_the_argument(arguments, options, error, message):
    with pytest.raises(error, match=message):
        ops.residual_objectness_bce(*arguments, **options)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((L.half(), R.half(), Y), "logits must be float32 or float64"),
        ((L, R.double(), Y), "residuals must have the dtype of logits"),
        ((L, R, Y.long()), "labels must be int8"),
        ((L, R[:, :1], Y), "residuals must have shape"),
        ((L, R, Y[:, :5]), "labels must have the shape of logits"),
        ((L, R, Y, "yes"), "unknown detach yes"),
        ((L, R, Y, "all", "gpu"), "unknown min_scope gpu"),
        ((L, R, Y, "all", "image", "drop"), "unknown unselected drop"),
        ((L, R, Y, "all", "level", "keep", [5]), "anchors_per_level do not sum"),
        ((L, R, Y, "all", "level", "keep", []), "anchors_per_level has 0 levels"),
    ],
)
def test_kernels_reject_what_the_wrapper_rejects(native_device, arguments, message):
    arguments = [a.to(native_device) if torch.is_tensor(a) else a for a in arguments]
    with pytest.raises(RuntimeError, match=message):
        torch.ops.resobj_d2.residual_objectness_bce(*arguments)
