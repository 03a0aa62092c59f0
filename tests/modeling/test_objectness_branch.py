"""Residual Objectness in the network: what it reads, what it trains, how it scores."""

import math

import pytest
import torch
from detectron2.modeling import build_model

from resobj_d2.losses import ResidualObjectnessLoss
from resobj_d2.modeling import HeadParts, ObjectnessBranch, PerLevelConv, SharedConv
from resobj_d2.modeling.branches import ObjectnessPrediction
from resobj_d2.modeling.heads.towers import ConvStack, PerLevelStack
from resobj_d2.structures import Targets, TowerFeatures

CHANNELS, ANCHORS = 4, 2
LABELS = torch.tensor([[1, 0, 1, 0, 0, -1, 0, 0]], dtype=torch.int8)  # 2 x 2 cells, 2 anchors


PARTS = HeadParts(
    in_channels=[CHANNELS],
    num_anchors=[ANCHORS],
    make_predictor=SharedConv,
    make_hidden=lambda *, in_channels, channels, num_convs: ConvStack(
        in_channels=in_channels, channels=channels[0], num_convs=num_convs
    ),
)


def branch(steps=2, source="objectness", detach="all", sizes=(None, 1), **loss_options):
    torch.manual_seed(0)
    result = ObjectnessBranch(
        parts=PARTS,
        steps=steps,
        source=source,
        loss=ResidualObjectnessLoss(detach=detach, **loss_options),
        num_classes=1,
        prior_prob=0.5,
        hidden_channels=sizes[0],
        num_convs=sizes[1],
    )
    for parameter in result.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return result


def features():
    torch.manual_seed(1)
    x = torch.randn(1, CHANNELS, 2, 2, requires_grad=True)
    return x, TowerFeatures(cls=[x], box=[torch.randn_like(x)], pyramid=[x])


def gradients(module, inputs, loss):
    """Names of what ``loss`` trains: modules of the branch, and "input"."""
    names = [n for n, _ in module.named_parameters()]
    parameters = [p for _, p in module.named_parameters()]
    found = torch.autograd.grad(loss, [*parameters, inputs], allow_unused=True)
    trained = {
        n.split(".hidden")[0].split(".predictor")[0]
        for n, g in zip([*names, "input"], found, strict=True)
        if g is not None and g.abs().sum() > 0
    }
    return trained


def losses_of(module, tower):
    prediction = module.predict(tower)
    return module.residual_loss(
        prediction.logits,
        prediction.residuals,
        LABELS,
        anchors_per_level=[8],
        normalizer=torch.tensor(1.0),
    )[0]


@pytest.mark.parametrize(
    "source, detach, expected",
    [
        # what the loss of step 2 trains
        ("objectness", "all", {"residuals.1"}),
        ("chain", "all", {"residuals.1"}),
        ("class", "all", {"residuals.1", "input"}),
        ("objectness", "objectness", {"residuals.0", "residuals.1"}),
        ("chain", "objectness", {"residuals.0", "residuals.1"}),
        ("class", "objectness", {"residuals.0", "residuals.1", "input"}),
        ("objectness", "none", {"base", "residuals.0", "residuals.1", "input"}),
        ("chain", "none", {"base", "residuals.0", "residuals.1", "input"}),
        ("class", "none", {"base", "residuals.0", "residuals.1", "input"}),
    ],
)
def test_what_the_second_step_trains(source, detach, expected):
    module = branch(source=source, detach=detach)
    x, tower = features()
    assert gradients(module, x, losses_of(module, tower)["loss_residual_2"]) == expected


def test_base_gradient_comes_from_the_base_loss_only():
    """Detached residual losses do not affect the objectness subnet at all (Table 2c)."""
    module = branch()
    x, tower = features()
    losses = losses_of(module, tower)
    parameters = [*module.base.parameters(), x]
    total = torch.autograd.grad(sum(losses.values()), parameters, retain_graph=True)
    alone = torch.autograd.grad(losses["loss_objectness"], parameters)
    for a, b in zip(total, alone, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("source", ["objectness", "class", "chain"])
def test_predictions_follow_the_figure(source):
    """Each subnet: 3x3 convolution, ReLU, 3x3 predictor, on the stated input."""
    module = branch(source=source)
    x, tower = features()
    prediction = module.predict(tower)

    def subnet(net, inputs):
        hidden = torch.relu(torch.conv2d(inputs, *net.hidden[0].parameters(), padding=1))
        out = torch.conv2d(hidden, *net.predictor.parameters(), padding=1)
        return hidden, out.permute(0, 2, 3, 1).reshape(1, -1)

    hidden, logits = subnet(module.base, x)
    torch.testing.assert_close(prediction.logits, logits)
    inputs = x if source == "class" else hidden
    for t, net in enumerate(module.residuals):
        own_hidden, residual = subnet(net, inputs)
        torch.testing.assert_close(prediction.residuals[t], residual)
        inputs = own_hidden if source == "chain" else inputs


def test_probability_sums_logits_up_to_the_step():
    module = branch()
    prediction = module.predict(features()[1])
    o, r = prediction.logits, prediction.residuals
    for step, logits in enumerate((o, o + r[0], o + r[0] + r[1])):
        torch.testing.assert_close(module.probability(prediction, step), torch.sigmoid(logits))
    torch.testing.assert_close(module.probability(prediction), torch.sigmoid(o + r[0] + r[1]))


def test_no_steps_is_retinanet_obj(tiny_resobj, make_batch):
    """T = 0, and T = 2 with zero residual predictors, have equal scores and base losses."""
    plain = build_model(tiny_resobj("MODEL.DENSE.OBJECTNESS.STEPS", 0))
    refined = build_model(tiny_resobj("MODEL.DENSE.OBJECTNESS.STEPS", 2))
    missing = refined.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all(".objectness.residuals." in k for k in missing)
    for subnet in refined.streams["anchors"].branches["objectness"].residuals:
        torch.nn.init.zeros_(subnet.predictor.weight)
    batch = make_batch([(96, 96, 3), (96, 96, 2)])
    a, b = plain(batch), refined(batch)
    assert set(b) - set(a) == {"loss_residual_1", "loss_residual_2"}
    assert all(torch.equal(a[name], b[name]) for name in a)
    for model in (plain, refined):
        model.eval()
        model.postprocess.score_thresh = 0.0
    with torch.no_grad():
        x, y = plain(batch)[0]["instances"], refined(batch)[0]["instances"]
    assert len(x) > 0
    assert torch.equal(x.scores, y.scores)
    assert torch.equal(x.pred_boxes.tensor, y.pred_boxes.tensor)


def test_class_loss_covers_foreground_only(tiny_resobj, make_batch):
    model = build_model(tiny_resobj())
    empty = make_batch([(96, 96, 0)])
    losses = model(empty)
    assert losses["loss_cls"].item() == 0.0
    assert losses["loss_objectness"].item() > 0.0
    assert losses["loss_residual_1"].item() == 0.0  # no positive, nothing selected


def test_initial_scores(tiny_resobj):
    """Objectness starts at .01, P(class | object) at 1/K, residuals at 0 (methods A11, A12)."""
    stream = build_model(tiny_resobj("MODEL.DENSE.NUM_CLASSES", 20)).streams["anchors"]
    objectness = stream.branches["objectness"]
    assert torch.sigmoid(objectness.base.predictor.bias[0]).item() == pytest.approx(0.01)
    assert torch.sigmoid(stream.stages[0].cls.bias[0]).item() == pytest.approx(1 / 20)
    assert objectness.residuals[0].predictor.bias.abs().max() == 0.0
    single = build_model(tiny_resobj("MODEL.DENSE.NUM_CLASSES", 1)).streams["anchors"]
    assert torch.sigmoid(single.stages[0].cls.bias[0]).item() == pytest.approx(0.5)


def test_released_preset(method_cfg, make_batch, observe):
    """One BCE on o_0 + r_1 over every labelled anchor, weight 1/20, trains everything."""
    model = build_model(method_cfg("retinanet_resobj_released"))
    objectness = model.streams["anchors"].branches["objectness"]
    seen = observe(model, make_batch([(96, 96, 4)]))
    losses = seen.result
    assert losses["loss_objectness"].item() == 0.0

    prediction = seen.outputs["anchors"].branches["objectness"]
    stage = model.streams["anchors"].stages[0]
    (targets,) = seen.targets["anchors"]
    valid = targets.valid
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        (prediction.logits + prediction.residuals[0])[valid],
        targets.foreground[valid].float(),
        reduction="sum",
    )
    expected = expected / 20 / stage.normalizer.mean
    assert losses["loss_residual_1"].item() == pytest.approx(expected.item(), rel=1e-4)
    losses["loss_residual_1"].backward()
    assert objectness.base.predictor.weight.grad.abs().sum() > 0
    start = torch.sigmoid(objectness.base.predictor.bias[0] + 0.0).item()
    assert start == pytest.approx(0.001, rel=1e-3)
    assert objectness.residuals[0].predictor.bias[0].item() == pytest.approx(-math.log(999))


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.DENSE.OBJECTNESS.STEPS", 9], "STEPS"),
        (["MODEL.DENSE.OBJECTNESS.SOURCE", "box"], "SOURCE"),
        (["MODEL.DENSE.OBJECTNESS.MIN_SCOPE", "gpu"], "MIN_SCOPE"),
        (["MODEL.DENSE.OBJECTNESS.DETACH", "some"], "DETACH"),
        (["MODEL.DENSE.OBJECTNESS.UNSELECTED", "drop"], "UNSELECTED"),
        (["MODEL.DENSE.OBJECTNESS.PRIOR_PROB", 1.0], "PRIOR_PROB"),
    ],
)
def test_impossible_options_are_refused_at_build_time(tiny_resobj, opts, message):
    with pytest.raises(ValueError, match=message):
        build_model(tiny_resobj(*opts))


@pytest.mark.parametrize("source", ["objectness", "class", "chain"])
@pytest.mark.parametrize("steps, num_convs", [(0, 1), (2, 1), (3, 2), (2, 0)])
def test_last_step_is_fused_into_one_convolution(source, steps, num_convs):
    module = branch(source=source, steps=steps, sizes=(5, num_convs))
    _, tower = features()
    merged = module.predict(tower, every_step=False)
    assert merged.residuals.shape[0] == 0
    torch.testing.assert_close(
        module.score_logits(merged),
        module.score_logits(module.predict(tower)),
        rtol=1e-4,
        atol=1e-4,
    )


def test_width_and_depth_of_the_subnets():
    module = branch(steps=2, sizes=(5, 2))
    wide = module.base.hidden[0].in_channels
    for subnet, reads in ((module.base, wide), (module.residuals[0], 5), (module.residuals[1], 5)):
        widths = [(x.in_channels, x.out_channels) for x in subnet.hidden if hasattr(x, "weight")]
        assert widths == [(reads, 5), (5, 5)]
        assert subnet.predictor.in_channels == 5
    flat = branch(steps=1, sizes=(5, 0))
    assert len(flat.base.hidden) == 0 and flat.residuals[0].predictor.in_channels == wide


@pytest.mark.parametrize("sizes", [(-1, 1), (0, 1), (8, -1)])
def test_negative_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="HIDDEN_CHANNELS, NUM_CONVS and BASE_CONVS must"):
        branch(sizes=sizes)


def test_depth_of_the_subnets_by_config(tiny_resobj):
    model = build_model(tiny_resobj("MODEL.DENSE.OBJECTNESS.NUM_CONVS", 3))
    objectness = model.streams["anchors"].branches["objectness"]
    assert all(len(net.hidden) == 6 for net in (objectness.base, *objectness.residuals))


def test_levels_with_different_widths_and_numbers_of_anchors():
    """As in YOLOv3: the base reads the tower, each residual subnet has a hidden layer per level."""
    torch.manual_seed(0)
    parts = HeadParts(
        in_channels=[4, 6],
        num_anchors=[2, 3],
        make_predictor=PerLevelConv,
        make_hidden=PerLevelStack,
    )
    module = ObjectnessBranch(
        parts=parts,
        steps=2,
        num_classes=1,
        loss=ResidualObjectnessLoss(),
        prior_prob=0.25,
        base_convs=0,
    )
    x = [torch.randn(1, 4, 2, 2), torch.randn(1, 6, 1, 1)]
    tower = TowerFeatures(cls=x, box=x, pyramid=x)
    prediction = module.predict(tower)
    assert prediction.logits.shape == (1, 2 * 4 + 3) and prediction.residuals.shape[0] == 2
    base = [conv(level) for conv, level in zip(module.base.predictor.levels, x, strict=True)]
    torch.testing.assert_close(
        prediction.logits[0, 8:], base[1].flatten(), msg="the base reads the tower itself"
    )
    widths = [stack[0].weight.shape[:2] for stack in module.residuals[0].hidden.levels]
    assert widths == [(4, 4), (6, 6)]
    last = module.predict(tower, every_step=False)
    torch.testing.assert_close(module.score_logits(last), module.score_logits(prediction))


@pytest.mark.parametrize("num_classes, score", [(1, 0.5), (4, 0.25)])
def test_without_a_prior_the_initial_score_is_that_of_one_class_of_all(num_classes, score):
    module = ObjectnessBranch(
        parts=PARTS, loss=ResidualObjectnessLoss(), num_classes=num_classes, prior_prob=0.0
    )
    assert torch.sigmoid(module.base.predictor.bias).tolist() == pytest.approx([score] * ANCHORS)


def test_steps_of_half_precision_are_summed_in_float32():
    steps = torch.tensor([1.0, 2**-9], dtype=torch.bfloat16).view(2, 1, 1)
    prediction = ObjectnessPrediction(torch.zeros(1, 1, dtype=torch.bfloat16), steps)
    assert branch().score_logits(prediction).item() == 1 + 2**-9


def test_ignored_anchors_have_no_objectness_loss():
    targets = Targets(
        labels=torch.tensor([[1, 4, 4, -1]]),
        matched_gt_boxes=torch.zeros(1, 4, 4),
        matched_ious=torch.zeros(1, 4),
        gt_index=torch.zeros(1, 4, dtype=torch.int64),
        num_classes=4,
    )
    losses, statistics = branch(steps=0).loss(
        ObjectnessPrediction(torch.zeros(1, 4), torch.zeros(0, 1, 4)),
        targets=targets,
        anchors=torch.zeros(4, 4),
        boxes=None,
        anchors_per_level=[4],
        normalizer=torch.tensor(2.0),
    )
    assert statistics["objectness/step0/selected"] == 3
    assert losses["loss_objectness"].item() == pytest.approx(3 * math.log(2) / 2)
