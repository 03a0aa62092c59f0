"""Parameters and FLOPs of EfficientDet D0-D7 next to the published ones.

::

    python -m docs.generators.efficientdet_scaling

Each network is built from its yaml with the published 90 class ids (COCO's 80 classes have ids
up to 90), on torch's meta device, i.e. without memory for weights and without arithmetic. As in the
paper, FLOPs are multiply-adds for one image of the published size, here those of the convolutions
plus one per number scaled by batch normalisation.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resobj_d2.analysis.cost import Cost, Network
from resobj_d2.config import load_config

__all__ = ["PUBLISHED", "Published", "main", "measure", "multiply_adds"]


@dataclass(frozen=True)
class Published:
    """A row of Table 2 of "EfficientDet: Scalable and Efficient Object Detection" (CVPR 2020).

    Attributes:
        parameters: millions.
        gflops: billions of multiply-adds.
        ap: on COCO test-dev.
    """

    parameters: float
    gflops: float
    ap: float


PUBLISHED = {
    "d0": Published(3.9, 2.5, 33.8),
    "d1": Published(6.6, 6.1, 39.6),
    "d2": Published(8.1, 11.0, 43.0),
    "d3": Published(12.0, 25.0, 45.8),
    "d4": Published(21.0, 55.0, 49.4),
    "d5": Published(34.0, 135.0, 50.7),
    "d6": Published(52.0, 226.0, 51.7),
    "d7": Published(52.0, 325.0, 52.2),
}


@torch.no_grad()
def multiply_adds(model: nn.Module, size: tuple[int, int]) -> float:
    """Multiply-adds of convolutions and normalisations for an image of ``size`` (height, width)."""
    normalised = 0

    def add(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        nonlocal normalised
        normalised += output.numel()

    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [norm.register_forward_hook(add) for norm in norms]
    try:
        with FlopCounterMode(display=False) as counter:
            Network(model).eval()(torch.zeros(1, 3, *size, device=next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return counter.get_total_flops() / 2 + normalised


def measure(config_file: str | Path) -> tuple[Cost, int]:
    """The cost of a yaml's network on a square image, and the image's side."""
    options = ["MODEL.DEVICE", "meta", "MODEL.TIMM.PRETRAINED", "False"]
    options += ["DATASETS.TEST", "()", "MODEL.DENSE.NUM_CLASSES", "90"]
    cfg = load_config(str(config_file), options, training=False)
    with torch.device("meta"):
        model = build_model(cfg).eval()
    side = cfg.INPUT.MAX_SIZE_TEST
    cost = Cost(
        name=Path(config_file).stem,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=multiply_adds(model, (side, side)),
    )
    return cost, side


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m docs.generators.efficientdet_scaling",
        description=__doc__.partition("\n")[0],
    )
    parser.add_argument(
        "--configs", type=Path, default=Path("configs/COCO-Detection"), help="folder of the yamls"
    )
    args = parser.parse_args(argv)
    print("| | input | parameters (M) | published | | GFLOPs | published | |")
    print("|---|---|---|---|---|---|---|---|")
    for name, published in PUBLISHED.items():
        cost, side = measure(args.configs / f"efficientdet_{name}.yaml")
        parameters, gflops = cost.parameters / 1e6, cost.flops / 1e9
        cells = [name.upper(), f"{side}"]
        for value, target in ((parameters, published.parameters), (gflops, published.gflops)):
            cells += [f"{value:.2f}", f"{target:g}", f"{value / target - 1:+.1%}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
