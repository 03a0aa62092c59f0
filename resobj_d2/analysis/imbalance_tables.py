"""The tables of :mod:`.imbalance`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .tables import Row

__all__ = ["GROUPS", "Imbalance"]

GROUPS = ("positives", "hard negatives", "easy negatives")
"""Of anchors in the tables of shares."""


@dataclass(kw_only=True)
class Imbalance:
    """Sums over images, of which the tables are made.

    Attributes:
        easy: probability of an object below which a negative is easy.
        bins: of the histograms.
        images: number of images.
        levels: by stream, stage and level: numbers of positive, negative and ignored anchors.
        shares: by stream and loss: (groups, 3) numbers of anchors with a gradient, their loss, and
            the sum of their gradients' absolute values. The loss is NaN where it is not one of
            single anchors.
        histograms: by stream and value: (2, bins) numbers of negatives and positives.
    """

    easy: float = 0.1
    bins: int = 20
    images: int = 0
    levels: dict[tuple[str, int, int], np.ndarray] = field(default_factory=dict)
    shares: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    histograms: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    @property
    def streams(self) -> list[str]:
        """Names of the detector's streams."""
        return list(dict.fromkeys(stream for stream, *_ in self.levels))

    def level_table(self) -> list[Row]:
        """Anchors of an image: ``stream``, ``stage``, ``level`` and their mean numbers.

        These are ``positives``, ``negatives`` and ``ignored``, before anchors are sampled (of
        Detectron2's own RPN after it, since that samples as it labels), and
        ``ratio``: negatives for each positive, None without positives. Level -1 has all of them. Of
        RoI heads the stream "proposals" is before sampling, and "roi" what is trained, by stage.
        """
        rows: list[Row] = []
        totals: dict[tuple[str, int, int], np.ndarray] = {}
        for (stream, stage, _), counts in self.levels.items():
            whole = (stream, stage, -1)
            totals[whole] = totals.get(whole, 0) + counts
        for (stream, stage, level), counts in sorted({**self.levels, **totals}.items()):
            positives, negatives, ignored = (counts / self.images).tolist()
            rows.append(
                {
                    "stream": stream,
                    "stage": stage,
                    "level": level,
                    "positives": positives,
                    "negatives": negatives,
                    "ignored": ignored,
                    "ratio": negatives / positives if positives else None,
                }
            )
        return rows

    def share_table(self) -> list[Row]:
        """Who owns a loss: ``stream``, ``loss``, ``anchors`` (one of :data:`GROUPS`), ``number``.

        ``number`` is that of an image, of anchors with a gradient; ``loss share`` and ``gradient
        share`` are in percent. None where there is nothing to share, and for the loss where it is
        not one of single anchors.
        """
        rows: list[Row] = []
        for (stream, loss), sums in self.shares.items():
            totals = sums.sum(axis=0)
            for group, (number, *parts) in zip(GROUPS, sums, strict=True):
                shares = [
                    100 * float(part / total) if total > 0 else None
                    for part, total in zip(parts, totals[1:], strict=True)
                ]
                rows.append(
                    {
                        "stream": stream,
                        "loss": loss,
                        "anchors": group,
                        "number": float(number / self.images),
                        "loss share": shares[0],
                        "gradient share": shares[1],
                    }
                )
        return rows

    def histogram_table(self) -> list[Row]:
        """Distribution of probabilities: ``stream``, ``value``, ``from``, ``to``, then numbers.

        These are ``positives`` and ``negatives`` of an image. Values are the objectness after each
        step, "objectness step 0" and so on, without objectness the highest class probability,
        "cls".
        """
        return [
            {
                "stream": stream,
                "value": value,
                "from": i / self.bins,
                "to": (i + 1) / self.bins,
                "positives": float(counts[1, i] / self.images),
                "negatives": float(counts[0, i] / self.images),
            }
            for (stream, value), counts in self.histograms.items()
            for i in range(self.bins)
        ]
