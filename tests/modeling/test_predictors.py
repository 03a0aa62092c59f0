"""Predictors: which layer serves which level."""

import pytest
import torch
from torch.nn import functional as F

from resobj_d2.modeling import ConvTower, NoTower, PerLevelConv, SharedConv

SIZES = {"in_channels": [4, 4], "num_anchors": [2, 2], "channels": 3}


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_one_convolution_for_all_levels(kernel_size):
    predictor = SharedConv(**SIZES, bias_value=-2.0, kernel_size=kernel_size)
    maps = [torch.randn(2, 4, 5, 3), torch.randn(2, 4, 1, 2)]
    for x, found in zip(maps, predictor.maps(maps).levels, strict=True):
        expected = F.conv2d(x, predictor.weight, predictor.bias, padding=kernel_size // 2)
        assert torch.equal(found, expected) and found.shape[1] == 6
    assert predictor.bias.tolist() == [-2.0] * 6
    assert len(list(predictor.parameters())) == 2
    assert predictor(maps).shape == (2, 2 * (15 + 2), 3)


def test_a_convolution_for_each_level():
    predictor = PerLevelConv(in_channels=[4, 6], num_anchors=[2, 5], channels=3, bias_value=1.0)
    maps = [torch.randn(2, 4, 5, 3), torch.randn(2, 6, 1, 2)]
    found = predictor.maps(maps)
    assert [x.shape[1] for x in found.levels] == [6, 15]
    # Anchor 4 of the second level's second cell; 2 * 15 anchors come before that level.
    assert torch.equal(predictor(maps)[1, 30 + 5 + 4], found.levels[1][1, 12:15, 0, 1])
    assert all((layer.bias == 1).all() for layer in predictor.levels)
    bound = (6 / (9 * (6 + 15))) ** 0.5  # Glorot and Bengio, Eq. 16
    largest = predictor.levels[1].weight.abs().max().item()
    assert 0.9 * bound < largest <= bound


def test_initial_weights_have_the_papers_deviation():
    """N(0, 0.01) in towers and predictors (RetinaNet, section 4.1).

    Of n such weights the mean deviates by .01 / sqrt(n), the deviation by .01 / sqrt(2 n).
    """
    torch.manual_seed(0)
    predictor = SharedConv(in_channels=[32], num_anchors=[9], channels=10)
    tower = ConvTower(in_channels=[32], channels=48, num_convs=2)
    for name, weight in [*predictor.named_parameters(), *tower.named_parameters()]:
        if name.endswith("bias"):
            assert not weight.any(), name
            continue
        n = weight.numel()
        assert n > 10000
        assert weight.mean().item() == pytest.approx(0.0, abs=5 * 0.01 / n**0.5), name
        assert weight.std().item() == pytest.approx(0.01, abs=5 * 0.01 / (2 * n) ** 0.5), name


@pytest.mark.parametrize("kind", [SharedConv, PerLevelConv])
def test_the_sum_of_predictors(kind):
    torch.manual_seed(0)
    wide = {**SIZES, "in_channels": [5, 5]}
    predictors = [kind(**SIZES, bias_value=0.5), kind(**wide, bias_value=0.25)]
    features = [[torch.randn(1, n, 3, 3), torch.randn(1, n, 2, 1)] for n in (4, 5)]
    expected = predictors[0](features[0]) + predictors[1](features[1])
    torch.testing.assert_close(kind.sum_of(predictors, features).flatten(), expected)


@pytest.mark.parametrize("key, value", [("in_channels", [4, 6]), ("num_anchors", [4, 6])])
def test_a_shared_convolution_needs_equal_levels(key, value):
    with pytest.raises(ValueError, match=r"equal channels and anchors .*\[4, 6\].*PerLevelConv"):
        SharedConv(**{**SIZES, key: value})


@pytest.mark.parametrize("kind", [SharedConv, PerLevelConv])
def test_kernel_sizes(kind):
    with pytest.raises(ValueError, match="KERNEL_SIZE must be 1 or 3, got 2"):
        kind(**SIZES, kernel_size=2)


def test_no_tower():
    tower = NoTower(in_channels=[4, 6])
    maps = [torch.randn(1, 4, 2, 2), torch.randn(1, 6, 1, 1)]
    features = tower(maps)
    assert tower.out_channels == [4, 6] and not list(tower.parameters())
    assert features.cls is maps and features.box is maps and features.pyramid is maps
    hidden = tower.hidden(in_channels=[4, 6], channels=[8, 3], num_convs=2)
    assert hidden.out_channels == [8, 3]
    assert [x.shape for x in hidden(maps)] == [(1, 8, 2, 2), (1, 3, 1, 1)]
