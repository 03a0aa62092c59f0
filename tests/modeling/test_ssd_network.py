"""VGG16 and the extra levels of SSD512: shapes, names, normalisation."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone
from torch import nn
from torchvision.models import vgg16
from torchvision.models.vgg import cfgs, make_layers

from resobj_d2.modeling.backbones import SSDVGG16, ChannelNorm
from resobj_d2.modeling.necks import SSDExtras


class Coarse(Backbone):
    """One map of stride 16."""

    size_divisibility = 16

    def forward(self, image):
        return {"c4": torch.ones(len(image), 6, *(x // 16 for x in image.shape[-2:]))}

    def output_shape(self):
        return {"c4": ShapeSpec(channels=6, stride=16)}


@pytest.fixture(scope="module")
def network():
    """VGG16 without memory for its weights: shapes and names are all that matters."""
    with torch.device("meta"):
        return SSDVGG16(freeze_at=2)


def test_ssd512_has_seven_maps_of_the_published_sizes(network):
    with torch.device("meta"):
        neck = SSDExtras(
            bottom_up=network, in_features=["conv4_3", "fc7"], channels=[512, 256, 256, 256, 256]
        )
        out = neck(torch.zeros(1, 3, 512, 512))
    assert [x.shape[-1] for x in out.values()] == [64, 32, 16, 8, 4, 2, 1]
    assert [x.shape[1] for x in out.values()] == [512, 1024, 512, 256, 256, 256, 256]
    assert list(out) == [f"s{i}" for i in range(1, 8)]
    assert [s.stride for s in neck.output_shape().values()] == [8, 16, 32, 64, 128, 256, 512]
    assert neck.extras[-1][2].kernel_size == (4, 4)
    assert neck.size_divisibility == 512


def test_layers_carry_torchvisions_names(network):
    with torch.device("meta"):
        reference = vgg16(weights=None).state_dict()
    own = network.state_dict()
    shared = {k: v.shape for k, v in reference.items() if k.startswith("features.")}
    assert len(shared) == 26
    assert all(own[k].shape == shape for k, shape in shared.items())


def test_torchvision_checkpoint_loads(tmp_path):
    torch.manual_seed(0)
    features = {f"features.{k}": v for k, v in make_layers(cfgs["D"]).state_dict().items()}
    torch.save({"model": features}, tmp_path / "vgg16.pth")
    network = SSDVGG16()
    DetectionCheckpointer(network).load(str(tmp_path / "vgg16.pth"))
    assert torch.equal(network.features[28].weight, features["features.28.weight"])


def test_frozen_blocks(network):
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {f"features.{i}.{k}" for i in (0, 2, 5, 7) for k in ("weight", "bias")}


def test_channel_norm_by_hand():
    norm = ChannelNorm(channels=2, scale=10.0)
    x = torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])
    torch.testing.assert_close(norm(x), torch.tensor([[[[6.0, 0.0]], [[8.0, 0.0]]]]))
    norm(x).sum().backward()
    torch.testing.assert_close(norm.weight.grad, torch.tensor([0.6, 0.8]))


def test_extra_levels_halve_any_size():
    neck = SSDExtras(bottom_up=Coarse(), in_features=["c4"], channels=[8, 4], last_kernel=4)
    out = neck(torch.zeros(2, 3, 128, 192))
    assert [tuple(x.shape) for x in out.values()] == [(2, 6, 8, 12), (2, 8, 4, 6), (2, 4, 2, 3)]
    assert all((x >= 0).all() for x in list(out.values())[1:])
    assert all(m.bias.abs().sum() == 0 for m in neck.extras.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"in_features": ["c5"]}, "IN_FEATURES"),
        ({"in_features": []}, "IN_FEATURES"),
        ({"last_kernel": 5}, "LAST_KERNEL"),
    ],
)
def test_bad_options_are_refused(kwargs, message):
    options = {"in_features": ["c4"], "channels": [4], **kwargs}
    with pytest.raises(ValueError, match=message):
        SSDExtras(bottom_up=Coarse(), **options)


def test_freeze_at_out_of_range_is_refused():
    with pytest.raises(ValueError, match="FREEZE_AT must be 0..5"), torch.device("meta"):
        SSDVGG16(freeze_at=6)


def test_resnet_with_extra_levels_by_config(tiny_cfg):
    cfg = tiny_cfg(
        "MODEL.BACKBONE.NAME", "build_ssd_extras_backbone",
        "MODEL.SSD_EXTRAS.BOTTOM_UP", "build_resnet_backbone",
        "MODEL.SSD_EXTRAS.IN_FEATURES", "['res3', 'res4', 'res5']",
        "MODEL.SSD_EXTRAS.CHANNELS", "[16, 8]",
        "MODEL.SSD_EXTRAS.LAST_KERNEL", "3",
    )  # fmt: skip
    out = build_backbone(cfg)(torch.zeros(1, 3, 128, 128))
    assert [x.shape[-1] for x in out.values()] == [16, 8, 4, 2, 1]
