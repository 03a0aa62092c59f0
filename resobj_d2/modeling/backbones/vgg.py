"""VGG16 as used by SSD (Liu et al. 2016, "SSD", section 3) and by Faster R-CNN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

__all__ = [
    "ChannelNorm",
    "SSDVGG16",
    "VGG16",
    "build_ssd_vgg16_backbone",
    "build_vgg16_backbone",
]


class ChannelNorm(nn.Module):
    """Divides each position's feature vector by its L2 norm and scales it per channel.

    Liu et al., "ParseNet", section 3.3; SSD applies it to conv4_3, whose features differ in scale.

    Args:
        channels: C.
        scale: initial scale of every channel.
    """

    def __init__(self, *, channels: int, scale: float = 20.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W). An all-zero vector stays zero."""
        return self.weight[:, None, None] * F.normalize(x.float(), eps=1e-10).to(x.dtype)


class SSDVGG16(Backbone):
    """VGG16 without its classifier; fc6 and fc7 are turned into convolutions, fc6 dilated.

    Outputs: ``conv4_3`` (normalised, 512 channels, stride 8) and ``fc7`` (1024, stride 16).
    Layers are named as in torchvision's VGG16, ``features.0`` to ``features.28``, so that its
    ImageNet checkpoints load; fc6 and fc7 have other shapes and are initialised randomly.

    Args:
        freeze_at: number of convolution blocks to freeze, 0 to 5.
    """

    size_divisibility = 16

    def __init__(self, *, freeze_at: int = 0) -> None:
        super().__init__()
        layers = list(make_layers(cfgs["D"]))
        pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        if not 0 <= freeze_at <= len(pools):
            raise ValueError(f"BACKBONE.FREEZE_AT must be 0..{len(pools)} for VGG16")
        # The last pool, followed by fc6, keeps the resolution.
        layers[pools[-1]] = nn.MaxPool2d(kernel_size=3, stride=1, padding=1)
        self.features = nn.Sequential(*layers)
        self.conv4_3 = pools[3]  # number of layers up to and including conv4_3's ReLU
        self.norm = ChannelNorm(channels=512)
        self.fc = nn.Sequential(
            nn.Conv2d(512, 1024, kernel_size=3, padding=6, dilation=6),
            nn.ReLU(),
            nn.Conv2d(1024, 1024, kernel_size=1),
            nn.ReLU(),
        )
        for layer in [*self.features, *self.fc]:
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        end = pools[freeze_at - 1] if freeze_at else 0
        self.features[:end].requires_grad_(False)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            "conv4_3": ShapeSpec(channels=512, stride=8),
            "fc7": ShapeSpec(channels=1024, stride=16),
        }

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image: (N, 3, H, W)."""
        shallow = self.features[: self.conv4_3](image)
        deep = self.fc(self.features[self.conv4_3 :](shallow))
        return {"conv4_3": self.norm(shallow), "fc7": deep}


@BACKBONE_REGISTRY.register()
def build_ssd_vgg16_backbone(cfg, input_shape: ShapeSpec) -> SSDVGG16:
    """VGG16 for SSD."""
    return SSDVGG16(freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


class VGG16(Backbone):
    """VGG16 up to its last convolution, as in Faster R-CNN (Ren et al. 2015, section 3.1).

    Output: ``conv5_3`` (512 channels, stride 16). Layers are named as in torchvision's VGG16, whose
    ImageNet checkpoints load; fc6 and fc7 go into a box head with two layers of 4096.

    Args:
        freeze_at: number of convolution blocks to freeze, 0 to 5.
    """

    size_divisibility = 16

    def __init__(self, *, freeze_at: int = 0) -> None:
        super().__init__()
        layers = list(make_layers(cfgs["D"]))[:-1]  # without the last pool
        self.features = nn.Sequential(*layers)
        ends = [0, *(i for i, x in enumerate(layers) if isinstance(x, nn.MaxPool2d)), len(layers)]
        if not 0 <= freeze_at < len(ends):
            raise ValueError(f"BACKBONE.FREEZE_AT must be 0..{len(ends) - 1} for VGG16")
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)
        self.features[: ends[freeze_at]].requires_grad_(False)

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"conv5_3": ShapeSpec(channels=512, stride=16)}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """image: (N, 3, H, W)."""
        return {"conv5_3": self.features(image)}


@BACKBONE_REGISTRY.register()
def build_vgg16_backbone(cfg, input_shape: ShapeSpec) -> VGG16:
    """VGG16 for two-stage detectors."""
    return VGG16(freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)
