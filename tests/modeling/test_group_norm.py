import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from resobj_d2.engine import Trainer
from resobj_d2.modeling.dense_detector import ResObjDenseDetector
from resobj_d2.modeling.heads.single_cell_norm import (
    SingleCellBatchNorm,
    SingleCellGroupNorm,
    take_single_cells,
)
from tests.conftest import RESNET

GN = ["MODEL.DENSE.TOWER.NORM", "GN", "MODEL.DENSE.TOWER.NUM_CONVS", 1]


@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 8, 1, 1), (1, 8, 2, 1), (0, 8, 1, 1)])
@pytest.mark.parametrize("groups", [4, 8])
def test_an_image_alone_is_normalised_as_in_a_batch(shape, groups):
    x = torch.randn(shape)
    own, torchs = SingleCellGroupNorm(groups, 8), nn.GroupNorm(groups, 8)
    nn.init.normal_(own.bias)
    torchs.load_state_dict(own.state_dict())
    expected = torchs(torch.cat([x, torch.randn(2, *shape[1:])]))[: len(x)]
    assert torch.equal(own(x), expected)


def test_a_tower_of_32_channels_takes_a_single_cell(tiny_cfg):
    model = ResObjDenseDetector(tiny_cfg(*GN, "MODEL.DENSE.TOWER.CHANNELS", 32)).eval()
    nn.init.normal_(model.tower.cls[1].bias)
    cell = torch.randn(1, model.tower.cls[0].in_channels, 1, 1)
    (alone,) = model.tower.run("cls", [cell])
    (both,) = model.tower.run("cls", [torch.cat([cell, -cell])])
    torch.testing.assert_close(alone, both[:1], rtol=0, atol=1e-5)
    expected = model.tower.cls[1].bias.relu().view(1, -1, 1, 1)
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [24, 48])
def test_channels_that_groups_do_not_divide(tiny_cfg, channels):
    with pytest.raises(ValueError, match=f"TOWER.CHANNELS {channels} .* a multiple of 32"):
        ResObjDenseDetector(tiny_cfg(*GN, "MODEL.DENSE.TOWER.CHANNELS", channels))


@pytest.mark.parametrize("norm", ["GN", "BN"])
def test_a_pyramid_whose_coarsest_map_is_one_cell_trains_on_one_image(resnet_cfg, make_batch, norm):
    """P5 of 32 x 32 pixels: one value per channel, of which there are as many as groups."""
    model = ResObjDenseDetector(resnet_cfg("MODEL.FPN.NORM", norm))
    losses = model(make_batch([(32, 32, 1)]))
    sum(losses.values()).backward()
    assert all(torch.isfinite(x) for x in losses.values())
    assert len(model.eval()(make_batch([(32, 32, 1)]))) == 1


def test_only_layers_that_could_fail_are_exchanged():
    layers = nn.Sequential(nn.GroupNorm(4, 8), nn.GroupNorm(8, 8), nn.BatchNorm2d(8, eps=0.5))
    weights = {name: value.clone() for name, value in layers.state_dict().items()}
    take_single_cells(layers)
    assert [type(x) for x in layers] == [nn.GroupNorm, SingleCellGroupNorm, SingleCellBatchNorm]
    assert layers[2].eps == 0.5 and layers.state_dict().keys() == weights.keys()


@pytest.mark.parametrize("norm", ["GN", "BN"])
def test_two_stage_detectors_of_the_trainer_take_a_single_cell(tiny_rcnn, make_batch, norm):
    model = Trainer.build_model(tiny_rcnn(*RESNET, "MODEL.FPN.NORM", norm))
    with EventStorage():
        losses = model(make_batch([(32, 32, 1)]))
    assert all(torch.isfinite(x) for x in losses.values())
    assert len(model.eval()(make_batch([(32, 32, 1)]))) == 1
