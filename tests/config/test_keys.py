"""Every key of MODEL.DENSE reaches the object it configures."""

import pytest
import torch
from detectron2.modeling import build_model


def get(model, path):
    value = model.streams["anchors"]
    for name in path.split("."):
        value = value[int(name)] if name.isdigit() else getattr(value, name)
    return value


OBJECTNESS = ["MODEL.DENSE.OBJECTNESS.ENABLED", "True"]
PLUG_INS = [*OBJECTNESS, "MODEL.DENSE.STAGES", "[{'CLS': 'own'}]"]
LOSS = "branches.objectness.residual_loss"
# The quality loss that reads a key.
QUALITY_LOSS_OF = {
    "QUALITY.NEGATIVE_WEIGHT": "ce_w",
    "QUALITY.GAMMA": "gfocal",
    "QUALITY.BETA": "smooth_l1",
}


@pytest.mark.parametrize(
    "key, value, path, expected",
    [
        ("CLS_LOSS.FOCAL_ALPHA", "0.4", "stages.0.cls_loss.alpha", 0.4),
        ("CLS_LOSS.FOCAL_GAMMA", "1.5", "stages.0.cls_loss.gamma", 1.5),
        ("CLS_LOSS.WEIGHT", "0.1", "cls_weight", 0.1),
        ("BOX_LOSS.WEIGHT", "2.0", "box_weight", 2.0),
        ("BOX_LOSS.BETA", "0.5", "stages.0.box_loss.beta", 0.5),
        ("CODER.WEIGHTS", "[10., 10., 5., 5.]", "coder.weights", (10.0, 10.0, 5.0, 5.0)),
        ("ASSIGNER.IOU_THRESHOLDS", "[0.3, 0.6]", "stages.0.assigner.iou_thresholds", [0.3, 0.6]),
        ("ASSIGNER.IOU_LABELS", "[0, 0, 1]", "stages.0.assigner.iou_labels", [0, 0, 1]),
        ("ASSIGNER.ALLOW_LOW_QUALITY", "False", "stages.0.assigner.allow_low_quality", False),
        ("NORMALIZER.INITIAL", "50.0", "stages.0.normalizer.mean", torch.tensor(50.0)),
        ("NORMALIZER.MOMENTUM", "0.5", "stages.0.normalizer.momentum", 0.5),
        ("PRIORS.OFFSET", "0.5", "priors.offset", 0.5),
        ("PRIORS.SCALES_PER_OCTAVE", "2", "priors.num_anchors", [6] * 5),
        ("PRIORS.ASPECT_RATIOS", "[1.0]", "priors.num_anchors", [3] * 5),
        ("OBJECTNESS.STEPS", "3", "num_steps", 3),
        ("OBJECTNESS.HIDDEN_CHANNELS", "8", "branches.objectness.base.out_channels", [8] * 5),
        ("OBJECTNESS.SOURCE", "chain", "branches.objectness.source", "chain"),
        ("OBJECTNESS.DETACH", "none", f"{LOSS}.detach", "none"),
        ("OBJECTNESS.MIN_SCOPE", "level", f"{LOSS}.min_scope", "level"),
        ("OBJECTNESS.UNSELECTED", "keep", f"{LOSS}.unselected", "keep"),
        ("OBJECTNESS.WEIGHT", "0.5", f"{LOSS}.weight", 0.5),
        ("OBJECTNESS.RESIDUAL_WEIGHT", "0.05", f"{LOSS}.residual_weight", 0.05),
        ("QUALITY.READS", "box", "branches.quality.reads", "box"),
        ("QUALITY.WEIGHT", "2.0", "branches.quality.weight", 2.0),
        ("QUALITY.DETACH_TARGET", "False", "branches.quality.detach_target", False),
        ("QUALITY.LOSS", "l1", "branches.quality.quality_loss.kind", "l1"),
        ("QUALITY.NEGATIVE_WEIGHT", "0.001", "branches.quality.quality_loss.negative_weight", 1e-3),
        ("QUALITY.GAMMA", "1.0", "branches.quality.quality_loss.gamma", 1.0),
        ("QUALITY.BETA", "0.5", "branches.quality.quality_loss.beta", 0.5),
        (
            "QUALITY.ALPHA",
            "0.3",
            "fusion.exponents",
            {"cls": 0.7, "objectness": 0.7, "quality": 0.3},
        ),
        ("STAGES", "[{'WEIGHT': 0.5}, {'WEIGHT': 0.2}]", "stages.1.weight", 0.5),
        ("STAGES", "[{'BOX': 'none'}]", "stages.1.box", None),
        ("STAGES", "[{'NORMALIZER': 'own'}]", "stages.1.own_cls_normalizer", True),
        (
            "STAGES",
            "[{'IOU_THRESHOLDS': [0.6, 0.7]}]",
            "stages.1.assigner.iou_thresholds",
            [0.6, 0.7],
        ),
        ("STAGES", "[{'IOU_LABELS': [0, 0, 1]}]", "stages.1.assigner.iou_labels", [0, 0, 1]),
        ("STAGES", "[{'ALLOW_LOW_QUALITY': True}]", "stages.1.assigner.allow_low_quality", True),
        ("STAGE_SCORES", "mean", "stage_scores", "mean"),
        ("FUSION.EXPONENTS", "[['cls', 0.6]]", "fusion.exponents", {"cls": 0.6}),
        ("FUSION.FLOORS", "[['objectness', 0.5]]", "fusion.floors", {"objectness": 0.5}),
    ],
)
def test_key_reaches_its_object(tiny_cfg, key, value, path, expected):
    base = [*PLUG_INS, "MODEL.DENSE.QUALITY.ENABLED", key.startswith("QUALITY")]
    if key in QUALITY_LOSS_OF:
        base += ["MODEL.DENSE.QUALITY.LOSS", QUALITY_LOSS_OF[key]]
    before = get(build_model(tiny_cfg(*base)), path)
    after = get(build_model(tiny_cfg(*base, f"MODEL.DENSE.{key}", value)), path)
    assert after == expected
    assert before != expected  # the default is another one


@pytest.mark.parametrize(
    "slot, name, key, value, path, expected",
    [
        ("CLS_LOSS", "GHMCLoss", "GHM_BINS", "7", "stages.0.cls_loss.bins", 7),
        ("CLS_LOSS", "GHMCLoss", "GHM_MOMENTUM", "0.5", "stages.0.cls_loss.momentum", 0.5),
        ("BOX_LOSS", "GHMRLoss", "GHM_BINS", "7", "stages.0.box_loss.bins", 7),
        ("BOX_LOSS", "GHMRLoss", "GHM_MOMENTUM", "0.5", "stages.0.box_loss.momentum", 0.5),
        ("BOX_LOSS", "GHMRLoss", "GHM_MU", "0.1", "stages.0.box_loss.mu", 0.1),
        ("BOX_LOSS", "BalancedL1Loss", "BALANCED_ALPHA", "0.6", "stages.0.box_loss.alpha", 0.6),
        ("BOX_LOSS", "BalancedL1Loss", "BALANCED_GAMMA", "1.2", "stages.0.box_loss.gamma", 1.2),
        ("BOX_LOSS", "BalancedL1Loss", "BALANCED_BETA", "0.11", "stages.0.box_loss.beta", 0.11),
        ("BOX_LOSS", "BalancedL1Loss", "MMDET_FORM", "True", "stages.0.box_loss.mmdet_form", True),
        ("SAMPLER", "RandomSampler", "SIZE", "64", "sampler.size", 64),
        ("SAMPLER", "RandomSampler", "POSITIVE_FRACTION", "0.25", "sampler.max_positive", 64),
        ("SAMPLER", "IoUBalancedSampler", "SIZE", "64", "sampler.size", 64),
        ("SAMPLER", "IoUBalancedSampler", "POSITIVE_FRACTION", "0.25", "sampler.max_positive", 64),
        ("SAMPLER", "IoUBalancedSampler", "NUM_BINS", "5", "sampler.num_bins", 5),
        ("SAMPLER", "OHEMSampler", "SIZE", "64", "sampler.size", 64),
        ("SAMPLER", "OHEMSampler", "POSITIVE_FRACTION", "0.25", "sampler.positive_fraction", 0.25),
        ("SAMPLER", "OHEMSampler", "NMS_THRESH", "0.7", "sampler.nms_thresh", 0.7),
        ("SAMPLER", "HardNegativeRatio", "NEGATIVE_RATIO", "2.0", "sampler.negative_ratio", 2.0),
    ],
)
def test_key_of_a_chosen_entry_reaches_it(tiny_cfg, slot, name, key, value, path, expected):
    base = [f"MODEL.DENSE.{slot}.NAME", name]
    before = get(build_model(tiny_cfg(*base)), path)
    after = get(build_model(tiny_cfg(*base, f"MODEL.DENSE.{slot}.{key}", value)), path)
    assert after == expected
    assert before != expected  # the default is another one


@pytest.mark.parametrize("name, loss", [("CLS_LOSS", "loss_cls"), ("BOX_LOSS", "loss_box_reg")])
def test_weight_scales_its_loss(tiny_cfg, make_batch, name, loss):
    batch = make_batch([(96, 96, 3)])
    losses = []
    for weight in ("1.0", "3.0"):
        torch.manual_seed(0)
        losses.append(build_model(tiny_cfg(f"MODEL.DENSE.{name}.WEIGHT", weight))(batch))
    for key in losses[0]:
        factor = 3 if key == loss else 1
        assert losses[1][key].item() == pytest.approx(factor * losses[0][key].item(), rel=1e-5)


@pytest.mark.parametrize(
    "key, value",
    [
        ("FUSION.EXPONENTS", "['cls', 0.5]"),
        ("PRIORS.ASPECT_RATIOS", "[[0.5, 1.0, 2.0]]"),
        ("PRIORS.ASPECT_RATIOS", "[0.0, 1.0]"),
        ("PRIORS.ASPECT_RATIOS", "[]"),
        ("PRIORS.SCALES_PER_OCTAVE", "0"),
        ("NORMALIZER.MOMENTUM", "1.5"),
        ("NORMALIZER.INITIAL", "0.0"),
        ("POSTPROCESS.TOPK", "0"),
        ("NUM_CLASSES", "0"),
    ],
)
def test_bad_value_is_refused_by_name(tiny_cfg, key, value):
    with pytest.raises(ValueError, match=key.split(".")[-1]):
        build_model(tiny_cfg(f"MODEL.DENSE.{key}", value))


def test_levels_must_ascend(tiny_cfg):
    with pytest.raises(ValueError, match="ascend"):
        build_model(tiny_cfg("MODEL.DENSE.IN_FEATURES", "['p7', 'p3']"))
