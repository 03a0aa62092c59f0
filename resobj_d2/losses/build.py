"""Registries of the loss slots; yaml names the class, e.g. ``CLS_LOSS.NAME: SigmoidFocalLoss``."""

from __future__ import annotations

from fvcore.common.registry import Registry

__all__ = ["BOX_LOSS_REGISTRY", "CLS_LOSS_REGISTRY", "NORMALIZER_REGISTRY"]

CLS_LOSS_REGISTRY = Registry("CLS_LOSS")
CLS_LOSS_REGISTRY.__doc__ = """
Classification losses. An entry is built as ``Entry.from_config(node)`` from
``MODEL.DENSE.CLS_LOSS`` and called as
``loss(logits (N, R, K), labels (N, R) in {-1, 0..K}, mask (N, R) bool) -> scalar``: the float32
SUM over the anchors in ``mask``. It never averages. Scores are sigmoids of the logits.
"""

BOX_LOSS_REGISTRY = Registry("BOX_LOSS")
BOX_LOSS_REGISTRY.__doc__ = """
Box losses. An entry is built as ``Entry.from_config(node)`` from ``MODEL.DENSE.BOX_LOSS``,
declares ``space`` ("deltas": it compares encoded deltas; "boxes": it compares decoded boxes) and
is called as ``loss(pred (..., 4), target (..., 4), mask (...) bool) -> scalar``: the float32 SUM
over the rows in ``mask``. It never averages.
"""

NORMALIZER_REGISTRY = Registry("NORMALIZER")
NORMALIZER_REGISTRY.__doc__ = """
Loss normalisers. An entry is an ``nn.Module`` built as ``Entry.from_config(node)`` from
``MODEL.DENSE.NORMALIZER``, called once per training iteration as
``normalizer(num_foreground) -> scalar >= 1`` (both scalar tensors). It alone all-reduces.
"""
