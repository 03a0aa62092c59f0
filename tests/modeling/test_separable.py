"""EfficientDet's heads: convolutions shared by the levels, normalisation per level."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torch.nn import functional as F

from resobj_d2.modeling import SepConvTower, SharedSepConv
from resobj_d2.modeling.heads.separable import SeparableConv, SepConvStack
from resobj_d2.modeling.heads.single_cell_norm import SingleCellBatchNorm


def stack(levels=2, channels=4, num_convs=1, width=4):
    torch.manual_seed(0)
    return SepConvStack(in_channels=[width] * levels, channels=channels, num_convs=num_convs)


def test_separable_convolution_by_hand():
    conv = SeparableConv(in_channels=2, out_channels=1, bias_value=0.5)
    depthwise, pointwise = conv
    with torch.no_grad():
        depthwise.weight.copy_(torch.stack([torch.ones(1, 3, 3), torch.full((1, 3, 3), 2.0)]))
        pointwise.weight.copy_(torch.tensor([10.0, 100.0]).view(1, 2, 1, 1))
    image = torch.zeros(1, 2, 3, 3)
    image[0, 0, 0, 0] = 1.0
    image[0, 1, 2, 2] = 1.0
    # Each spot spreads over its 2x2 corner: 10 * 1 of channel 0, 100 * 2 of channel 1.
    expected = torch.tensor([[10.5, 10.5, 0.5], [10.5, 210.5, 200.5], [0.5, 200.5, 200.5]])
    torch.testing.assert_close(conv(image)[0, 0], expected)


def test_separable_convolution_keeps_the_variance():
    torch.manual_seed(0)
    conv = SeparableConv(in_channels=64, out_channels=64)
    y = conv(torch.randn(4, 64, 32, 32))[..., 1:-1, 1:-1]
    assert y.var().item() == pytest.approx(1.0, rel=0.2)


def test_levels_share_convolutions_but_not_statistics():
    module = stack(levels=3, num_convs=2).train()
    assert len(module.convs) == 2 and [len(n) for n in module.norms] == [3, 3]
    convolved = []
    module.convs[0].register_forward_hook(lambda m, inputs, output: convolved.append(output))
    torch.manual_seed(1)
    features = [torch.randn(2, 4, 8 // 2**i, 8 // 2**i) * 10**i for i in range(3)]
    module(features)
    for i, (norm, raw) in enumerate(zip(module.norms[0], convolved, strict=True)):
        values = raw.transpose(0, 1).flatten(1)
        # 0.99 of the initial 0 and 1, 0.01 of this batch's; torch keeps the unbiased variance.
        torch.testing.assert_close(norm.running_mean, 0.01 * values.mean(dim=1))
        torch.testing.assert_close(norm.running_var, 0.99 + 0.01 * values.var(dim=1))
        assert norm.running_var.max() > 10 ** (2 * i) * 0.01
    variances = [norm.running_var for norm in module.norms[0]]
    assert not torch.allclose(variances[0], variances[2], rtol=0.5)


def test_stack_equals_a_separate_network_per_level():
    module = stack(levels=2, num_convs=2).eval()
    for i, norm in enumerate(module.norms.modules()):
        if isinstance(norm, SingleCellBatchNorm):
            nn.init.constant_(norm.running_mean, 0.1 * i)
            nn.init.constant_(norm.running_var, 1.0 + i)
    features = [torch.randn(1, 4, 6, 6), torch.randn(1, 4, 3, 3)]
    for level, (x, y) in enumerate(zip(features, module(features), strict=True)):
        for conv, norms in zip(module.convs, module.norms, strict=True):
            norm = norms[level]
            x = F.conv2d(x, conv[0].weight, padding=1, groups=4)
            x = F.conv2d(x, conv[1].weight, conv[1].bias)
            scale = norm.weight / (norm.running_var + 1e-3).sqrt()
            x = (x - norm.running_mean.view(-1, 1, 1)) * scale.view(-1, 1, 1)
            x = x + norm.bias.view(-1, 1, 1)
            x = x * torch.sigmoid(x)
        torch.testing.assert_close(y, x)


def test_gradient_of_shared_weights_is_the_sum_over_levels():
    module = stack(levels=2).eval()  # so that no statistics depend on other levels
    features = [torch.randn(1, 4, 6, 6), torch.randn(1, 4, 3, 3)]
    weight = module.convs[0][1].weight
    parts = [torch.autograd.grad(module(features)[level].sum(), weight)[0] for level in range(2)]
    both = torch.autograd.grad(sum(x.sum() for x in module(features)), weight)[0]
    assert all(part.abs().sum() > 0 for part in parts)
    torch.testing.assert_close(both, parts[0] + parts[1])


def test_map_of_one_value_is_normalised_by_running_statistics():
    norm = SingleCellBatchNorm(2).train()
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([1.0, 2.0]))
        norm.running_var.copy_(torch.tensor([3.999, 8.999]))
    y = norm(torch.tensor([5.0, 8.0]).view(1, 2, 1, 1))
    torch.testing.assert_close(y.flatten(), torch.tensor([2.0, 2.0]))
    assert norm.running_mean.tolist() == [1.0, 2.0]
    assert norm.num_batches_tracked.item() == 0
    two = torch.tensor([[4.0, 8.0], [6.0, 8.0]]).view(2, 2, 1, 1)  # two images: batch statistics
    torch.testing.assert_close(
        norm(two)[:, 0].flatten(), torch.tensor([-1.0, 1.0]), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(norm.running_mean, torch.tensor([1.04, 2.06]))


def test_momentum_of_the_running_statistics_comes_from_the_config(method_cfg):
    opts = ["MODEL.BIFPN.BN_MOMENTUM", 0.2, "MODEL.DENSE.TOWER.BN_MOMENTUM", 0.3]
    model = build_model(method_cfg("efficientdet", opts=opts))
    momenta = {
        part: {m.momentum for m in module.modules() if isinstance(m, SingleCellBatchNorm)}
        for part, module in (("neck", model.backbone), ("tower", model.tower))
    }
    assert momenta == {"neck": {0.2}, "tower": {0.3}}
    with pytest.raises(ValueError, match="BN_MOMENTUM must be in"):
        SingleCellBatchNorm(2, momentum=0.0)


def test_tower_has_a_stack_per_task():
    tower = SepConvTower(in_channels=[4, 4], channels=6, num_convs=2)
    assert tower.out_channels == [6, 6]
    features = [torch.randn(2, 4, 4, 4), torch.randn(2, 4, 2, 2)]
    found = tower(features)
    assert [x.shape for x in found.cls] == [(2, 6, 4, 4), (2, 6, 2, 2)]
    assert not torch.equal(found.cls[0], found.box[0])
    assert found.pyramid is features
    box_only = SepConvTower(in_channels=[4, 4], channels=6, num_convs=1, tasks=["box"])
    assert [name for name, _ in box_only.named_children()] == ["box"]


def test_without_convolutions_the_stack_is_the_identity():
    module = stack(num_convs=0)
    features = [torch.randn(1, 4, 2, 2), torch.randn(1, 4, 1, 1)]
    assert module(features) is features and module.out_channels == [4, 4]


def test_hidden_layers_are_in_the_towers_style():
    tower = SepConvTower(in_channels=[4, 4], channels=4, num_convs=1, momentum=0.3)
    hidden = tower.hidden(in_channels=[4, 4], channels=[2, 2], num_convs=1)
    assert isinstance(hidden, SepConvStack) and hidden.out_channels == [2, 2]
    assert [norm.momentum for norm in hidden.norms[0]] == [0.3, 0.3]
    with pytest.raises(ValueError, match=r"one width, got \[2, 3\]"):
        tower.hidden(in_channels=[4, 4], channels=[2, 3], num_convs=1)


def predictor(channels, **kwargs):
    sizes = {"in_channels": [4, 4], "num_anchors": [2, 2]} | kwargs
    return SharedSepConv(channels=channels, **sizes)


def test_predictor_starts_at_its_bias_and_flattens_anchors_innermost():
    module = predictor(3, bias_value=-math.log(99))
    features = [torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 1, 1)]
    scores = torch.sigmoid(module(features))
    torch.testing.assert_close(scores, torch.full((1, 2 * 5, 3), 0.01))
    features = [torch.randn(1, 4, 2, 2), torch.randn(1, 4, 1, 1)]
    maps = module.maps(features).levels
    # Cell (1, 0), anchor 1, number 2 is row 2 * (1 * 2 + 0) + 1, and output channel 1 * 3 + 2.
    assert module(features)[0, 5, 2] == maps[0][0, 5, 1, 0]


def test_sum_of_predictors():
    predictors = [predictor(1, bias_value=float(i)) for i in range(3)]
    features = [[torch.randn(1, 4, 2, 2), torch.randn(1, 4, 1, 1)] for _ in predictors]
    found = SharedSepConv.sum_of(predictors, features).flatten()
    expected = sum(p(x) for p, x in zip(predictors, features, strict=True))
    torch.testing.assert_close(found, expected)


def test_unequal_levels_are_refused():
    with pytest.raises(ValueError, match=r"equal widths, got \[4, 8\]"):
        SepConvStack(in_channels=[4, 8], channels=4, num_convs=1)
    with pytest.raises(ValueError, match="SharedSepConv needs equal.*PerLevelConv"):
        predictor(1, num_anchors=[2, 3])
    with pytest.raises(ValueError, match="KERNEL_SIZE must be 1 or 3, got 5"):
        predictor(1, kernel_size=5)
