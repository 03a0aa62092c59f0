import pytest
import torch
from torch import nn

from resobj_d2.modeling.backbones import TimmBackbone
from resobj_d2.modeling.backbones.same_padding import SameConv2d, replace_same_convolutions

timm = pytest.importorskip("timm")


def test_by_hand():
    layer = SameConv2d(1, 1, 3, stride=2, bias=False)
    nn.init.ones_(layer.weight)
    found = layer(torch.arange(20.0).reshape(1, 1, 4, 5))
    # Two and three outputs need five rows and seven columns: a row is added at the bottom, a column
    # at the left and one at the right.
    first = [0 + 1 + 5 + 6 + 10 + 11, 6 + 21 + 36, 3 + 4 + 8 + 9 + 13 + 14]
    second = [10 + 11 + 15 + 16, 36 + 51, 13 + 14 + 18 + 19]
    assert found.tolist() == [[[first, second]]]


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_equals_timm_for_every_size(kernel, stride, dilation):
    torch.manual_seed(0)
    options = {"stride": stride, "dilation": dilation, "groups": 2}
    model = nn.Sequential(timm.layers.Conv2dSame(2, 4, kernel, **options))
    pictures = [torch.randn(1, 2, 6 + size, 9 - size) for size in range(6)]
    expected = [model(x) for x in pictures]
    replace_same_convolutions(model)
    assert type(model[0]) is SameConv2d
    assert all(torch.equal(model(x), y) for x, y in zip(pictures, expected, strict=True))


def test_a_backbone_has_the_maps_and_names_of_timm():
    torch.manual_seed(0)
    name = "tf_efficientnet_lite0"
    model = timm.create_model(name, features_only=True, out_indices=(2, 4)).eval()
    backbone = TimmBackbone(name=name, strides=(8, 32)).eval()
    backbone.model.load_state_dict(model.state_dict())
    picture = torch.randn(1, 3, 64, 96)
    for found, expected in zip(backbone(picture).values(), model(picture), strict=True):
        assert torch.equal(found, expected)


def test_sizes_of_exported_maps_stay_simple():
    backbone = TimmBackbone(name="tf_efficientnet_lite0", strides=(8, 32)).eval()
    sides = {2: 32 * torch.export.Dim("h", max=64), 3: 32 * torch.export.Dim("w", max=64)}
    program = torch.export.export(backbone, (torch.randn(1, 3, 64, 96),), dynamic_shapes=(sides,))
    coarsest = program.graph.output_node().args[0][-1].meta["val"]
    assert not any("//" in str(side) for side in coarsest.shape)
