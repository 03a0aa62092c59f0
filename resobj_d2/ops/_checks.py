"""Argument checks of the wrappers; messages name the operator and the argument."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# torch.finfo takes as long as all other checks of an operator.
LIMITS = {
    dtype: (torch.finfo(dtype).tiny, torch.finfo(dtype).max)
    for dtype in (torch.float32, torch.float64)
}


def require_floating(op: str, **tensors: Tensor) -> None:
    """Raises TypeError unless each argument is a floating-point tensor."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            given = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{op}: {name} must be a floating-point tensor, got {given}")


def require_dtype(op: str, dtype: torch.dtype, **tensors: Tensor) -> None:
    """Raises TypeError unless each argument is a tensor of ``dtype``."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or value.dtype != dtype:
            given = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{op}: {name} must be a tensor of {dtype}, got {given}")


def require_integer(op: str, **tensors: Tensor) -> None:
    """Raises TypeError unless each argument is a tensor of integers."""
    for name, value in tensors.items():
        is_tensor = isinstance(value, Tensor)
        if is_tensor and not (
            value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
        ):
            continue
        given = value.dtype if is_tensor else type(value).__name__
        raise TypeError(f"{op}: {name} must be a tensor of integers, got {given}")


def host_sizes(op: str, name: str, sizes: Tensor, shape: str = "(images,)") -> list[int] | Tensor:
    """Their numbers in one list; while it is traced the tensor itself, which has no values then."""
    require_integer(op, **{name: sizes})
    is_pairs = shape.endswith("2)")
    if sizes.dim() != 1 + is_pairs or (is_pairs and sizes.shape[1] != 2):
        raise ValueError(f"{op}: {name} must have shape {shape}, got {tuple(sizes.shape)}")
    if sizes.device.type != "cpu":
        # Reading them would make the host wait for the device.
        raise ValueError(f"{op}: {name} must be on the CPU, got {sizes.device}")
    return sizes.long() if torch.compiler.is_compiling() else sizes.flatten().tolist()


def require_same_device(op: str, **tensors: Tensor) -> None:
    """Raises ValueError unless all arguments are on the device of the first."""
    first = None
    for name, value in tensors.items():
        if first is None:
            first, device = name, value.device
        elif value.device != device:
            raise ValueError(f"{op}: {name} is on {value.device}, but {first} is on {device}")


def require_positive(op: str, dtype: torch.dtype, **numbers: float) -> None:
    """Raises ValueError unless each is above 0 and finite, and not so small that its inverse isn't.

    All that in the dtype of the computation, to which the kernels round it.
    """
    least, greatest = LIMITS[dtype]
    for name, value in numbers.items():
        if least <= value <= greatest:
            continue
        if not value > 0:
            raise ValueError(f"{op}: {name} must be positive, got {value}")
        raise ValueError(
            f"{op}: {name} must be between {least:.3g} and {greatest:.3g}, got {value}"
        )


def check_decoding(
    op: str, dtype: torch.dtype, weights: Sequence[float], scale_clamp: float
) -> None:
    """Raises ValueError unless these can decode deltas."""
    least, greatest = LIMITS[dtype]
    if len(weights) != 4 or not all(least <= w <= greatest for w in weights):
        raise ValueError(f"{op}: weights must be four positive numbers, got {tuple(weights)}")
    # Not math.isnan, which cannot be compiled.
    if scale_clamp != scale_clamp or greatest < abs(scale_clamp) < math.inf:
        raise ValueError(f"{op}: scale_clamp must be a number, got {scale_clamp}")


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """float64 if any of the tensors is float64, else float32. None is no tensor."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype is torch.float64:
            return torch.float64
    return torch.float32


def as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor.to(dtype)`` without its overhead when the dtype is already right."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def is_usual_pair(first: Tensor, second: Tensor) -> bool:
    """Whether both are float32 tensors of one shape and device, which passes all checks of a pair.

    On a few hundred boxes the checks take as long as the operator.
    """
    return (
        isinstance(first, Tensor)
        and isinstance(second, Tensor)
        and first.dtype is second.dtype is torch.float32
        and first.shape == second.shape
        and first.device == second.device
    )


def require_constant_target(op: str, pred: Tensor, target: Tensor) -> None:
    """Raises unless both are floating point of one shape and device, and ``target`` is constant."""
    if is_usual_pair(pred, target) and not target.requires_grad:
        return
    require_floating(op, pred=pred, target=target)
    if target.shape != pred.shape:
        raise ValueError(
            f"{op}: target must have the shape of pred, {tuple(pred.shape)}, "
            f"got {tuple(target.shape)}"
        )
    require_same_device(op, pred=pred, target=target)
    if target.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{op}: no gradient is computed for target; pass target.detach()")


def require_box_pairs(op: str, pred: Tensor, target: Tensor, mask: Tensor | None) -> None:
    """Raises unless these are the arguments of a loss between boxes (..., 4)."""
    require_constant_target(op, pred, target)
    if pred.dim() == 0 or pred.shape[-1] != 4:
        raise ValueError(f"{op}: pred must have shape (..., 4), got {tuple(pred.shape)}")
    if mask is not None:
        require_dtype(op, torch.bool, mask=mask)
        if mask.shape != pred.shape[:-1]:
            raise ValueError(
                f"{op}: mask must have the shape of pred without the last dimension, "
                f"{tuple(pred.shape[:-1])}, got {tuple(mask.shape)}"
            )
        if mask.device != pred.device:
            require_same_device(op, pred=pred, mask=mask)
