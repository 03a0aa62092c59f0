"""Darknet's ``.weights`` files: all convolutions of a network, one after the other.

A file starts with three int32 (major, minor, revision) and the number of images seen, an int64
from version 0.2 on and an int32 before. float32 numbers follow for each convolution in the order
of the network: with batch normalisation beta, gamma, running mean and running variance, without
it the bias; then the kernel as (out, in, height, width).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from resobj_d2.process import replacing

__all__ = ["DarknetWeightsError", "load_darknet_weights", "save_darknet_weights"]

Convolution = tuple[str, nn.Conv2d, nn.Module | None]


class DarknetWeightsError(RuntimeError):
    """A ``.weights`` file that does not fit the network, and where."""


def load_darknet_weights(
    path: str | os.PathLike, convolutions: Sequence[Convolution], *, and_more: bool = False
) -> int:
    """Copy the numbers of a file into the layers.

    Args:
        path: of the file.
        convolutions: (name, convolution, its batch normalisation or None), in the file's order.
        and_more: the file may have further layers behind them.

    Returns:
        How many images the network had seen.

    Raises:
        FileNotFoundError: there is no such file.
        DarknetWeightsError: the file is shorter or longer than the layers need. No layer has
            changed then.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"Darknet weights not found: {os.path.abspath(path)}")
    size = os.path.getsize(path)
    header, seen = _read_header(path, np.fromfile(path, dtype=np.uint8, count=20))
    parts = [(name, tensor) for entry in convolutions for name, tensor in _tensors(entry)]
    total = sum(tensor.numel() for _, tensor in parts)
    more = and_more and size - header > 4 * total
    if size - header != 4 * total and not more:  # before a large file fills the memory
        raise DarknetWeightsError(_misfit(path, header, size, parts))
    values = torch.from_numpy(np.fromfile(path, dtype="<f4", offset=header, count=total))
    offset = 0
    with torch.no_grad():
        for _, tensor in parts:
            end = offset + tensor.numel()
            tensor.copy_(values[offset:end].view(tensor.shape))
            offset = end
    return seen


def save_darknet_weights(
    path: str | os.PathLike, convolutions: Sequence[Convolution], *, seen: int = 0
) -> None:
    """Write a file that :func:`load_darknet_weights` and Darknet read (version 0.2)."""
    with replacing(path, binary=True) as file:
        file.write(np.array([0, 2, 0], dtype="<i4").tobytes())
        file.write(np.array([seen], dtype="<i8").tobytes())
        for entry in convolutions:
            for _, tensor in _tensors(entry):
                file.write(tensor.detach().cpu().float().contiguous().numpy().tobytes())


def _read_header(path: str | os.PathLike, data: np.ndarray) -> tuple[int, int]:
    """Size of the header in bytes, and the number of images seen."""
    if len(data) < 16:
        raise DarknetWeightsError(
            f"{os.path.abspath(path)} has {len(data)} bytes, less than the header of a Darknet file"
        )
    major, minor, _ = data[:12].view("<i4").tolist()
    if not (0 <= major < 1000 and 0 <= minor < 1000):
        raise DarknetWeightsError(
            f"{os.path.abspath(path)} is no Darknet weights file: its header says version "
            f"{major}.{minor}"
        )
    if major * 10 + minor < 2:
        return 16, int(data[12:16].view("<i4")[0])
    if len(data) < 20:
        raise DarknetWeightsError(f"{os.path.abspath(path)} ends inside its header of 20 bytes")
    return 20, int(data[12:20].copy().view("<i8")[0])


def _tensors(entry: Convolution) -> list[tuple[str, Tensor]]:
    """The tensors of a convolution in the file's order, with names."""
    name, conv, norm = entry
    if norm is None:
        if conv.bias is None:
            raise ValueError(f"{name} has neither a bias nor a batch normalisation")
        first = [("bias", conv.bias)]
    else:
        first = [
            ("beta", norm.bias),
            ("gamma", norm.weight),
            ("mean", norm.running_mean),
            ("variance", norm.running_var),
        ]
    return [(f"{name} {kind}", tensor) for kind, tensor in [*first, ("kernel", conv.weight)]]


def _misfit(
    path: str | os.PathLike, header: int, size: int, parts: Sequence[tuple[str, Tensor]]
) -> str:
    """Which tensor the file ends in, or how much of it would be left over."""
    needed = header + 4 * sum(tensor.numel() for _, tensor in parts)
    text = f"{os.path.abspath(path)} has {size} bytes, but this network needs {needed}"
    offset = header
    for name, tensor in parts:
        end = offset + 4 * tensor.numel()
        if size < end:
            return (
                f"{text}: the file ends inside {name} {tuple(tensor.shape)}, bytes {offset} to "
                f"{end}. It is truncated, or of a smaller network (other classes or input layers?)"
            )
        offset = end
    return f"{text}: {size - needed} bytes are left over behind the last layer, at byte {needed}"
