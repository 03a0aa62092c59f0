"""Residual Objectness and its relatives, as an extension of Detectron2.

``import resobj_d2`` and ``import resobj_d2.ops`` need torch alone. The detector lives in
:mod:`resobj_d2.modeling`, which imports Detectron2 and registers itself there.
"""

__version__ = "0.1.0"
