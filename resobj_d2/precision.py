"""What stays in float32 when a model's weights do not."""

from __future__ import annotations

from torch import nn

__all__ = ["Float32Buffers"]


class Float32Buffers(nn.Module):
    """A module whose own buffers stay in float32 under ``half()`` and ``bfloat16()``.

    For coordinates and running means: bfloat16 has 8 bits, so an anchor at 500 pixels would be
    rounded to multiples of 2. Wider types than float32 are taken over.
    """

    def _apply(self, fn, recurse=True):
        kept = {name: x for name, x in self._buffers.items() if x is not None}
        result = super()._apply(fn, recurse)
        for name, before in kept.items():
            after = self._buffers[name]
            if after.is_floating_point() and after.element_size() < before.element_size():
                self._buffers[name] = before.to(after.device)
        return result
