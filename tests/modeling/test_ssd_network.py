"""VGG16 and the extra levels of SSD512: shapes, names, normalisation."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone
from torch import nn
from torchvision.models import vgg16
from torchvision.models.vgg import cfgs, make_layers

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.checkpoint.vgg16 import convert_vgg16, vgg16_prefix
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
    """VGG16 without memory for its weights: only shapes and names matter."""
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


@pytest.fixture(scope="module")
def torchvision_vgg16():
    """torchvision's VGG16 with random convolutions and a classifier without memory."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = vgg16(weights=None)
    model.features.to_empty(device="cpu")
    for layer in model.features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.1)
    return model


def as_checkpoint(model):
    """Its weights; the values of the classifier encode their positions."""
    weights = model.state_dict()
    outputs = torch.arange(4096.0)
    place = torch.arange(49.0).repeat(512)  # fc6 reads 512 channels of 7x7
    weights["classifier.0.weight"] = place.expand(4096, 25088)
    weights["classifier.0.bias"] = outputs
    weights["classifier.3.weight"] = outputs.expand(4096, 4096)
    weights["classifier.3.bias"] = -outputs
    return {k: v for k, v in weights.items() if not v.is_meta}


def test_whole_torchvision_checkpoint_into_a_detectors_backbone(torchvision_vgg16, tmp_path):
    torch.save(as_checkpoint(torchvision_vgg16), tmp_path / "vgg16.pth")
    model = nn.ModuleDict(
        {"backbone": SSDExtras(bottom_up=SSDVGG16(), in_features=["conv4_3", "fc7"], channels=[8])}
    )
    ResObjCheckpointer(model).load(str(tmp_path / "vgg16.pth"))
    vgg = model["backbone"].bottom_up
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = vgg(image)
        conv4_3 = torchvision_vgg16.features[:23](image)
    assert conv4_3.abs().sum() > 0
    torch.testing.assert_close(found["conv4_3"], vgg.norm(conv4_3))
    # Rows and columns 0, 3 and 6 of 7; outputs 0, 4, 8, ...
    kept = torch.tensor([[0.0, 3, 6], [21, 24, 27], [42, 45, 48]])
    assert torch.equal(vgg.fc[0].weight, kept.expand(1024, 512, 3, 3))
    assert torch.equal(vgg.fc[0].bias, torch.arange(0, 4096.0, 4))
    assert torch.equal(vgg.fc[2].weight[:, :, 0, 0], torch.arange(0, 4096.0, 4).expand(1024, 1024))
    assert torch.equal(vgg.fc[2].bias, -torch.arange(0, 4096.0, 4))


def test_fc6_keeps_every_fourth_output():
    fc6 = torch.arange(4096.0)[:, None].expand(4096, 25088)
    weights = {"classifier.0.weight": fc6, "classifier.0.bias": torch.zeros(4096)}
    weights["classifier.3.weight"] = torch.arange(4096.0)[:, None].expand(4096, 4096)
    weights["classifier.3.bias"] = torch.zeros(4096)
    found = convert_vgg16(weights, "net.")
    expected = torch.arange(0, 4096.0, 4)
    assert torch.equal(found["net.fc.0.weight"][:, 511, 2, 2], expected)
    assert torch.equal(found["net.fc.2.weight"][:, 1023, 0, 0], expected)


def test_other_vggs_are_refused():
    with pytest.raises(ValueError, match="features.28.weight has the shape .512,."):
        convert_vgg16({"features.28.weight": torch.zeros(512)})


def test_prefix_of_the_network_in_a_model(network):
    assert vgg16_prefix(f"backbone.bottom_up.{k}" for k in network.state_dict()) == (
        "backbone.bottom_up."
    )
    assert vgg16_prefix(network.state_dict()) == ""
    assert vgg16_prefix(["features.28.weight", "classifier.0.weight"]) is None


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


def test_resnet_with_extra_levels_by_config(resnet_cfg):
    cfg = resnet_cfg(
        "MODEL.BACKBONE.NAME", "build_ssd_extras_backbone",
        "MODEL.SSD_EXTRAS.BOTTOM_UP", "build_resnet_backbone",
        "MODEL.SSD_EXTRAS.IN_FEATURES", "['res3', 'res4', 'res5']",
        "MODEL.SSD_EXTRAS.CHANNELS", "[16, 8]",
        "MODEL.SSD_EXTRAS.LAST_KERNEL", "3",
    )  # fmt: skip
    out = build_backbone(cfg)(torch.zeros(1, 3, 128, 128))
    assert [x.shape[-1] for x in out.values()] == [16, 8, 4, 2, 1]
