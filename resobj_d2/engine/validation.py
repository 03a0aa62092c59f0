"""The training's losses on the datasets of evaluation."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from resobj_d2.data.augmentation import build_size_augmentations
from resobj_d2.data.mapper import ImageErrorMapper, PictureMapper
from resobj_d2.data.register import evaluation_records
from resobj_d2.data.shapes_for_training import fit_shapes
from resobj_d2.data.train_loader import local_randomness

from .buffers import keep_buffers
from .interrupt import SteadyMapper
from .summary import TOTAL

__all__ = ["measuring", "validation_losses", "validation_records"]

# The rest of the name is that of a later stage or a second stream.
_OBJECTNESS = re.compile(r"objectness/step\d+/(positive|negative)(.*)")


def validation_records(cfg) -> list[dict]:
    """The annotated images of ``DATASETS.TEST`` as the model trains them, with its proposals.

    Raises:
        ValueError: they lack the masks, keypoints or proposals that it trains on.
    """
    records = [r for name in cfg.DATASETS.TEST for r in evaluation_records(cfg, name)]
    records = [record for record in records if "annotations" in record]
    if records:
        fit_shapes(cfg, records, cfg.DATASETS.TEST, config_key="DATASETS.TEST")
    return records


def validation_losses(cfg, model: nn.Module, *, seed: int) -> dict[str, float]:
    """Mean losses over the annotated images of ``DATASETS.TEST``, in batches as in training.

    Images have the size of an evaluation and no augmentation. The normalisation and running means
    of the losses are those that the training has reached; nothing of the model changes. All
    processes have to call it and have the same result.

    Args:
        cfg: of the run.
        model: may be wrapped in ``DistributedDataParallel``.
        seed: of what is drawn, the same at each call.

    Returns:
        "total_loss" and each term; empty where no image is annotated. With Residual Objectness also
        "objectness/step{t}/positive" and ".../negative", the mean objectness of these anchors over
        all images (Figures 2 and 4 of the paper).
    """
    # Without what watches the model in training: the wrapper, and hooks that resize its batches.
    forward = (model.module if isinstance(model, DistributedDataParallel) else model).forward
    sums: dict[str, float] = {}
    objectness: dict[str, list[float]] = {}  # sum and weight
    images = 0
    with measuring(model) as restore, local_randomness(seed):
        for batch, counted in _batches(cfg):
            restore()
            losses = {name: float(loss) for name, loss in forward(batch).items()}
            for name, loss in {**losses, TOTAL: math.fsum(losses.values())}.items():
                sums[name] = sums.get(name, 0.0) + loss * counted
            _add_objectness(model, counted, objectness)
            images += counted
    parts = comm.all_gather((sums, images, objectness))
    images = sum(part[1] for part in parts)
    names = dict.fromkeys(name for part in parts for name in part[0])
    means = {name: sum(part[0].get(name, 0.0) for part in parts) / images for name in names}
    for name in dict.fromkeys(name for part in parts for name in part[2]):
        value, weight = np.sum([part[2].get(name, [0.0, 0.0]) for part in parts], axis=0)
        if weight:
            means[name] = float(value / weight)
    return means


def _add_objectness(model: nn.Module, images: int, sums: dict[str, list[float]]) -> None:
    """Add the mean objectness of the last batch, weighted by its positives or its images."""
    for module in model.modules():
        statistics = getattr(module, "statistics", None)
        for name, value in statistics.items() if isinstance(statistics, dict) else ():
            match = _OBJECTNESS.fullmatch(name)
            mean = float(value) if match else math.nan
            if math.isnan(mean):  # without positives in the batch
                continue
            weight = float(images)
            if match[1] == "positive":  # images have different numbers of them
                of_rpn = statistics.get("rpn/num_pos_anchors", 1.0)
                weight *= float(statistics.get(f"num_foreground{match[2]}", of_rpn))
            pair = sums.setdefault(name, [0.0, 0.0])
            pair[0] += mean * weight
            pair[1] += weight


@contextlib.contextmanager
def measuring(model: nn.Module) -> Iterator:
    """A context for losses that leave the model as it is, without gradients.

    Detectors are in training mode, which gives losses, and layers such as normalisation and dropout
    in evaluation mode. The function that it gives puts all running means back.
    """
    modes = {module: module.training for module in model.modules()}
    restore = keep_buffers(model.modules())
    statistics = {
        module: module.statistics
        for module in model.modules()
        if isinstance(getattr(module, "statistics", None), dict)
    }
    for module in model.modules():
        # Detectors give losses in training; layers such as normalisation and dropout evaluate.
        module.training = any(True for _ in module.children())
    try:
        with torch.no_grad(), EventStorage(1):
            yield restore
            restore()
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, value in statistics.items():
            module.statistics = value


def _batches(cfg) -> Iterator[tuple[list[dict], int]]:
    """Batches of this process and how many of their images count; as many as in the others."""
    records = validation_records(cfg)
    world_size = comm.get_world_size()
    own = records[comm.get_rank() :: world_size]
    size = cfg.SOLVER.IMS_PER_BATCH // world_size
    number = math.ceil(math.ceil(len(records) / world_size) / size)
    mapper = PictureMapper(cfg, True, augmentations=build_size_augmentations(cfg, is_train=False))
    loader = DataLoader(
        _Mapped(own, SteadyMapper(ImageErrorMapper(mapper))),
        batch_size=size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list,
        generator=torch.Generator(),
    )
    batch: list[dict] = []
    done = 0
    for batch in loader:
        yield batch, len(batch)
        done += 1
    # The losses' sums over processes need all of them: the others wait for one that has fewer.
    batch = batch or [mapper(records[0])] if done < number else batch
    for _ in range(number - done):
        yield batch, 0


class _Mapped(torch.utils.data.Dataset):
    def __init__(self, records: Sequence[dict], mapper) -> None:
        self._records, self._mapper = records, mapper

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict:
        return self._mapper(self._records[index])
