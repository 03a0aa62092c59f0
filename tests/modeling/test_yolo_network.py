"""YOLOv3's pyramid and tower: shapes, wiring against a spelled-out network, widths."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone, build_model
from torch import nn
from torch.nn import functional as F

from resobj_d2.modeling import DarkNet, YOLOPyramid, YOLOTower
from resobj_d2.modeling.heads.yolo_tower import DarkNetStack


class Maps(Backbone):
    """Maps of fixed widths at strides 2, 4, 8 that depend on the image."""

    channels = (3, 5, 7)

    def forward(self, image):
        pooled = [F.avg_pool2d(image, 2 ** (i + 1)) for i in range(3)]
        return {
            f"m{i}": x.mean(dim=1, keepdim=True) + torch.arange(c).view(1, -1, 1, 1)
            for i, (x, c) in enumerate(zip(pooled, self.channels, strict=True))
        }

    def output_shape(self):
        return {
            f"m{i}": ShapeSpec(channels=c, stride=2 ** (i + 1)) for i, c in enumerate(self.channels)
        }


def test_published_network_has_the_published_size():
    """YOLOv3 for COCO: 61.9 million parameters, maps of 76, 38 and 19 at 608 pixels."""
    with torch.device("meta"):
        pyramid = YOLOPyramid(
            bottom_up=DarkNet(), in_features=["dark3", "dark4", "dark5"], channels=[128, 256, 512]
        )
        tower = YOLOTower(in_channels=[128, 256, 512])
        maps = pyramid(torch.zeros(1, 3, 608, 608))
        features = tower(list(maps.values()))
    assert {k: tuple(x.shape[1:]) for k, x in maps.items()} == {
        "y3": (128, 76, 76),
        "y4": (256, 38, 38),
        "y5": (512, 19, 19),
    }
    assert [x.shape[1] for x in features.cls] == tower.out_channels == [256, 512, 1024]
    count = sum(p.numel() for m in (pyramid, tower) for p in m.parameters())
    predictors = sum(255 * (c + 1) for c in tower.out_channels)
    # yolov3.weights has 248007048 bytes: a header of 20 and float32, running statistics included.
    statistics = sum(
        2 * m.num_features
        for part in (pyramid, tower)
        for m in part.modules()
        if isinstance(m, nn.BatchNorm2d)
    )
    assert 20 + 4 * (count + statistics + predictors) == 248007048
    assert pyramid.size_divisibility == 32


def test_wiring_is_darknets():
    """The same layers, connected by the routes of Darknet's yolov3.cfg."""
    torch.manual_seed(0)
    pyramid = YOLOPyramid(
        bottom_up=Maps(), in_features=["m0", "m1", "m2"], channels=[2, 4, 6]
    ).eval()
    image = torch.randn(2, 3, 16, 32)
    found = pyramid(image)
    maps = pyramid.bottom_up(image)
    widths = [[m.conv.out_channels for m in scale] for scale in pyramid.scales]
    assert widths == [[2, 4, 2, 4, 2], [4, 8, 4, 8, 4], [6, 12, 6, 12, 6]]
    assert [m.conv.kernel_size[0] for m in pyramid.scales[0]] == [1, 3, 1, 3, 1]
    coarse = pyramid.scales[2](maps["m2"])
    up = pyramid.reduce[1](coarse).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    middle = pyramid.scales[1](torch.cat((up, maps["m1"]), dim=1))
    up = pyramid.reduce[0](middle).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    fine = pyramid.scales[0](torch.cat((up, maps["m0"]), dim=1))
    assert list(found) == ["y1", "y2", "y3"]
    for x, y in zip(found.values(), (fine, middle, coarse), strict=True):
        assert torch.equal(x, y)


def test_built_from_config(tiny_cfg):
    cfg = tiny_cfg(
        "MODEL.BACKBONE.NAME", "build_yolo_backbone",
        "MODEL.DARKNET.STEM_CHANNELS", 2,
        "MODEL.DARKNET.BLOCKS", [1, 1, 1, 1, 1],
        "MODEL.YOLO_PYRAMID.CHANNELS", [3, 4, 5],
    )  # fmt: skip
    backbone = build_backbone(cfg)
    assert {k: (s.channels, s.stride) for k, s in backbone.output_shape().items()} == {
        "y3": (3, 8),
        "y4": (4, 16),
        "y5": (5, 32),
    }


@pytest.mark.parametrize(
    "features, channels, message",
    [
        (["m0", "p9"], [1, 2], "IN_FEATURES must be some of"),
        (["m0", "m1"], [1], "as many CHANNELS"),
        (["m0", "m2"], [1, 2], "strides that double"),
        (["m1", "m0"], [1, 2], "strides that double"),
    ],
)
def test_bad_pyramids_are_refused(features, channels, message):
    with pytest.raises(ValueError, match=message):
        YOLOPyramid(bottom_up=Maps(), in_features=features, channels=channels)


def test_tower_is_shared_by_the_tasks_and_hidden_layers_are_per_level():
    torch.manual_seed(0)
    tower = YOLOTower(in_channels=[2, 3]).eval()
    maps = [torch.randn(1, 2, 4, 4), torch.randn(1, 3, 2, 2)]
    features = tower(maps)
    assert all(a is b for a, b in zip(features.cls, features.box, strict=True))
    assert [x.shape[1] for x in features.cls] == [4, 6]
    for run, own in zip(tower.run("box", maps), features.box, strict=True):
        assert torch.equal(run, own)
    hidden = tower.hidden(in_channels=[4, 6], channels=[4, 6], num_convs=1)
    assert isinstance(hidden, DarkNetStack) and hidden.out_channels == [4, 6]
    assert [x.shape[1] for x in hidden(features.cls)] == [4, 6]
    assert (hidden(features.cls)[0] < 0).any()  # leaky
    nothing = tower.hidden(in_channels=[4, 6], channels=[9, 9], num_convs=0)
    assert nothing.out_channels == [4, 6]
    assert all(a is b for a, b in zip(nothing(features.cls), features.cls, strict=True))


def test_residual_subnets_do_not_change_the_plain_detector(yolo_cfg, make_batch):
    """With equal weights, o_0, classes, boxes and their losses are bit-identical to T = 0."""
    torch.manual_seed(0)
    steps = ["MODEL.DENSE.OBJECTNESS.STEPS", 2]
    plain, residual = build_model(yolo_cfg()), build_model(yolo_cfg(*steps))
    left = residual.load_state_dict(plain.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert all("objectness.residuals" in k for k in left.missing_keys) and left.missing_keys
    batch = make_batch([(64, 96, 3), (64, 64, 0)])
    losses = [model(batch) for model in (plain, residual)]
    assert sorted(losses[0]) == ["loss_box_reg", "loss_cls", "loss_objectness"]
    assert {"loss_residual_1", "loss_residual_2"} <= set(losses[1])
    for name, value in losses[0].items():
        assert torch.equal(value, losses[1][name]), name
    for found in losses:
        sum(found.values()).backward()
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, residual.get_parameter(name).grad), name


def test_residual_subnet_has_its_levels_width(yolo_cfg):
    model = build_model(yolo_cfg("MODEL.DENSE.OBJECTNESS.STEPS", 1))
    branch = model.streams["anchors"].branches["objectness"]
    convs = [stack[0].conv for stack in branch.residuals[0].hidden.levels]
    assert [(c.in_channels, c.out_channels, c.kernel_size[0]) for c in convs] == [
        (16, 16, 3), (24, 24, 3), (32, 32, 3),
    ]  # fmt: skip
    predictors = branch.residuals[0].predictor.levels
    assert [(c.out_channels, c.kernel_size[0]) for c in predictors] == [(3, 1)] * 3
    assert all(c.bias.eq(0).all() for c in predictors)


def test_losses_are_sums_over_anchors_divided_by_the_images(yolo_cfg, make_batch):
    """With biases of 0 every anchor's objectness starts at one half."""
    torch.manual_seed(0)
    model = build_model(yolo_cfg())
    with torch.no_grad():
        for layer in model.streams["anchors"].branches["objectness"].base.predictor.levels:
            assert layer.bias.eq(0).all()
            layer.weight.zero_()
    losses = model(make_batch([(64, 96, 2), (64, 96, 0)]))
    anchors = 3 * (8 * 12 + 4 * 6 + 2 * 3)
    found = losses["loss_objectness"].item() / torch.log(torch.tensor(2.0)).item()
    # Predictions that overlap an object by more than .7 are ignored; there are none here.
    assert found == pytest.approx(anchors, rel=1e-5)


@pytest.mark.parametrize(
    "opts, message",
    [
        (["PRIORS.OFFSET", 0.0], "YOLOCoder.*PRIORS.OFFSET must be 0.5, got 0.0"),
        (["CODER.NAME", "DeltaCoder"], "YOLOBoxLoss compares cell_deltas, but CODER DeltaCoder"),
        (["BOX_LOSS.NAME", "SmoothL1Loss"], "SmoothL1Loss compares deltas, but CODER YOLOCoder"),
        (["BOX_LOSS.NAME", "GIoULoss"], "YOLOAssigner weighs the boxes, but BOX_LOSS GIoULoss"),
    ],
)
def test_incompatible_slots_are_refused(yolo_cfg, opts, message):
    """They would train, with boxes off by half a cell or a meaningless loss."""
    opts = [f"MODEL.DENSE.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    with pytest.raises(ValueError, match=message):
        build_model(yolo_cfg(*opts))


def test_overlap_loss_works_without_box_weights(yolo_cfg, make_batch):
    opts = ["MODEL.DENSE.BOX_LOSS.NAME", "GIoULoss", "MODEL.DENSE.ASSIGNER.NAME", "MaxIoUAssigner"]
    losses = build_model(yolo_cfg(*opts))(make_batch([(64, 64, 2)]))
    assert torch.isfinite(losses["loss_box_reg"]) and losses["loss_box_reg"] > 0
