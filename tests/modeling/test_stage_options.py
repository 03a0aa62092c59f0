"""Entries of STAGES: defaults, and invalid values."""

import pytest
from detectron2.modeling import build_model

from resobj_d2.modeling.stage_options import StageOptions

K = 2
HARD_NEGATIVES = ["MODEL.DENSE.SAMPLER.NAME", "HardNegativeRatio"]


def test_entry_defaults_are_the_papers():
    options = StageOptions.from_entry({})
    found = options.assigner(K)
    assert (options.cls, options.box, options.tower) == ("shared", "own", "shared")
    assert (found.iou_thresholds, found.iou_labels) == ([0.5, 0.6], [0, -1, 1])
    assert not found.allow_low_quality
    one = StageOptions.from_entry({"IOU_THRESHOLDS": [0.6]}).assigner(K)
    assert (one.iou_thresholds, one.iou_labels) == ([0.6], [0, 1])


@pytest.mark.parametrize(
    "entry, message",
    [
        ("shared", "dict with some of the keys.*CLS.*'shared'"),
        ({"cls": "own"}, r"unknown keys \['cls'\].*CLS.*WEIGHT"),
        ({"CLS": "both"}, "CLS must be one of shared, own, none, got 'both'"),
        ({"BOX": 1}, "BOX must be one of"),
        ({"TOWER": "gate"}, "TOWER must be one of"),
        ({"NORMALIZER": "ForegroundEMA"}, "NORMALIZER must be one of first, own"),
        ({"CLS": "none", "BOX": "none"}, "leaves nothing to train"),
        ({"TOWER": "own", "BOX": "none"}, "no predictor would read that tower"),
        ({"TOWER": "gated", "BOX": "shared"}, "no predictor would read that tower"),
        ({"WEIGHT": 0}, "WEIGHT must be a positive number"),
        ({"WEIGHT": "1"}, "WEIGHT must be a positive number"),
        ({"CLS_WEIGHT": -1}, "CLS_WEIGHT must be a number of at least 0, got -1"),
        ({"BOX_WEIGHT": True}, "BOX_WEIGHT must be a number of at least 0"),
        ({"BOX_WEIGHT": 0}, "BOX_WEIGHT 0 leaves the predictor of BOX own untrained"),
        ({"CLS_WEIGHT": 0, "BOX": "none"}, "leave nothing to train"),
        ({"ALLOW_LOW_QUALITY": 1}, "ALLOW_LOW_QUALITY must be True or False"),
        ({"IOU_THRESHOLDS": 0.5}, "IOU_THRESHOLDS must be a list"),
        ({"IOU_THRESHOLDS": [0.6, 0.5]}, "IOU_THRESHOLDS must be positive and ascending"),
        ({"IOU_THRESHOLDS": []}, "IOU_THRESHOLDS"),
        ({"IOU_LABELS": [0, 1]}, "IOU_LABELS must be 3 values"),
    ],
)
def test_bad_entry_is_refused_with_its_position(tiny_cfg, entry, message):
    with pytest.raises(ValueError, match=rf"STAGES\[1\].*{message}"):
        build_model(tiny_cfg("MODEL.DENSE.STAGES", [{}, entry]))


@pytest.mark.parametrize(
    "first, stages, message",
    [
        ({"CLS": "none"}, [], "FIRST_STAGE.CLS must be own or binary, got 'none'"),
        ({"BOX_WEIGHT": -0.5}, [], "FIRST_STAGE.BOX_WEIGHT must be a number of at least 0"),
        ({"WEIGHT": 0.0}, [], "nothing that trains its cls predictor: no stage .* CLS shared"),
        ({"WEIGHT": 0.0}, [{}], "nothing that trains its box predictor: no stage .* BOX shared"),
        ({"CLS": "binary"}, [], "binary needs a stage with CLS own"),
        ({"CLS": "binary"}, [{}, {"CLS": "own"}], "none with CLS shared before it"),
    ],
)
def test_a_first_stage_that_nothing_trains_is_refused(tiny_cfg, first, stages, message):
    opts = [x for key, value in first.items() for x in (f"MODEL.DENSE.FIRST_STAGE.{key}", value)]
    with pytest.raises(ValueError, match=message):
        build_model(tiny_cfg(*opts, "MODEL.DENSE.STAGES", stages))


def test_two_ways_to_find_the_background_are_refused(tiny_cfg):
    opts = ["FIRST_STAGE.CLS", "binary", "OBJECTNESS.ENABLED", True, "STAGES", [{"CLS": "own"}]]
    opts = [x if i % 2 else f"MODEL.DENSE.{x}" for i, x in enumerate(opts)]
    with pytest.raises(ValueError, match="binary .* so does OBJECTNESS"):
        build_model(tiny_cfg(*opts))


@pytest.mark.parametrize("tower", ["own", "gated"])
def test_a_tower_has_the_tasks_that_it_is_built_for(tiny_cfg, tower):
    """The deltas of the first stage are trained once more, by layers of the first tower."""
    entry = {"CLS": "own", "BOX": "shared", "TOWER": tower}
    stage = build_model(tiny_cfg("MODEL.DENSE.STAGES", [entry])).streams["anchors"].stages[1]
    assert {name.split(".")[0] for name, _ in stage.tower.named_parameters()} == {"cls"}
    assert list(stage.gates) == (["cls"] if tower == "gated" else [])
    for gate in stage.gates.values():  # like all new layers, N(0, .01)
        assert 0.008 < gate.weight.std().item() < 0.012 and not gate.bias.any()


def test_invalid_score_settings_are_refused(tiny_cfg):
    with pytest.raises(ValueError, match="STAGE_SCORES mean needs a stage .* CLS own"):
        build_model(tiny_cfg("MODEL.DENSE.STAGES", [{}], "MODEL.DENSE.STAGE_SCORES", "mean"))
    with pytest.raises(ValueError, match="STAGE_SCORES must be last or mean, got 'first'"):
        build_model(tiny_cfg("MODEL.DENSE.STAGE_SCORES", "first"))
    gated = [{"CLS": "own", "TOWER": "gated"}]
    with pytest.raises(ValueError, match=r"STAGES\[0\].*gated.*TOWER.CHANNELS"):
        build_model(tiny_cfg("MODEL.DENSE.STAGES", gated, "MODEL.DENSE.TOWER.CHANNELS", 8))


def test_stage_that_repeats_binary_logits_has_binary_labels(method_cfg, make_batch):
    """It ranks anchors by its own class loss, which has one class."""
    stages = [{"CLS": "none"}, {"CLS": "own"}]
    opts = ["MODEL.DENSE.STAGES", stages, "MODEL.DENSE.CLS_LOSS.NAME", "SoftmaxCE"]
    model = build_model(method_cfg("refinedet", opts=[*opts, *HARD_NEGATIVES]))
    assert [stage.binary for stage in model.streams["anchors"].stages] == [True, True, False]
    assert all(loss.isfinite() for loss in model(make_batch([(64, 64, 3)])).values())
