"""Registries of the loss slots; yaml names the class, e.g. ``CLS_LOSS.NAME: SigmoidFocalLoss``."""

from __future__ import annotations

from resobj_d2.registry import Registry

__all__ = ["BOX_LOSS_REGISTRY", "CLS_LOSS_REGISTRY", "NORMALIZER_REGISTRY"]

CLS_LOSS_REGISTRY = Registry("CLS_LOSS")
CLS_LOSS_REGISTRY.__doc__ = """
Classification losses. An entry is built as ``Entry.from_config(node)`` from
``MODEL.DENSE.CLS_LOSS`` and called as
``loss(logits (N, R, K'), labels (N, R) in {-1, 0..K}, mask (N, R) bool) -> scalar``: the float32
SUM over the anchors in ``mask``. It never averages, unless ``self_normalized`` says that its
weights do; the normaliser then does not divide it. ``num_logits(num_classes)`` is K', either K or
K + 1; ``sigmoid_logits(maps)`` turns the LevelMaps of these logits into those of K logits whose
sigmoids are the class probabilities. Losses that score by sigmoids inherit both from
:class:`SigmoidScores`.
``per_anchor(logits, labels) -> (N, R)`` is the loss of each anchor, for samplers that rank by it,
or None where a loss has no such thing. Each stage has one of its own, so that a loss with a state
(an ``nn.Module`` with buffers) knows only the anchors of that stage; so it is with box losses.
"""

BOX_LOSS_REGISTRY = Registry("BOX_LOSS")
BOX_LOSS_REGISTRY.__doc__ = """
Box losses. An entry is built as ``Entry.from_config(node)`` from ``MODEL.DENSE.BOX_LOSS``,
declares ``compares`` ("boxes": it compares decoded boxes; otherwise encoded deltas of that
``delta_space`` of the coders, "deltas" or "cell_deltas") and
is called as ``loss(pred (..., 4), target (..., 4), mask (...) bool) -> scalar``: the float32 SUM
over the rows in ``mask``. It never averages, unless ``self_normalized`` as in a class loss. One
that ``takes_weights`` is called with a fourth argument, the (...) factors of its rows or None.
"""

NORMALIZER_REGISTRY = Registry("NORMALIZER")
NORMALIZER_REGISTRY.__doc__ = """
Loss normalisers. An entry is an ``nn.Module`` built as ``Entry.from_config(node)`` from
``MODEL.DENSE.NORMALIZER``, called once per training iteration as
``normalizer(num_foreground, num_trained, num_images) -> scalar >= 1``: scalar counts of the batch's
foreground anchors and of all that were sampled, and the number of images, a Python number. It alone
all-reduces.
"""
