"""Registries of the network slots."""

from __future__ import annotations

from resobj_d2.registry import Registry

__all__ = ["BRANCH_REGISTRY", "PREDICTOR_REGISTRY", "TOWER_REGISTRY"]

TOWER_REGISTRY = Registry("TOWER")
TOWER_REGISTRY.__doc__ = """
Towers: modules built as ``Entry.from_config(node, in_channels, tasks=("cls", "box"))`` from
``MODEL.DENSE.TOWER`` with the channels of each level. ``tower(features) -> TowerFeatures``;
``tower.run(task, features)`` gives the maps of one task, on an input of its own (stages with their
own tower have only the ``tasks`` they need); ``out_channels`` lists the channels of each level.
``Entry.hidden(node, in_channels=, channels=, num_convs=)``, the first two lists per level, makes
hidden layers of score branches in the tower's style: a module from the maps of all levels to as
many, of which ``out_channels`` lists the channels.
"""

PREDICTOR_REGISTRY = Registry("PREDICTOR")
PREDICTOR_REGISTRY.__doc__ = """
Last layers; see :class:`resobj_d2.modeling.heads.predictors.Predictor`. An entry is built as
``Entry.from_config(node, in_channels=, num_anchors=, channels=, bias_value=)`` from
``MODEL.DENSE.PREDICTOR``, with lists per level of the features' channels and of A_l.
"""

BRANCH_REGISTRY = Registry("BRANCH")
BRANCH_REGISTRY.__doc__ = """
Score branches: modules that predict one more probability per anchor; see
:class:`resobj_d2.modeling.branches.objectness.ScoreBranch`. An entry is built as
``Entry.from_config(node, num_classes=, parts=)``, with :class:`.predictors.HeadParts` and the node
of its stream (``MODEL.DENSE`` or ``MODEL.DENSE.ANCHOR_FREE``), or skipped where that returns None.
"""
