"""The predicted IoU: its target, what its loss trains, and its part in the score."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from resobj_d2 import ops
from resobj_d2.losses import QualityLoss
from resobj_d2.modeling import HeadParts, QualityBranch, SharedConv
from resobj_d2.structures import Targets

QUALITY = ["MODEL.DENSE.QUALITY.ENABLED", True]
CONSISTENT = ["MODEL.DENSE.STAGES", [{}]]


def build(tiny_cfg, *opts):
    torch.manual_seed(0)
    return build_model(tiny_cfg(*QUALITY, *opts))


@pytest.fixture
def run(observe, truth_of):
    """A function: losses, raw output and ground truth of one forward pass."""

    def call(model, batch):
        seen = observe(model, batch)
        return seen.result, seen.outputs["anchors"], truth_of(batch)

    return call


@pytest.mark.parametrize("stages", [[], CONSISTENT], ids=["plain", "consistent"])
@pytest.mark.parametrize("reads", ["cls", "box"])
def test_loss_by_hand(tiny_cfg, make_batch, stages, reads, run):
    """Eq. 9: the target is the IoU of the last stage's box with its matched object.

    The mean of these targets is logged.
    """
    model = build(tiny_cfg, "MODEL.DENSE.QUALITY.READS", reads, *stages)
    stream = model.streams["anchors"]
    batch = make_batch([(96, 96, 3), (96, 96, 2)])
    losses, output, truth = run(model, batch)
    last, stage = output.stages[-1], stream.stages[-1]
    boxes = stream.coder.decode(last.anchors, last.deltas).expand(2, -1, 4)
    low, high = stage.assigner.iou_thresholds
    total, iou_sum, count = 0.0, 0.0, 0
    for i, start in enumerate(truth.offsets[:-1]):
        gt = truth.boxes[start : start + truth.counts[i]]
        anchors = last.anchors if last.anchors.dim() == 2 else last.anchors[i]
        ious, index = ops.pairwise_box_iou(gt, anchors).max(dim=0)
        foreground = ious >= high
        if not stages:  # the first stage also gives each object its best anchors
            best = ops.pairwise_box_iou(gt, anchors)
            foreground |= (best == best.amax(dim=1, keepdim=True)).any(dim=0)
        target = ops.pairwise_box_iou(gt, boxes[i])[index, torch.arange(len(anchors))]
        logits = output.branches["quality"][i]
        total += F.binary_cross_entropy_with_logits(
            logits[foreground], target[foreground], reduction="sum"
        )
        iou_sum += target[foreground].sum().item()
        count += foreground.sum()
    assert count > 0
    expected = total / (90 + 0.1 * count)
    assert losses["loss_quality"].item() == pytest.approx(expected.item(), rel=1e-4)
    mean = iou_sum / count.item()
    assert mean > 0.05
    assert model.statistics["quality/iou"].item() == pytest.approx(mean, rel=1e-4)


def trained(model, loss):
    """Names of the parameters that a loss trains."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    moved = zip(names, gradients, strict=True)
    return {n.rsplit(".", 1)[0] for n, g in moved if g is not None and g.abs().sum() > 0}


@pytest.mark.parametrize("reads, tower", [("cls", "tower.cls.0"), ("box", "tower.box.0")])
def test_detached_target_does_not_train_the_boxes(tiny_cfg, make_batch, reads, tower, run):
    model = build(tiny_cfg, "MODEL.DENSE.QUALITY.READS", reads)
    losses, _, _ = run(model, make_batch([(96, 96, 3)]))
    heads = {n for n in trained(model, losses["loss_quality"]) if not n.startswith("backbone")}
    assert heads == {tower, "streams.anchors.branches.quality.predictor"}


def test_attached_target_trains_only_the_last_boxes(tiny_cfg, make_batch, run):
    model = build(tiny_cfg, *CONSISTENT, "MODEL.DENSE.QUALITY.DETACH_TARGET", False)
    torch.nn.init.normal_(model.streams["anchors"].branches["quality"].predictor.weight)
    losses, _, _ = run(model, make_batch([(96, 96, 3)]))
    names = trained(model, losses["loss_quality"])
    assert "streams.anchors.stages.1.box" in names
    assert "streams.anchors.stages.0.box" not in names


def test_attached_gradient_by_hand(tiny_cfg, make_batch, run):
    """d loss / d IoU is -h / N: the gradient of the deltas is that times the IoU's."""
    model = build(tiny_cfg, "MODEL.DENSE.QUALITY.DETACH_TARGET", False)
    torch.nn.init.normal_(model.streams["anchors"].branches["quality"].predictor.weight)
    losses, output, truth = run(model, make_batch([(96, 96, 3)]))
    stream, stage = model.streams["anchors"], output.stages[0]
    deltas = stage.deltas
    (got,) = torch.autograd.grad(losses["loss_quality"], deltas)
    targets = stream.stages[0].assigner(output.priors, stage.anchors, truth)
    boxes = stream.coder.decode(stage.anchors, deltas)[0]
    ious = ops.box_iou_aligned(boxes, targets.matched_gt_boxes[0])
    (slope,) = torch.autograd.grad(ious.sum(), deltas)
    scale = -output.branches["quality"] / stream.stages[0].normalizer.mean
    expected = torch.where(targets.foreground[..., None], scale[..., None] * slope, 0.0)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(got, expected.detach())


def test_quality_of_a_cascade_reads_the_last_tower(tiny_cfg, make_batch, run):
    cascade = [{"CLS": "own", "TOWER": "own"}]
    model = build(tiny_cfg, "MODEL.DENSE.STAGES", cascade)
    losses, _, _ = run(model, make_batch([(96, 96, 3)]))
    heads = {n for n in trained(model, losses["loss_quality"]) if not n.startswith("backbone")}
    assert heads == {
        "streams.anchors.stages.1.tower.cls.0",
        "streams.anchors.branches.quality.predictor",
    }


@pytest.mark.parametrize("kind", ["ce", "ce_w", "l1", "smooth_l1", "l2", "gfocal"])
def test_every_loss_trains_with_and_without_objects(tiny_cfg, make_batch, kind, run):
    model = build(tiny_cfg, "MODEL.DENSE.QUALITY.LOSS", kind)
    for counts in ((0, 0), (3, 0)):
        losses, _, _ = run(model, make_batch([(64, 64, n) for n in counts]))
        loss = losses["loss_quality"]
        assert torch.isfinite(loss) and loss.requires_grad
        silent = counts == (0, 0) and kind != "ce_w"
        assert (loss.item() == 0) == silent


# Rows of RetinaNet-Conf's Table 4 as a function of class probability and confidence.
MODES = {
    "cls": (["QUALITY.ALPHA", 0.0], lambda c, q: c),
    "cls, conf > .5": (
        ["QUALITY.ALPHA", 0.0, "FUSION.FLOORS", [["quality", 0.5]]],
        lambda c, q: torch.where(q >= 0.5, c, 0.0),
    ),
    "cls * conf": (["FUSION.EXPONENTS", [["cls", 1], ["quality", 1]]], lambda c, q: c * q),
    "power": ([], lambda c, q: c**0.6 * q**0.4),
    "IoU-aware": (["QUALITY.ALPHA", 0.5], lambda c, q: (c * q).sqrt()),
    "one named": (["FUSION.EXPONENTS", [["cls", 1.0]]], lambda c, q: c * q**0.4),
}


@pytest.mark.parametrize("mode", MODES)
def test_score_modes(tiny_cfg, mode):
    opts, expected = MODES[mode]
    opts = [f"MODEL.DENSE.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    fusion = build(tiny_cfg, *opts).streams["anchors"].fusion
    cls = torch.tensor([[0.9, 0.1], [0.3, 0.6], [0.5, 0.2]])
    quality = torch.tensor([0.25, 0.81, 0.5])
    got = fusion({"cls": cls, "quality": quality})
    torch.testing.assert_close(got, expected(cls, quality[:, None]))


def test_objectness_and_class_get_one_minus_the_exponent(tiny_cfg):
    model = build(tiny_cfg, "MODEL.DENSE.OBJECTNESS.ENABLED", True)
    exponents = model.streams["anchors"].fusion.exponents
    assert exponents == pytest.approx({"cls": 0.6, "objectness": 0.6, "quality": 0.4})


def test_detections_carry_the_fused_score(tiny_cfg, make_batch):
    model = build(tiny_cfg, "MODEL.DENSE.POSTPROCESS.SCORE_THRESH", 0.0).eval()
    torch.nn.init.normal_(model.streams["anchors"].branches["quality"].predictor.weight, std=0.3)
    with torch.no_grad():
        (found,) = model(make_batch([(96, 96, 0)]))
    found = found["instances"]
    assert len(found) > 0
    torch.testing.assert_close(found.scores, found.cls_score**0.6 * found.quality_score**0.4)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("READS", "tower", "QUALITY.READS"),
        ("ALPHA", 1.5, "QUALITY.ALPHA"),
        ("LOSS", "iou", "QUALITY.LOSS"),
    ],
)
def test_bad_options_are_refused(tiny_cfg, key, value, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_cfg, f"MODEL.DENSE.QUALITY.{key}", value)


def test_background_and_ignored_anchors_by_hand():
    """An anchor of each kind with a logit of 0; the background has half of the weight."""
    boxes = torch.tensor([[[0.0, 0, 10, 10]] * 3])
    targets = Targets(
        labels=torch.tensor([[1, 4, -1]]),
        matched_gt_boxes=boxes * 2,
        matched_ious=torch.zeros(1, 3),
        gt_index=torch.zeros(1, 3, dtype=torch.int64),
        num_classes=4,
    )
    parts = HeadParts(
        in_channels=[1], num_anchors=[3], make_predictor=SharedConv, make_hidden=torch.nn.Identity
    )
    loss = QualityLoss(kind="ce_w", negative_weight=0.5)
    branch = QualityBranch(parts=parts, loss=loss, weight=3.0, detach_target=False)
    losses, statistics = branch.loss(
        torch.zeros(1, 3),
        targets=targets,
        anchors=boxes[0],
        boxes=boxes.clone().requires_grad_(),
        anchors_per_level=[3],
        normalizer=torch.tensor(2.0),
    )
    assert losses["loss_quality"].item() == pytest.approx(1.5 * math.log(2) * 3 / 2)
    assert branch.score_logits(torch.zeros(1, 3, dtype=torch.bfloat16)).dtype == torch.float32
    # What is logged does not hold the graph.
    assert statistics["quality/iou"] == 0.25 and not statistics["quality/iou"].requires_grad
