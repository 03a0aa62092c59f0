"""The Balanced Feature Pyramid against values computed by hand and a plain loop."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_model
from torch import nn

from resobj_d2.modeling.necks import BalancedFeaturePyramid, NonLocalRefine


class FixedPyramid(Backbone):
    """Three levels with given contents, not listed in the order of their strides."""

    size_divisibility = 8

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, image):
        return dict(self.maps)

    def output_shape(self):
        strides = {"fine": 2, "middle": 4, "coarse": 8}
        return {name: ShapeSpec(channels=1, stride=strides[name]) for name in self.maps}


def fixed_maps():
    fine = torch.arange(16.0).view(1, 1, 4, 4)  # maxima of its 2x2 blocks: 5 7 13 15
    middle = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    coarse = torch.full((1, 1, 1, 1), 6.0)
    return {"coarse": coarse, "fine": fine, "middle": middle}


def test_adds_the_mean_of_all_levels_resized_to_the_middle_one():
    bfp = BalancedFeaturePyramid(
        pyramid=FixedPyramid(fixed_maps()), refine_level=1, refine=nn.Identity()
    )
    out = bfp(torch.zeros(1, 3, 8, 8))
    # (5 + 1 + 6) / 3, (7 + 2 + 6) / 3, (13 + 3 + 6) / 3, (15 + 4 + 6) / 3
    mean = torch.tensor([[4.0, 5.0], [22 / 3, 25 / 3]]).view(1, 1, 2, 2)
    torch.testing.assert_close(out["middle"], fixed_maps()["middle"] + mean)
    torch.testing.assert_close(out["coarse"], torch.full((1, 1, 1, 1), 6.0 + 25 / 3))
    repeated = mean.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(out["fine"], fixed_maps()["fine"] + repeated)
    assert bfp.levels == ["fine", "middle", "coarse"]
    assert bfp.size_divisibility == 8


def test_refinement_acts_on_the_mean():
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    plain, doubled = (
        BalancedFeaturePyramid(pyramid=FixedPyramid(fixed_maps()), refine_level=1, refine=refine)
        for refine in (nn.Identity(), Double())
    )
    image = torch.zeros(1, 3, 8, 8)
    maps = fixed_maps()
    for name in maps:
        torch.testing.assert_close(
            doubled(image)[name] - maps[name], 2 * (plain(image)[name] - maps[name])
        )


def test_non_local_is_softmax_attention_over_positions():
    torch.manual_seed(0)
    module = NonLocalRefine(channels=3).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 2, 3, dtype=torch.float64)
    out = module(x)
    for n in range(2):
        positions = x[n].flatten(1).t()  # (6, 3)

        def linear(conv, v):
            return conv.weight[:, :, 0, 0] @ v + conv.bias

        for i, xi in enumerate(positions):
            energies = torch.stack(
                [linear(module.theta, xi) @ linear(module.phi, xj) for xj in positions]
            )
            weights = energies.exp() / energies.exp().sum()
            y = sum(w * linear(module.g, xj) for w, xj in zip(weights, positions, strict=True))
            expected = xi + linear(module.out, y)
            torch.testing.assert_close(out[n].flatten(1)[:, i], expected)


def test_non_local_starts_as_the_identity():
    x = torch.randn(1, 8, 5, 4)
    assert torch.equal(NonLocalRefine(channels=8)(x), x)


@pytest.mark.parametrize("level", [-1, 3])
def test_unknown_level_is_refused(level):
    with pytest.raises(ValueError, match="REFINE_LEVEL must be 0..2"):
        BalancedFeaturePyramid(
            pyramid=FixedPyramid(fixed_maps()), refine_level=level, refine=nn.Identity()
        )


BFP = [
    "MODEL.BACKBONE.NAME", "build_balanced_fpn_backbone",
    "MODEL.BFP.PYRAMID", "build_toy_pyramid",
]  # fmt: skip


def test_detector_trains_and_detects_with_it(tiny_cfg, make_batch):
    torch.manual_seed(0)
    model = build_model(tiny_cfg(*BFP))
    batch = make_batch([(96, 64, 2), (64, 96, 0)])
    losses = model(batch)
    sum(losses.values()).backward()
    grads = {n: p.grad for n, p in model.named_parameters()}
    assert all(g is not None and torch.isfinite(g).all() for g in grads.values())
    assert grads["backbone.refine.out.weight"].abs().max() > 0
    model.eval()
    with torch.no_grad():
        assert len(model(batch)) == 2


def test_pyramid_of_a_two_stage_detector(resnet_cfg):
    model = build_model(
        resnet_cfg(
            *BFP,
            "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
            "MODEL.BFP.PYRAMID", "build_resnet_fpn_backbone",
            "MODEL.BFP.REFINE_LEVEL", "2",
            "MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']",
            "MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']",
            "MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4', 'p5', 'p6']",
            "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
            "MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3', 'p4', 'p5']",
            "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
            "MODEL.ROI_BOX_HEAD.NUM_FC", "1",
            "MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64], [128], [256], [512]]",
        )
    )  # fmt: skip
    assert model.backbone.levels == ["p2", "p3", "p4", "p5", "p6"]
    features = model.backbone(torch.randn(1, 3, 64, 64))
    assert {name: x.shape[-1] for name, x in features.items()} == {
        "p2": 16, "p3": 8, "p4": 4, "p5": 2, "p6": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("REFINE", "conv", "'non_local' or 'none', got 'conv'"),
        ("PYRAMID", "build_balanced_fpn_backbone", "not BFP itself"),
        ("PYRAMID", "build_toy_backbone", "levels of equal width"),
    ],
)
def test_bad_configuration_is_refused(tiny_cfg, key, value, message):
    with pytest.raises(ValueError, match=message):
        build_model(tiny_cfg(*BFP, f"MODEL.BFP.{key}", value))


def test_refinement_can_be_disabled(tiny_cfg):
    model = build_model(tiny_cfg(*BFP, "MODEL.BFP.REFINE", "none"))
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(model.backbone.refine(x), x)
    assert not list(model.backbone.refine.parameters())
