"""RetinaNet-Obj and ResObj recomputed from raw outputs, without this package's losses."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou

K = 3


@pytest.fixture
def case(tiny_resobj, make_batch, observe):
    torch.manual_seed(1)
    model = build_model(tiny_resobj())
    stream = model.streams["anchors"]
    with torch.no_grad():  # away from the initial scores, which are all equal
        for conv in (stream.stages[0].cls, stream.branches["objectness"].base.predictor):
            conv.weight.normal_(std=0.3)
        for subnet in stream.branches["objectness"].residuals:
            subnet.predictor.weight.normal_(std=0.3)
    batch = make_batch([(96, 128, 4), (96, 128, 2)])
    return model, batch, observe(model, batch)


def labels_of(batch, anchors):
    """Labels and matched boxes of every image from Detectron2's matcher."""
    matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
    all_labels, all_boxes = [], []
    for inputs in batch:
        gt = inputs["instances"]
        index, kind = matcher(pairwise_iou(gt.gt_boxes, Boxes(anchors)))
        labels = gt.gt_classes[index]
        labels[kind == 0] = K
        labels[kind == -1] = -1
        all_labels.append(labels)
        all_boxes.append(gt.gt_boxes.tensor[index])
    return torch.stack(all_labels), torch.stack(all_boxes)


def test_every_loss(case):
    _, batch, seen = case
    losses, output = seen.result, seen.outputs["anchors"]
    anchors = output.priors.boxes
    labels, boxes = labels_of(batch, anchors)
    foreground = (labels >= 0) & (labels < K)
    valid = labels >= 0
    normalizer = 0.9 * 100 + 0.1 * foreground.sum()
    stage, objectness = output.stages[0], output.branches["objectness"]

    # Eq. 3: every class of every foreground anchor, and no others.
    one_hot = F.one_hot(labels[foreground], K).float()
    cls = F.binary_cross_entropy_with_logits(stage.cls_logits[foreground], one_hot, reduction="sum")
    assert losses["loss_cls"].item() == pytest.approx((cls / normalizer).item(), rel=1e-4)

    # Eq. 5, then Algorithm 1 with the minimum over each image.
    logits = objectness.logits
    base = F.binary_cross_entropy_with_logits(
        logits[valid], foreground[valid].float(), reduction="sum"
    )
    assert losses["loss_objectness"].item() == pytest.approx((base / normalizer).item(), rel=1e-4)
    for t, residual in enumerate(objectness.residuals, start=1):
        total = 0.0
        for i in range(len(batch)):
            selected = valid[i] & (logits[i] >= logits[i][foreground[i]].min())
            assert foreground[i].sum() < selected.sum() < valid[i].sum()
            total += F.binary_cross_entropy_with_logits(
                (logits[i] + residual[i])[selected], foreground[i][selected].float(),
                reduction="sum",
            )  # fmt: skip
        expected = (total / normalizer).item()
        assert losses[f"loss_residual_{t}"].item() == pytest.approx(expected, rel=1e-4)
        logits = logits + residual

    deltas = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)).get_deltas(
        anchors.expand(len(batch), -1, -1)[foreground], boxes[foreground]
    )
    box = F.smooth_l1_loss(stage.deltas[foreground], deltas, beta=0.1, reduction="sum")
    assert losses["loss_box_reg"].item() == pytest.approx((box / normalizer).item(), rel=1e-4)


def test_score_is_the_product_with_the_last_objectness(case):
    model, _, seen = case
    stream, output = model.streams["anchors"], seen.outputs["anchors"]
    candidates, *_ = stream.candidates(output, score_thresh=0.0, topk=10**6)
    objectness = output.branches["objectness"]
    last = objectness.logits[0] + objectness.residuals[:, 0].sum(dim=0)
    expected = torch.sigmoid(output.stages[0].cls_logits[0]) * torch.sigmoid(last)[:, None]
    assert len(candidates.scores) == expected.numel()
    torch.testing.assert_close(candidates.scores.sort().values, expected.flatten().sort().values)


def test_objectness_reads_the_class_tower(case):
    model, *_ = case
    images = torch.rand(1, 3, 96, 128)
    features = model.backbone(images)
    tower = model.tower([features[f] for f in model.in_features])
    assert not torch.equal(tower.cls[0], tower.box[0])
    branch = model.streams["anchors"].branches["objectness"]
    got = branch.predict(tower).logits
    expected, other = (
        branch.base.predictor(branch.base.hidden(maps)).squeeze(-1)
        for maps in (tower.cls, tower.box)
    )
    assert torch.equal(got, expected) and not torch.equal(got, other)
