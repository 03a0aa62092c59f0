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
from torch import Tensor, nn

from docs.generators.rows import with_rows
from resobj_d2.config import load_config
from resobj_d2.export import FORMATS, ExportableDetector, ExportableRCNN, exportable, write_exported
from resobj_d2.export.check import Parity, as_batch
from resobj_d2.export.command import check_file
from resobj_d2.inference import Predictor
from resobj_d2.inference.predict import find_images

__all__ = ["DETECTORS", "main"]

DETECTORS = {
    "RetinaNet": "small/cells_retinanet_fl.yaml",
    "Residual Objectness, T = 2": "small/cells_retinanet_resobj_t2.yaml",
    "Residual Objectness on EfficientNet-Lite0": "small/cells_retinanet_resobj_t2_lite0.yaml",
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
HEAD = (
    "| detector | format | detections per picture | without counterpart | boxes, px | scores "
    "| same |\n|---|---|---|---|---|---|---|"
)


# The layers whose outputs are logits of classes or of objectness.
PREDICTORS = re.compile(r"\b(cls|predictor|cls_score)(\.levels\.\d+|\.conv\.1)?\.weight$")
BOX_PREDICTORS = re.compile(r"\b(stages\.\d\.box\b.*|anchor_deltas|bbox_pred)\.weight$")
REACH = 6.0  # from the median of the logits to the highest


def random_detector(name: str) -> tuple[CfgNode, nn.Module]:
    """Config and model with weights whose maps neither vanish nor explode."""
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.TIMM.PRETRAINED", "False"]
    options += ["MODEL.TIMM.WEIGHTS", ""]
    options += ["DATASETS.REGISTER", "[]", "DATASETS.TEST", "()"]
    cfg = load_config(name, options, training=False)
    cfg.defrost()
    # Groups would be normalised in every picture: then all pictures had similar scores.
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.DENSE.TOWER.NORM = ""
    torch.manual_seed(1)
    model = build_model(cfg).eval()
    for name, parameter in model.named_parameters():
        if name.startswith("backbone") or parameter.dim() < 2:
            continue
        # Boxes stay near their anchors: else their sides leave the picture by far.
        gain = 0.05 if BOX_PREDICTORS.search(name) else 2**0.5
        parameter.data.mul_(gain / (parameter[0].numel() ** 0.5 * float(parameter.std())))
    return cfg, model


def normalise(detector: ExportableDetector, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """Takes the statistics of batch normalisation from the pictures, as training does."""
    for norm in detector.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over the pictures
            norm.train()
    for batch in batches:
        detector(*batch)
    detector.eval()


@torch.no_grad()
def calibrate(model: nn.Module, predictor: Predictor, pictures: Sequence[Path]) -> None:
    """Statistics, scores and threshold as a trained detector has them, from the pictures.

    Random layers without have outputs of hundreds: then most scores are exactly 1, and which of
    two boxes of the same score suppresses the other is decided by rounding.
    """
    detector = exportable(model)
    inputs = [predictor.model_input(predictor.read(picture)) for picture in pictures]
    batches = [as_batch([x], detector.size_divisibility) for x in inputs]
    normalise(detector, batches)
    scale_predictors(detector, batches)
    set_threshold(detector, batches)


def large_picture(folder: Path) -> Path:
    """One larger than the detectors' limit."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    path = folder / "large.png"
    Image.fromarray(noise).resize((1800, 1200), Image.BILINEAR).save(path)
    return path


def logits(detector: ExportableDetector, batches: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """Of all classes in all pictures; of a dense detector those of its scores."""
    found: list[Tensor] = []
    if isinstance(detector, ExportableRCNN):
        layer = detector.model.roi_heads.box_predictor.cls_score
        hook = layer.register_forward_hook(lambda _, inputs, output: found.append(output))
        try:
            for batch in batches:
                detector(*batch)
        finally:
            hook.remove()
    else:
        raw = detector.finding_more()
        found = [torch.logit(raw(*batch)[0].double(), eps=1e-9) for batch in batches]
    return torch.cat([x.flatten() for x in found])


def scale_predictors(detector: ExportableDetector, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """So that scores differ and none is 1."""
    named = detector.model.named_parameters()
    weights = [parameter for name, parameter in named if PREDICTORS.search(name)]
    for _ in range(4):
        values = logits(detector, batches)
        factor = REACH / float(values.max() - values.median())
        for weight in weights:
            weight.data.mul_(factor)


def set_threshold(detector: ExportableDetector, batches: Sequence[tuple[Tensor, ...]]) -> None:
    """So that nothing is found on one picture, and something on the others."""
    more = detector.finding_more()
    scores = [more(*batch)[more.outputs.index("scores")].flatten() for batch in batches]
    lowest = min(float(x.max()) for x in scores)
    others = torch.cat(scores)
    threshold = (lowest + float(others[others > lowest].min())) / 2
    if isinstance(detector, ExportableRCNN):
        detector.model.roi_heads.box_predictor.test_score_thresh = threshold
    else:
        detector.model.postprocess.score_thresh = threshold


def rows(formats: Sequence[str], images: Sequence[Path], names: Sequence[str]) -> Iterator[str]:
    """The table's rows."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        pictures = [*images, large_picture(folder)]
        for title in names:
            cfg, model = random_detector(DETECTORS[title])
            predictor = Predictor(cfg, model)
            calibrate(model, predictor, pictures)
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


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or write it into a page between its marks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--images", nargs="+", required=True, metavar="IMAGE", help="two real pictures or more"
    )
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    parser.add_argument("--detectors", nargs="+", choices=list(DETECTORS), default=list(DETECTORS))
    parser.add_argument(
        "--write", metavar="FILE", help="page to write it into; rows of others stay there"
    )
    options = parser.parse_args(argv)
    lines = []
    for line in rows(options.formats, find_images(options.images), options.detectors):
        print(line, file=sys.stderr, flush=True)
        lines.append(line)
    if not options.write:
        print(HEAD, *lines, sep="\n")
        return 0
    page = Path(options.write)
    order = [(title, format) for title in DETECTORS for format in FORMATS]
    text = with_rows(page.read_text(), lines, head=HEAD, order=order, command=NAME)
    page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
