"""How often torch.compile compiles each detector, as the table of docs/training.md.

::

    python -m docs.generators.compilations --write docs/training.md

The detectors are the small ones of ``configs/small`` with random weights. Each gets a series of
batches of two random images, of different sizes and with none, one and several boxes. Graphs are
only counted: torch then runs them as they are, without a compiler.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch._dynamo.backends.debugging import ExplainWithBackend
from torch.fx.experimental import _config as symbolic_shapes

from docs.generators.export_parity import DETECTORS
from docs.generators.rows import with_rows
from resobj_d2.config import load_config

__all__ = [
    "SETTINGS",
    "Count",
    "batches",
    "count",
    "main",
    "random_batch",
    "raw_maps",
    "training_losses",
]

NAME = "python -m docs.generators.compilations"
SETTINGS = {"backed_size_oblivious": True, "use_duck_shape": False}
"""Those of ``torch.fx.experimental._config`` with which one compilation serves all batches."""
HEAD = (
    "| detector | graphs of the maps | compilations | graphs of the losses | compilations |\n"
    "|---|---|---|---|---|"
)
UNBOUNDED = 1000  # compilations, after which torch would stop compiling


@dataclass(frozen=True)
class Count:
    """What torch.compile made of a function.

    Attributes:
        graphs: that the first call needed.
        compilations: that all calls needed, of these graphs or others.
    """

    graphs: int
    compilations: int


def count(
    function: Callable[..., Any], calls: Sequence[Sequence[Any]], *, settings: bool = True
) -> Count:
    """Graphs and compilations of ``torch.compile(function, dynamic=True)``.

    Args:
        function: what is compiled.
        calls: its arguments, call by call.
        settings: with :data:`SETTINGS`.
    """
    torch._dynamo.reset()
    explained = ExplainWithBackend("eager")
    compiled = torch.compile(function, dynamic=True, backend=explained)
    made = []
    limits = {"recompile_limit": UNBOUNDED, "accumulated_recompile_limit": UNBOUNDED}
    with ExitStack() as stack:
        stack.enter_context(torch._dynamo.config.patch(**limits))
        if settings:
            stack.enter_context(symbolic_shapes.patch(**SETTINGS))
        for arguments in calls:
            compiled(*arguments)
            made.append(explained.output().graph_count)
    torch._dynamo.reset()
    return Count(graphs=made[0], compilations=made[-1])


def batches(model: nn.Module, number: int) -> list[tuple[ImageList, Any]]:
    """Normalised images of a series of batches, and their objects as the detector needs them.

    Heights and widths are one to five times what must divide them, and at least 32 pixels: the
    coarsest maps have one cell, or more. The first four batches have several boxes, one in each
    image, none, and one in one image.
    """
    draw = random.Random(0)
    unit = max(32, model.backbone.size_divisibility)
    sizes = [(2, 3), (1, 1), (2, 1), (5, 4)]
    boxes = [(2, 3), (1, 1), (0, 0), (0, 1)]
    while len(sizes) < number:
        sizes.append((draw.randint(1, 5), draw.randint(1, 5)))
        boxes.append((draw.randint(0, 6), draw.randint(0, 6)))
    scaled = [(height * unit, width * unit) for height, width in sizes[:number]]
    return [random_batch(model, size, counts) for size, counts in zip(scaled, boxes, strict=False)]


def random_batch(
    model: nn.Module, size: tuple[int, int], counts: Sequence[int]
) -> tuple[ImageList, Any]:
    """Normalised random images of one size, and their objects as the detector needs them.

    Args:
        model: the detector.
        size: height and width.
        counts: numbers of objects.
    """
    inputs = [_image(*size, number) for number in counts]
    if isinstance(model, GeneralizedRCNN):
        return model.preprocess_image(inputs), [x["instances"] for x in inputs]
    return model._preprocess(inputs), model._ground_truth(inputs)


def _image(height: int, width: int, number_of_boxes: int) -> dict[str, Any]:
    """A random image with random boxes, as Detectron2 gives it to a detector."""
    corners = torch.rand(number_of_boxes, 2, 2) * torch.tensor([width, height])
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.cat((corners.amin(1), corners.amax(1) + 1), dim=1))
    instances.gt_classes = torch.zeros(number_of_boxes, dtype=torch.int64)
    return {"image": torch.rand(3, height, width) * 255, "instances": instances}


def raw_maps(model: nn.Module) -> Callable[..., Any]:
    """What a detector predicts for images, by backbone and heads; of a two-stage one its RPN."""
    if not isinstance(model, GeneralizedRCNN):
        return lambda images, _: model.predict(images)
    rpn = model.proposal_generator

    def predict(images: ImageList, _: Any) -> Any:
        features = model.backbone(images.tensor)
        return rpn.rpn_head.predict([features[name] for name in rpn.in_features])

    return predict


def training_losses(model: nn.Module) -> Callable[..., dict[str, Tensor]]:
    """The losses of normalised images: backbone, heads and all that follows; of a two-stage
    detector those of its RPN.
    """
    if not isinstance(model, GeneralizedRCNN):
        return lambda images, ground_truth: model._losses(model.predict(images), ground_truth)
    rpn = model.proposal_generator

    def losses(images: ImageList, instances: list[Instances]) -> dict[str, Tensor]:
        features = model.backbone(images.tensor)
        maps = [features[name] for name in rpn.in_features]
        anchors = rpn.anchor_generator(maps)
        prediction, deltas = rpn.rpn_head.predict(maps)
        per_level = list(deltas.flatten().split([len(x) for x in anchors], dim=1))
        return rpn.losses_of(anchors, maps, prediction, per_level, instances)

    return losses


def row(title: str, number: int, *, settings: bool = True) -> str:
    """One row of the table."""
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.TIMM.PRETRAINED", "False"]
    options += ["MODEL.TIMM.WEIGHTS", ""]
    options += ["DATASETS.REGISTER", "[]", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    torch.manual_seed(0)
    model = build_model(load_config(DETECTORS[title], options))
    calls = batches(model, number)
    cells = [title]
    for function in (raw_maps(model), training_losses(model)):
        found = count(function, calls, settings=settings)
        cells += [str(found.graphs), str(found.compilations)]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or write it into a page between its marks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batches", type=int, default=8, metavar="N", help="of the series")
    parser.add_argument(
        "--torch-defaults", action="store_true", help="count without the settings of the page"
    )
    parser.add_argument("--detectors", nargs="+", choices=list(DETECTORS), default=list(DETECTORS))
    parser.add_argument(
        "--write", metavar="FILE", help="page to write it into; rows of others stay there"
    )
    options = parser.parse_args(argv)
    lines = []
    for title in options.detectors:
        lines.append(row(title, options.batches, settings=not options.torch_defaults))
        print(lines[-1], file=sys.stderr, flush=True)
    if not options.write:
        print(HEAD, *lines, sep="\n")
        return 0
    page = Path(options.write)
    order = [(title,) for title in DETECTORS]
    text = with_rows(page.read_text(), lines, head=HEAD, order=order, command=NAME)
    page.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
