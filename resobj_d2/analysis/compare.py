"""Runs side by side: which differences are more than chance.

::

    resobj-d2 analyze compare output/FOCAL output/RESOBJ
    resobj-d2 analyze compare output/FOCAL_0,output/FOCAL_1 output/RESOBJ_0,output/RESOBJ_1

The first is what the others are compared with. Runs of one method that differ in their seed are
joined by commas. Intervals are those of a paired bootstrap: the images are drawn anew with
replacement, for all runs alike. A method with several runs has the mean over all of them, so an
interval says nothing about other seeds; `resobj-d2 study` does.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from resobj_d2.command import CommandParser, run_command
from resobj_d2.process import distinct_names, progress_bar

from .bootstrap import ResampledErrors, ResampledPrecision
from .evaluation_set import EvaluationSet
from .source import add_source_options, load_source
from .tables import Row, markdown, write_json

__all__ = ["CHANCE", "SAMPLES", "Comparison", "Method", "compare", "main"]

CHANCE = (
    "An interval that leaves out 0 is beyond the chance of these images. What another seed of the "
    "training would give is not in it: `resobj-d2 study` compares methods over seeds."
)
"""What an interval says, to be told wherever one is shown."""
SAMPLES = 500
"""How often images are drawn anew."""
_FIGURES = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}  # of the thresholds
_FEWEST_IMAGES = 5  # from which on a bootstrap makes sense
_DIGITS = 2  # after the point, of what is printed
_NO_INTERVAL = dict.fromkeys(("low", "high", "higher", "beyond chance"))


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is compared: one run, or several that differ in their seed alone.

    Attributes:
        name: for tables.
        runs: of the same dataset, at least one.
    """

    name: str
    runs: list[EvaluationSet]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Figures of methods, with those of the resampled images.

    All are in percent; NaN where there are no objects.

    Attributes:
        names: of the methods; the first is the reference.
        class_names: by class number.
        images: number of images that have objects.
        class_images: (K,) of the class.
        kinds: of errors.
        precision: for each method (runs, 10, K) AP by IoU threshold and class.
        errors: for each method (runs, kinds) dAP.
        sampled_classes: (methods, samples, K) AP, each the mean over thresholds and seeds.
        sampled_figures: (methods, samples, 3) AP, AP50 and AP75.
        sampled_errors: (methods, samples, kinds).
        coverage: of the intervals, such as 0.95.
    """

    names: list[str]
    class_names: list[str]
    images: int
    class_images: np.ndarray
    kinds: tuple[str, ...]
    precision: list[np.ndarray]
    errors: list[np.ndarray]
    sampled_classes: np.ndarray
    sampled_figures: np.ndarray
    sampled_errors: np.ndarray
    coverage: float

    def run_table(self) -> list[Row]:
        """A row for each method: ``method``, ``runs``, AP, AP50 and AP75, and their spread.

        The spread is the standard deviation over the runs, None for a single one.
        """
        rows: list[Row] = []
        for name, precision in zip(self.names, self.precision, strict=True):
            row: Row = {"method": name, "runs": len(precision)}
            for figure, chosen in _FIGURES.items():
                values = _mean(precision[:, chosen], axis=(1, 2))
                row[figure] = _number(values.mean())
                row[f"{figure} spread"] = _number(values.std(ddof=1)) if len(values) > 1 else None
            rows.append(row)
        return rows

    def difference_table(self) -> list[Row]:
        """How the figures of each method differ from the first one's.

        Returns:
            Rows with ``method``, ``figure``, ``difference``, ``low`` and ``high`` (the interval),
            ``higher`` (the part of the samples, in percent, in which it is higher) and ``beyond
            chance``: whether the interval leaves out 0, also in the two digits that are printed;
            :data:`CHANCE` says what that means. With objects in less than five images there is no
            interval: drawing these few anew says nothing about others.
        """
        observed = [
            [_mean(p[:, chosen], axis=(0, 1, 2)) for chosen in _FIGURES.values()]
            for p in self.precision
        ]
        return self._differences("figure", list(_FIGURES), observed, self.sampled_figures)

    def class_table(self) -> list[Row]:
        """The same for AP of each class, with ``class`` in place of ``figure``.

        Of classes with objects in less than five images there is no interval.
        """
        observed = [_mean(p, axis=(0, 1)) for p in self.precision]
        rows = self._differences("class", self.class_names, observed, self.sampled_classes)
        few = {self.class_names[k] for k in np.flatnonzero(self.class_images < _FEWEST_IMAGES)}
        return [{**row, **_NO_INTERVAL} if row["class"] in few else row for row in rows]

    def error_table(self) -> list[Row]:
        """The same for dAP of each kind of error, with ``error``: lower is better."""
        observed = [_mean(e, axis=0) for e in self.errors]
        return self._differences("error", list(self.kinds), observed, self.sampled_errors)

    def _differences(
        self, key: str, names: Sequence[str], observed: Sequence, sampled: np.ndarray
    ) -> list[Row]:
        rows: list[Row] = []
        tail = 50 * (1 - self.coverage)
        for i in range(1, len(self.names)):
            for j, name in enumerate(names):
                samples = sampled[i, :, j] - sampled[0, :, j]
                samples = samples[~np.isnan(samples)]
                row: Row = {"method": self.names[i], key: name}
                difference = _number(observed[i][j] - observed[0][j])
                if difference is None or not len(samples):
                    rows.append({**row, "difference": None, **_NO_INTERVAL})
                    continue
                row["difference"] = difference
                if self.images < _FEWEST_IMAGES:
                    rows.append({**row, **_NO_INTERVAL})
                    continue
                low, high = np.percentile(samples, [tail, 100 - tail])
                rows.append(
                    {
                        **row,
                        "low": float(low),
                        "high": float(high),
                        "higher": 100 * float((samples > 0).mean()),
                        "beyond chance": bool(round(low, _DIGITS) > 0 or round(high, _DIGITS) < 0),
                    }
                )
        return rows


def compare(
    methods: Sequence[Method],
    *,
    samples: int = SAMPLES,
    coverage: float = 0.95,
    threshold: float = 0.5,
    seed: int = 0,
) -> Comparison:
    """Compare methods on the same images.

    Args:
        methods: the first is the reference.
        samples: how often the images are drawn anew.
        coverage: of the intervals.
        threshold: of IoU, at which errors are counted.
        seed: of the drawing.

    Raises:
        ValueError: there are less than two methods, or the runs are not of the same dataset.
    """
    if len(methods) < 2:
        raise ValueError("there is nothing to compare: name two runs or more")
    sets = [run for method in methods for run in method.runs]
    for other in sets[1:]:
        _refuse_other_data(sets[0], other)
    aps = [[ResampledPrecision(run) for run in method.runs] for method in methods]
    errors = [[ResampledErrors(run, threshold) for run in method.runs] for method in methods]
    once = np.ones(len(sets[0].image_ids))
    classes, figures, kinds = _sampled(aps, errors, len(once), samples, seed)
    return Comparison(
        names=[method.name for method in methods],
        class_names=sets[0].class_names,
        images=len(np.unique(sets[0].objects.images[~sets[0].objects.ignored])),
        class_images=_class_images(sets[0]),
        kinds=ResampledErrors.kinds,
        precision=[100 * np.array([run(once) for run in runs]) for runs in aps],
        errors=[100 * np.array([run(once) for run in runs]) for runs in errors],
        sampled_classes=classes,
        sampled_figures=figures,
        sampled_errors=kinds,
        coverage=coverage,
    )


def _sampled(
    aps: Sequence[Sequence[ResampledPrecision]],
    errors: Sequence[Sequence[ResampledErrors]],
    images: int,
    samples: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In percent, by method and sample: AP of the classes, the figures, and dAP of the kinds."""
    random = np.random.default_rng(seed)
    classes, figures, kinds = [], [], []
    bar = progress_bar(total=samples, label="compare", unit="sample")
    try:
        for _ in range(samples):
            weights = np.bincount(random.integers(0, images, images), minlength=images)
            weights = weights.astype(float)
            precision, costs = [], []
            for own_aps, own_errors in zip(aps, errors, strict=True):
                # Not of seeds that are drawn anew: of two or three, such intervals are too narrow.
                precision.append(_mean(np.array([run(weights) for run in own_aps]), axis=0))
                costs.append(_mean(np.array([run(weights) for run in own_errors]), axis=0))
            classes.append([_mean(p, axis=0) for p in precision])
            figures.append(
                [[_mean(p[chosen], axis=(0, 1)) for chosen in _FIGURES.values()] for p in precision]
            )
            kinds.append(costs)
            if bar is not None:
                bar.update(1)
    finally:
        if bar is not None:
            bar.close()
    return tuple(100 * np.array(x).swapaxes(0, 1) for x in (classes, figures, kinds))


def _class_images(data: EvaluationSet) -> np.ndarray:
    objects = data.objects.take(~data.objects.ignored)
    pairs = np.unique(np.stack((objects.classes, objects.images)), axis=1)
    return np.bincount(pairs[0], minlength=data.num_classes)


def _mean(values: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    """Of those that are not NaN; NaN where all are."""
    known = ~np.isnan(values)
    sums, counts = np.where(known, values, 0).sum(axis=axis), known.sum(axis=axis)
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _refuse_other_data(first: EvaluationSet, other: EvaluationSet) -> None:
    same = (
        first.image_ids == other.image_ids
        and first.class_names == other.class_names
        and np.array_equal(first.objects.classes, other.objects.classes)
        and np.array_equal(first.objects.images, other.objects.images)
        and np.allclose(first.objects.boxes, other.objects.boxes, atol=1e-3)
    )
    if not same:
        raise ValueError(
            f"'{first.name}' and '{other.name}' are of different datasets: images, classes or "
            "objects differ"
        )


def _methods(sources: Sequence[str], args: argparse.Namespace) -> list[Method]:
    methods, first = [], []
    for source in sources:
        paths = [source] if os.path.exists(source) else [p for p in source.split(",") if p]
        runs = [load_source(path, args) for path in paths]
        common = os.path.commonprefix([run.name for run in runs]).rstrip("_-. ")
        methods.append(Method(name=common or runs[0].name, runs=runs))
        first.append(Path(paths[0]).expanduser())
    names = distinct_names(first, [method.name for method in methods])
    return [Method(name=n, runs=m.runs) for n, m in zip(names, methods, strict=True)]


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code."""
    parser = CommandParser(
        prog="resobj-d2 analyze compare",
        description="Runs side by side: which differences are more than chance.",
        epilog="Runs that differ in their seed alone are joined by commas: A_0,A_1 B_0,B_1",
    )
    add_source_options(parser, several=True)
    parser.add_argument(
        "--iou", type=float, default=0.5, metavar="IOU", help="of errors (default 0.5)"
    )
    parser.add_argument(
        "--samples",
        type=int,
        default=SAMPLES,
        metavar="N",
        help="of the bootstrap (default: %(default)s)",
    )
    parser.add_argument(
        "--coverage", type=float, default=0.95, metavar="PART", help="of intervals (default 0.95)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the bootstrap (default 0)"
    )
    args = parser.parse_args(argv)
    if args.samples < 1 or not 0 < args.coverage < 1 or args.seed < 0:
        parser.error("--samples must be at least 1, --coverage in (0, 1), --seed not negative")
    found = compare(
        _methods(args.sources, args),
        samples=args.samples,
        coverage=args.coverage,
        threshold=args.iou,
        seed=args.seed,
    )
    print(markdown(found.run_table(), digits=_DIGITS))
    print(f"\nAgainst {found.names[0]}, with {100 * args.coverage:g}% intervals\n")
    print(markdown(found.difference_table(), digits=_DIGITS))
    errors = markdown(found.error_table(), digits=_DIGITS)
    print(f"\ndAP by kind of error, lower is better\n\n{errors}")
    classes = [row for row in found.class_table() if row["difference"] is not None]
    classes.sort(key=lambda row: -abs(row["difference"]))
    shown = markdown(classes, digits=_DIGITS, limit=20)
    print(f"\nAP by class, the largest differences first\n\n{shown}\n\n{CHANCE}")
    if args.json:
        tables = {
            "methods": found.run_table(),
            "differences": found.difference_table(),
            "errors": found.error_table(),
            "classes": found.class_table(),
        }
        write_json(args.json, tables)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
