"""What to expect of the headline configurations: the paper's AP, the time, and a stable start.

::

    python -m benchmarks.first_steps --write docs/training.md \\
        retinanet_resobj_t2_R_50_FPN_600_1x DATASETS.TRAIN "('mine',)" DATASETS.TEST "()" \\
        DATASETS.REGISTER "[{'name': 'mine', 'json': 'train.json', 'images': 'photos'}]"

Without names it takes the configurations of HEADLINES. The picture is the first one with objects
that the configuration's own training data give; the rate is that of its warm-up, or with
--no-warmup the full one. Networks are random, but as a pretrained one in what matters for the
start: each frozen normalisation is given the statistics of its input, as after training, so
features have unit scale at any depth.

Hours are those that Detectron2's model zoo states for RetinaNet on eight V100, scaled by FLOPs and
by the number of images of the schedule: a guess.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from benchmarks.table import replace_between_marks
from resobj_d2.analysis.cost import count
from resobj_d2.analysis.tables import markdown
from resobj_d2.command import CommandParser, run_command
from resobj_d2.config import load_config
from resobj_d2.config.zoo import find_config, zoo_entries, zoo_folder
from resobj_d2.engine import Trainer
from resobj_d2.modeling.backbones import without_imagenet_weights

HEADLINES = (
    "retinanet_fl_R_50_FPN_600_1x",
    "retinanet_resobj_t2_R_50_FPN_600_1x",
    "retinanet_conf_R_50_FPN_600_1x",
    "retinanet_consistent_R_50_FPN_500_1x",
    "retinanet_fsaf_R_50_FPN_800_1x",
    "retinanet_libra_R_50_FPN_800_1x",
    "retinanet_everything_R_50_FPN_600_1x",
    "atss_resobj_t2_R_50_FPN_800_1x",
    "fcos_R_50_FPN_800_1x",
    "gfl_R_50_FPN_800_1x",
    "yolov3_resobj_t2_608",
    "ssd512_consistent_vgg16",
    "efficientdet_d0",
    "faster_rcnn_resobj_t2_R_50_FPN_800_1x",
    "libra_rcnn_R_50_FPN_800_1x",
)
NAME = "python -m benchmarks.first_steps"
# Detectron2's MODEL_ZOO.md: R50 1x, 90,000 iterations of 16 images, 0.205 s each, on eight V100.
REFERENCE = "retinanet_fl_R_50_FPN_800_1x"
REFERENCE_HOURS = 0.205 * 90_000 / 3600
REFERENCE_IMAGES = 90_000 * 16


@dataclass(frozen=True, kw_only=True)
class Start:
    """The first iterations of a configuration.

    Attributes:
        losses: their sum in each iteration, before its step.
        gradients: norm of the whole gradient in each, before clipping.
        size: height and width of the first picture at the network's input.
        objects: boxes in it.
        flops: multiply-adds of the network for it; None where they say little about the time: RoI
            heads depend on the proposals, and depthwise convolutions are bound by memory.
    """

    losses: list[float]
    gradients: list[float]
    size: tuple[int, int]
    objects: int
    flops: float | None

    @property
    def stable(self) -> bool:
        """All is finite, and the losses do not grow."""
        finite = all(math.isfinite(x) for x in (*self.losses, *self.gradients))
        return finite and self.losses[-1] <= self.losses[0]


def first_steps(cfg: CfgNode, iterations: int) -> Start:
    """Trains on one picture.

    Args:
        cfg: with training data.
        iterations: at least 2.
    """
    batch = _first_picture(cfg)
    model = Trainer.build_model(cfg).train()
    unit_features(model, batch)
    optimizer = Trainer.build_optimizer(cfg, model)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    losses, gradients = [], []
    with EventStorage():
        for _ in range(iterations):
            total = sum(model(batch).values())
            optimizer.zero_grad()
            total.backward()
            losses.append(float(total.detach()))
            gradients.append(_norm(model))
            optimizer.step()
            scheduler.step()
    return Start(
        losses=losses,
        gradients=gradients,
        size=tuple(batch[0]["image"].shape[-2:]),
        objects=len(batch[0]["instances"]),
        flops=_flops(model, batch),
    )


def _first_picture(cfg: CfgNode) -> list[dict]:
    torch.manual_seed(max(cfg.SEED, 0))  # orders the pictures where SEED is -1
    loader = Trainer.build_train_loader(cfg)
    return next(picture for picture in loader if len(picture[0]["instances"]))


def _flops(model: nn.Module, batch: list[dict]) -> float | None:
    depthwise = (
        isinstance(x, nn.Conv2d) and x.groups == x.in_channels > 1 for x in model.modules()
    )
    if hasattr(model, "roi_heads") or any(depthwise):
        return None
    images = ImageList.from_tensors([batch[0]["image"]], model.backbone.size_divisibility)
    return count("", model, tuple(images.tensor.shape[-2:])).flops


def reference_flops(opts: Sequence[str]) -> float:
    """Those of the RetinaNet whose hours are known, for the same picture."""
    cfg = _config(REFERENCE, [*opts, "SOLVER.IMS_PER_BATCH", "1"], True)
    return _flops(Trainer.build_model(cfg), _first_picture(cfg))


def hours(cfg: CfgNode, flops: float | None, reference: float) -> float:
    """Of a training on eight V100; NaN where FLOPs are unknown."""
    images = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    if flops is None:
        return math.nan
    return REFERENCE_HOURS * flops / reference * images / REFERENCE_IMAGES


@torch.no_grad()
def unit_features(model: nn.Module, batch: list[dict]) -> None:
    """Give each frozen normalisation the statistics of its input on the batch, in order."""

    def take_statistics(layer: FrozenBatchNorm2d, inputs: tuple[Tensor]) -> None:
        layer.running_mean.copy_(inputs[0].mean((0, 2, 3)))
        layer.running_var.copy_(inputs[0].var((0, 2, 3)))

    frozen = [x for x in model.modules() if isinstance(x, FrozenBatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(take_statistics) for layer in frozen]
    with EventStorage():
        model(batch)
    for hook in hooks:
        hook.remove()


def _norm(model: nn.Module) -> float:
    norms = [x.grad.norm() for x in model.parameters() if x.grad is not None]
    return float(torch.stack(norms).norm())


def _config(name: str, opts: Sequence[str], warmup: bool) -> CfgNode:
    fixed = ["DATALOADER.NUM_WORKERS", "0", "MODEL.WEIGHTS", ""]
    if not warmup:
        fixed += ["SOLVER.WARMUP_ITERS", "0"]
    return without_imagenet_weights(load_config(name, [*fixed, *opts]))


def _paper(name: str) -> str:
    """What a paper prints for a configuration of the zoo."""
    file = find_config(name)
    for entry in zoo_entries():
        if zoo_folder() / entry.name == file and entry.figures:
            return f"{entry.figures[0]} {entry.figures[0].split}"
    return "-"


def _row(name: str, opts: Sequence[str], args: argparse.Namespace, reference: float) -> dict:
    cfg = _config(name, opts, not args.no_warmup)
    time = cfg.clone()  # of the whole schedule; here a batch is one picture
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH = 1
    start = first_steps(cfg, max(2, args.iterations))
    expected = hours(time, start.flops, reference)
    return {
        "configuration": Path(name).stem,
        "paper's AP": _paper(name),
        "hours": "-" if math.isnan(expected) else f"{expected:.1f}",
        "picture": "{}x{}".format(*start.size),
        "loss": start.losses[0],
        f"loss {len(start.losses)}": start.losses[-1],
        "gradient": start.gradients[0],
        "stable": "yes" if start.stable else "no",
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns 1 if a start is not stable."""
    parser = CommandParser(prog=NAME, description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", metavar="NAME|KEY VALUE")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--no-warmup", action="store_true")
    parser.add_argument("--write", type=Path, metavar="PAGE")
    args = parser.parse_intermixed_args(argv)
    first = next((k for k, word in enumerate(args.words) if word[:1].isupper()), len(args.words))
    names, opts = args.words[:first] or HEADLINES, args.words[first:]
    reference = reference_flops(opts)
    rows = []
    for name in names:
        rows.append(_row(name, opts, args, reference))
        print(markdown(rows[-1:], digits=2).splitlines()[-1], flush=True)
    table = markdown(rows, digits=2)
    print(f"\n{table}")
    if args.write:
        page = args.write.read_text(encoding="utf-8")
        args.write.write_text(replace_between_marks(page, table, NAME), encoding="utf-8")
    return int(any(row["stable"] == "no" for row in rows))


if __name__ == "__main__":
    sys.exit(run_command(main))
