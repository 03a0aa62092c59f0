"""Whether training starts stably: the first iterations on one picture at full size.

::

    python -m benchmarks.first_steps retinanet_resobj_t2_R_50_FPN_600_1x \\
        DATASETS.TRAIN "('mine',)" DATASETS.TEST "()" \\
        DATASETS.REGISTER "[{'name': 'mine', 'json': 'train.json', 'images': 'photos'}]"

Without names it takes the configurations of HEADLINES. The picture is the first one with objects
that the configuration's own training data give; the rate is that of its warm-up, or with
--no-warmup the full one. Networks are random, but as a pretrained one in what matters for the
start: each frozen normalisation is given the statistics of its input, as after training, so
features have unit scale at any depth.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from resobj_d2.analysis.tables import markdown
from resobj_d2.command import CommandParser, run_command
from resobj_d2.config import load_config
from resobj_d2.engine import Trainer

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


@dataclass(frozen=True, kw_only=True)
class Start:
    """The first iterations of a configuration.

    Attributes:
        losses: their sum in each iteration, before its step.
        gradients: norm of the whole gradient in each, before clipping.
        size: height and width of the first picture at the network's input.
        objects: boxes in it.
    """

    losses: list[float]
    gradients: list[float]
    size: tuple[int, int]
    objects: int

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
    torch.manual_seed(max(cfg.SEED, 0))
    loader = Trainer.build_train_loader(cfg)
    batch = next(picture for picture in loader if len(picture[0]["instances"]))
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
    height, width = batch[0]["image"].shape[-2:]
    objects = len(batch[0]["instances"])
    return Start(losses=losses, gradients=gradients, size=(height, width), objects=objects)


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
    fixed = ["SOLVER.IMS_PER_BATCH", "1", "DATALOADER.NUM_WORKERS", "0", "MODEL.WEIGHTS", ""]
    if not warmup:
        fixed += ["SOLVER.WARMUP_ITERS", "0"]
    return load_config(name, [*fixed, *opts])


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns 1 if a start is not stable."""
    parser = CommandParser(
        prog="python -m benchmarks.first_steps", description=__doc__.split("\n")[0]
    )
    parser.add_argument("words", nargs="*", metavar="NAME|KEY VALUE")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--no-warmup", action="store_true")
    args = parser.parse_intermixed_args(argv)
    first = next((k for k, word in enumerate(args.words) if word[:1].isupper()), len(args.words))
    rows, unstable = [], []
    for name in args.words[:first] or HEADLINES:
        cfg = _config(name, args.words[first:], not args.no_warmup)
        start = first_steps(cfg, max(2, args.iterations))
        row = {
            "configuration": Path(name).stem,
            "picture": "{}x{}".format(*start.size),
            "objects": start.objects,
            "loss": start.losses[0],
            "gradient": start.gradients[0],
            f"loss {len(start.losses)}": start.losses[-1],
            "stable": "yes" if start.stable else "no",
        }
        rows.append(row)
        print(markdown([row], digits=2).splitlines()[-1], flush=True)
        if not start.stable:
            unstable.append(name)
    print(f"\n{markdown(rows, digits=2)}")
    return 1 if unstable else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
