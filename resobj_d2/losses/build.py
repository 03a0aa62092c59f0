"""Registries of the loss slots; yaml names the class, e.g. ``CLS_LOSS.NAME: SigmoidFocalLoss``.

An entry declares its options on its constructor's arguments (:mod:`resobj_d2.options`).
"""

from __future__ import annotations

from resobj_d2.registry import Registry

from .base import BoxLoss, ClassLoss, Normalizer

__all__ = ["BOX_LOSS_REGISTRY", "CLS_LOSS_REGISTRY", "NORMALIZER_REGISTRY"]

CLS_LOSS_REGISTRY: Registry[ClassLoss] = Registry("CLS_LOSS", base=ClassLoss)
"""Entries of ``CLS_LOSS.NAME``: subclasses of :class:`ClassLoss`."""
BOX_LOSS_REGISTRY: Registry[BoxLoss] = Registry("BOX_LOSS", base=BoxLoss)
"""Entries of ``BOX_LOSS.NAME``: subclasses of :class:`BoxLoss`."""
NORMALIZER_REGISTRY: Registry[Normalizer] = Registry("NORMALIZER", base=Normalizer)
"""Entries of ``NORMALIZER.NAME``: subclasses of :class:`Normalizer`."""
