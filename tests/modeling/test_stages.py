"""Stages on a small example by hand: targets, losses, gradients, and invalid settings."""

import math

import pytest
import torch
from torch import nn

from resobj_d2.matching import DeltaCoder, LTRBCoder
from resobj_d2.modeling import ConvTower, Stage
from resobj_d2.structures import GroundTruth, LevelMaps, StagePrediction, TowerFeatures
from tests.modeling.stage_inputs import (
    ANCHORS,
    GT,
    LABELS,
    LOSSES,
    REFINED,
    REFINED_LABELS,
    Fixed,
    K,
    assigner,
    boxes_of,
    features,
    finite_deltas,
    first_stage,
    focal,
    second_stage,
    smooth_l1,
    stream_of,
)


def test_refined_anchors_and_their_labels():
    """Anchor 0 belongs to the first box, but to the second once refined."""
    stream = stream_of(first_stage(), second_stage(box=Fixed(torch.zeros(6, 4))))
    output = stream(features())
    torch.testing.assert_close(output.stages[1].anchors, REFINED[None])
    assert not output.stages[1].anchors.requires_grad
    for i, (labels, index) in enumerate(((LABELS, 0), (REFINED_LABELS, 1))):
        anchors = output.stages[i].anchors
        targets = stream.stages[i].assigner(output.priors, anchors, GT)
        assert targets.labels[0].tolist() == labels
        assert targets.gt_index[0, 0] == index
        assert targets.matched_gt_boxes[0, 0].tolist() == GT.boxes[index].tolist()
    assert targets.matched_ious[0].tolist() == pytest.approx([90 / 110, 0.8, 70 / 130, 0, 0.8, 0.8])


@pytest.mark.parametrize(
    "coder, broken",
    [
        (DeltaCoder(), [math.nan, 0.5, 0.0, 0.0]),
        (DeltaCoder(), [0.0, 0.5, -200.0, 0.0]),  # without a width
        (LTRBCoder(), [0.5, 0.5, math.inf, 1.0]),  # to infinity on the right
    ],
)
def test_a_box_that_is_broken_in_one_direction_is_not_moved_in_the_other(coder, broken):
    deltas = torch.tensor([broken]).repeat(6, 1)
    stream = stream_of(first_stage(deltas), second_stage(), coder=coder)
    assert torch.equal(stream(features()).stages[1].anchors[0], ANCHORS)


def test_losses_by_hand():
    """Kong et al., Eq. 1 and 2: a shared normaliser for both class terms, one for each box term."""
    first = first_stage(finite_deltas())
    second = second_stage(box=Fixed(torch.randn(6, 4)))
    stream = stream_of(first, second)
    losses, statistics = stream.losses(stream(features()), GT)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_cls_stage1", "loss_box_reg_stage1"}
    assert statistics["num_foreground"] == 5 and statistics["num_foreground_stage1"] == 4

    logits = first.cls.values.detach()
    assert losses["loss_cls"].item() == pytest.approx(focal(logits, LABELS).item() / 5, rel=1e-5)
    again = focal(logits, REFINED_LABELS).item() / 5
    assert losses["loss_cls_stage1"].item() == pytest.approx(again, rel=1e-5)

    # (0, 0, 10, 10) to (0, 0, 10, 8): centre up by one, height times .8.
    up = torch.tensor([0.0, -0.1, 0.0, math.log(0.8)])
    own = torch.tensor([True, True, True, False, True, True])
    expected = smooth_l1(first.box.values.detach()[own], up.expand(5, 4)) / 5
    assert losses["loss_box_reg"].item() == pytest.approx(expected.item(), rel=1e-5)
    # (5, 0, 15, 10) to (6, 0, 16, 10): centre right by one.
    targets = torch.stack([torch.tensor([0.1, 0.0, 0.0, 0.0]), up, up, up])
    predicted = second.box.values.detach()[[0, 1, 4, 5]]
    expected = smooth_l1(predicted, targets) / 4
    assert losses["loss_box_reg_stage1"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_shared_logits_train_on_both_stages_and_anchors_carry_no_gradient():
    first = first_stage(finite_deltas())
    stream = stream_of(first, second_stage(box=Fixed(torch.randn(6, 4))))
    losses, _ = stream.losses(stream(features()), GT)
    logits, deltas = first.cls.values, first.box.values

    def gradient(names, of):
        total = sum(losses[name] for name in names)
        return torch.autograd.grad(total, of, retain_graph=True, allow_unused=True)[0]

    both = gradient(["loss_cls", "loss_cls_stage1"], logits)
    one, two = gradient(["loss_cls"], logits), gradient(["loss_cls_stage1"], logits)
    torch.testing.assert_close(both, one + two)
    assert one.abs().sum() > 0 and two.abs().sum() > 0
    assert two[2].abs().sum() == 0 and one[2].abs().sum() > 0  # ignored once refined
    assert gradient(["loss_cls_stage1", "loss_box_reg_stage1"], deltas) is None
    assert torch.equal(gradient(losses, deltas), gradient(["loss_box_reg"], deltas))


def test_own_logits_train_only_on_their_stage():
    first, own = first_stage(), Fixed(torch.randn(6, K))
    stream = stream_of(first, second_stage(cls=own, box=Fixed(torch.zeros(6, 4))))
    losses, _ = stream.losses(stream(features()), GT)
    expected = focal(own.values.detach(), REFINED_LABELS).item() / 5
    assert losses["loss_cls_stage1"].item() == pytest.approx(expected, rel=1e-5)
    gradients = torch.autograd.grad(
        losses["loss_cls_stage1"], [own.values, first.cls.values], allow_unused=True
    )
    assert gradients[0].abs().sum() > 0 and gradients[1] is None


def test_class_only_and_box_only_stages():
    """Table 3: 2/1 has a second class term; 3/2 a third on the twice refined boxes."""
    stream = stream_of(first_stage(), second_stage())
    output = stream(features())
    assert set(stream.losses(output, GT)[0]) == {"loss_cls", "loss_box_reg", "loss_cls_stage1"}
    assert output.box_stage is output.stages[0]

    shift = torch.tensor([[0.1, 0.0, 0.0, 0.0]]).expand(6, 4)
    stream = stream_of(first_stage(), second_stage(box=Fixed(shift)), second_stage())
    output = stream(features())
    twice = REFINED + torch.tensor([1.0, 0, 1, 0])
    torch.testing.assert_close(output.stages[2].anchors, twice[None])
    torch.testing.assert_close(boxes_of(stream, output), twice)
    assert output.box_stage is output.stages[1]
    assert {"loss_cls_stage2", "loss_box_reg_stage1"} <= set(stream.losses(output, GT)[0])

    stream = stream_of(first_stage(), second_stage(box=Fixed(shift), cls_loss=None))
    losses, _ = stream.losses(stream(features()), GT)
    assert set(losses) == {"loss_cls", "loss_box_reg", "loss_box_reg_stage1"}


def test_shared_box_applies_the_same_deltas_again():
    first = first_stage()
    stream = stream_of(first, second_stage(), second_stage(repeats_box=True))
    output = stream(features())
    # The stage in between moves nothing, so the third starts where the second did.
    torch.testing.assert_close(output.stages[2].anchors, REFINED[None])
    assert output.stages[2].deltas is output.stages[0].deltas
    torch.testing.assert_close(
        boxes_of(stream, output)[:3],
        torch.tensor([[10.0, 0, 20, 10], [0, 0, 10, 10], [6, 0, 16, 10]]),
    )


def test_what_a_stage_shares_is_that_of_the_stage_before():
    own_cls, own_box = Fixed(torch.randn(6, K)), Fixed(torch.zeros(6, 4))
    second = second_stage(cls=own_cls, box=own_box)
    stream = stream_of(first_stage(), second, second_stage(repeats_box=True))
    _, before, found = stream(features()).stages
    assert torch.equal(found.cls_logits[0], own_cls.values)
    assert torch.equal(found.deltas[0], own_box.values) and found.box is before.box


@pytest.mark.parametrize("size, num_foreground", [(1e4, 0), (1e30, 5)])
def test_huge_deltas_stay_finite(size, num_foreground):
    """A box far outside the picture is background; even further out rounding leaves no area."""
    deltas = torch.full((6, 4), size)
    stream = stream_of(first_stage(deltas), second_stage(box=Fixed(deltas)))
    losses, statistics = stream.losses(stream(features()), GT)
    sum(losses.values()).backward()
    assert statistics["num_foreground_stage1"] == num_foreground
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in stream.parameters())


def test_stages_without_any_or_reachable_ground_truth():
    empty = GroundTruth.from_lists([torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.long)])
    far = GroundTruth.from_lists([torch.tensor([[900.0, 900, 901, 901]])], [torch.tensor([1])])
    for low_quality in (False, True):  # a box without overlap gets no anchor either way
        second = second_stage(box=Fixed(torch.zeros(6, 4)))
        second.assigner.allow_low_quality = low_quality
        stream = stream_of(first_stage(), second)
        for truth in (empty, far):
            output = stream(features())
            targets = second.assigner(output.priors, output.stages[1].anchors, truth)
            assert (targets.labels == K).all()
            losses, _ = stream.losses(output, truth)
            assert losses["loss_box_reg_stage1"] == 0
            expected = focal(stream.stages[0].cls.values.detach(), [K] * 6).item()
            assert losses["loss_cls_stage1"].item() == pytest.approx(expected, rel=1e-5)


def test_stage_whose_anchors_are_all_ignored():
    second = second_stage(box=Fixed(torch.zeros(6, 4)))
    second.assigner = assigner(0.0001, 0.99, iou_labels=(-1, -1, 1), allow_low_quality=False)
    stream = stream_of(first_stage(), second)
    losses, _ = stream.losses(stream(features()), GT)
    assert losses["loss_cls_stage1"] == 0 and losses["loss_box_reg_stage1"] == 0
    assert losses["loss_cls"] > 0


def test_gate_by_hand():
    """P + sigmoid(conv1x1(h)) h enters the stage's own tower, each task with its own h."""
    torch.manual_seed(0)
    tower = ConvTower(in_channels=[3, 3], channels=3, num_convs=1)
    gates = {task: nn.Conv2d(3, 3, 1) for task in ("cls", "box")}
    stage = Stage(
        cls=None,
        box=None,
        assigner=None,
        normalizer=nn.Identity(),
        **LOSSES,
        tower=tower,
        gates=gates,
    )
    levels = [torch.randn(1, 3, 4, 4), torch.randn(1, 3, 2, 2)]
    before = TowerFeatures(
        cls=[torch.randn_like(x).requires_grad_() for x in levels],
        box=[torch.randn_like(x) for x in levels],
        pyramid=levels,
    )
    after = stage.features(before)
    assert after.pyramid is before.pyramid
    for task in ("cls", "box"):
        conv = getattr(tower, task)[0]
        for p, h, got in zip(levels, getattr(before, task), getattr(after, task), strict=True):
            weight = gates[task].weight[:, :, 0, 0]
            logit = torch.einsum("oc,nchw->nohw", weight, h) + gates[task].bias[:, None, None]
            mixed = p + h / (1 + torch.exp(-logit))
            expected = torch.conv2d(mixed, conv.weight, conv.bias, padding=1).relu()
            torch.testing.assert_close(got, expected)
    after.cls[0].sum().backward()
    assert before.cls[0].grad.abs().sum() > 0  # not detached


def test_own_tower_does_not_affect_the_other_task():
    torch.manual_seed(0)
    tower = ConvTower(in_channels=[3], channels=3, num_convs=1, tasks=["box"])
    stage = Stage(
        cls=None, box=None, assigner=None, normalizer=nn.Identity(), **LOSSES, tower=tower
    )
    x = torch.randn(1, 3, 4, 4)
    before = TowerFeatures(cls=[x + 1], box=[x + 2], pyramid=[x])
    after = stage.features(before)
    assert after.cls is before.cls
    expected = torch.conv2d(x, tower.box[0].weight, tower.box[0].bias, padding=1).relu()
    torch.testing.assert_close(after.box[0], expected)
    assert {name.split(".")[0] for name, _ in tower.named_parameters()} == {"box"}


def test_a_copy_made_without_gradient_does_not_cut_the_losses():
    values = torch.randn(1, 8, 1, 1, requires_grad=True)
    prediction = StagePrediction(anchors=ANCHORS, cls=LevelMaps([values], 4), box=None)
    with torch.no_grad():
        assert prediction.cls_logits.shape == (1, 2, 4)
    assert prediction.cls_logits.requires_grad and prediction.deltas is None
