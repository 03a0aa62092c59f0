"""How rare objects are among a model's anchors, beside COCO's published figures.

::

    resobj-d2 data balance hard_scenes_retinanet_fl
    resobj-d2 data balance annotations/train.json

With a configuration anchors are counted too, at the size that its network sees. Which part of a
trained model's loss the easy negatives own, `resobj-d2 analyze imbalance` measures.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate

from resobj_d2.command import CommandParser, add_import_option, run_command
from resobj_d2.data.record import Record
from resobj_d2.process import start_log

from .anchors import AnchorSet, anchor_sets, network_of
from .boxes import BANDS, size_bands
from .input_size import input_sizes
from .target import find_target

__all__ = ["COCO", "Balance", "anchor_count", "main", "measure_balance"]


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Objects and anchors of a dataset.

    Attributes:
        pictures: how many.
        classes: how many.
        objects: in a picture, mean; crowd regions do not count.
        empty: share of pictures without an object.
        bands: shares of small, medium and large objects, by COCO's areas, in the picture.
        input_bands: the same at the network's input; None without a network.
        anchors: in a picture, mean; None where they are not known.
    """

    pictures: int
    classes: int
    objects: float
    empty: float
    bands: tuple[float, ...]
    input_bands: tuple[float, ...] | None = None
    anchors: float | None = None

    @property
    def anchors_per_object(self) -> float | None:
        """Anchors for each object, over all pictures."""
        return self.anchors / self.objects if self.anchors and self.objects else None


# Pictures and objects: of instances_train2017.json. Bands: cocodataset.org, Detection Evaluation.
# Anchors: Lin et al., Focal Loss for Dense Object Detection (ICCV 2017), section 4.1, "~100k".
COCO = Balance(
    pictures=118_287,
    classes=80,
    objects=860_001 / 118_287,
    empty=1_021 / 118_287,
    bands=(0.41, 0.34, 0.24),
    anchors=100_000.0,
)


def anchor_count(anchors: AnchorSet, inputs: np.ndarray) -> np.ndarray:
    """(M,) anchors on inputs of (M, 2) height and width, padded."""
    total = np.zeros(len(inputs))
    for stride, cell in zip(anchors.strides, anchors.cells, strict=True):
        total += np.ceil(inputs / stride).prod(axis=1) * len(cell)
    return total


def measure_balance(record: Record, cfg=None) -> Balance:
    """Count a dataset's objects, and with a configuration the anchors that they are among.

    Args:
        record: the dataset.
        cfg: of a model; None for the data alone.

    Raises:
        ValueError: there is no picture.
    """
    images, table = record.images, record.annotations.take(~record.annotations.crowd)
    if not len(images):
        raise ValueError(f"dataset '{record.name}' has no pictures, so there is nothing to count")
    number = np.bincount(table.images, minlength=len(images))
    found: dict = {}
    if cfg is not None:
        sizes = input_sizes(cfg, images.widths, images.heights)
        scales = (sizes / np.stack([images.heights, images.widths], axis=1)).prod(axis=1)
        found["input_bands"] = _bands(table.areas * scales[table.images])
        found["anchors"] = _anchors(cfg, sizes)
    return Balance(
        pictures=len(images),
        classes=len(record.categories),
        objects=float(number.mean()),
        empty=float((number == 0).mean()),
        bands=_bands(table.areas),
        **found,
    )


def _anchors(cfg, sizes: np.ndarray) -> float | None:
    network = network_of(cfg)
    sets, _ = anchor_sets(cfg, network)
    if network is None or not sets:
        return None
    padded = np.ceil(sizes / network.divisor) * network.divisor
    if network.square:
        padded = np.full_like(padded, network.square)
    return float(sum(anchor_count(one, padded).mean() for one in sets))


def _bands(areas: np.ndarray) -> tuple[float, ...]:
    count = np.bincount(size_bands(areas), minlength=len(BANDS))
    return tuple((count / max(len(areas), 1)).tolist())


def _rows(columns: dict[str, Balance]) -> list[list[str]]:
    """Rows that say something of one of the datasets, and not of COCO alone, which is last."""

    def row(name: str, text) -> list[str]:
        return [name, *(text(one) for one in columns.values())]

    rows = [
        row("pictures", lambda b: f"{b.pictures:,}"),
        row("classes", lambda b: f"{b.classes}"),
        row("objects in a picture", lambda b: f"{b.objects:.1f}"),
        row("pictures without objects", lambda b: f"{100 * b.empty:.1f} %"),
        row(f"{' / '.join(BANDS)}, in the picture", lambda b: _shares(b.bands)),
        row("the same at the network's input", lambda b: _shares(b.input_bands)),
        row("anchors in a picture", lambda b: _count(b.anchors)),
        row("anchors for each object", lambda b: _count(b.anchors_per_object)),
    ]
    return [cells for cells in rows if set(cells[1:-1]) != {"-"}]


def _shares(bands: Sequence[float] | None) -> str:
    return "-" if bands is None else " / ".join(f"{100 * share:.0f}" for share in bands) + " %"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = CommandParser(
        prog="resobj-d2 data balance",
        description="Objects, their sizes and the anchors that they are among, beside COCO's "
        "published figures.",
        epilog="Which part of a trained model's loss the easy negatives own: resobj-d2 analyze "
        "imbalance.",
    )
    parser.add_argument("target", metavar="DATA", help="as of `resobj-d2 data check`")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the configuration")
    parser.add_argument("--images", metavar="DIR", help="folder of the pictures of a json or csv")
    add_import_option(parser)
    args = parser.parse_intermixed_args(argv)
    start_log()
    target = find_target([args.target, *args.opts], images=args.images, imports=args.imports)
    columns = {name: measure_balance(one, target.cfg) for name, one in target.records.items()}
    columns["COCO train2017"] = COCO
    print(tabulate(_rows(columns), headers=["", *columns], disable_numparse=True))
    if target.cfg is None:
        print("\nWith a configuration in place of the data it counts anchors, too.")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
