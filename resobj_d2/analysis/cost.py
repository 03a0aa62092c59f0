"""Parameters, FLOPs, forward time and memory of configurations, side by side.

::

    resobj-d2 analyze cost retinanet_fl_R_50_FPN_600_1x retinanet_resobj_t2_R_50_FPN_600_1x \\
        --size 512 512 MODEL.DENSE.NUM_CLASSES 3

FLOPs and times are those of the network alone: backbone, towers and predictors on one image of
random numbers, without padding, losses and post-processing. For the times all models run in one
process, in turn and in random order; the ratio is the median over rounds of a model's time to the
first model's. With ``--memory`` also the most memory that tensors take at once in a whole inference
and a whole step of training, of one image each.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from resobj_d2.command import CommandParser, add_import_option, run_command
from resobj_d2.config import load_config
from resobj_d2.modeling import ResObjDenseDetector
from resobj_d2.modeling.backbones import without_imagenet_weights
from resobj_d2.modeling.feature_maps import explained_feature_maps
from resobj_d2.process import counted, distinct_names, replacing

from .cost_memory import measure_memory

__all__ = ["Cost", "Network", "count", "main", "table", "time_forward"]


@dataclass
class Cost:
    """What one configuration costs at one image size.

    Attributes:
        name: name of the configuration.
        parameters: number of parameters, frozen ones included, buffers not.
        flops: multiply-adds for one image, as counted by fvcore (convolutions, matrix products,
            normalisation, interpolation).
        milliseconds: time of the forward pass in each round; empty if it was not timed.
        inference_bytes, training_bytes: the most that tensors take at once, the weights included;
            None if it was not measured.
    """

    name: str
    parameters: int
    flops: float
    milliseconds: list[float] = field(default_factory=list)
    inference_bytes: int | None = None
    training_bytes: int | None = None


class Network(nn.Module):
    """The model from a normalised image tensor to its raw predictions, in a traceable form."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> list[Tensor]:
        images = ImageList(image, [tuple(image.shape[-2:])] * len(image))
        if isinstance(self.model, ResObjDenseDetector):
            return _tensors(self.model.predict(images, every_step=False))
        features = self.model.backbone(image)
        if hasattr(self.model, "proposal_generator"):  # GeneralizedRCNN, without its RoI heads
            maps = [features[name] for name in self.model.proposal_generator.in_features]
            return _tensors(self.model.proposal_generator.rpn_head(maps))
        if hasattr(self.model, "head"):  # Detectron2's RetinaNet
            maps = [features[name] for name in self.model.head_in_features]
            return _tensors(self.model.head(maps))
        raise ValueError(f"cannot find the network inside a {type(self.model).__name__}")


def _tensors(value: object) -> list[Tensor]:
    """All tensors in nested dataclasses, lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return []
    return [tensor for part in value for tensor in _tensors(part)]


def _attention_flops(inputs: list, outputs: list) -> float:
    """Multiply-adds of softmax(Q K^T) V; fvcore does not count the fused operator."""
    query, key, value = (x.type().sizes() for x in inputs[:3])
    *batch, length, channels = query
    pairs = length * key[-2]
    for size in batch:
        pairs *= size
    return float(pairs * (channels + value[-1]))


@torch.no_grad()
def count(name: str, model: nn.Module, size: tuple[int, int]) -> Cost:
    """Parameters and FLOPs of ``model`` on one image of ``size`` (height, width).

    Raises:
        ValueError: the network cannot be separated from the rest of this kind of model.
    """
    network = Network(model).eval()
    device = next(model.parameters()).device
    analysis = FlopCountAnalysis(network, torch.zeros(1, 3, *size, device=device))
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_flops)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    return Cost(
        name=name,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=float(analysis.total()),
    )


@torch.no_grad()
def time_forward(
    models: Sequence[nn.Module],
    size: tuple[int, int],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Milliseconds of ``rounds`` forward passes of each model, in random order.

    The first round is a warm-up and not counted.
    """
    networks = [Network(model).eval() for model in models]
    device = next(models[0].parameters()).device
    image = torch.randn(1, 3, *size, device=device)
    order = list(range(len(models)))
    shuffle = random.Random(0)
    times: list[list[float]] = [[] for _ in models]
    for i in range(rounds + 1):
        shuffle.shuffle(order)
        for k in order:
            start = clock()
            networks[k](image)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if i:
                times[k].append((clock() - start) * 1e3)
    return times


def table(costs: Sequence[Cost]) -> str:
    """Markdown table; FLOPs and time also relative to the first row. MB are 10^6 bytes."""
    timed = bool(costs[0].milliseconds)
    lines = ["| configuration | parameters (M) | GFLOPs | of the first |"]
    if timed:
        lines[0] += " ms | time ratio (p10..p90) |"
    if costs[0].inference_bytes is not None:
        lines[0] += " inference (MB) | training (MB) |"
    lines.append("|---" * (lines[0].count("|") - 1) + "|")
    first = costs[0]
    for cost in costs:
        line = f"| {cost.name} | {cost.parameters / 1e6:.2f} | {cost.flops / 1e9:.2f} "
        line += f"| {cost.flops / first.flops:.3f} |"
        if timed:
            pairs = zip(cost.milliseconds, first.milliseconds, strict=True)
            ratios = sorted(a / b for a, b in pairs)
            low, high = ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]
            line += f" {statistics.median(cost.milliseconds):.1f} |"
            line += f" {statistics.median(ratios):.3f} ({low:.3f}..{high:.3f}) |"
        if cost.inference_bytes is not None and cost.training_bytes is not None:
            line += f" {cost.inference_bytes / 1e6:.0f} | {cost.training_bytes / 1e6:.0f} |"
        lines.append(line)
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="resobj-d2 analyze cost", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "configs",
        nargs="+",
        metavar="CONFIG",
        help="files, or names of configurations, the first is the reference; then KEY VALUE pairs, "
        "changes to all of them",
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        default=(512, 512),
        metavar=("H", "W"),
        help="of the image in pixels (default: 512 512)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=0,
        metavar="N",
        help="forward passes to time (default: 0, no time)",
    )
    parser.add_argument(
        "--memory", action="store_true", help="measure memory, of one image in full precision"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads; torch's default otherwise"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the figures to this file"
    )
    parser.add_argument(
        "--opts",
        nargs="*",
        default=[],
        metavar="KEY VALUE",
        help="the same changes, where they come last",
    )
    add_import_option(parser)
    return parser


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Configurations, and from the first key on KEY VALUE pairs.

    Raises:
        ValueError: there is no configuration.
    """
    keys = [
        k for k, word in enumerate(words) if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)*", word)
    ]
    first = keys[0] if keys else len(words)
    if not first:
        raise ValueError(f"name a configuration before {words[0]}")
    return list(words[:first]), list(words[first:])


def main(argv: Sequence[str] | None = None) -> int:
    """The command of this module; returns its exit code."""
    args = _parser().parse_intermixed_args(argv)
    paths, changes = _split(args.configs)
    if args.threads:
        torch.set_num_threads(args.threads)
    models, costs, configs = [], [], []
    different = [Path(path) for path in dict.fromkeys(paths)]
    names = dict(
        zip(different, distinct_names(different, [x.stem for x in different]), strict=True)
    )
    for path in paths:
        # Datasets are not used, so they need not be registered.
        opts = [*changes, *args.opts, "MODEL.WEIGHTS", "", "DATASETS.TEST", "()"]
        cfg = load_config(path, opts, training=False, imports=args.imports)
        cfg = without_imagenet_weights(cfg)
        with explained_feature_maps(cfg):
            model = build_model(cfg).eval()
        models.append(model)
        configs.append(cfg)
        costs.append(count(names[Path(path)], model, tuple(args.size)))
    if args.rounds:
        times = time_forward(models, tuple(args.size), rounds=args.rounds)
        for cost, milliseconds in zip(costs, times, strict=True):
            cost.milliseconds = milliseconds
    if args.memory:
        for cfg, model, cost in zip(configs, models, costs, strict=True):
            cost.inference_bytes, cost.training_bytes = measure_memory(cfg, model, tuple(args.size))
    threads = counted(torch.get_num_threads(), "thread")
    print(f"one image of {args.size[0]}x{args.size[1]}, {threads}\n")
    print(table(costs))
    if args.json:
        with replacing(args.json) as file:
            file.write(json.dumps([asdict(cost) for cost in costs], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
