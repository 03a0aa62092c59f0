"""Residual Objectness and its relatives, as an extension of Detectron2.

``import resobj_d2`` and ``import resobj_d2.ops`` need torch alone. The detector lives in
:mod:`resobj_d2.modeling`, which imports Detectron2 and registers itself there;
``resobj_d2.accelerate`` and ``resobj_d2.restore`` are of :mod:`resobj_d2.acceleration`.
"""

__version__ = "0.1.0"


def __getattr__(name: str):
    # Only on use: these two import Detectron2.
    if name in ("accelerate", "restore"):
        from . import acceleration

        return getattr(acceleration, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
