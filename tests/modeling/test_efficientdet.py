"""EfficientDet as a choice of slots: losses by hand, and other methods enabled in it."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn

from resobj_d2.config import add_resobj_config
from resobj_d2.losses import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY, NORMALIZER_REGISTRY
from resobj_d2.matching import octave_anchors
from resobj_d2.options import build

RESOBJ = [
    "MODEL.DENSE.OBJECTNESS.ENABLED", True,
    "MODEL.DENSE.CLS_LOSS.NAME", "SigmoidCE",
    "MODEL.DENSE.CLS_LOSS.PRIOR_PROB", 0.0,
]  # fmt: skip
CONF = ["MODEL.DENSE.QUALITY.ENABLED", True]
CONSISTENT = ["MODEL.DENSE.STAGES", [{}]]


@pytest.fixture
def published(repository):
    """The dense part of the published configuration."""
    cfg = get_cfg()
    add_resobj_config(cfg)
    cfg.merge_from_file(str(repository / "configs/COCO-Detection/efficientdet_d0.yaml"))
    return cfg.MODEL.DENSE


@pytest.fixture
def small_cfg(method_cfg):
    """A function: overrides to an EfficientDet of one BiFPN layer on a toy backbone."""
    return lambda *opts: method_cfg("efficientdet", opts=opts)


def test_box_loss_is_the_published_huber_loss(published):
    loss = build(BOX_LOSS_REGISTRY.get(published.BOX_LOSS.NAME), published.BOX_LOSS)
    normalizer = build(NORMALIZER_REGISTRY.get(published.NORMALIZER.NAME), None)
    pred = torch.tensor([[[0.05, 0.3, 0.0, -0.1], [9.0, 9.0, 9.0, 9.0], [1.0, 1.0, 1.0, 1.1]]])
    target = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]])
    foreground = torch.tensor([[True, False, True]])
    summed = loss(pred, target, foreground)
    divisor = normalizer(foreground.sum(), torch.tensor(3), 1)
    # Huber with delta .1: x^2 / 2 up to .1, then .1 |x| - .005.
    huber = (0.5 * 0.05**2) + (0.1 * 0.3 - 0.005) + 0.0 + (0.5 * 0.1**2) + (0.5 * 0.1**2)
    expected = 50 * huber / (4 * (2 + 1))
    assert expected == pytest.approx(0.151041667)
    value = summed * published.BOX_LOSS.WEIGHT / divisor
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_class_loss_is_focal_with_the_published_constants(published):
    loss = build(CLS_LOSS_REGISTRY.get(published.CLS_LOSS.NAME), published.CLS_LOSS)
    logits = torch.tensor([[[0.0, math.log(3.0)]]])
    # p = .5 for its class, .75 for the other one.
    expected = 0.25 * 0.5**1.5 * math.log(2) + 0.75 * 0.75**1.5 * math.log(4)
    value = loss(logits, torch.tensor([[0]]), torch.tensor([[True]]))
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_anchors_are_the_published_ones_within_their_rounding(published):
    node = published.PRIORS
    (shapes,) = octave_anchors(
        strides=[8],
        scale=node.SCALE,
        scales_per_octave=node.SCALES_PER_OCTAVE,
        aspect_ratios=node.ASPECT_RATIOS,
    )
    sides = [4 * 8 * 2 ** (i / 3) for i in range(3)]
    pairs = [(1.4, 0.7), (1.0, 1.0), (0.7, 1.4)]
    expected = [(side * w, side * h) for side in sides for w, h in pairs]
    for found, wanted in zip(shapes, expected, strict=True):
        # The published pairs are sqrt 2 and sqrt .5, truncated to one digit.
        assert found == pytest.approx(wanted, rel=0.011)
    assert node.OFFSET == 0.5


@pytest.mark.parametrize(
    "opts, names",
    [
        ([], set()),
        (RESOBJ, {"loss_objectness", "loss_residual_1", "loss_residual_2"}),
        (CONF, {"loss_quality"}),
        (CONSISTENT, {"loss_cls_stage1", "loss_box_reg_stage1"}),
        (
            RESOBJ + CONF + CONSISTENT,
            {"loss_objectness", "loss_residual_1", "loss_quality", "loss_cls_stage1"},
        ),
    ],
    ids=["plain", "resobj", "conf", "consistent", "all"],
)
def test_other_methods_can_be_enabled_by_config(small_cfg, make_batch, opts, names):
    torch.manual_seed(0)
    model = build_model(small_cfg(*opts))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batch = make_batch([(96, 96, 3), (96, 64, 0)])
    totals = []
    for _ in range(25):
        losses = model(batch)
        assert {"loss_cls", "loss_box_reg"} | names <= set(losses)
        total = sum(losses.values())
        totals.append(total.item())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    assert totals[-1] < 0.6 * totals[0]
    model.eval()
    model.postprocess.score_thresh = 0.0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        results = model(batch)
    assert len(results) == 2 and all(len(x["instances"]) > 0 for x in results)
    assert all(torch.isfinite(x["instances"].pred_boxes.tensor).all() for x in results)


def test_all_normalisation_layers_are_trained(small_cfg, make_batch):
    pytest.importorskip("timm", reason="EfficientNet comes from the optional package timm")
    cfg = small_cfg(
        "MODEL.BIFPN.BOTTOM_UP", "build_timm_backbone",
        "MODEL.BIFPN.IN_FEATURES", "['c3', 'c4', 'c5']",
        "MODEL.TIMM.NAME", "tf_efficientnet_b0",
        "MODEL.TIMM.BN_MOMENTUM", "0.01",
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(cfg)
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in model.modules())
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert {(norm.eps, norm.momentum) for norm in norms.values()} == {(1e-3, 0.01)}
    before = {name: norm.running_var.clone() for name, norm in norms.items()}
    sum(model(make_batch([(128, 128, 2), (128, 128, 1)])).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    still = [name for name, norm in norms.items() if torch.equal(norm.running_var, before[name])]
    assert still == []
