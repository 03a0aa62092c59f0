"""The region proposal network: Detectron2's if everything is off; its steps by hand."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch.nn import functional as F
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

from resobj_d2 import ops
from resobj_d2.checkpoint.checkpointer import CheckpointError, ResObjCheckpointer
from resobj_d2.modeling import ResObjRPN

SHAPES = [(128, 160, 6), (160, 128, 0), (140, 150, 3)]
RESOBJ = [
    "MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", "True",
    "MODEL.RESOBJ_RPN.SAMPLER.NAME", "KeepAll",
]  # fmt: skip


class Detectron2Draws:
    """The random sample that Detectron2 would draw, as one of our samplers."""

    needs_loss = needs_ious = False

    def __call__(self, targets, *, anchors, difficulty=None):
        masks = torch.zeros_like(targets.valid)
        for mask, labels in zip(masks, targets.binary_labels, strict=True):
            for index in subsample_labels(labels, 256, 0.5, 0):
                mask[index] = True
        return masks


def spread(model):
    """Scores and deltas spread out enough that proposals are ordered by score."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "rpn_head" in name and name.endswith("weight"):
                weight.normal_(std=0.1)
    return model


def loss_and_proposals(model, batch, seed=3):
    """Losses of a training forward, and the proposals of it and of an evaluation."""
    torch.manual_seed(seed)
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    instances = [x["instances"] for x in batch]
    with EventStorage():
        trained, losses = model.proposal_generator(images, features, instances)
    model.eval()
    with torch.no_grad():
        found, _ = model.proposal_generator(images, features)
    model.train()
    return losses, [*trained, *found]


@pytest.mark.parametrize("path", ["own_forward", "detectron2s_draws"])
@pytest.mark.parametrize("boundary", [-1, 0])
@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_with_everything_off_it_is_detectron2s(tiny_rcnn, make_batch, path, boundary, box_loss):
    cfg = tiny_rcnn(
        "MODEL.RPN.BOUNDARY_THRESH", boundary,
        "MODEL.RPN.BBOX_REG_LOSS_TYPE", box_loss,
        "MODEL.RPN.LOSS_WEIGHT", 0.7,
    )  # fmt: skip
    ours = spread(build_model(cfg))
    cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.RPN.HEAD_NAME = "RPN", "StandardRPNHead"
    theirs = build_model(cfg)
    assert type(ours.proposal_generator) is ResObjRPN and type(theirs.proposal_generator) is RPN
    assert theirs.load_state_dict(ours.state_dict())  # the same names
    if path == "detectron2s_draws":
        ours.proposal_generator.sampler = Detectron2Draws()
    batch = make_batch(SHAPES)
    a, proposals_a = loss_and_proposals(ours, batch)
    b, proposals_b = loss_and_proposals(theirs, batch)
    assert set(a) == set(b) == {"loss_rpn_cls", "loss_rpn_loc"}
    for name in b:
        assert b[name] > 0
        torch.testing.assert_close(a[name], b[name], rtol=1e-6, atol=0)
    for x, y in zip(proposals_a, proposals_b, strict=True):
        assert len(y) > 20
        assert torch.equal(x.proposal_boxes.tensor, y.proposal_boxes.tensor)
        assert torch.equal(x.objectness_logits, y.objectness_logits)


def test_faster_rcnn_checkpoint_gives_the_first_step(tiny_rcnn, make_batch, tmp_path):
    """With Detectron2's weights, T = 0 and any T propose the same at step 0; nothing is random."""
    cfg = tiny_rcnn()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME, cfg.MODEL.RPN.HEAD_NAME = "RPN", "StandardRPNHead"
    theirs = spread(build_model(cfg)).eval()
    path = tmp_path / "faster_rcnn.pth"
    torch.save({"model": theirs.state_dict()}, path)
    cfg = tiny_rcnn(*RESOBJ, "MODEL.RESOBJ_RPN.OBJECTNESS.STEPS", 0)
    ours = build_model(cfg).eval()
    ResObjCheckpointer(ours, strict=True).load(str(path))
    batch = make_batch(SHAPES)
    with torch.no_grad():
        images = theirs.preprocess_image(batch)
        features = theirs.backbone(images.tensor)
        expected, _ = theirs.proposal_generator(images, features)
        found, _ = ours.proposal_generator(images, ours.backbone(images.tensor))
    for x, y in zip(found, expected, strict=True):
        assert torch.equal(x.proposal_boxes.tensor, y.proposal_boxes.tensor)

    refined = build_model(tiny_rcnn(*RESOBJ)).eval()
    incompatible = refined.load_state_dict(ours.state_dict(), strict=False)
    assert not incompatible.unexpected_keys
    assert all(".residuals." in name for name in incompatible.missing_keys)
    with torch.no_grad():
        first = refined.proposal_generator.proposals_per_step(images, features)[0]
    for x, y in zip(first, expected, strict=True):
        assert torch.equal(x.proposal_boxes.tensor, y.proposal_boxes.tensor)
    with pytest.raises(
        CheckpointError, match=r"8 tensors are not in the checkpoint \(\S*residuals\.0\."
    ):
        ResObjCheckpointer(refined, strict=True).load(str(path))


def test_residual_objectness_by_hand(tiny_rcnn, make_batch):
    """Algorithm 1 on the RPN's logits, written as loops, with the documented normalisers."""
    model = spread(build_model(tiny_rcnn(*RESOBJ, "MODEL.RPN.LOSS_WEIGHT", 2.0)))
    rpn = model.proposal_generator
    batch = make_batch(SHAPES)
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    instances = [x["instances"] for x in batch]
    with EventStorage():
        _, losses = rpn(images, features, instances)
    maps = [features[name] for name in rpn.in_features]
    anchors = Boxes.cat(rpn.anchor_generator(maps))
    hidden = [rpn.rpn_head.conv(x) for x in maps]

    def flat(levels, channels):
        parts = [
            x.view(len(x), -1, channels, *x.shape[-2:]).permute(0, 3, 4, 1, 2).flatten(1, 3)
            for x in levels
        ]
        return torch.cat(parts, dim=1)

    base, (first, second) = rpn.rpn_head.objectness.base, rpn.rpn_head.objectness.residuals
    logits = [
        flat([F.conv2d(x, base.predictor.weight, base.predictor.bias) for x in hidden], 1)[..., 0]
    ]
    for subnet in (first, second):
        conv = subnet.hidden[0]
        inner = [F.relu(F.conv2d(x, conv.weight, conv.bias, padding=1)) for x in hidden]
        residual = [F.conv2d(x, subnet.predictor.weight, subnet.predictor.bias) for x in inner]
        logits.append(logits[-1] + flat(residual, 1)[..., 0])
    deltas = flat([rpn.rpn_head.anchor_deltas(x) for x in hidden], 4)

    sums, box_sum, num_foreground = torch.zeros(3), 0.0, 0
    for i, x in enumerate(instances):
        labels = torch.zeros(len(anchors), dtype=torch.long)
        if len(x):
            ious = ops.reference.pairwise_box_iou(anchors.tensor, x.gt_boxes.tensor)
            best, index = ious.max(dim=1)
            labels[best >= 0.3] = -1
            labels[(best >= 0.7) | (ious == ious.max(dim=0).values).any(dim=1)] = 1
            positive = labels == 1
            target = rpn.box2box_transform.get_deltas(
                anchors.tensor[positive], x.gt_boxes.tensor[index[positive]]
            )
            box_sum += (deltas[i, positive] - target).abs().sum()
            num_foreground += int(positive.sum())
        for t, score in enumerate(logits):
            for r in range(len(anchors)):
                if labels[r] < 0:
                    continue
                before = logits[t - 1][i][labels == 1]
                if t and (len(before) == 0 or logits[t - 1][i, r] < before.min()):
                    continue
                sums[t] += F.binary_cross_entropy_with_logits(score[i, r], labels[r].float())
    assert set(losses) == {
        "loss_rpn_objectness", "loss_rpn_residual_1", "loss_rpn_residual_2", "loss_rpn_loc",
    }  # fmt: skip
    expected = 2.0 * sums / num_foreground
    found = torch.stack(
        [losses[f"loss_rpn_{x}"] for x in ("objectness", "residual_1", "residual_2")]
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["loss_rpn_loc"], 2.0 * box_sum / (256 * 3), rtol=1e-4, atol=0)
    assert rpn.statistics["objectness/step0/selected"] > rpn.statistics["objectness/step2/selected"]


BOX_LOSSES = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}


def box_loss_of(rpn, kind, anchors, deltas, targets):
    """Detectron2's, or for what not every version of it has, from torchvision."""
    if kind in ("smooth_l1", "giou"):
        per_level = [len(x) for x in anchors]
        logits = list(torch.zeros(targets.labels.shape).split(per_level, dim=1))
        labels, boxes = list(targets.binary_labels), list(targets.matched_gt_boxes)
        return rpn.losses(anchors, logits, labels, deltas, boxes)["loss_rpn_loc"]
    decode = rpn.box2box_transform.apply_deltas
    boxes = Boxes.cat(anchors).tensor
    decoded = torch.stack([decode(x, boxes) for x in torch.cat(deltas, dim=1)])
    mask = targets.foreground
    total = BOX_LOSSES[kind](decoded[mask], targets.matched_gt_boxes[mask], reduction="sum")
    return rpn.loss_weight["loss_rpn_loc"] * total / (16 * len(decoded))


@pytest.mark.parametrize("sampler", ["KeepAll", "RandomSampler"])
@pytest.mark.parametrize("kind", ["smooth_l1", *BOX_LOSSES])
def test_box_loss_beside_an_objectness_branch_is_detectron2s(tiny_rcnn, make_batch, kind, sampler):
    cfg = tiny_rcnn(
        *RESOBJ,
        "MODEL.RESOBJ_RPN.SAMPLER.NAME", sampler,
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 16,
        "MODEL.RPN.BBOX_REG_LOSS_TYPE", kind,
        "MODEL.RPN.BBOX_REG_WEIGHTS", "(1.0, 2.0, 3.0, 4.0)",
        "MODEL.RPN.SMOOTH_L1_BETA", 0.5,
        "MODEL.RPN.BBOX_REG_LOSS_WEIGHT", 0.7,
    )  # fmt: skip
    model = spread(build_model(cfg))
    rpn, batch = model.proposal_generator, make_batch(SHAPES)
    features = model.backbone(model.preprocess_image(batch).tensor)
    maps = [features[name] for name in rpn.in_features]
    anchors = rpn.anchor_generator(maps)
    prediction, deltas = rpn.rpn_head.predict(maps)
    deltas = list(deltas.flatten().split([len(x) for x in anchors], dim=1))
    instances = [x["instances"] for x in batch]
    torch.manual_seed(5)
    found = rpn.losses_of(anchors, maps, prediction, deltas, instances)["loss_rpn_loc"]
    torch.manual_seed(5)  # the same sample
    targets = rpn._targets(anchors, maps, prediction, instances)
    with EventStorage():
        expected = box_loss_of(rpn, kind, anchors, deltas, targets)
    assert expected > 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(x, deltas, retain_graph=True) for x in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("sampler", ["KeepAll", "RandomSampler"])
def test_counts_of_trained_anchors_are_those_that_detectron2_logs(tiny_rcnn, make_batch, sampler):
    options = ["MODEL.RESOBJ_RPN.SAMPLER.NAME", sampler, "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 16]
    counts = []
    for objectness in (True, False):
        model = build_model(tiny_rcnn(*options, "MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", objectness))
        with EventStorage() as storage:
            model(make_batch(SHAPES))
        logged = {name: value for name, (value, _) in storage.latest().items()}
        counts.append(model.proposal_generator.statistics if objectness else logged)
    ours, theirs = counts
    for name in ("rpn/num_pos_anchors", "rpn/num_neg_anchors"):
        assert float(ours[name]) == pytest.approx(theirs[name]) and theirs[name] > 0


@pytest.mark.parametrize(
    "options, message",
    [
        (["BBOX_REG_LOSS_TYPE", "huber"], "LOSS_TYPE must be one of smooth_l1, .*, got 'huber'"),
        (["BBOX_REG_WEIGHTS", "(1.0, 1.0, 0.0, 1.0)"], "BBOX_REG_WEIGHTS must be positive"),
    ],
)
def test_box_loss_that_is_not_possible_is_refused(tiny_rcnn, options, message):
    with pytest.raises(ValueError, match=f"MODEL.RPN.(BBOX_REG_)?{message}"):
        build_model(tiny_rcnn(*RESOBJ, f"MODEL.RPN.{options[0]}", options[1]))


class OwnTransform(Box2BoxTransform):
    """Deltas of another kind."""


def test_a_transform_of_ones_own_is_refused_beside_an_objectness_branch_only(tiny_rcnn):
    for options, refused in ((RESOBJ, True), ([], False)):
        cfg = tiny_rcnn(*options)
        shapes = build_model(cfg).backbone.output_shape()
        arguments = ResObjRPN.from_config(cfg, shapes)
        arguments["box2box_transform"] = OwnTransform(weights=(1.0, 1.0, 1.0, 1.0))
        if not refused:
            assert ResObjRPN(**arguments).coder is None
            continue
        with pytest.raises(ValueError, match="needs Detectron2's Box2BoxTransform, got a OwnTrans"):
            ResObjRPN(**arguments)


def test_proposals_are_ranked_by_the_last_step(tiny_rcnn, make_batch):
    model = spread(build_model(tiny_rcnn(*RESOBJ, "MODEL.RPN.NMS_THRESH", 1.0))).eval()
    rpn = model.proposal_generator
    with torch.no_grad():
        images = model.preprocess_image(make_batch(SHAPES))
        features = model.backbone(images.tensor)
        found, _ = rpn(images, features)
        steps = rpn.proposals_per_step(images, features)
        prediction, _ = rpn.rpn_head.predict([features[name] for name in rpn.in_features])
    assert len(steps) == 3
    for i, proposals in enumerate(found):
        # One convolution for both steps rounds differently from two.
        torch.testing.assert_close(
            proposals.objectness_logits, steps[-1][i].objectness_logits, rtol=1e-4, atol=1e-4
        )
        for t, step in enumerate(steps):
            scores = prediction.logits[i] + prediction.residuals[:t, i].sum(dim=0)
            ranks = step[i].objectness_logits
            assert torch.isin(ranks, scores).all() and len(ranks) > 20
            assert torch.equal(ranks, ranks.sort(descending=True).values)
    assert not torch.allclose(steps[0][0].objectness_logits, steps[1][0].objectness_logits)


def test_head_can_be_called_like_detectron2s(tiny_rcnn, make_batch):
    """Called as by Detectron2's RPN: the last step's maps, in its anchor order."""
    model = spread(build_model(tiny_rcnn(*RESOBJ))).eval()
    rpn = model.proposal_generator
    with torch.no_grad():
        images = model.preprocess_image(make_batch(SHAPES[:1]))
        features = model.backbone(images.tensor)
        expected, _ = rpn(images, features)
        found, _ = RPN.forward(rpn, images, features)
    assert torch.equal(found[0].proposal_boxes.tensor, expected[0].proposal_boxes.tensor)


@pytest.mark.parametrize("counts", [(0, 0), (3, 0)])
def test_every_parameter_has_a_gradient_even_without_objects(tiny_rcnn, make_batch, counts):
    model = build_model(tiny_rcnn(*RESOBJ))
    with EventStorage():
        losses = model(make_batch([(96, 96, n) for n in counts]))
    assert all(torch.isfinite(v) for v in losses.values())
    if not any(counts):
        assert losses["loss_rpn_residual_1"] == 0 and losses["loss_rpn_objectness"] > 0
    sum(losses.values()).backward()
    for name, parameter in model.proposal_generator.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


def test_residual_losses_train_only_their_own_subnet(tiny_rcnn, make_batch):
    model = spread(build_model(tiny_rcnn(*RESOBJ)))
    with EventStorage():
        losses = model(make_batch([(96, 96, 3)]))
    names = [n for n, _ in model.named_parameters()]
    found = torch.autograd.grad(
        losses["loss_rpn_residual_2"], list(model.parameters()), allow_unused=True
    )
    trained = {n for n, g in zip(names, found, strict=True) if g is not None and g.any()}
    assert trained and all("objectness.residuals.1." in n for n in trained)


def test_initial_objectness_is_the_prior(tiny_rcnn, make_batch):
    model = build_model(tiny_rcnn(*RESOBJ)).eval()
    with torch.no_grad():
        images = model.preprocess_image(make_batch(SHAPES[:1]))
        features = model.backbone(images.tensor)
        steps = model.proposal_generator.proposals_per_step(images, features)
    for step in steps:
        assert torch.sigmoid(step[0].objectness_logits).mean() == pytest.approx(0.01, abs=0.005)


def test_bfloat16_autocast(tiny_rcnn, make_batch):
    model = build_model(tiny_rcnn(*RESOBJ))
    batch = make_batch([(96, 96, 3), (96, 96, 0)])
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.manual_seed(0)
        low = model(batch)
    with EventStorage():
        torch.manual_seed(0)
        full = model(batch)
    assert all(torch.isfinite(v) for v in low.values())
    for name in ("loss_rpn_objectness", "loss_rpn_loc"):  # others may select differently
        assert low[name].item() == pytest.approx(full[name].item(), rel=0.05), name
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        model.eval()
        proposals, _ = model.proposal_generator(
            images := model.preprocess_image(batch), model.backbone(images.tensor)
        )
    assert proposals[0].objectness_logits.dtype == torch.float32


@pytest.mark.slow
def test_learns_to_propose(tiny_rcnn, make_batch):
    """After a few steps the first proposals find conspicuous objects."""
    torch.manual_seed(0)
    model = build_model(tiny_rcnn(*RESOBJ))
    batch = make_batch([(96, 96, 2), (96, 96, 1)])
    for x in batch:
        x["image"] = torch.full((3, 96, 96), 60.0)
        for x1, y1, x2, y2 in x["instances"].gt_boxes.tensor.round().int().tolist():
            x["image"][:, y1:y2, x1:x2] = 200.0
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    before = copy.deepcopy(model)
    for _ in range(60):
        with EventStorage():
            total = sum(model(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    def best_ious(model):
        model.eval()
        with torch.no_grad():
            images = model.preprocess_image(batch)
            proposals, _ = model.proposal_generator(images, model.backbone(images.tensor))
        ious = [
            ops.pairwise_box_iou(x["instances"].gt_boxes.tensor, p.proposal_boxes.tensor[:5])
            for x, p in zip(batch, proposals, strict=True)
        ]
        return torch.cat([x.max(dim=1).values for x in ious])

    assert best_ious(model).mean() > 0.6 > 3 * best_ious(before).mean()
    assert isinstance(model(batch)[0]["instances"], Instances)
