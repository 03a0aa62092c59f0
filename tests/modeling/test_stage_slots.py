"""What a stage's normaliser, assigner and branches are given, and the factors of its losses."""

import math

import pytest
import torch

from resobj_d2.losses import ForegroundEMA, SoftmaxCE
from resobj_d2.matching import DeltaCoder, MaxIoUAssigner
from resobj_d2.modeling import ConvTower, ScoreBranch
from resobj_d2.structures import GroundTruth
from tests.modeling.stage_inputs import (
    GT,
    REFINED,
    Fixed,
    K,
    boxes_of,
    features,
    finite_deltas,
    first_stage,
    focal,
    second_stage,
    stream_of,
)


def test_weight_and_own_normaliser():
    plain = stream_of(first_stage(), second_stage(box=Fixed(torch.ones(6, 4))))
    other = stream_of(
        first_stage(),
        second_stage(box=Fixed(torch.ones(6, 4)), weight=0.5, own_cls_normalizer=True),
    )
    a, b = (stream.losses(stream(features()), GT)[0] for stream in (plain, other))
    for name, factor in (("loss_cls_stage1", 0.5 * 5 / 4), ("loss_box_reg_stage1", 0.5)):
        assert b[name].item() == pytest.approx(factor * a[name].item(), rel=1e-5)
    assert b["loss_cls"] == a["loss_cls"]


def test_alpha_weighs_the_class_loss_alone():
    """ConRetinaNet, Eq. 1: alpha is a factor of the second class term, and of nothing else."""
    plain, other = (
        stream_of(
            first_stage(finite_deltas()), second_stage(box=Fixed(torch.ones(6, 4)), **weights)
        )
        for weights in ({}, {"cls_weight": 0.25})
    )
    a, b = (stream.losses(stream(features()), GT)[0] for stream in (plain, other))
    for name, value in a.items():
        factor = 0.25 if name == "loss_cls_stage1" else 1.0
        assert b[name].item() == pytest.approx(factor * value.item(), rel=1e-6) != 0


def test_training_on_refined_anchors_only():
    """A first stage without losses: its predictors learn from the second, which shares them."""
    deltas = finite_deltas()
    stream = stream_of(
        first_stage(deltas, weight=0.0),
        second_stage(repeats_box=True),
        branches=[CountingBranch("every", False)],
    )
    losses, statistics = stream.losses(stream(features()), GT)
    assert sorted(losses) == ["loss_box_reg_stage1", "loss_cls_stage1", "loss_every_stage1"]
    assert "every/count" not in statistics
    (losses["loss_box_reg_stage1"] + losses["loss_cls_stage1"]).backward()
    first = stream.stages[0]
    # Row 2 is ignored in the second stage, row 0 was none of the first one's background.
    assert [bool(x.any()) for x in first.cls.values.grad] == [True, True, False, True, True, True]
    assert first.box.values.grad[0].any() and not first.box.values.grad[3].any()


def test_a_binary_first_stage_learns_objects_without_classes():
    torch.manual_seed(1)
    first = first_stage(binary=True, cls=Fixed(torch.randn(6, 1)))
    stream = stream_of(
        first, second_stage(cls=Fixed(torch.randn(6, K)), box=Fixed(torch.zeros(6, 4)))
    )
    output = stream(features())
    losses, _ = stream.losses(output, GT)
    # Rows 0 to 2 and the last two are foreground, whatever their class.
    expected = focal(first.cls.values, [0, 0, 0, 1, 0, 0]) / 5
    assert losses["loss_cls"].item() == pytest.approx(expected.item(), rel=1e-5)
    (found,) = stream.candidates(output, score_thresh=0.0, topk=100)
    assert len(found.scores) == 6 * K  # the classes of the second stage
    scores = torch.sigmoid(stream.stages[1].cls.values).flatten().sort(descending=True).values
    torch.testing.assert_close(found.scores, scores)


class CountingBranch(ScoreBranch):
    """A branch whose loss is the number of foreground anchors of the stage it trains on."""

    owns_background = False

    def __init__(self, name, last_stage_only):
        super().__init__()
        self.name = name
        self.last_stage_only = last_stage_only

    def predict(self, features, *, every_step=True):
        self.read = features

    def loss(self, prediction, *, targets, anchors, boxes, anchors_per_level, normalizer):
        count = targets.foreground.sum().float()
        return {f"loss_{self.name}": count / normalizer}, {f"{self.name}/count": count}


def test_branch_losses_carry_the_weight_of_their_stage():
    """5 anchors are foreground in the first stage and 4 in the second, which has weight 1/4."""
    stream = stream_of(
        first_stage(),
        second_stage(box=Fixed(torch.zeros(6, 4)), weight=0.25),
        branches=[CountingBranch("every", False), CountingBranch("last", True)],
    )
    losses, statistics = stream.losses(stream(features()), GT)
    assert losses["loss_every"].item() == pytest.approx(5 / 5)
    # Divided like the class loss, by the first stage's count.
    assert losses["loss_every_stage1"].item() == pytest.approx(0.25 * 4 / 5)
    # A last-stage branch keeps its own weight and uses that stage's divisor.
    assert losses["loss_last"].item() == pytest.approx(4 / 4)
    assert "loss_last_stage1" not in losses
    assert {k: v.item() for k, v in statistics.items() if "/" in k} == {
        "every/count": 5, "every/count_stage1": 4, "last/count": 4,
    }  # fmt: skip


def test_factors_of_the_losses():
    plain, other = (
        stream_of(
            first_stage(finite_deltas()), second_stage(box=Fixed(torch.ones(6, 4))), **options
        )
        for options in ({}, {"cls_weight": 3.0, "box_weight": 0.5})
    )
    a, b = (stream.losses(stream(features()), GT)[0] for stream in (plain, other))
    assert set(a) == set(b) and len(a) == 4
    for name, value in a.items():
        factor = 3.0 if "cls" in name else 0.5
        assert b[name].item() == pytest.approx(factor * value.item(), rel=1e-6) != 0


def test_foreground_is_counted_per_image():
    """Five anchors are foreground in the first image and none in the second."""
    truth = GroundTruth.from_lists([GT.boxes, GT.boxes[:0]], [GT.classes, GT.classes[:0]])
    stream = stream_of(first_stage())
    output = stream(features())
    for maps in (output.stages[0].cls, output.stages[0].box):
        maps.levels[0] = maps.levels[0].repeat(2, 1, 1, 1)
    assert stream.losses(output, truth)[1]["num_foreground"] == 5 / 2


def test_branches_read_the_tower_of_the_first_or_of_the_last_stage():
    tower = ConvTower(in_channels=[1], channels=1, num_convs=1)
    branches = [CountingBranch("every", False), CountingBranch("last", True)]
    second = second_stage(box=Fixed(torch.zeros(6, 4)), tower=tower)
    stream = stream_of(first_stage(), second, branches=branches)
    first = features()
    stream(first)
    assert branches[0].read is first
    assert torch.equal(branches[1].read.cls[0], tower(first.pyramid).cls[0])
    assert branches[1].read.cls[0] is not first.cls[0]


class NotingAssigner(MaxIoUAssigner):
    """Notes the prediction that it is given."""

    needs_predictions = True

    def __call__(self, priors, anchors, ground_truth, prediction=None):
        self.prediction = prediction
        return super().__call__(priors, anchors, ground_truth)


def test_an_assigner_sees_class_probabilities_and_boxes():
    first = first_stage(finite_deltas())
    first.cls, first.cls_loss = Fixed(torch.randn(6, K + 1)), SoftmaxCE()
    first.assigner = NotingAssigner(num_classes=K)
    stream = stream_of(first)
    stream.losses(stream(features()), GT)
    seen = first.assigner.prediction
    probabilities = torch.softmax(first.cls.values, dim=1)[:, :K].detach()
    torch.testing.assert_close(torch.sigmoid(seen.cls_logits[0].detach()), probabilities)
    torch.testing.assert_close(seen.boxes[0, :5], REFINED[:5])
    assert not seen.boxes.requires_grad


def test_each_stage_has_its_own_running_normaliser():
    stream = stream_of(first_stage(), second_stage(box=Fixed(torch.zeros(6, 4))))
    for stage in stream.stages:
        stage.normalizer = ForegroundEMA()
    stream.losses(stream(features()), GT)
    means = [stage.normalizer.mean.item() for stage in stream.stages]
    assert means == pytest.approx([90 + 0.1 * 5, 90 + 0.1 * 4])


def test_candidates_are_decoded_by_the_streams_coder():
    coder = DeltaCoder(weights=(10.0, 10.0, 5.0, 5.0), scale_clamp=1.0)
    deltas = torch.tensor([[1.0, 2.0, 0.5, 50.0]]).repeat(6, 1)
    stream = stream_of(first_stage(deltas), coder=coder)
    # Centre (5, 5) + (.1, .2) 10, width 10 e^.1, height 10 e.
    width, height = 10 * math.exp(0.1), 10 * math.e
    expected = [6 - width / 2, 7 - height / 2, 6 + width / 2, 7 + height / 2]
    assert boxes_of(stream, stream(features()))[0].tolist() == pytest.approx(expected, rel=1e-5)
