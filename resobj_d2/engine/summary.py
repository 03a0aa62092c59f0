"""What a person wants to know before and after a run, in a few lines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from tabulate import tabulate
from torch import nn

from resobj_d2.config.backbones import backbone_chain
from resobj_d2.data.missing_pictures import check_pictures_exist
from resobj_d2.data.register import refuse_lossy_sets
from resobj_d2.ops import describe_operators
from resobj_d2.process import counted

from .best import Best
from .commands import evaluate_command, predict_command

__all__ = [
    "Contents",
    "count_contents",
    "evaluation_summary",
    "final_summary",
    "results_line",
    "results_table",
    "start_summary",
    "test_contents",
    "write_model",
]

_WIDTH = 100
_LEFT_OUT = {"AP55", "AP65", "AP85", "AP95", "AR@1", "AR@10"}  # of the table, for its width
VALIDATION, TOTAL = "validation", "total_loss"  # among the results of an evaluation


@dataclass(frozen=True)
class Contents:
    """How much there is in datasets."""

    images: int
    boxes: int

    def __str__(self) -> str:
        return f"{counted(self.images, 'image')}, {counted(self.boxes, 'box')}"


def count_contents(records: Iterable[dict]) -> Contents:
    """Count records of Detectron2's standard form; crowd regions are no boxes."""
    images = boxes = 0
    for record in records:
        images += 1
        annotations = record.get("annotations", [])
        boxes += sum(annotation.get("iscrowd", 0) == 0 for annotation in annotations)
    return Contents(images, boxes)


def test_contents(cfg: CfgNode) -> dict[str, Contents]:
    """By name of the dataset, for ``DATASETS.TEST``.

    Raises:
        FileNotFoundError: pictures are missing.
        ValueError: as :func:`resobj_d2.data.register.refuse_lossy_sets`.
    """
    refuse_lossy_sets(cfg.DATASETS.TEST)
    contents = {}
    for name in cfg.DATASETS.TEST:
        records = DatasetCatalog.get(name)
        check_pictures_exist(records, [name])
        contents[name] = count_contents(records)
    return contents


def start_summary(
    cfg: CfgNode,
    model: nn.Module,
    *,
    train: Contents | None,
    test: Mapping[str, Contents],
    start_iter: int,
    weights: str,
    seed: int,
) -> str:
    """What is going to be trained on what.

    Args:
        cfg: of the run.
        model: may be wrapped in ``DistributedDataParallel``.
        train: of ``DATASETS.TRAIN`` after filtering; None where it is not known.
        test: of :func:`test_contents`.
        start_iter: greater than 0 where a run is resumed.
        weights: the checkpoint that was loaded; "" for none.
        seed: of the run's random numbers.
    """
    solver, max_iter = cfg.SOLVER, cfg.SOLVER.MAX_ITER
    # A checkpoint period beyond the end leaves the one at the end.
    period = solver.CHECKPOINT_PERIOD
    when = "at the end"
    if period < max_iter:
        often = f"every {period} iterations" if period > 1 else "at every iteration"
        when = f"{often} and at the end"
    if start_iter >= max_iter:
        length = (
            f"none: iteration {start_iter} of {max_iter} is reached, so this evaluates and ends. "
            "Raise SOLVER.MAX_ITER to train on"
        )
    else:
        images = counted(solver.IMS_PER_BATCH, "image")
        length = f"iterations {start_iter + 1} to {max_iter}, {images} each"
    rows = [
        ("model", _describe_model(model)),
        ("weights", _describe_weights(cfg, weights)),
        ("training data", _describe_data(cfg.DATASETS.TRAIN, train)),
        *_test_rows(test),
        ("classes", _describe_classes([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])),
        ("training", length),
        ("seed", f"{seed}" if cfg.SEED >= 0 else f"{seed}, drawn; SEED {seed} repeats the run"),
        ("device", _describe_device(cfg)),
        ("operators", describe_operators().removeprefix("operators: ")),
        ("output", f"{cfg.OUTPUT_DIR}: log.txt, config.yaml, model.txt, metrics.json"),
        ("checkpoints", f"{when}, in the same folder"),
    ]
    return _rows(rows)


def _describe_weights(cfg: CfgNode, weights: str) -> str:
    timm = cfg.MODEL.TIMM
    pretrained = timm.WEIGHTS or ("timm's" if timm.PRETRAINED else "")
    if weights or not pretrained or "build_timm_backbone" not in backbone_chain(cfg):
        return weights or "random"
    return f"{pretrained} in the backbone, random elsewhere"


def evaluation_summary(
    cfg: CfgNode, model: nn.Module, *, test: Mapping[str, Contents], weights: str
) -> str:
    """What is going to be evaluated on what; the arguments are those of :func:`start_summary`."""
    return _rows(
        [
            ("model", _describe_model(model)),
            ("weights", weights),
            *_test_rows(test),
            ("classes", _describe_classes(cfg.DATASETS.TEST)),
            ("device", _describe_device(cfg)),
            ("operators", describe_operators().removeprefix("operators: ")),
            ("output", f"{cfg.OUTPUT_DIR}: log.txt, config_eval.yaml"),
        ]
    )


def results_line(results: Mapping) -> str:
    """The main figures, for evaluations in the course of a training."""
    names = ("AP", "AP50", "AP75")
    tasks = [
        (task, [f"{name} {_figure(row[name])}" for name in names if name in row])
        for task, row in _tasks(results)
    ]
    lines = [f"{task} {', '.join(figures)}" for task, figures in tasks if figures]
    losses = results.get(VALIDATION)
    return "; ".join([*lines, _losses_line(losses)] if losses else lines)


def _losses_line(losses: Mapping) -> str:
    # What is measured beside the losses has a path.
    names = [name for name in losses if name != TOTAL and "/" not in name]
    terms = [f"{name.removeprefix('loss_')} {losses[name]:.4g}" for name in names]
    return f"validation loss {losses[TOTAL]:.4g} ({', '.join(terms)})"


def results_table(results: Mapping) -> str:
    """One table of a row for each task, and the AP of each class; the log has the rest.

    Args:
        results: Detectron2's: ``{"bbox": {"AP": ...}}``, by dataset where there are several.
    """
    tasks = dict(_tasks(results))
    losses = tasks.pop(VALIDATION, {})
    names = list(dict.fromkeys(k for task in tasks.values() for k in task if "-" not in k))
    names = [name for name in names if name not in _LEFT_OUT]
    if "AP" in names:  # by size the precisions are enough; proposals have recalls alone
        names = [name for name in names if not name.startswith(("ARs@", "ARm@", "ARl@"))]
    rows = [[task, *(_figure(row.get(name)) for name in names)] for task, row in tasks.items()]
    parts = [tabulate(rows, headers=["", *names], tablefmt="simple", disable_numparse=True)]
    for task, row in tasks.items():
        classes = {k.removeprefix("AP-"): v for k, v in row.items() if k.startswith("AP-")}
        if classes:
            text = ", ".join(f"{name} {_figure(ap)}" for name, ap in classes.items())
            parts.append(_wrap(f"AP by class, {task}: {text}", indent="  "))
    if losses:
        parts.append(_losses_line(losses))
    return "\n".join(parts)


def final_summary(
    cfg: CfgNode,
    results: Mapping | None,
    *,
    best: Best | None,
    last: str,
    pictures: Sequence[str],
    iterations: int,
) -> str:
    """What came out of a training, and what to do with it.

    Args:
        cfg: of the run.
        results: of the last evaluation; None or empty where there was none.
        best: of the run's evaluations; None where none had an AP.
        last: the last checkpoint.
        pictures: that were drawn.
        iterations: of the whole run.
    """
    file = last if best is None else best.file
    rows = [("last checkpoint", last)]
    if best is not None:
        rows = [("best checkpoint", f"{file} ({best})")] + (rows if file != last else [])
    rows += [("picture", picture) for picture in pictures]
    rows += [
        ("logs", f"{cfg.OUTPUT_DIR}: log.txt, metrics.json, config.yaml, model.txt"),
        ("curves", f"tensorboard --logdir {cfg.OUTPUT_DIR}"),
        *([("evaluate", evaluate_command(file, cfg.OUTPUT_DIR))] if cfg.DATASETS.TEST else []),
        ("predict", predict_command(file, cfg.OUTPUT_DIR)),
    ]
    title = f"Evaluation after iteration {iterations}:"
    table = f"\n{title}\n{results_table(results)}\n\n" if results else "\n"
    return table + _rows(rows, wrap=False)


def write_model(model: nn.Module, file) -> None:
    """The structure, and the parameters with their shapes."""
    file.write(f"{model}\n\n")
    rows = [
        (name, tuple(p.shape), p.numel(), "" if p.requires_grad else "frozen")
        for name, p in model.named_parameters()
    ]
    file.write(tabulate(rows, headers=["parameter", "shape", "numbers", ""]) + "\n")


def _describe_model(model: nn.Module) -> str:
    model = getattr(model, "module", model)
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = f", {(total - trained) / 1e6:.1f} million of them frozen" if trained < total else ""
    return f"{type(model).__name__}, {total / 1e6:.1f} million parameters{frozen}"


def _describe_data(names: Sequence[str], contents: Contents | None) -> str:
    text = ", ".join(names) or "not of DATASETS.TRAIN"
    return text if contents is None else f"{text}: {contents}"


def _test_rows(test: Mapping[str, Contents]) -> list[tuple[str, str]]:
    rows = [("test data", f"{name}: {contents}") for name, contents in test.items()]
    return rows or [("test data", "none: nothing is evaluated")]


def _describe_classes(dataset_names: Sequence[str]) -> str:
    for name in dataset_names:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes:
            shown = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
            return f"{len(classes)}: {shown}"
    return "not named by the datasets"


def _describe_device(cfg: CfgNode) -> str:
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        name = f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"
    processes = comm.get_world_size()
    return name + (f", {processes} processes" if processes > 1 else "")


def _tasks(results: Mapping, prefix: str = "") -> Iterable[tuple[str, Mapping]]:
    for name, value in results.items():
        if not isinstance(value, Mapping):
            continue
        if any(isinstance(inner, Mapping) for inner in value.values()):
            yield from _tasks(value, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", value


def _figure(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.1f}"


def _rows(rows: Sequence[tuple[str, str]], *, wrap: bool = True) -> str:
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"{name:<{width}}{text}" for name, text in rows]
    return "\n".join(_wrap(line, indent=" " * width) if wrap else line for line in lines)


def _wrap(text: str, *, indent: str) -> str:
    return textwrap.fill(
        text,
        _WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
