"""A consistent SSD against the papers' formulas, computed anchor by anchor."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_iou

from resobj_d2.config import add_resobj_config
from resobj_d2.structures import GroundTruth

K = 3
SSD = ["ssd", "ssd_consistent"]


@pytest.fixture
def model(method_cfg):
    torch.manual_seed(0)
    model = build_model(method_cfg(*SSD))
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


def test_losses_follow_the_papers(model, make_batch, observe):
    batch = make_batch([(128, 128, 3), (128, 128, 2)])
    seen = observe(model, batch)
    losses, output = seen.result, seen.outputs["anchors"]
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


def test_detections_are_softmax_scores_of_boxes_decoded_twice(model, make_batch, observe):
    model.eval()
    batch = make_batch([(128, 128, 0)])
    with torch.no_grad():
        seen = observe(model, batch)
        (result,), output = seen.result, seen.outputs["anchors"]
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
    assert [x.in_channels for x in stage.cls.levels] == [8, 12, 16, 8]
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


def test_other_methods_combine_with_ssd(method_cfg, make_batch):
    """Here Residual Objectness and confidence."""
    opts = ["MODEL.DENSE.OBJECTNESS.ENABLED", True, "MODEL.DENSE.QUALITY.ENABLED", True]
    model = build_model(method_cfg(*SSD, opts=opts))
    batch = make_batch([(128, 128, 3), (128, 128, 0)])
    losses = model(batch)
    assert sum("obj" in name for name in losses) >= 2  # of both stages
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    with torch.no_grad():
        assert len(model(batch)) == 2


@pytest.fixture
def ssd512(repository):
    """A function: the shipped SSD512 config for this backbone."""
    import tests.toy_backbone  # noqa: F401 (registers it)

    def read(name):
        cfg = get_cfg()
        add_resobj_config(cfg)
        path = repository / f"configs/COCO-Detection/ssd512_consistent_{name}.yaml"
        cfg.merge_from_file(str(path))
        cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        cfg.MODEL.RESNETS.NORM = "BN"  # frozen BN has no gradient
        return cfg

    return read


def published_levels(output):
    assert output.priors.num_anchors == [4, 6, 6, 6, 6, 4, 4]
    assert output.priors.boxes.shape == (24564, 4)


@pytest.mark.parametrize("name", ["vgg16", "R_50"])
def test_ssd512_at_full_size(name, ssd512):
    """Widths, levels and gradients of the full network, without memory or arithmetic."""
    cfg = ssd512(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
        image = torch.zeros(1, 3, 512, 512)
        truth = torch.zeros(3, 4), torch.zeros(3).long()
    output = model.predict(ImageList(image, [(512, 512)]))["anchors"]
    published_levels(output)
    assert output.stages[0].cls_logits.shape == (1, 24564, 81)
    losses, _ = model.streams["anchors"].losses(output, GroundTruth(*truth, [3]))
    sum(losses.values()).backward()
    assert sum(p.numel() for p in model.parameters()) > 20e6
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["vgg16", "R_50"])
def test_ssd512_trains_and_detects_on_all_levels(name, ssd512, make_batch, observe):
    """With real numbers, on a backbone with few channels."""
    cfg = ssd512(name)
    cfg.MODEL.SSD_EXTRAS.BOTTOM_UP = "build_toy_backbone"
    extras = len(cfg.MODEL.SSD_EXTRAS.CHANNELS)
    cfg.MODEL.SSD_EXTRAS.IN_FEATURES = ["res3", "res4", "res5"][: 7 - extras]
    cfg.MODEL.SSD_EXTRAS.CHANNELS = [8] * extras
    torch.manual_seed(0)
    model = build_model(cfg)
    seen = observe(model, make_batch([(512, 512, 3)], num_classes=80))
    published_levels(seen.outputs["anchors"])
    sum(seen.result.values()).backward()
    assert all(torch.isfinite(v) for v in seen.result.values())
    used = [p for n, p in model.named_parameters() if extras == 4 or "res5" not in n]
    assert all(torch.isfinite(p.grad).all() for p in used)
    with torch.no_grad():
        (result,) = model.eval()(make_batch([(512, 512, 0)]))
    assert len(result["instances"]) > 0
    assert torch.isfinite(result["instances"].pred_boxes.tensor).all()
