"""From COCO's precisions and recalls to named figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["CocoFigures"]

_AREAS = {"small": "s", "medium": "m", "large": "l"}


@dataclass(frozen=True)
class CocoFigures:
    """What a finished ``COCOeval`` found.

    Attributes:
        precision: (IoU thresholds, recalls, classes, areas, limits), -1 for classes without
            objects of that area.
        recall: the same without recalls.
        thresholds: of IoU, or what takes its place.
        areas: "all", then "small", "medium", "large"; no "small" for keypoints.
        limits: how many of the best detections of an image and class count, ascending.
        category_ids: of the classes, ascending.
    """

    precision: np.ndarray
    recall: np.ndarray
    thresholds: np.ndarray
    areas: tuple[str, ...]
    limits: tuple[int, ...]
    category_ids: tuple[int, ...]

    @classmethod
    def of(cls, evaluation) -> CocoFigures:
        """Of either implementation, after ``accumulate``."""
        params = evaluation.params
        return cls(
            precision=np.asarray(evaluation.eval["precision"]),
            recall=np.asarray(evaluation.eval["recall"]),
            thresholds=np.asarray(params.iouThrs),
            areas=tuple(params.areaRngLbl),
            limits=tuple(int(limit) for limit in params.maxDets),
            category_ids=tuple(params.catIds),
        )

    @classmethod
    def of_nothing(
        cls, *, limits: Sequence[int], category_ids: Sequence[int], keypoints: bool
    ) -> CocoFigures:
        """Of no objects, with COCO's thresholds and areas: for the names of the results."""
        thresholds = np.linspace(0.5, 0.95, 10)
        areas = [area for area in ("all", *_AREAS) if not (keypoints and area == "small")]
        shape = len(thresholds), len(category_ids), len(areas), len(limits)
        recall = np.full(shape, -1.0)
        return cls(
            precision=recall[:, None],
            recall=recall,
            thresholds=thresholds,
            areas=tuple(areas),
            limits=tuple(limits),
            category_ids=tuple(category_ids),
        )

    def ap(
        self,
        *,
        threshold: float | None = None,
        area: str = "all",
        limit: int | None = None,
        category: int | None = None,
    ) -> float:
        """Average precision in percent; NaN where there is nothing to find.

        Args:
            threshold: of IoU; None for the mean over all.
            area: one of ``areas``.
            limit: one of ``limits``; None for the last.
            category: an id; None for the mean over all classes with objects.
        """
        return _percent(self._chosen(self.precision, threshold, area, limit, category))

    def ar(
        self, *, threshold: float | None = None, area: str = "all", limit: int | None = None
    ) -> float:
        """Average recall, as :meth:`ap`."""
        return _percent(self._chosen(self.recall, threshold, area, limit, None))

    def _chosen(self, values, threshold, area, limit, category) -> np.ndarray:
        values = values[..., -1 if limit is None else self.limits.index(limit)]
        values = values[..., self.areas.index(area)]
        if category is not None:
            values = values[..., self.category_ids.index(category)]
        if threshold is not None:
            values = values[np.isclose(self.thresholds, threshold)]
        return values

    def results(self, class_names: Mapping[int, str]) -> dict[str, float]:
        """All figures in percent: Detectron2's names first, then this package's.

        Args:
            class_names: by category id; classes apart from each other are shown where there are two
                or more.
        """
        bands = [area for area in self.areas if area != "all"]
        found = {"AP": self.ap(), "AP50": self.ap(threshold=0.5), "AP75": self.ap(threshold=0.75)}
        found |= {f"AP{_AREAS[area]}": self.ap(area=area) for area in bands}
        for threshold in self.thresholds:
            found.setdefault(f"AP{round(100 * threshold)}", self.ap(threshold=threshold))
        for limit in self.limits:
            found[f"AR@{limit}"] = self.ar(limit=limit)
        for area in bands:
            found[f"AR{_AREAS[area]}@{self.limits[-1]}"] = self.ar(area=area)
        if len(self.limits) > 1 and self.limits[-1] > 100 and 100 in self.limits:
            found["AP@100"] = self.ap(limit=100)
        if len(class_names) > 1:
            for identity, name in class_names.items():
                found[f"AP-{name}"] = self.ap(category=identity)
            for identity, name in class_names.items():
                found[f"AP50-{name}"] = self.ap(threshold=0.5, category=identity)
        return found

    def stats(self) -> np.ndarray:
        """COCO's own numbers in its order, as parts of 1; -1 for none."""
        values = [value for _, _, _, _, value in self._table()]
        return np.array([-1.0 if np.isnan(value) else value / 100 for value in values])

    def summary(self, measure: str = "IoU") -> str:
        """COCO's table, with the limits that were used."""
        lines = []
        for kind, threshold, area, limit, value in self._table():
            title = "Average Precision" if kind == "AP" else "Average Recall"
            low, high = self.thresholds[0], self.thresholds[-1]
            spread = f"{low:0.2f}:{high:0.2f}" if threshold is None else f"{threshold:0.2f}"
            number = "nan" if np.isnan(value) else f"{value / 100:0.3f}"
            lines.append(
                f" {title:<18} ({kind}) @[ {measure}={spread:<9} | area={area:>6s} | "
                f"maxDets={limit:>3d} ] = {number}"
            )
        return "\n".join(lines)

    def _table(self) -> list[tuple[str, float | None, str, int, float]]:
        last = self.limits[-1]
        bands = [area for area in self.areas if area != "all"]
        rows: list[tuple[str, float | None, str, int]] = [
            ("AP", None, "all", last),
            ("AP", 0.5, "all", last),
            ("AP", 0.75, "all", last),
            *(("AP", None, area, last) for area in bands),
        ]
        if len(self.limits) > 1:
            rows += [("AR", None, "all", limit) for limit in self.limits]
        else:  # COCO's order for keypoints
            rows += [("AR", None, "all", last), ("AR", 0.5, "all", last), ("AR", 0.75, "all", last)]
        rows += [("AR", None, area, last) for area in bands]
        return [
            (kind, threshold, area, limit, self._value(kind, threshold, area, limit))
            for kind, threshold, area, limit in rows
        ]

    def _value(self, kind: str, threshold: float | None, area: str, limit: int) -> float:
        figure = self.ap if kind == "AP" else self.ar
        return figure(threshold=threshold, area=area, limit=limit)


def _percent(values: np.ndarray) -> float:
    """Mean of the valid entries times 100."""
    valid = values[values > -1]
    return float(100.0 * valid.mean()) if valid.size else float("nan")
