"""Samplers and harmonised losses inside the detector."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

DENSE = "MODEL.DENSE."


def build(cfg):
    torch.manual_seed(0)
    return build_model(cfg)


def opts(**keys):
    return [x for key, value in keys.items() for x in (DENSE + key.replace("__", "."), value)]


@pytest.mark.parametrize("name", ["SigmoidFocalLoss", "SigmoidCE"])
def test_loss_per_anchor_adds_up_to_the_loss(tiny_cfg, name):
    loss = build(tiny_cfg(*opts(CLS_LOSS__NAME=name))).streams["anchors"].stages[0].cls_loss
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 30, 3), torch.randint(0, 4, (2, 30))
    each = loss.per_anchor(logits, labels)
    for mask in (torch.rand(2, 30) < 0.5, torch.ones(2, 30, dtype=torch.bool)):
        torch.testing.assert_close(each[mask].sum(), loss(logits, labels, mask))


@pytest.mark.parametrize("sampler", ["OHEMSampler", "HardNegativeRatio", "IoUBalancedSampler"])
def test_training_step(tiny_cfg, make_batch, sampler):
    options = opts(
        SAMPLER__NAME=sampler, SAMPLER__SIZE=16, CLS_LOSS__NAME="SigmoidCE",
        NORMALIZER__NAME="TrainedCount",
    )  # fmt: skip
    model = build(tiny_cfg(*options))
    losses = model(make_batch([(96, 96, 2), (96, 96, 0)]))
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert losses["loss_cls"] > 0


@pytest.mark.parametrize("objectness", [False, True])
@pytest.mark.parametrize(
    "sampler, fraction", [("OHEMSampler", 0.0), ("OHEMSampler", 0.25), ("HardNegativeRatio", 0.25)]
)
def test_ranking_by_loss_does_not_hide_a_nan(
    tiny_cfg, make_batch, predict, truth_of, sampler, fraction, objectness
):
    """One NaN in the background is the hardest anchor, so it shows in the loss."""
    options = opts(
        SAMPLER__NAME=sampler, SAMPLER__SIZE=16, SAMPLER__POSITIVE_FRACTION=fraction,
        CLS_LOSS__NAME="SigmoidCE", OBJECTNESS__ENABLED=objectness, OBJECTNESS__STEPS=0,
    )  # fmt: skip
    model = build(tiny_cfg(*options))
    stream = model.streams["anchors"]
    batch = make_batch([(96, 96, 2)])
    output, truth = predict(model, batch), truth_of(batch)
    targets = stream.stages[0].assigner(output.priors, output.priors.boxes, truth)
    row = targets.background[0].nonzero()[0].item()
    found = output.branches["objectness"].logits if objectness else output.stages[0].cls_logits
    with torch.no_grad():
        found[0, row] = torch.nan
    losses, _ = stream.losses(output, truth)
    assert losses["loss_objectness" if objectness else "loss_cls"].isnan()


def test_ohem_averages_cross_entropy_over_the_kept_anchors(tiny_cfg, make_batch, observe):
    options = opts(
        SAMPLER__NAME="OHEMSampler", SAMPLER__SIZE=8, SAMPLER__POSITIVE_FRACTION=0.0,
        CLS_LOSS__NAME="SigmoidCE", NORMALIZER__NAME="TrainedCount",
    )  # fmt: skip
    model = build(tiny_cfg(*options))
    seen = observe(model, make_batch([(96, 96, 2)]))
    (prediction,) = seen.outputs["anchors"].stages
    (targets,), (kept,) = seen.targets["anchors"], seen.kept["anchors"]
    assert kept.sum() == 8
    one_hot = F.one_hot(targets.labels[kept], 4)[:, :3].float()
    expected = F.binary_cross_entropy_with_logits(
        prediction.cls_logits[kept], one_hot, reduction="sum"
    )
    torch.testing.assert_close(seen.result["loss_cls"], expected / 8)


def test_objectness_ranks_anchors_if_it_owns_the_background(tiny_resobj, make_batch, observe):
    model = build(tiny_resobj(*opts(SAMPLER__NAME="HardNegativeRatio")))
    seen = observe(model, make_batch([(96, 96, 2)]))
    branch = model.streams["anchors"].branches["objectness"]
    logits = branch.score_logits(seen.outputs["anchors"].branches["objectness"])
    (targets,), (difficulty,) = seen.targets["anchors"], seen.difficulty["anchors"]
    expected = F.binary_cross_entropy_with_logits(
        logits, targets.foreground.float(), reduction="none"
    )
    torch.testing.assert_close(difficulty, expected)
    assert not difficulty.requires_grad


def test_ghm_is_not_divided_and_its_state_is_in_checkpoints(tiny_cfg, make_batch):
    options = opts(CLS_LOSS__NAME="GHMCLoss", BOX_LOSS__NAME="GHMRLoss", BOX_LOSS__WEIGHT=10.0)
    model = build(tiny_cfg(*options))
    batch = make_batch([(96, 96, 3)])
    before = copy.deepcopy(model)
    losses = model(batch)
    rescaled = before
    rescaled.streams["anchors"].stages[0].normalizer.mean.fill_(1.0)
    for name, loss in rescaled(batch).items():
        assert torch.equal(loss, losses[name])
    state = model.state_dict()
    assert state["streams.anchors.stages.0.cls_loss.counts"].sum() > 0
    assert state["streams.anchors.stages.0.box_loss.counts"].sum() > 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_ghm_counts_are_per_stage(tiny_cfg, make_batch):
    """With one batch repeated, the running counts converge to those of the batch, per stage."""
    options = opts(
        CLS_LOSS__NAME="GHMCLoss", BOX_LOSS__NAME="GHMRLoss", STAGES=[{}, {"CLS": "none"}]
    )
    model = build(tiny_cfg(*options))
    batch = make_batch([(96, 96, 3)])
    with torch.no_grad():
        for _ in range(40):
            model(batch)
    stages = model.streams["anchors"].stages
    for i, suffix in enumerate(("", "_stage1", "_stage2")):
        foreground = model.statistics[f"num_foreground{suffix}"].item()
        assert stages[i].box_loss.counts.sum().item() == pytest.approx(4 * foreground, rel=1e-3)
    assert stages[0].box_loss.counts.sum() != stages[1].box_loss.counts.sum()
    assert stages[0].cls_loss.counts.sum() != stages[1].cls_loss.counts.sum()
    assert stages[2].cls_loss is None


def test_ranking_by_a_loss_without_per_anchor_values_is_refused(tiny_cfg, tiny_resobj):
    options = opts(CLS_LOSS__NAME="GHMCLoss", SAMPLER__NAME="OHEMSampler")
    with pytest.raises(ValueError, match="OHEMSampler ranks anchors .* GHMCLoss"):
        build(tiny_cfg(*options))
    # With objectness, anchors are ranked by the objectness instead.
    build(tiny_resobj(*options))
