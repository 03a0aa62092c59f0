"""Gradients accumulated over the parts of a batch that does not fit into memory whole."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resobj_d2.losses.parts import BatchParts
from resobj_d2.ops import expected_gradient

from .buffers import keep_buffers

__all__ = ["accumulated_step"]


def accumulated_step(
    trainer: SimpleTrainer, *, number: int, seed_part: Callable[[int], None]
) -> None:
    """One step of the optimiser with the gradient of a whole batch, a part of it at a time.

    Where the losses are divided by what the batch has (its foreground anchors, say), a first pass
    without gradients counts that over all parts. The step then equals the one of the whole batch
    to rounding, but for what each part has to itself: the statistics of batch normalisation,
    padding to the largest image, anchors that are drawn or ranked among all of the batch.

    Args:
        trainer: Detectron2's, with or without mixed precision.
        number: of parts, which divides the images of the batch.
        seed_part: called with the number of a part before each of its passes, so that both draw
            the same.
    """
    model, optimizer = trainer.model, trainer.optimizer
    scaler = getattr(trainer, "grad_scaler", None)
    start = time.perf_counter()
    batch = next(trainer._data_loader_iter)
    data_time = time.perf_counter() - start
    size = len(batch) // number
    parts = [batch[i * size : (i + 1) * size] for i in range(number)]

    def losses_of(i: int) -> dict[str, Tensor]:
        seed_part(i)
        with _precision(trainer):
            return model(parts[i])

    counted = _count(model, number, losses_of)
    optimizer.zero_grad()
    written: dict[str, Tensor] = {}
    # Each part moves the running means of what counts from where the whole batch would.
    restore = keep_buffers(m for m in model.modules() if getattr(m, "counts_batch", False))
    for i in range(number):
        restore()
        is_last = i == number - 1
        with _synchronised(model, at=is_last), counted.training(), expected_gradient(1 / number):
            losses = {name: loss / number for name, loss in losses_of(i).items()}
            total = sum(losses.values())
            (total if scaler is None else scaler.scale(total)).backward()
        for name, loss in losses.items():
            written[name] = written.get(name, 0.0) + loss.detach()
    trainer._write_metrics(written, data_time)
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


def _count(model: nn.Module, number: int, losses_of: Callable[[int], object]) -> BatchParts:
    """The first pass, which changes nothing of the model."""
    counted = BatchParts(number)
    if not any(getattr(module, "counts_batch", False) for module in model.modules()):
        return counted
    restore = keep_buffers(model.modules())
    with torch.no_grad(), EventStorage(1):
        for i in range(number):
            with counted.counting():
                losses_of(i)
    restore()
    return counted


def _precision(trainer: SimpleTrainer) -> contextlib.AbstractContextManager:
    if not hasattr(trainer, "grad_scaler"):
        return contextlib.nullcontext()
    return torch.autocast("cuda", dtype=getattr(trainer, "precision", torch.float16))


@contextlib.contextmanager
def _synchronised(model: nn.Module, *, at: bool) -> Iterator[None]:
    """Processes exchange their gradients once, with the last part."""
    if at or not isinstance(model, DistributedDataParallel):
        yield
        return
    with model.no_sync():
        yield
