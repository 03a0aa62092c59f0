"""How far exported detectors are from the models, as the table of docs/export.md.

::

    python -m docs.generators.export_parity --images 'photos/*.jpg' --write docs/export.md

The detectors are the small ones of ``configs/small`` with random weights. Their score threshold is
such that one of the pictures has no detection. One picture is generated, which is larger than the
detectors' limit; ``--images`` adds real ones. Every file is run on each picture alone and on two as
a batch.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from benchmarks.table import replace_between_marks
from resobj_d2.config import load_config
from resobj_d2.export import FORMATS, ExportableRCNN, exportable, write_exported
from resobj_d2.export.check import Parity, as_batch
from resobj_d2.export.command import check_file
from resobj_d2.inference import Predictor
from resobj_d2.inference.predict import find_images

__all__ = ["DETECTORS", "main", "table"]

DETECTORS = {
    "RetinaNet": "small/cells_retinanet_fl.yaml",
    "Residual Objectness, T = 2": "small/cells_retinanet_resobj_t2.yaml",
    "RetinaNet-Conf": "small/cells_retinanet_conf.yaml",
    "consistent optimisation": "small/cells_retinanet_consistent.yaml",
    "Libra RetinaNet": "small/cells_retinanet_libra.yaml",
    "FSAF": "small/cells_retinanet_fsaf.yaml",
    "everything together": "small/cells_retinanet_everything_fsaf.yaml",
    "YOLOv3": "small/cells_yolov3_resobj_t2.yaml",
    "SSD": "small/cells_ssd_plain.yaml",
    "EfficientDet": "small/cells_efficientdet_d0.yaml",
    "Faster R-CNN, ResObj": "small/cells_faster_rcnn_resobj.yaml",
}
NAME = "python -m docs.generators.export_parity"


def random_detector(name: str) -> tuple[CfgNode, nn.Module]:
    """Config and model with weights that give scores of all sizes."""
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.TIMM.PRETRAINED", "False"]
    options += ["DATASETS.REGISTER", "[]", "DATASETS.TEST", "()"]
    cfg = load_config(name, options, training=False)
    cfg.defrost()
    cfg.MODEL.RESNETS.NORM = "GN"  # frozen normalisation of random layers normalises nothing
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        # Boxes stay near their anchors: else their sides leave the picture by far. Other layers
        # of the head give larger numbers than at the start of a training.
        if re.search(r"stages\.\d\.box\.", name):
            parameter.data.mul_(min(1.0, 0.01 / float(parameter.std())))
        elif parameter.std() < 0.02 and not re.search(r"tower\.box|deltas|bbox", name):
            parameter.data.mul_(10)
    return cfg, model


def normalise(model: nn.Module, predictor: Predictor, pictures: Sequence[Path]) -> None:
    """Takes the statistics of batch normalisation from the pictures, as training does.

    Random layers without them have outputs of hundreds: then most scores are exactly 1, and which
    of two boxes of the same score suppresses the other is decided by rounding.
    """
    detector = exportable(model)
    norms = [x for x in model.modules() if isinstance(x, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the pictures
        norm.train()
    for picture in pictures:
        inputs = [predictor.model_input(predictor.read(picture))]
        with torch.no_grad():
            detector(*as_batch(inputs, detector.size_divisibility))
    model.eval()


def large_picture(folder: Path) -> Path:
    """One larger than the detectors' limit."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    path = folder / "large.png"
    Image.fromarray(noise).resize((1800, 1200), Image.BILINEAR).save(path)
    return path


def set_threshold(model: nn.Module, predictor: Predictor, pictures: Sequence[Path]) -> None:
    """So that nothing is found on one picture, and something on the others."""
    detector = exportable(model).finding_more()
    scores = detector.outputs.index("scores")
    highest = []
    for picture in pictures:
        inputs = [predictor.model_input(predictor.read(picture))]
        with torch.no_grad():
            outputs = detector(*as_batch(inputs, detector.size_divisibility))
        highest.append(float(outputs[scores].max()))
    lowest, second = sorted(highest)[:2]
    threshold = (lowest + second) / 2
    if isinstance(detector, ExportableRCNN):
        model.roi_heads.box_predictor.test_score_thresh = threshold
    else:
        model.postprocess.score_thresh = threshold


def rows(formats: Sequence[str], images: Sequence[Path], names: Sequence[str]) -> Iterator[str]:
    """The table's rows."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        pictures = [*images, large_picture(folder)]
        for title in names:
            cfg, model = random_detector(DETECTORS[title])
            predictor = Predictor(cfg, model)
            normalise(model, predictor, pictures)
            set_threshold(model, predictor, pictures)
            for format in formats:
                path = folder / f"model{FORMATS[format].suffix}"
                detector = exportable(model, selection=FORMATS[format].selection)
                write_exported(detector, path, format=format)
                found = check_file(predictor, detector, path, pictures, format=format)
                yield row(title, format, [parity for _, parity in found])


def row(title: str, format: str, parities: Sequence[Parity]) -> str:
    """One row: how many detections, and the largest differences."""
    found = [parity.found for parity in parities]
    cells = [
        title,
        format,
        f"{min(found)} to {max(found)}",
        str(sum(parity.unmatched for parity in parities)),
        f"{max(parity.box for parity in parities):.1g}",
        f"{max(parity.score for parity in parities):.1g}",
        "yes" if all(parity.holds for parity in parities) else "**no**",
    ]
    return f"| {' | '.join(cells)} |"


def table(formats: Sequence[str], images: Sequence[Path], names: Sequence[str]) -> str:
    """The table, in Markdown."""
    head = (
        "| detector | format | detections per picture | without counterpart | boxes, px | scores "
        "| same |\n|---|---|---|---|---|---|---|"
    )
    lines = [head]
    for line in rows(formats, images, names):
        print(line, file=sys.stderr, flush=True)
        lines.append(line)
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or write it into a page between its marks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--images", nargs="+", required=True, metavar="IMAGE", help="two real pictures or more"
    )
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--detectors", nargs="+", choices=list(DETECTORS), default=list(DETECTORS))
    parser.add_argument("--write", metavar="FILE", help="page to write it into")
    options = parser.parse_args(argv)
    images = find_images(options.images)
    text = table(options.formats, images, options.detectors)
    if not options.write:
        print(text)
        return 0
    page = Path(options.write)
    page.write_text(replace_between_marks(page.read_text(), text, NAME))
    return 0


if __name__ == "__main__":
    sys.exit(main())
