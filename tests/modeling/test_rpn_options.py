"""Options of the region proposal network, and the detectors that it works in."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Keypoints
from detectron2.utils.events import EventStorage

import resobj_d2
from resobj_d2.acceleration import accelerated_parts
from resobj_d2.matching import SAMPLER_REGISTRY

RESOBJ = [
    "MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", "True",
    "MODEL.RESOBJ_RPN.SAMPLER.NAME", "KeepAll",
]  # fmt: skip
SAMPLERS = sorted(name for name, _ in SAMPLER_REGISTRY)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objectness", [True, False])
def test_every_sampler_trains(tiny_rcnn, make_batch, sampler, objectness):
    model = build_model(
        tiny_rcnn(
            "MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", objectness,
            "MODEL.RESOBJ_RPN.SAMPLER.NAME", sampler,
            "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 16,
        )
    )  # fmt: skip
    with EventStorage() as storage:
        losses = model(make_batch([(96, 96, 3), (96, 96, 1)]))
        logged = storage.latest()
    name, statistics = "rpn/num_neg_anchors", model.proposal_generator.statistics
    background = float(statistics[name]) if objectness else logged[name][0]
    assert all(torch.isfinite(v) for v in losses.values())
    assert background > 0
    if sampler == "KeepAll":
        assert background > 100
    elif sampler == "HardNegativeRatio":
        assert background <= 3 * 60
    else:
        assert background <= 16
    assert bool(statistics) == objectness


@pytest.mark.parametrize(
    "options, error, message",
    [
        (["MODEL.RPN.HEAD_NAME", "StandardRPNHead"], ValueError, "needs MODEL.RPN.HEAD_NAME"),
        (
            ["MODEL.ANCHOR_GENERATOR.SIZES", "[[16, 20], [32], [64], [128], [256]]"],
            ValueError,
            r"the same number of anchors, got \[6, 3, 3, 3, 3\]",
        ),
        (["MODEL.RESOBJ_RPN.SAMPLER.NAME", "Sampler9"], KeyError, "Sampler9"),
        (["MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", True], ValueError, "SAMPLER.NAME: KeepAll"),
        ([*RESOBJ, "MODEL.RESOBJ_RPN.OBJECTNESS.STEPS", 9], ValueError, "STEPS must be 0..8"),
        ([*RESOBJ, "MODEL.PROPOSAL_GENERATOR.NAME", "RPN"], ValueError, "NAME ResObjRPN"),
        ([*RESOBJ, "MODEL.RESOBJ_RPN.NORMALIZER.NAME", "Nothing"], KeyError, "Nothing"),
        (
            ["MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator",
             "MODEL.ANCHOR_GENERATOR.ANGLES", "[[0]]"],
            ValueError,
            "box_dim 5",
        ),
    ],
)  # fmt: skip
def test_invalid_configurations_are_refused(tiny_rcnn, options, error, message):
    with pytest.raises(error, match=message):
        build_model(tiny_rcnn(*options))


def test_training_needs_instances(tiny_rcnn, make_batch):
    model = build_model(tiny_rcnn(*RESOBJ))
    batch = make_batch([(96, 96, 1)])
    del batch[0]["instances"]
    with pytest.raises(ValueError, match="instances"):
        model(batch)


@pytest.mark.parametrize(
    "key, value, path, expected",
    [
        ("RESOBJ_RPN.OBJECTNESS.STEPS", "3", "num_steps", 3),
        ("RESOBJ_RPN.OBJECTNESS.MIN_SCOPE", "level", "branch.residual_loss.min_scope", "level"),
        ("RESOBJ_RPN.OBJECTNESS.HIDDEN_CHANNELS", "8", "branch.residuals.0.out_channels", [8] * 5),
        ("RESOBJ_RPN.OBJECTNESS.BASE_CONVS", "1", "branch.base.hidden.0.out_channels", 16),
        ("RESOBJ_RPN.NORMALIZER.NAME", "ForegroundEMA", "normalizer.momentum", 0.9),
        ("RESOBJ_RPN.SAMPLER.NUM_BINS", "5", "sampler.num_bins", 5),
        ("RPN.BATCH_SIZE_PER_IMAGE", "64", "sampler.size", 64),
        ("RPN.POSITIVE_FRACTION", "0.25", "sampler.max_positive", 64),
        ("RPN.IOU_THRESHOLDS", "[0.2, 0.7]", "assigner.iou_thresholds", [0.2, 0.7]),
        ("RPN.IOU_LABELS", "[0, 0, 1]", "assigner.iou_labels", [0, 0, 1]),
        ("RPN.CONV_DIMS", "[-1, 24]", "branch.base.predictor.weight.shape", (3, 24, 1, 1)),
    ],
)
def test_key_reaches_its_object(tiny_rcnn, key, value, path, expected):
    chosen = ["MODEL.RESOBJ_RPN.SAMPLER.NAME", "IoUBalancedSampler"]
    found = []
    for options in ([], [f"MODEL.{key}", value]):
        part = build_model(tiny_rcnn(*RESOBJ, *chosen, *options)).proposal_generator
        for name in path.replace("branch", "rpn_head.objectness").split("."):
            part = getattr(part, name, None)
        found.append(part)
    assert found[1] == expected
    assert found[0] != expected  # the default differs


@pytest.mark.parametrize(
    "options, parts",
    [([], ["labels", "losses"]), (RESOBJ[2:], ["losses"]), (RESOBJ, [])],
    ids=["off", "sampler", "resobj"],
)
def test_accelerate_applies_only_to_detectron2s_parts(
    tiny_rcnn, make_batch, caplog, options, parts
):
    """With a sampler labels are already ours, with a branch losses too."""
    batch = make_batch([(128, 160, 6), (160, 128, 0), (140, 150, 3)])
    plain = build_model(tiny_rcnn(*options))
    model = resobj_d2.accelerate(copy.deepcopy(plain), losses=True)
    assert accelerated_parts(model) == ({"proposal_generator": parts} if parts else {})
    kept = "losses of proposal_generator (ResObjRPN) not accelerated: beside an objectness branch"
    assert (kept in caplog.text) == (not parts)
    with EventStorage():
        torch.manual_seed(0)
        a = model(batch)
        torch.manual_seed(0)
        b = plain(batch)
    for name in b:
        assert a[name].item() == pytest.approx(b[name].item(), rel=1e-5), name


ARCHITECTURES = {
    "proposals_alone": ["MODEL.META_ARCHITECTURE", "ProposalNetwork"],
    "cascade": [
        "MODEL.ROI_HEADS.NAME", "CascadeROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True",
    ],
    "mask": [
        "MODEL.MASK_ON", "True",
        "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead",
        "MODEL.ROI_MASK_HEAD.CONV_DIM", "16",
    ],
    "keypoint": [
        "MODEL.KEYPOINT_ON", "True",
        "MODEL.ROI_HEADS.NUM_CLASSES", "1",
        "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(16,)",
    ],
    "one_map": [  # Faster R-CNN C4, without a pyramid
        "MODEL.BACKBONE.NAME", "build_toy_backbone",
        "MODEL.RPN.IN_FEATURES", "['res4']",
        "MODEL.ANCHOR_GENERATOR.SIZES", "[[32, 64, 128]]",
        "MODEL.ROI_HEADS.IN_FEATURES", "['res4']",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_works_in_every_detector_of_detectron2(tiny_rcnn, make_batch, name):
    model = build_model(tiny_rcnn(*RESOBJ, *ARCHITECTURES[name]))
    batch = make_batch([(96, 96, 3), (96, 96, 1)], num_classes=1 if name == "keypoint" else 3)
    for x in batch:
        instances = x["instances"]
        instances.gt_masks = BitMasks(torch.ones(len(instances), 96, 96, dtype=torch.bool))
        points = torch.cat((instances.gt_boxes.get_centers(), torch.ones(len(instances), 1)), dim=1)
        instances.gt_keypoints = Keypoints(points[:, None].repeat(1, 17, 1) + 0.0)
    with EventStorage():
        losses = model(batch)
    assert {"loss_rpn_objectness", "loss_rpn_residual_2", "loss_rpn_loc"} <= set(losses)
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    model.eval()
    with torch.no_grad():
        (found, _) = model(batch)
    assert set(found) & {"instances", "proposals"}


def rpn_losses(model, batch):
    with EventStorage():
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        return model.proposal_generator(images, features, [x["instances"] for x in batch])[1]


def test_each_normaliser_divides_by_its_count(tiny_rcnn, make_batch):
    batch, sums = make_batch([(128, 160, 6), (160, 128, 0)]), {}
    for name in ("ImageCount", "TrainedCount"):
        torch.manual_seed(0)
        options = ["MODEL.RESOBJ_RPN.NORMALIZER.NAME", name]
        model = build_model(tiny_rcnn(*RESOBJ, *options))
        loss = rpn_losses(model, batch)["loss_rpn_objectness"].item()
        trained = model.proposal_generator.statistics["objectness/step0/selected"].item()
        sums[name] = loss * {"ImageCount": 2, "TrainedCount": trained}[name]
    assert sums["TrainedCount"] == pytest.approx(sums["ImageCount"], rel=1e-4)


class Noting:
    """Keeps all and notes what it is given."""

    needs_loss, needs_ious = True, False

    def __call__(self, targets, *, anchors, difficulty):
        self.targets, self.difficulty = targets, difficulty
        return targets.valid


def test_samplers_rank_by_the_last_step(tiny_rcnn, make_batch):
    model = build_model(tiny_rcnn(*RESOBJ))
    rpn = model.proposal_generator
    for subnet in rpn.rpn_head.objectness.residuals:
        torch.nn.init.normal_(subnet.predictor.bias)
    rpn.sampler = noting = Noting()
    batch = make_batch([(128, 160, 6)])
    rpn_losses(model, batch)
    features = model.backbone(model.preprocess_image(batch).tensor)
    prediction, _ = rpn.rpn_head.predict([features[name] for name in rpn.in_features])
    logits = (prediction.logits + prediction.residuals.sum(dim=0)).detach()
    wrong = torch.where(noting.targets.foreground, -logits, logits)
    torch.testing.assert_close(noting.difficulty, torch.nn.functional.softplus(wrong))
    assert (logits - prediction.logits).abs().min() > 0.01
