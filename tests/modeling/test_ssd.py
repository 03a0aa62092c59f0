"""A consistent SSD against the papers' formulas, computed anchor by anchor."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_iou

from resobj_d2.config import add_resobj_config

K = 3
SSD = [
    "MODEL.BACKBONE.NAME", "build_ssd_extras_backbone",
    "MODEL.SSD_EXTRAS.BOTTOM_UP", "build_resnet_backbone",
    "MODEL.SSD_EXTRAS.IN_FEATURES", ["res3", "res4", "res5"],
    "MODEL.SSD_EXTRAS.CHANNELS", [16],
    "MODEL.SSD_EXTRAS.LAST_KERNEL", 3,
    "MODEL.DENSE.IN_FEATURES", ["s1", "s2", "s3", "s4"],
    "MODEL.DENSE.TOWER.NAME", "NoTower",
    "MODEL.DENSE.PREDICTOR.NAME", "PerLevelConv",
    "MODEL.DENSE.PRIORS.NAME", "SSDAnchors",
    "MODEL.DENSE.PRIORS.MIN_SIZES", [10, 20, 30, 50, 70],
    "MODEL.DENSE.PRIORS.ASPECT_RATIOS", [[2], [2, 3], [2, 3], [2]],
    "MODEL.DENSE.PRIORS.OFFSET", 0.5,
    "MODEL.DENSE.CODER.WEIGHTS", [10.0, 10.0, 5.0, 5.0],
    "MODEL.DENSE.ASSIGNER.NAME", "BestAnchorAssigner",
    "MODEL.DENSE.ASSIGNER.IOU_THRESHOLDS", [0.5],
    "MODEL.DENSE.ASSIGNER.IOU_LABELS", [0, 1],
    "MODEL.DENSE.SAMPLER.NAME", "HardNegativeRatio",
    "MODEL.DENSE.CLS_LOSS.NAME", "SoftmaxCE",
    "MODEL.DENSE.CLS_LOSS.PRIOR_PROB", 0.5,
    "MODEL.DENSE.BOX_LOSS.BETA", 1.0,
    "MODEL.DENSE.NORMALIZER.NAME", "ForegroundCount",
    "MODEL.DENSE.STAGES", [{"IOU_THRESHOLDS": [0.5, 0.6], "NORMALIZER": "own"}],
    "MODEL.DENSE.POSTPROCESS.SCORE_THRESH", 0.02,
    "MODEL.DENSE.POSTPROCESS.NMS_THRESH", 0.45,
    "TEST.DETECTIONS_PER_IMAGE", 200,
]  # fmt: skip


@pytest.fixture
def model(tiny_cfg):
    torch.manual_seed(0)
    model = build_model(tiny_cfg(*SSD))
    with torch.no_grad():  # smaller deltas, so that some decoded boxes still fit
        for stage in model.streams["anchors"].stages:
            for layer in stage.box.levels:
                layer.weight *= 0.02
    return model


def decode(anchors, deltas):
    """SSD's variances: .1 on the centre, .2 on the logarithm of the size."""
    centre, size = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    centre = centre + 0.1 * deltas[:, :2] * size
    size = size * torch.exp(0.2 * deltas[:, 2:])
    return torch.cat((centre - size / 2, centre + size / 2), dim=1)


def encode(anchors, boxes):
    centre, size = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    goal, goal_size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return torch.cat(((goal - centre) / size / 0.1, (goal_size / size).log() / 0.2), dim=1)


def loss_of_image(anchors, logits, deltas, gt, classes, low, high, best_anchors):
    """Sums of class and box loss of one image, and its number of positives."""
    ious = box_iou(gt, anchors)
    best, row = ious.max(dim=0)
    positive, ignored = best >= high, (best >= low) & (best < high)
    if best_anchors:
        for i, overlaps in enumerate(ious):
            row[overlaps.argmax()] = i
            positive[overlaps.argmax()] = True
    cross_entropy = F.cross_entropy(
        logits, torch.where(positive, classes[row], K), reduction="none"
    )
    count = int(positive.sum())
    negatives = cross_entropy[~positive & ~ignored].sort(descending=True).values[: 3 * count]
    goal = encode(anchors[positive], gt[row[positive]])
    box = F.smooth_l1_loss(deltas[positive], goal, reduction="sum")
    return cross_entropy[positive].sum() + negatives.sum(), box, count


def test_losses_are_those_of_the_papers(model, make_batch):
    batch = make_batch([(128, 128, 3), (128, 128, 2)])
    losses = model(batch)
    (output,) = model.predict(model._preprocess(batch)).values()
    first, second = output.stages
    assert first.cls_logits.shape == (2, len(output.priors.boxes), K + 1)
    assert second.cls is first.cls
    sums = torch.zeros(2, 3)
    for i, item in enumerate(batch):
        gt, classes = item["instances"].gt_boxes.tensor, item["instances"].gt_classes
        anchors, logits = output.priors.boxes, first.cls_logits[i]
        refined = decode(anchors, first.deltas[i]).detach()
        deltas = (first.deltas[i], second.deltas[i])
        rules = ((0.5, 0.5, True), (0.5, 0.6, False))
        for stage, (boxes, rule) in enumerate(zip((anchors, refined), rules, strict=True)):
            found = loss_of_image(boxes, logits, deltas[stage], gt, classes, *rule)
            sums[stage] += torch.stack([torch.as_tensor(x).detach() for x in found])
    assert (sums[:, 2] > 0).all()
    for stage, suffix in enumerate(("", "_stage1")):
        cls, box, count = sums[stage].tolist()
        assert losses[f"loss_cls{suffix}"].item() == pytest.approx(cls / count, rel=1e-4)
        assert losses[f"loss_box_reg{suffix}"].item() == pytest.approx(box / count, rel=1e-4)
    assert len(losses) == 4


def test_detections_are_softmax_scores_of_boxes_decoded_twice(model, make_batch):
    model.eval()
    batch = make_batch([(128, 128, 0)])
    with torch.no_grad():
        (result,) = model(batch)
        (output,) = model.predict(model._preprocess(batch)).values()
        first, second = output.stages
        scores = F.softmax(first.cls_logits[0], dim=-1)[:, :K]
        boxes = decode(decode(output.priors.boxes, first.deltas[0]), second.deltas[0])
    anchor, label = (scores > 0.02).nonzero().unbind(1)
    keep = batched_nms(boxes[anchor], scores[anchor, label], label, 0.45)[:200]
    found = result["instances"]
    assert 0 < len(keep) == len(found)
    torch.testing.assert_close(found.scores, scores[anchor, label][keep], rtol=1e-5, atol=1e-6)
    expected = boxes[anchor][keep].clamp(0, 128)
    torch.testing.assert_close(found.pred_boxes.tensor, expected, rtol=1e-4, atol=1e-3)


def test_predictors_of_every_level_read_the_pyramid(model):
    stage, refinement = model.streams["anchors"].stages
    assert [x.in_channels for x in stage.cls.levels] == [128, 256, 512, 16]
    assert [x.out_channels for x in stage.cls.levels] == [4 * a for a in (4, 6, 6, 4)]
    assert [x.out_channels for x in refinement.box.levels] == [4 * a for a in (4, 6, 6, 4)]
    assert refinement.cls is None
    assert all(x.bias.abs().sum() == 0 for x in [*stage.cls.levels, *stage.box.levels])


@pytest.mark.parametrize("counts", [(0,), (2, 0)])
def test_bfloat16_step_and_evaluation(model, make_batch, counts):
    batch = make_batch([(96, 128, n) for n in counts])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(batch)
        sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        results = model(batch)
    assert all(torch.isfinite(r["instances"].pred_boxes.tensor).all() for r in results)
    assert all(r["instances"].scores.dtype == torch.float32 for r in results)


def test_objectness_with_an_ssd(tiny_cfg, make_batch):
    """Every method of the family goes with it: here Residual Objectness and confidence."""
    model = build_model(
        tiny_cfg(
            *SSD,
            "MODEL.DENSE.OBJECTNESS.ENABLED", True,
            "MODEL.DENSE.QUALITY.ENABLED", True,
        )
    )  # fmt: skip
    batch = make_batch([(128, 128, 3), (128, 128, 0)])
    losses = model(batch)
    assert sum("obj" in name for name in losses) >= 2  # of both stages
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    with torch.no_grad():
        assert len(model(batch)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "R_50"])
def test_ssd512_at_its_size(name, repository, make_batch):
    cfg = get_cfg()
    add_resobj_config(cfg)
    cfg.merge_from_file(str(repository / f"configs/COCO-Detection/ssd512_consistent_{name}.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.RESNETS.NORM = "BN"  # without ImageNet's statistics frozen ones normalise nothing
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    torch.manual_seed(0)
    model = build_model(cfg)
    losses = model(make_batch([(512, 512, 3)], num_classes=80))
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    batch = make_batch([(512, 512, 0)])
    with torch.no_grad():
        (output,) = model.predict(model._preprocess(batch)).values()
        (result,) = model(batch)
    assert output.priors.num_anchors == [4, 6, 6, 6, 6, 4, 4]
    assert output.priors.boxes.shape == (24564, 4)
    assert torch.isfinite(result["instances"].pred_boxes.tensor).all()
