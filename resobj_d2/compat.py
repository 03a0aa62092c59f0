"""All differences between Detectron2 0.5 and upstream main that affect this package."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
from detectron2.data import build as data_build
from detectron2.engine import defaults
from detectron2.structures import ImageList
from detectron2.utils import comm
from torch import Tensor, nn

__all__ = [
    "TRAINER_SAVES_OPTIMIZER",
    "batch_images",
    "ddp_on_cpu",
    "padding_constraints",
    "scores_are_sigmoids",
    "sigmoid_scores_are_set",
    "training_sampler",
    "update_loss_normalizer",
    "without_default_logging",
]

# Detectron2 0.5 does not save the optimiser: a resumed run would start with momentum 0.
TRAINER_SAVES_OPTIMIZER = "state_dict" in vars(defaults.DefaultTrainer)


def padding_constraints(backbone: nn.Module) -> dict[str, int]:
    """What a backbone asks of a batch's padding, such as squares; 0.5 has no such property."""
    return getattr(backbone, "padding_constraints", {})


def batch_images(images: list[Tensor], backbone) -> ImageList:
    """Pad (C, H_i, W_i) images to one size that is divisible as the backbone requires."""
    constraints = padding_constraints(backbone)
    if constraints:
        return ImageList.from_tensors(
            images, backbone.size_divisibility, padding_constraints=constraints
        )
    return ImageList.from_tensors(images, backbone.size_divisibility)


def update_loss_normalizer(retinanet: nn.Module, value: float) -> float:
    """Move RetinaNet's running mean of foreground counts towards ``value`` and return it.

    Upstream main has a method for it, shared by all dense detectors; 0.5 does it inside the loss.
    """
    if hasattr(retinanet, "_ema_update"):
        return retinanet._ema_update("loss_normalizer", value, 100)
    momentum = retinanet.loss_normalizer_momentum
    retinanet.loss_normalizer = momentum * retinanet.loss_normalizer + (1 - momentum) * value
    return retinanet.loss_normalizer


def scores_are_sigmoids(predictor: nn.Module) -> bool:
    """Whether a box predictor scores classes apart, which upstream main can and 0.5 cannot."""
    return bool(getattr(predictor, "use_sigmoid_ce", False))


def sigmoid_scores_are_set(cfg) -> bool:
    """``MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE``, a key that 0.5 does not have."""
    return bool(cfg.MODEL.ROI_BOX_HEAD.get("USE_SIGMOID_CE", False))


def training_sampler(cfg, records: Sequence[dict], seed: int) -> Iterable[int]:
    """The sampler of ``DATALOADER.SAMPLER_TRAIN``, seeded; each version has other ones.

    Raises:
        ValueError: there is no such sampler.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed  # main gives it to some of its samplers
    before = np.random.get_state()
    np.random.seed(seed)  # all others draw theirs from it
    try:
        arguments = data_build._train_loader_from_config(cfg, mapper=len, dataset=records)
    finally:
        np.random.set_state(before)
    return arguments["sampler"]


@contextlib.contextmanager
def ddp_on_cpu(device: str) -> Iterator[None]:
    """Lets ``DefaultTrainer`` wrap a CPU model: both versions always pass a GPU to DDP."""
    if torch.device(device).type != "cpu" or comm.get_world_size() == 1:
        yield
        return
    if dist.get_backend() != "gloo":
        raise ValueError(
            "several processes on CPUs need gloo, but since a GPU is visible the launcher chose "
            f"{dist.get_backend()}: hide the GPUs with CUDA_VISIBLE_DEVICES=''"
        )
    original = defaults.create_ddp_model
    defaults.create_ddp_model = functools.partial(original, device_ids=None)
    try:
        yield
    finally:
        defaults.create_ddp_model = original


@contextlib.contextmanager
def without_default_logging() -> Iterator[None]:
    """``DefaultTrainer`` sets up logging where nobody has, and prints the whole model."""
    original = defaults.setup_logger
    defaults.setup_logger = lambda: None
    try:
        yield
    finally:
        defaults.setup_logger = original
