"""DarkNet-53's layout, and Darknet's weight files against a forward pass written in numpy."""

import struct

import numpy as np
import pytest
import torch
from detectron2.modeling import build_backbone
from torch import nn

from resobj_d2.checkpoint.darknet_file import (
    DarknetWeightsError,
    load_darknet_weights,
    save_darknet_weights,
)
from resobj_d2.modeling.backbones import DarkNet

SMALL = {"stem_channels": 2, "blocks": (1, 0, 2, 0, 1)}


def test_darknet_53_has_the_published_layers():
    net = DarkNet()
    convolutions = [conv for _, conv, _ in net.convolutions()]
    assert len(convolutions) == 52  # the 53rd layer is the classifier
    widths = [conv.out_channels for conv in convolutions]
    expected = [32]
    for channels, blocks in [(64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)]:
        expected += [channels] + [channels // 2, channels] * blocks
    assert widths == expected
    # Size of the published darknet53.conv.74: a header of 20 bytes and these numbers in float32.
    numbers = sum(conv.weight.numel() + 4 * conv.out_channels for conv in convolutions)
    assert 20 + 4 * numbers == 162482580


def test_outputs_have_the_declared_shapes(tiny_cfg):
    cfg = tiny_cfg(
        "MODEL.BACKBONE.NAME", "build_darknet_backbone",
        "MODEL.DARKNET.STEM_CHANNELS", "4",
        "MODEL.DARKNET.BLOCKS", "[1, 1, 1, 1, 1]",
    )  # fmt: skip
    net = build_backbone(cfg).eval()
    assert net.size_divisibility == 32
    features = net(torch.randn(2, 3, 64, 96))
    assert list(features) == ["dark3", "dark4", "dark5"]
    for name, spec in net.output_shape().items():
        assert features[name].shape == (2, spec.channels, 64 // spec.stride, 96 // spec.stride)


def test_freezing_stops_gradients_and_statistics():
    net = DarkNet(**SMALL, freeze_at=3).train()
    frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
    assert {name.split(".")[0] for name in frozen} == {"stem", "dark1", "dark2"}
    before = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
    net(torch.randn(2, 3, 64, 64))
    after = net.state_dict()
    changed = {k.split(".")[0] for k, v in before.items() if not torch.equal(v, after[k])}
    assert changed == {"dark3", "dark4", "dark5"}


def numpy_conv(x, kernel, stride):
    """Correlation of (C, H, W) with (O, C, k, k), padded by k // 2, in the simplest form."""
    out, _, k, _ = kernel.shape
    pad = k // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    height = (x.shape[1] - k) // stride + 1
    width = (x.shape[2] - k) // stride + 1
    y = np.zeros((out, height, width))
    for i in range(height):
        for j in range(width):
            patch = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            y[:, i, j] = (kernel * patch).sum(axis=(1, 2, 3))
    return y


class NumpyDarknet:
    """Reads a weight file sequentially while it runs, like Darknet's parser."""

    def __init__(self, path):
        data = path.read_bytes()
        assert struct.unpack("<iii", data[:12]) == (0, 2, 0)
        self.seen = struct.unpack("<q", data[12:20])[0]
        self.numbers = np.frombuffer(data, dtype="<f4", offset=20).astype(np.float64)
        self.at = 0

    def take(self, *shape):
        count = int(np.prod(shape))
        self.at += count
        return self.numbers[self.at - count : self.at].reshape(shape)

    def conv(self, x, out, k, stride=1):
        beta, gamma, mean, variance = (self.take(out) for _ in range(4))
        y = numpy_conv(x, self.take(out, x.shape[0], k, k), stride)
        y = (y - mean[:, None, None]) / (np.sqrt(variance) + 1e-6)[:, None, None]
        y = y * gamma[:, None, None] + beta[:, None, None]
        return np.where(y > 0, y, 0.1 * y)

    def forward(self, x, stem_channels, blocks):
        x = self.conv(x, stem_channels, 3)
        outputs = []
        for count in blocks:
            x = self.conv(x, 2 * x.shape[0], 3, stride=2)
            for _ in range(count):
                x = x + self.conv(self.conv(x, x.shape[0] // 2, 1), x.shape[0], 3)
            outputs.append(x)
        assert self.at == len(self.numbers)
        return outputs


def randomised(seed):
    torch.manual_seed(seed)
    net = DarkNet(**SMALL, out_features=("dark1", "dark3", "dark5")).eval()
    for _, conv, norm in net.convolutions():
        nn.init.normal_(conv.weight, std=0.4)
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.detach().normal_()
        norm.running_var.uniform_(0.5, 2.0)
    return net


def test_file_layout_agrees_with_a_numpy_forward(tmp_path):
    net = randomised(0)
    path = tmp_path / "small.weights"
    save_darknet_weights(path, net.convolutions(), seen=7)
    image = torch.randn(1, 3, 32, 64)
    reader = NumpyDarknet(path)
    outputs = reader.forward(image[0].numpy(), **SMALL)
    assert reader.seen == 7
    found = net(image)
    for level, name in [(0, "dark1"), (2, "dark3"), (4, "dark5")]:
        np.testing.assert_allclose(
            found[name][0].detach().numpy(), outputs[level], rtol=1e-3, atol=1e-4
        )


def test_round_trip(tmp_path):
    path = tmp_path / "small.weights"
    save_darknet_weights(path, randomised(0).convolutions(), seen=123456789012)
    other = randomised(1)
    assert load_darknet_weights(path, other.convolutions()) == 123456789012
    for (name, a), (_, b) in zip(
        other.state_dict().items(), randomised(0).state_dict().items(), strict=True
    ):
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(a, b)


def test_old_header_counts_images_in_32_bits(tmp_path):
    conv = nn.Conv2d(1, 1, 1)
    path = tmp_path / "old.weights"
    path.write_bytes(struct.pack("<iiii", 0, 1, 0, 64) + struct.pack("<ff", 0.5, -2.0))
    assert load_darknet_weights(path, [("only", conv, None)]) == 64
    assert conv.bias.item() == 0.5 and conv.weight.item() == -2.0


def test_truncated_file_names_the_layer_and_changes_nothing(tmp_path):
    net = randomised(0)
    path = tmp_path / "cut.weights"
    save_darknet_weights(path, net.convolutions())
    path.write_bytes(path.read_bytes()[:100])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    # The stem: beta, gamma, mean, variance (2 numbers each) and a kernel of 54; 20 + 4 * 8 = 52.
    with pytest.raises(DarknetWeightsError, match=r"inside stem kernel .*bytes 52 to 268"):
        load_darknet_weights(path, net.convolutions())
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


def test_longer_file_is_refused(tmp_path):
    net = randomised(0)
    path = tmp_path / "long.weights"
    save_darknet_weights(path, net.convolutions())
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"\0" * 12)
    with pytest.raises(DarknetWeightsError, match=f"12 bytes are left over .* at byte {size}"):
        load_darknet_weights(path, net.convolutions())


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "0 bytes"),
        (b"\x80\x04PK" * 10, "no Darknet weights file"),
        (struct.pack("<iiii", 0, 2, 0, 0), "ends inside its header"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "x.weights"
    path.write_bytes(content)
    with pytest.raises(DarknetWeightsError, match=message):
        load_darknet_weights(path, [("only", nn.Conv2d(1, 1, 1), None)])


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="Darknet weights not found"):
        load_darknet_weights(tmp_path / "none.weights", [])


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"blocks": (1, 2)}, "five numbers"),
        ({"out_features": ("dark6",)}, "OUT_FEATURES"),
        ({"freeze_at": 7}, "FREEZE_AT"),
    ],
)
def test_bad_options_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DarkNet(**{**SMALL, **kwargs})
