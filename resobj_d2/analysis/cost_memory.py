"""The most memory that tensors take at once, in an inference and in a step of training."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.solver import build_optimizer
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage
from torch import nn
from torch.profiler import ProfilerActivity, profile

from resobj_d2.config import class_counts

__all__ = ["example_input", "measure_memory", "peak_bytes"]

_OBJECTS = 10


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most bytes that the tensors made in a call hold at once, above what was there before.

    Args:
        call: is called once.
        device: of its tensors. On CUDA the allocator is asked, on the CPU the profiler; scratch
            memory of libraries and of C++ code is in neither.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    return _peak_of([x for x in events if x.get("name") == "[memory]"])


def _peak_of(events: list[dict]) -> int:
    """From the profiler's events: only frees of what was made in the same time count."""
    own: dict[int, int] = {}
    held = peak = 0
    for event in sorted(events, key=lambda x: x["ts"]):
        size, address = event["args"]["Bytes"], event["args"]["Addr"]
        if size > 0:
            own[address] = size
            held += size
            peak = max(peak, held)
        else:
            held -= own.pop(address, 0)
    return peak


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the profiler writes past Python: when it starts, and about earlier tensors."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def measure_memory(cfg, model: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Peaks of an inference and of a training step of one image, in bytes, the weights included.

    The inference has its post-processing. The step has activations, gradients and the state of the
    optimizer that would train the model, all in full precision; it is the second step that counts,
    since in the first the optimizer has no state yet.

    Args:
        cfg: of the model.
        model: with random weights, which stay as they are but for frozen normalisation; it is left
            in training mode.
        size: (height, width) of the image in pixels.
    """
    _keep_finite(model)
    inputs = example_input(cfg, size)
    device = next(model.parameters()).device
    weights = sum(x.nbytes for x in {*model.parameters(), *model.buffers()})
    model.eval()
    with torch.no_grad():
        inference = peak_bytes(lambda: model([inputs]), device)
    model.train()
    optimizer = build_optimizer(cfg, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0

    def two_steps() -> None:
        for _ in range(2):
            optimizer.zero_grad(set_to_none=True)
            sum(model([inputs]).values()).backward()
            optimizer.step()

    with EventStorage():
        training = peak_bytes(two_steps, device)
    model.zero_grad(set_to_none=True)
    return inference + weights, training + weights


@torch.no_grad()
def _keep_finite(model: nn.Module) -> None:
    """Frozen normalisation of random layers normalises nothing: deep networks would overflow."""
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.mul_(0.5)


def example_input(cfg, size: tuple[int, int]) -> dict:
    """An image of noise with ten objects of different sizes, as the mappers give it.

    Args:
        cfg: says what the model learns: classes, and masks, keypoints or proposals.
        size: (height, width) in pixels.
    """
    height, width = size
    random = torch.Generator().manual_seed(0)
    limit = torch.tensor([width, height], dtype=torch.float32)
    sides = limit * torch.linspace(0.05, 0.6, _OBJECTS)[:, None]
    corners = (limit - sides) * torch.rand(_OBJECTS, 2, generator=random)
    boxes = torch.cat((corners, corners + sides), dim=1)
    instances = Instances(size, gt_boxes=Boxes(boxes))
    classes = min(class_counts(cfg).values(), default=1)
    instances.gt_classes = torch.arange(_OBJECTS) % classes
    if cfg.MODEL.MASK_ON:
        masks = torch.zeros(_OBJECTS, height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        instances.gt_masks = BitMasks(masks)
    if cfg.MODEL.KEYPOINT_ON:
        number = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
        within = torch.rand(_OBJECTS, number, 2, generator=random)
        points = boxes[:, None, :2] + sides[:, None] * within
        visible = torch.full((_OBJECTS, number, 1), 2.0)
        instances.gt_keypoints = Keypoints(torch.cat((points, visible), dim=2))
    pixels = torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8)
    inputs = {"image": pixels, "instances": instances, "height": height, "width": width}
    if cfg.MODEL.LOAD_PROPOSALS:
        proposals = inputs["proposals"] = Instances(size, proposal_boxes=Boxes(boxes))
        proposals.objectness_logits = torch.zeros(_OBJECTS)
    return inputs
