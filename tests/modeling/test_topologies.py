"""Feature pyramids other than BiFPN, made of its nodes, and FPN on any backbone."""

import pytest
import torch
from detectron2.modeling import build_backbone
from torch import nn

from resobj_d2.modeling.necks import BiFPN
from resobj_d2.modeling.necks.bifpn import _AttentionFusion, _Node
from tests.modeling.test_bifpn import Constant, Sum

PATHS = {
    # Each level's output as a sum of inputs 1, 10, ... 10000, worked out along the arrows.
    "fpn": [11111, 11110, 11100, 11000, 10000],
    "fully_connected": [11111] * 5,
}


def layer_of(topology):
    neck = BiFPN(
        bottom_up=Constant((1, 1, 1)),
        in_features=["c3", "c4", "c5"],
        channels=1,
        num_layers=1,
        topology=topology,
    )
    (layer,) = neck.layers
    layer.laterals = nn.ModuleList()
    return layer


def pass_on(layer):
    """The layer's outputs where every node only adds, and where attention is a plain sum."""
    layer.nodes = nn.ModuleList(Sum() for _ in layer.nodes)
    maps = [torch.full((1, 1, 16 >> i, 32 >> i), 10.0**i) for i in range(5)]
    out = layer(maps)
    assert [x.shape for x in out] == [x.shape for x in maps]
    assert all((x == x[0, 0, 0, 0]).all() for x in out)
    return [int(x[0, 0, 0, 0]) for x in out]


@pytest.mark.parametrize("topology", PATHS)
def test_paths_by_hand(topology):
    assert pass_on(layer_of(topology)) == PATHS[topology]


def test_panet_goes_down_and_up_again_by_hand():
    down = [11111, 11110, 11100, 11000, 10000]
    up = [down[0]]
    for x in down[1:]:
        up.append(x + up[-1])
    assert pass_on(layer_of("panet")) == up


def test_nas_fpn_by_hand():
    p3, p4, p5, p6, p7 = (10**i for i in range(5))
    first = p6 + p4  # an attention cell, here a sum
    second = first + p4
    out3 = second + p3
    out4 = out3 + second
    out5 = (out4 + out3) + p5
    out7 = (out5 + second) + p7
    out6 = out7 + out5
    assert pass_on(layer_of("nas_fpn")) == [out3, out4, out5, out6, out7]
    layer = layer_of("nas_fpn")
    attends = [isinstance(node.fusion, _AttentionFusion) for node in layer.nodes]
    assert attends == [True, False, False, False, True, False, True, False, True]


def test_attention_by_hand():
    a, b = torch.full((1, 1, 2, 2), 3.0), torch.tensor([[[[0.0, 2.0], [1.0, 1.0]]]])
    expected = 3 / (1 + torch.exp(torch.tensor(-1.0))) + b
    torch.testing.assert_close(_AttentionFusion()([a, b]), expected)


@pytest.mark.parametrize(
    "topology, nodes", [("fpn", 5), ("panet", 10), ("nas_fpn", 9), ("fully_connected", 5)]
)
def test_only_the_first_layer_has_laterals(topology, nodes):
    neck = BiFPN(
        bottom_up=Constant(), in_features=["c3", "c4", "c5"], channels=4, num_layers=2,
        topology=topology, fusion="softmax",
    )  # fmt: skip
    first, second = neck.layers
    assert (len(first.laterals), len(second.laterals)) == (3, 0)
    assert len(first.nodes) == len(second.nodes) == nodes
    assert all(isinstance(node, _Node) for node in first.nodes)
    out = neck(torch.zeros(1, 3, 128, 256))
    assert {name: tuple(x.shape) for name, x in out.items()} == {
        f"p{i}": (1, 4, 128 >> i, 256 >> i) for i in range(3, 8)
    }


def test_an_unknown_topology_is_refused():
    with pytest.raises(ValueError, match="TOPOLOGY must be one of bifpn, fpn, .* got 'pafpn'"):
        BiFPN(bottom_up=Constant(), in_features=["c3", "c4", "c5"], topology="pafpn")


@pytest.fixture
def fpn_cfg(tiny_cfg):
    def build(*opts):
        return tiny_cfg(
            "MODEL.BACKBONE.NAME", "build_fpn_backbone",
            "MODEL.ANY_FPN.BOTTOM_UP", "build_toy_backbone",
            "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"],
            "MODEL.FPN.OUT_CHANNELS", 8, *opts,
        )  # fmt: skip

    return build


@pytest.mark.parametrize(
    "block, levels, source",
    [
        ("p6p7_from_c5", [3, 4, 5, 6, 7], "res5"),
        ("p6p7_from_p5", [3, 4, 5, 6, 7], "p5"),
        ("max_pool", [3, 4, 5, 6], "p5"),
        ("none", [3, 4, 5], None),
    ],
)
def test_fpn_on_any_backbone(fpn_cfg, block, levels, source):
    neck = build_backbone(fpn_cfg("MODEL.ANY_FPN.TOP_BLOCK", block))
    assert {k: (v.channels, v.stride) for k, v in neck.output_shape().items()} == {
        f"p{i}": (8, 2**i) for i in levels
    }
    image = torch.rand(1, 3, 128, 128)
    out = neck(image)
    assert [tuple(x.shape[-2:]) for x in out.values()] == [(128 >> i, 128 >> i) for i in levels]
    if block.startswith("p6p7"):
        below = neck.bottom_up(image)[source] if source == "res5" else out[source]
        torch.testing.assert_close(out["p6"], neck.top_block.p6(below))


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.ANY_FPN.TOP_BLOCK", "p6"], "TOP_BLOCK must be one of p6p7_from_c5"),
        (["MODEL.FPN.IN_FEATURES", ["res2"]], r"lists \['res2'\], but build_toy_backbone has"),
        (["MODEL.FPN.IN_FEATURES", ["res3", "res5"]], r"strides that double, got \[8, 32\]"),
    ],
)
def test_bad_options_of_the_fpn_are_refused(fpn_cfg, opts, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(fpn_cfg(*opts))
