"""The images and errors that cost most AP: as tables, and drawn.

::

    resobj-d2 analyze worst output/RUN --output worst

For every image: ground truth beside detections, with the kind of each error and its cost.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from resobj_d2.command import CommandParser, run_command
from resobj_d2.data.pictures import ImageError, read_picture
from resobj_d2.inference.drawing import BoxStyle, draw_boxes, grid, save_picture
from resobj_d2.process import counted

from .error_costs import ErrorCosts, error_costs
from .errors import KINDS, analyze_errors
from .source import add_iou_option, add_source_options, load_source
from .tables import Row, markdown, write_json

__all__ = ["draw_image", "main"]

_RIGHT, _MISSED, _IGNORED = (60, 200, 90), (255, 60, 60), (160, 160, 160)
_COLORS = {
    "Cls": (224, 64, 251), "Loc": (255, 145, 0), "Both": (188, 143, 103), "Dupe": (0, 176, 255),
    "Bkg": (255, 82, 82),
}  # fmt: skip
_SHOWN = 0.005  # lowest cost that two digits show
_OWN = re.compile(r"\d{3,}_.*\.png")  # names of the pictures
_SIDE = 720  # longer side of each picture in pixels


def draw_image(
    costs: ErrorCosts,
    image: int,
    picture: np.ndarray,
    *,
    confidence: float = 0.3,
    side: int = _SIDE,
) -> Image.Image:
    """Ground truth beside detections: green is right, grey is not judged, other colours are errors.

    Args:
        costs: of the errors.
        image: row of the image.
        picture: its pixels, (H, W, 3) uint8 RGB.
        confidence: lowest score that is drawn; errors that cost AP are drawn whatever their score.
        side: longer side of each of the two pictures in pixels.

    Returns:
        A Pillow image.
    """
    truth, truth_styles = _drawn_objects(costs, image)
    found, found_styles = _drawn_detections(costs, image, confidence)
    pictures = [
        draw_boxes(picture, truth, truth_styles, side=side),
        draw_boxes(picture, found, found_styles, side=side),
    ]
    return grid([pictures], ["ground truth", "detections"])


def _drawn_objects(costs: ErrorCosts, image: int) -> tuple[np.ndarray, list[BoxStyle]]:
    data, analysis = costs.analysis.data, costs.analysis
    objects = data.objects
    rows = np.flatnonzero(objects.images == image)
    rows = rows[np.argsort(-costs.objects[rows], kind="stable")]
    styles = []
    for row in rows.tolist():
        name = data.class_names[objects.classes[row]]
        if objects.ignored[row]:
            styles.append(
                BoxStyle("crowd" if objects.crowd[row] else f"{name} difficult", _IGNORED)
            )
        elif analysis.not_found[row]:
            styles.append(BoxStyle(f"{name} missed{_cost(costs.objects[row])}", _MISSED))
        else:
            styles.append(BoxStyle(name, _RIGHT))
    return _corners(objects.boxes[rows]), styles


def _drawn_detections(
    costs: ErrorCosts, image: int, confidence: float
) -> tuple[np.ndarray, list[BoxStyle]]:
    data, analysis = costs.analysis.data, costs.analysis
    found = data.detections
    rows = np.flatnonzero(found.images == image)
    expensive = costs.detections[rows] >= _SHOWN
    rows = rows[(found.scores[rows] >= confidence) | expensive]
    rows = rows[np.lexsort((-found.scores[rows], -costs.detections[rows]))]
    styles = []
    for row in rows.tolist():
        text = f"{data.class_names[found.classes[row]]} {found.scores[row]:.2f}"
        kind = analysis.kinds[row]
        if kind >= 0:
            text = f"{KINDS[kind]}: {text}{_cost(costs.detections[row])}"
            styles.append(BoxStyle(text, _COLORS[KINDS[kind]]))
        else:
            styles.append(BoxStyle(text, _IGNORED if analysis.matches.ignored[row] else _RIGHT))
    return _corners(found.boxes[rows]), styles


def _cost(value: float) -> str:
    return f", costs {value:.2f}" if value >= _SHOWN else ""


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def _draw(costs: ErrorCosts, folder: Path, most: int, confidence: float) -> tuple[int, list[str]]:
    """Write the pictures; return their number and why others could not be drawn."""
    data = costs.analysis.data
    rows = {identity: row for row, identity in enumerate(data.image_ids)}
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():  # of an earlier call
        if _OWN.fullmatch(old.name):
            old.unlink()
    written, failed = 0, []
    for number, entry in enumerate(costs.image_table(most), 1):
        row = rows[entry["image"]]
        try:
            picture = read_picture(data.files[row])
        except ImageError as error:
            failed.append(str(error))
            continue
        name = re.sub(r"[^\w.-]+", "_", Path(entry["file"]).stem or str(entry["image"]))[-80:]
        drawn = draw_image(costs, row, picture, confidence=confidence)
        save_picture(drawn, folder / f"{number:03d}_{name}.png")
        written += 1
    return written, failed


def _own_folder(folder: Path) -> Path:
    """The folder, or ``worst`` in it where it has other files than those of this command."""
    if folder.is_dir() and not all(_OWN.fullmatch(file.name) for file in folder.iterdir()):
        return folder / "worst"
    return folder


def _by_file(rows: Sequence[Row], hidden: Sequence[str] = ()) -> list[Row]:
    """Rows as printed: the name of the picture first, without its folder."""
    return [
        {"file": Path(row["file"]).name}
        | {key: value for key, value in row.items() if key not in ("file", *hidden)}
        for row in rows
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code: 1 where pictures could not be read."""
    parser = CommandParser(prog="resobj-d2 analyze worst", description=__doc__.partition("\n")[0])
    add_source_options(parser)
    add_iou_option(parser)
    parser.add_argument(
        "--most", type=int, default=20, metavar="N", help="images and errors (default 20)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="draw the images to this folder, or to `worst` in it where it has other files",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.3,
        metavar="SCORE",
        help="lowest score that is drawn (0.3)",
    )
    args = parser.parse_args(argv)
    if args.most < 1:
        parser.error(f"--most must be at least 1, got {args.most}")
    data = load_source(args.source, args)
    costs = error_costs(analyze_errors(data, threshold=args.iou))
    images, errors = costs.image_table(args.most), costs.error_table(args.most)
    print(f"{data.name}: costs in points of AP at an IoU of {args.iou:g}\n")
    print(markdown(_by_file(images), digits=3))
    print(f"\nSingle errors\n\n{markdown(_by_file(errors, ['box']), digits=3)}")
    if args.json:
        write_json(args.json, {"images": images, "errors": errors})
    if not args.output:
        return 0
    folder = _own_folder(args.output)
    written, failed = _draw(costs, folder, args.most, args.confidence)
    print(f"\n{folder.absolute()} has {counted(written, 'picture')}")
    if failed:
        print(f"{len(failed)} could not be read, the first: {failed[0]}", file=sys.stderr)
        print("--images names the folder of the pictures of a COCO json", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
