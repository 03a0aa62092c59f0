"""TensorFlow's "same" padding, for networks whose weights were trained with it."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["SameConv2d", "replace_same_convolutions"]


class SameConv2d(nn.Conv2d):
    """A convolution that pads its input so that the output has ceil(size / stride) cells, with the
    odd one of the padding at the bottom and at the right.

    It is timm's ``Conv2dSame``, except that the padding is a constant where the stride divides the
    size, as in a detector, whose images are padded to a multiple of the strides. Symbolic sizes
    would else be formulas of formulas, which keep torch.export busy for a quarter of an hour and
    more.
    """

    def forward(self, input: Tensor) -> Tensor:
        height, width = (
            _padding(*sides)
            for sides in zip(
                input.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        padding = (width // 2, width - width // 2, height // 2, height - height // 2)
        return F.conv2d(
            F.pad(input, padding),
            *(self.weight, self.bias, self.stride, 0, self.dilation, self.groups),
        )


def _padding(size: int, kernel: int, stride: int, dilation: int) -> int:
    """Cells to add to a side."""
    rest = size % stride
    last = stride if rest == 0 else rest  # input cells of the last output cell, without the kernel
    return max((kernel - 1) * dilation + 1 - last, 0)


def replace_same_convolutions(model: nn.Module) -> None:
    """Put :class:`SameConv2d` in place of each of timm's ``Conv2dSame``, with its parameters."""
    from timm.layers import Conv2dSame

    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if type(layer) is not Conv2dSame:
                continue
            own = SameConv2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,
                stride=layer.stride,
                dilation=layer.dilation,
                groups=layer.groups,
                bias=layer.bias is not None,
                device="meta",
            )
            own.weight, own.bias = layer.weight, layer.bias
            own.train(layer.training)
            setattr(parent, name, own)
