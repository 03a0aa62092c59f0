"""BiFPN's wiring and fusion by hand, and timm models as backbones."""

import math

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone
from torch import nn

from resobj_d2.modeling.backbones import TimmBackbone
from resobj_d2.modeling.necks import BiFPN, WeightedFusion


class Constant(Backbone):
    """Maps of strides 8, 16, 32, each filled with one number."""

    size_divisibility = 32

    def __init__(self, channels=(3, 4, 5)):
        super().__init__()
        self.channels = channels

    def forward(self, image):
        height, width = image.shape[-2:]
        return {
            f"c{i + 3}": torch.full((1, c, height >> i + 3, width >> i + 3), 10.0**i)
            for i, c in enumerate(self.channels)
        }

    def output_shape(self):
        return {
            f"c{i + 3}": ShapeSpec(channels=c, stride=8 << i) for i, c in enumerate(self.channels)
        }


class Sum(nn.Module):
    def forward(self, *maps):
        assert len({x.shape for x in maps}) == 1
        return sum(maps)


@pytest.mark.parametrize(
    "method, expected",
    [
        ("fast", (2.0 * 10 + 0.0 * 100 + 1.0 * 1000) / (3.0 + 1e-4)),
        ("sum", 1110.0),
        (
            "softmax",
            (math.exp(2) * 10 + math.exp(-1) * 100 + math.e * 1000)
            / (math.exp(2) + math.exp(-1) + math.e),
        ),
    ],
)
def test_fusion_by_hand(method, expected):
    fusion = WeightedFusion(inputs=3, method=method)
    if method != "sum":
        fusion.weight.data = torch.tensor([2.0, -1.0, 1.0])
    maps = [torch.full((1, 1, 2, 2), x) for x in (10.0, 100.0, 1000.0)]
    torch.testing.assert_close(fusion(maps), torch.full((1, 1, 2, 2), expected))


def test_wiring_of_a_layer_by_hand():
    """With nodes that just add, every path of Figure 2d shows as one decimal digit."""
    neck = BiFPN(
        bottom_up=Constant((1, 1, 1)), in_features=["c3", "c4", "c5"], channels=1, num_layers=1
    )
    layer = neck.layers[0]
    layer.down = nn.ModuleList(Sum() for _ in layer.down)
    layer.up = nn.ModuleList(Sum() for _ in layer.up)
    maps = [torch.full((1, 1, 16 >> i, 32 >> i), 10.0**i) for i in range(5)]
    out = layer(maps)
    # P6' = 11000, P5' = 11100, P4' = 11110
    p3 = 1 + 11110
    p4 = 10 + 11110 + p3
    p5 = 100 + 11100 + p4
    p6 = 1000 + 11000 + p5
    p7 = 10000 + p6
    for x, m, value in zip(out, maps, (p3, p4, p5, p6, p7), strict=True):
        torch.testing.assert_close(x, torch.full_like(m, float(value)))


def test_every_edge_from_the_backbone_has_its_own_convolution():
    neck = BiFPN(bottom_up=Constant(), in_features=["c3", "c4", "c5"], channels=8, num_layers=2)
    first, second = neck.layers
    assert [m[0].in_channels for m in first.down_laterals] == [4, 5]
    assert [m[0].in_channels for m in first.up_laterals] == [3, 4, 5]
    assert len(second.down_laterals) == len(second.up_laterals) == 0
    assert neck.coarse[0].in_channels == 5
    # 8 nodes per layer, each with a separable convolution and normalisation.
    node = 8 * 9 + (8 * 8 + 8) + 2 * 8
    weights = 3 * 2 + 2 + 3 * 3 + 2
    laterals = sum(c * 8 + 8 + 16 for c in (3, 4, 4, 5, 5))
    coarse = 5 * 8 + 8 + 16
    total = sum(p.numel() for p in neck.parameters())
    assert total == 2 * (8 * node + weights) + laterals + coarse


@pytest.mark.parametrize("fusion", ["fast", "softmax", "sum"])
def test_shapes_and_gradients(fusion):
    neck = BiFPN(
        bottom_up=Constant(), in_features=["c3", "c4", "c5"], channels=8, num_layers=2,
        fusion=fusion,
    )  # fmt: skip
    out = neck(torch.zeros(1, 3, 128, 256))
    for name, spec in neck.output_shape().items():
        assert out[name].shape == (1, 8, 128 // spec.stride, 256 // spec.stride)
    assert list(out) == ["p3", "p4", "p5", "p6", "p7"] and neck.size_divisibility == 128
    sum((x**2).sum() for x in out.values()).backward()
    assert all(p.grad is not None for p in neck.parameters())


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"fusion": "mean"}, "'fast', 'softmax' or 'sum'"),
        ({"in_features": ["c3", "c4"]}, "three of"),
        ({"in_features": ["c3", "c4", "p5"]}, "three of"),
        ({"in_features": ["c5", "c4", "c3"]}, "strides that double"),
        ({"num_layers": 0}, "at least 1"),
    ],
)
def test_bad_options_are_refused(kwargs, message):
    options = {"in_features": ["c3", "c4", "c5"], "channels": 8, "num_layers": 1, **kwargs}
    with pytest.raises(ValueError, match=message):
        BiFPN(bottom_up=Constant(), **options)


def test_timm_network_as_backbone_and_below_bifpn(tiny_cfg):
    pytest.importorskip("timm", reason="EfficientNet comes from the optional package timm")
    net = build_backbone(
        tiny_cfg("MODEL.BACKBONE.NAME", "build_bifpn_backbone", "MODEL.BIFPN.NUM_LAYERS", "1")
    )
    # EfficientNet-B0 taps (Tan and Le 2019, Table 1): stages 3, 5, 7.
    assert {k: (v.channels, v.stride) for k, v in net.bottom_up.output_shape().items()} == {
        "c3": (40, 8), "c4": (112, 16), "c5": (320, 32),
    }  # fmt: skip
    out = net.eval()(torch.zeros(1, 3, 128, 128))
    assert out["p3"].shape == (1, 64, 16, 16) and out["p7"].shape == (1, 64, 1, 1)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"name": "efficientnet_b99"}, "has no model 'efficientnet_b99'"),
        ({"name": "resnet18", "strides": [8, 64]}, r"some of \[2, 4, 8, 16, 32\]"),
    ],
)
def test_unknown_timm_model_or_stride_is_refused(kwargs, message):
    pytest.importorskip("timm", reason="timm is an optional package")
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**kwargs)


def test_missing_timm_is_explained(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        TimmBackbone(name="resnet18")
