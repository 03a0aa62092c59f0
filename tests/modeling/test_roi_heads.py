"""Detectron2's RoI heads with other box losses, samplers and an IoU output."""

import functools

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from tests.toy_backbone import PYRAMID_CHANNELS

KINDS = {
    "faster": [],
    "mask": ["MODEL.MASK_ON", "True", "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead",
             "MODEL.ROI_MASK_HEAD.NUM_CONV", "1", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"],
    "keypoint": ["MODEL.KEYPOINT_ON", "True", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "4",
                 "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(16,)"],
    "cascade": ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"],
}  # fmt: skip
OURS = {"cascade": "ResObjCascadeROIHeads"}
THEIRS = {"cascade": "CascadeROIHeads"}
EVERYTHING = [
    "MODEL.RESOBJ_ROI.BOX_LOSS.NAME", "GIoULoss",
    "MODEL.RESOBJ_ROI.SAMPLER.NAME", "HardExampleSampler",
    "MODEL.RESOBJ_ROI.QUALITY.ENABLED", "True",
]  # fmt: skip
SHAPES = [(128, 160, 6), (160, 128, 0), (140, 150, 3)]


@pytest.fixture
def make_cfg(tiny_rcnn):
    def build(kind, *opts, heads=OURS):
        default = "ResObjROIHeads" if heads is OURS else "StandardROIHeads"
        return tiny_rcnn("MODEL.ROI_HEADS.NAME", heads.get(kind, default), *KINDS[kind], *opts)

    return build


@pytest.fixture
def rcnn_batch(make_batch):
    return functools.partial(make_batch, num_keypoints=4)


def spread(model):
    """Predictions spread out enough for many detections without ties in score."""
    predictors = model.roi_heads.box_predictor
    for predictor in predictors if isinstance(predictors, torch.nn.ModuleList) else [predictors]:
        torch.nn.init.normal_(predictor.cls_score.weight, std=0.3)
        torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.05)
        predictor.test_score_thresh = 0.05
    return model


def losses_of(model, batch):
    with EventStorage():
        return model(batch)


def detect(model, batch):
    with torch.no_grad():
        return [x["instances"] for x in model.eval()(batch)]


# With everything off.


@pytest.mark.parametrize("kind", KINDS)
def test_off_is_detectron2(make_cfg, rcnn_batch, kind):
    theirs = spread(build_model(make_cfg(kind, heads=THEIRS)))
    ours = spread(build_model(make_cfg(kind)))
    ours.load_state_dict(theirs.state_dict())
    batch = rcnn_batch(SHAPES)
    found = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        losses = losses_of(model, batch)
        sum(losses.values()).backward()
        found.append(losses)
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[1])
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for a, b in zip(detect(ours, batch), detect(theirs, batch), strict=True):
        assert len(b) > 10 and a.get_fields().keys() == b.get_fields().keys()
        for name, value in b.get_fields().items():
            value = value.tensor if isinstance(value, Boxes) else value
            other = a.get(name).tensor if isinstance(a.get(name), Boxes) else a.get(name)
            assert torch.equal(other, value), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_detectron2s_weights(make_cfg, kind):
    weights = []
    for heads in (OURS, THEIRS):
        cfg = make_cfg(kind, heads=heads)
        cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.RPN.HEAD_NAME = (
            ("ResObjRPN", "ResObjRPNHead") if heads is OURS else ("RPN", "StandardRPNHead")
        )
        torch.manual_seed(5)
        weights.append(build_model(cfg).state_dict())
        weights[-1]["the next random number"] = torch.rand(1)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], x) for name, x in weights[1].items())


def test_off_is_detectron2_with_masks_trained_on_predicted_boxes(make_cfg, rcnn_batch):
    key = ["MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES", "True"]
    theirs = build_model(make_cfg("mask", *key, heads=THEIRS))
    ours = build_model(make_cfg("mask", *key))
    ours.load_state_dict(theirs.state_dict())
    batch = rcnn_batch(SHAPES)
    found = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        found.append(losses_of(model, batch))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[1])


# Sampling.


def regions(boxes, seed=0):
    """Proposals with these boxes in images of 64 px, and features for the heads."""
    torch.manual_seed(seed)
    proposals = []
    for x in boxes:
        proposals.append(Instances((64, 64)))
        proposals[-1].proposal_boxes = Boxes(x)
        proposals[-1].objectness_logits = torch.zeros(len(x))
    sides = {"p3": 8, "p4": 4, "p5": 2}
    shape = len(boxes), PYRAMID_CHANNELS
    maps = {name: torch.randn(*shape, side, side) for name, side in sides.items()}
    return proposals, maps


def random_boxes(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    corner = 44 * torch.rand(count, 2, generator=g)
    return torch.cat((corner, corner + 4 + 16 * torch.rand(count, 2, generator=g)), dim=1)


@pytest.mark.parametrize("kind", ["faster", "cascade"])
def test_ohem_takes_the_hardest_by_class_loss(make_cfg, make_batch, kind):
    opts = ["MODEL.RESOBJ_ROI.SAMPLER.NAME", "HardExampleSampler",
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "12"]  # fmt: skip
    heads = spread(build_model(make_cfg(kind, *opts))).roi_heads
    gt = [x["instances"] for x in make_batch([(64, 64, 3), (64, 64, 0)])]
    near = gt[0].gt_boxes.tensor.repeat(4, 1) + torch.arange(12.0)[:, None] / 6
    proposals, maps = regions([torch.cat((random_boxes(40), near)), random_boxes(30, 1)])
    with EventStorage() as storage:
        chosen = heads.sample_proposals(maps, proposals, gt)
    if kind == "faster":
        pool, head, last = heads.box_pooler, heads.box_head, heads.box_predictor
    else:
        pool, head, last = heads.box_pooler, heads.box_head[0], heads.box_predictor[0]
    for i, count in enumerate((3, 0)):
        boxes = Boxes.cat([proposals[i].proposal_boxes, gt[i].gt_boxes])
        ious = pairwise_iou(boxes, gt[i].gt_boxes)
        best = ious.max(dim=1) if count else None
        labels = torch.full((len(boxes),), 3)
        if count:
            labels[best.values >= 0.5] = gt[i].gt_classes[best.indices[best.values >= 0.5]]
        with torch.no_grad():
            logits = last(head(pool([x[i : i + 1] for x in maps.values()], [boxes])))[0]
        loss = F.cross_entropy(logits, labels, reduction="none")
        expected = []
        positive = (labels < 3).nonzero().flatten()
        kept = positive[loss[positive].argsort(descending=True)[:3]]  # a quarter of 12
        negative = (labels == 3).nonzero().flatten()
        hardest = negative[loss[negative].argsort(descending=True)[: 12 - len(kept)]]
        expected = torch.cat((kept, hardest)).sort().values
        assert torch.equal(chosen[i].proposal_boxes.tensor, boxes.tensor[expected])
        assert torch.equal(chosen[i].gt_classes, labels[expected])
        assert chosen[i].has("gt_boxes") == bool(count)
        if count:
            assert len(kept) == 3
            matched = gt[i].gt_boxes.tensor[best.indices[expected]]
            assert torch.equal(chosen[i].gt_boxes.tensor, matched)
    assert storage.latest()["roi_head/num_fg_samples"][0] == 1.5
    assert storage.latest()["roi_head/num_bg_samples"][0] == (9 + 12) / 2


def test_iou_balanced_sampling_draws_from_three_background_bins(make_cfg):
    opts = ["MODEL.RESOBJ_ROI.SAMPLER.NAME", "IoUBalancedSampler",
            "MODEL.RESOBJ_ROI.SAMPLER.INSTANCE_BALANCED", "True",
            "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False",
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "24"]  # fmt: skip
    heads = build_model(make_cfg("faster", *opts)).roi_heads
    assert heads.sampler.max_positive == 6
    gt = Instances((64, 64))
    gt.gt_boxes = Boxes(torch.tensor([[0.0, 0, 20, 20], [40, 40, 60, 60]]))
    gt.gt_classes = torch.tensor([1, 0])

    def share(count, part):  # boxes of 20 x 20 that contain this fraction of the first object
        height = 20 * part
        return torch.tensor([[0.0, 0, 20, height]]).repeat(count, 1)

    # 100 of IoU 0, 5 of .25, 9 of .4; 30 foreground boxes on object 0 and 2 on object 1.
    none = torch.tensor([[30.0, 0, 36, 6]]).repeat(100, 1)
    boxes = torch.cat(
        [none, share(5, 0.25), share(9, 0.4), share(30, 0.9), gt.gt_boxes.tensor[1:].repeat(2, 1)]
    )
    for seed in range(5):
        proposals, maps = regions([boxes], seed)
        with EventStorage():
            (chosen,) = heads.sample_proposals(maps, proposals, [gt])
        ious = pairwise_iou(chosen.proposal_boxes, gt.gt_boxes).max(dim=1).values
        background = ious[chosen.gt_classes == 3]
        # 18 negatives: six per bin, but five from the middle one; one more from the others.
        counts = [((background - x).abs() < 1e-4).sum().item() for x in (0.0, 0.25, 0.4)]
        assert counts in ([7, 5, 6], [6, 5, 7])
        assert (chosen.gt_classes == 1).sum() == 4 and (chosen.gt_classes == 0).sum() == 2


def test_bins_cover_the_background_of_fast_rcnn(make_cfg):
    """Its IoUs are [.1, .5): 100 of .15, four of .25 and four of .45 for 12 places, four a bin."""
    opts = ["MODEL.RESOBJ_ROI.SAMPLER.NAME", "IoUBalancedSampler",
            "MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.1, 0.5]",
            "MODEL.ROI_HEADS.IOU_LABELS", "[-1, 0, 1]",
            "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT", "False",
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "12"]  # fmt: skip
    heads = build_model(make_cfg("faster", *opts)).roi_heads
    gt = Instances((64, 64))
    gt.gt_boxes, gt.gt_classes = Boxes(torch.tensor([[0.0, 0, 20, 20]])), torch.tensor([1])
    parts = [(20, 0.0), (100, 0.15), (4, 0.25), (4, 0.45)]
    boxes = [torch.tensor([[0.0, 0, 20, 20 * part]]).repeat(count, 1) for count, part in parts]
    boxes[0] = torch.tensor([[30.0, 30, 40, 40]]).repeat(20, 1)
    for seed in range(3):
        proposals, maps = regions([torch.cat(boxes)], seed)
        with EventStorage():
            (chosen,) = heads.sample_proposals(maps, proposals, [gt])
        ious = pairwise_iou(chosen.proposal_boxes, gt.gt_boxes)[:, 0]
        counts = [((ious - part).abs() < 1e-4).sum().item() for _, part in parts]
        assert counts == [0, 4, 4, 4]


def test_boxes_between_thresholds_are_never_sampled(make_cfg, make_batch):
    opts = ["MODEL.RESOBJ_ROI.SAMPLER.NAME", "HardExampleSampler",
            "MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.3, 0.7]",
            "MODEL.ROI_HEADS.IOU_LABELS", "[0, -1, 1]"]  # fmt: skip
    heads = build_model(make_cfg("faster", *opts)).roi_heads
    (gt,) = (x["instances"] for x in make_batch([(64, 64, 3)]))
    near = gt.gt_boxes.tensor.repeat(30, 1) + torch.arange(90.0)[:, None] / 5
    proposals, maps = regions([near])
    ious = pairwise_iou(gt.gt_boxes, Boxes(near)).max(dim=0).values
    assert ((ious >= 0.3) & (ious < 0.7)).sum() > 10
    with EventStorage():
        (chosen,) = heads.sample_proposals(maps, proposals, [gt])
    ious = pairwise_iou(gt.gt_boxes, chosen.proposal_boxes).max(dim=0).values
    assert ((ious < 0.3) | (ious >= 0.7)).all()
    assert torch.equal(chosen.gt_classes == 3, ious < 0.3)


def test_ohem_does_not_hide_a_nan(make_cfg, make_batch):
    model = build_model(make_cfg("faster", "MODEL.RESOBJ_ROI.SAMPLER.NAME", "HardExampleSampler"))
    torch.nn.init.constant_(model.roi_heads.box_predictor.cls_score.bias, torch.nan)
    assert losses_of(model, make_batch(SHAPES))["loss_cls"].isnan()


@pytest.mark.parametrize("sampler", ["RandomSampler", "OHEMSampler", "HardNegativeRatio"])
def test_every_sampler_feeds_the_heads(make_cfg, rcnn_batch, sampler):
    model = build_model(make_cfg("mask", "MODEL.RESOBJ_ROI.SAMPLER.NAME", sampler))
    losses = losses_of(model, rcnn_batch(SHAPES))
    assert all(torch.isfinite(x) and x > 0 for x in losses.values())


# All together.


def test_cascade_averages_the_fused_scores_of_its_stages(make_cfg, make_batch):
    cfg = make_cfg("cascade", "MODEL.RESOBJ_ROI.QUALITY.ENABLED", "True",
                   "MODEL.RESOBJ_ROI.QUALITY.ALPHA", "0.5")  # fmt: skip
    torch.manual_seed(0)
    heads = spread(build_model(cfg)).eval().roi_heads
    for predictor in heads.box_predictor:
        torch.nn.init.normal_(predictor.quality_score.weight, std=0.5)
    proposals, maps = regions([random_boxes(30)])
    found = heads(None, maps, proposals)[0][0]
    assert len(found) > 5
    boxes, total = proposals[0].proposal_boxes, 0
    for head, last in zip(heads.box_head, heads.box_predictor, strict=True):
        logits, deltas, quality = last(head(heads.box_pooler(list(maps.values()), [boxes])))
        probs = logits.softmax(dim=1)
        total = total + torch.cat(
            ((probs[:, :3] * quality.sigmoid()[:, None]).sqrt(), probs[:, 3:]), dim=1
        )
        before = boxes
        boxes = Boxes(last.box2box_transform.apply_deltas(deltas, before.tensor))
        if last is not heads.box_predictor[-1]:
            boxes.clip((64, 64))
    (expected,), _ = fast_rcnn_inference([boxes.tensor], [total / 3], [(64, 64)], 0.05, 0.5, 100)
    torch.testing.assert_close(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_trains_and_detects(make_cfg, rcnn_batch, kind):
    torch.manual_seed(0)
    model = build_model(make_cfg(kind, *EVERYTHING))
    losses = losses_of(model, rcnn_batch(SHAPES))
    stages = ["_stage0", "_stage1", "_stage2"] if kind == "cascade" else [""]
    assert {f"loss_quality{x}" for x in stages} <= losses.keys()
    assert all(torch.isfinite(x) for x in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.roi_heads.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    fields = {"mask": {"pred_masks"}, "keypoint": {"pred_keypoints"}}.get(kind, set())
    found = detect(spread(model), rcnn_batch(SHAPES))
    assert len(found[0]) > 0 and fields <= found[0].get_fields().keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", ["HardExampleSampler", "OHEMSampler", "IoUBalancedSampler"])
def test_nothing_to_see(make_cfg, make_batch, rcnn_batch, kind, sampler):
    """No objects; and neither objects nor proposals."""
    opts = [*EVERYTHING, "MODEL.RESOBJ_ROI.SAMPLER.NAME", sampler,
            "MODEL.RESOBJ_ROI.SAMPLER.INSTANCE_BALANCED", "True"]  # fmt: skip
    model = build_model(make_cfg(kind, *opts))
    losses = losses_of(model, rcnn_batch([(64, 64, 0), (96, 64, 0)]))
    sum(losses.values()).backward()
    assert all(torch.isfinite(x) for x in losses.values())
    assert all(losses[x] == 0 for x in losses if "box_reg" in x or "quality" in x)
    gt = [x["instances"] for x in rcnn_batch([(64, 64, 0)])]
    proposals, maps = regions([torch.zeros(0, 4)])
    with EventStorage():
        _, losses = model.roi_heads(None, maps, proposals, gt)
    sum(losses.values()).backward()
    assert all(x == 0 for x in losses.values())
    found = model.eval().roi_heads(None, maps, proposals)[0]
    assert len(found[0]) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(make_cfg, rcnn_batch, kind):
    torch.manual_seed(0)
    model = build_model(make_cfg(kind, *EVERYTHING))
    batch = rcnn_batch(SHAPES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model, batch)
    assert all(torch.isfinite(x) for x in losses.values())
    sum(losses.values()).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert len(detect(spread(model), batch)[0]) > 0


@pytest.mark.parametrize(
    "opts, error, message",
    [
        (["BOX_LOSS.NAME", "L2Loss"], KeyError, "L2Loss"),
        (["SAMPLER.NAME", "BestSampler"], KeyError, "BestSampler"),
        (["BOX_LOSS.NAME", "YOLOBoxLoss"], ValueError, "parametrisation"),
        (["QUALITY.ENABLED", "True", "QUALITY.LOSS", "l3"], ValueError, "QUALITY.LOSS"),
        (["QUALITY.ENABLED", "True", "QUALITY.ALPHA", "1.5"], ValueError, "QUALITY.ALPHA"),
    ],
)
def test_bad_options_are_refused(make_cfg, opts, error, message):
    opts = [f"MODEL.RESOBJ_ROI.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    with pytest.raises(error, match=message):
        build_model(make_cfg("faster", *opts))


def test_two_box_losses_are_refused(make_cfg):
    opts = ["MODEL.RESOBJ_ROI.BOX_LOSS.NAME", "IoULoss",
            "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "giou"]  # fmt: skip
    with pytest.raises(ValueError, match="BBOX_REG_LOSS_TYPE at 'smooth_l1', got 'giou'"):
        build_model(make_cfg("faster", *opts))


def test_sigmoid_losses_have_no_order_for_ohem(make_cfg):
    cfg = make_cfg("faster", "MODEL.RESOBJ_ROI.SAMPLER.NAME", "HardExampleSampler")
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True  # a key of upstream main
    with pytest.raises(ValueError, match="USE_SIGMOID_CE must be False"):
        build_model(cfg)


@pytest.mark.slow
def test_everything_learns(make_cfg, make_batch):
    """Bright rectangles are found, with scores that reflect how well."""
    torch.manual_seed(0)
    model = build_model(
        make_cfg("faster", *EVERYTHING, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 10.0)
    )
    batch = make_batch([(96, 96, 2), (96, 96, 3)], num_classes=1)
    for x in batch:
        x["image"].fill_(30.0)
        for x1, y1, x2, y2 in x["instances"].gt_boxes.tensor.int().tolist():
            x["image"][:, y1:y2, x1:x2] = 200.0
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(80):
        total = sum(losses_of(model, batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    for found, x in zip(detect(model, batch), batch, strict=True):
        ious = pairwise_iou(x["instances"].gt_boxes, found.pred_boxes[found.scores > 0.5])
        assert ious.max(dim=1).values.min() > 0.5


def test_training_needs_instances(make_cfg, make_batch):
    model = build_model(make_cfg("faster", *EVERYTHING))
    proposals, maps = regions([random_boxes(3)])
    with pytest.raises(ValueError, match="instances"):
        model.roi_heads(None, maps, proposals)
