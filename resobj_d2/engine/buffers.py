"""Running means of a model, put back after something that must not move them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import nn

__all__ = ["keep_buffers"]


def keep_buffers(modules: Iterable[nn.Module]) -> Callable[[], None]:
    """A function that gives the modules their present buffers back, as often as it is called."""
    kept = [
        (module, name, buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]

    def restore() -> None:
        for module, name, buffer, value in kept:
            # Whether it was changed in place or replaced by another tensor.
            module._buffers[name] = buffer.copy_(value)

    return restore
