"""Combines the probabilities of an anchor into one score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor

from resobj_d2.options import Option

__all__ = ["ScoreFusion", "build_fusion"]


class ScoreFusion:
    """``prod_i p_i^e_i`` over named factors; 0 if any p_i is below its floor.

    This covers plain class scores, ``P(class) * objectness`` (Residual Objectness) and
    ``cls^(1-a) * iou^a`` (RetinaNet-Conf, Eq. 11). Thresholds, top-k and NMS all use the fused
    score.

    Args:
        exponents: at least 0, by factor name; default 1.
        floors: by factor name; default none.
    """

    def __init__(
        self,
        *,
        exponents: Mapping[str, float] | None = None,
        floors: Mapping[str, float] | None = None,
    ) -> None:
        self.exponents = dict(exponents or {})
        self.floors = dict(floors or {})
        if not all(exponent >= 0 for exponent in self.exponents.values()):
            raise ValueError(f"FUSION.EXPONENTS must be at least 0, got {self.exponents}")

    def __call__(self, factors: Mapping[str, Tensor]) -> Tensor:
        """The scores in plain torch; detectors use ``ops.dense_detections`` instead.

        Args:
            factors: "cls" (R, K), every other (R,).

        Returns:
            (R, K) scores.
        """
        score: Tensor | None = None
        keep: Tensor | None = None
        for name, probability in factors.items():
            exponent = self.exponents.get(name, 1.0)
            power = probability if exponent == 1.0 else probability**exponent
            power = power if power.dim() == 2 else power[:, None]
            score = power if score is None else score * power
            if name in self.floors:
                above = probability >= self.floors[name]
                above = above if above.dim() == 2 else above[:, None]
                keep = above if keep is None else keep & above
        if score is None:
            raise ValueError("a score needs at least one factor")
        return score if keep is None else torch.where(keep, score, 0.0)


def build_fusion(
    *,
    factors: Sequence[str],
    shares: Mapping[str, float] | None = None,
    exponents: Annotated[
        Sequence,
        Option(
            "[name, e] of factors p in the score, the product of p^e; default 1, or what "
            "MODEL.DENSE.QUALITY.ALPHA implies"
        ),
    ] = (),
    floors: Annotated[
        Sequence, Option("[name, floor]: candidates whose factor is below its floor are dropped")
    ] = (),
) -> ScoreFusion:
    """A fusion of the factors predicted by a model.

    Args:
        factors: the existing names, to catch misspelt ones.
        shares: default exponents of some factors; all others get one minus their sum.
        exponents, floors: pairs of a name and a number. ``exponents`` take precedence over
            ``shares``.
    """
    for key, pairs in (("EXPONENTS", exponents), ("FLOORS", floors)):
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            raise ValueError(f"FUSION.{key} must look like [['cls', 0.6]], got {pairs}")
        unknown = sorted({name for name, _ in pairs} - set(factors))
        if unknown:
            raise ValueError(
                f"FUSION.{key} names {unknown}, but this model predicts {sorted(factors)}"
            )
    defaults = dict(shares or {})
    if defaults:
        rest = 1.0 - sum(defaults.values())
        defaults = {name: defaults.get(name, rest) for name in factors}
    return ScoreFusion(exponents=defaults | dict(exponents), floors=dict(floors))
