"""Detectron2's RetinaNet and ours with the same weights, and how a training step spends its time.

Imports Detectron2, which takes seconds, so cases import this module only when needed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.retinanet import RetinaNet, permute_to_N_HWA_K
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.config import add_resobj_config

from . import inputs

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "Base-Dense.yaml"
NUM_CLASSES = 80


def retinanets(device: torch.device, seed: int, depth: int = 50) -> tuple[nn.Module, nn.Module]:
    """Detectron2's and ours with the same random weights, scaled to outputs like trained ones."""
    cfg = get_cfg()
    add_resobj_config(cfg)
    cfg.merge_from_file(str(CONFIG))
    cfg.merge_from_list(["MODEL.DEVICE", str(device), "MODEL.RESNETS.DEPTH", depth])
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    # RetinaNet's three octave scales, which ours has by default.
    sizes = [[x * 2 ** (i / 3) for i in range(3)] for x in (32, 64, 128, 256, 512)]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = sizes
    torch.manual_seed(seed)
    ours = build_model(cfg)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    theirs = build_model(cfg)
    calibrate(theirs, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "retinanet.pth")
        torch.save({"model": theirs.state_dict()}, path)
        ResObjCheckpointer(ours, strict=True).load(str(path))
    return theirs, ours


@torch.no_grad()
def calibrate(model: nn.Module, seed: int) -> None:
    """Scale the last convolutions: most scores near .01, a few in 100,000 above .05; small deltas.

    The features of an untrained network grow from block to block; all scores would be 0 or 1.
    """
    images = model.preprocess_image(make_batch((320, 320), [0], seed))
    features = model.backbone(images.tensor)
    features = [features[name] for name in model.head_in_features]
    head = model.head
    wanted = {head.cls_score: (-4.6, 0.42), head.bbox_pred: (0.0, 0.1)}
    for (conv, (mean, std)), maps in zip(wanted.items(), head(features), strict=True):
        values = torch.cat([x.flatten() for x in maps])
        scale = std / values.std()
        conv.weight *= scale
        conv.bias += mean - (values.mean() - conv.bias.mean()) * scale - conv.bias.mean()


def make_batch(image: tuple[int, int], counts: list[int], seed: int) -> list[dict]:
    """Detectron2's training input: per entry of ``counts`` one noise image with that many boxes."""
    g = inputs.generator(seed)
    batch = []
    for i, count in enumerate(counts):
        instances = Instances(image)
        boxes = inputs.gt_boxes(count, seed + i, image)
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.randint(NUM_CLASSES, (count,), generator=g)
        pixels = torch.rand(3, *image, generator=g) * 255
        height, width = image
        batch.append({"image": pixels, "instances": instances, "height": height, "width": width})
    return batch


class Training:
    """Training steps of one model on one batch, with learning rate 0.

    ``border`` is the module that returns the raw predictions: what follows it in the forward pass
    is label assignment and losses.
    """

    def __init__(self, model: nn.Module, border: nn.Module, batch: list[dict]) -> None:
        self.model, self.border, self.batch = model.train(), border, batch
        learned = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(learned, lr=0.0, momentum=0.9, weight_decay=1e-4)

    def step(self) -> dict[str, Tensor]:
        """Runs one step and returns its losses."""
        with EventStorage():
            losses = self.model(self.batch)
        self.optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        self.optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}

    def share(self, steps: int = 3) -> float:
        """Percentage of a step's time spent on label assignment and losses (median).

        In the forward pass that is the time from the end of the border to the end of the model, in
        the backward pass the time until the gradients of the raw predictions are computed.
        """
        return statistics.median(100 * self._one_share() for _ in range(steps))

    def convolutions(self) -> float:
        """Percentage of a step's time on the CPU that is spent in convolutions."""
        with profile(activities=[ProfilerActivity.CPU]) as record:
            self.step()
        times = {event.key: event.self_cpu_time_total for event in record.key_averages()}
        return 100 * sum(t for name, t in times.items() if "conv" in name) / sum(times.values())

    def _one_share(self) -> float:
        marks: dict[str, float] = {}

        def predicted(module: nn.Module, args: tuple, output: Any) -> None:
            mark_gradients(output, lambda: marks.update(arrived=self._now()))
            marks["predicted"] = self._now()

        handle = self.border.register_forward_hook(predicted)
        try:
            start = self._now()
            with EventStorage():
                losses = self.model(self.batch)
            forward = self._now() - marks["predicted"]
            total = sum(losses.values())
            self.optimizer.zero_grad(set_to_none=True)
            backward_start = self._now()
            total.backward()
            self.optimizer.step()
            backward = marks["arrived"] - backward_start
            return (forward + backward) / (self._now() - start)
        finally:
            handle.remove()

    def _now(self) -> float:
        if next(self.model.parameters()).is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


@dataclass
class Step:
    """The result of a timed training step: its losses, and ways to find out where time goes."""

    losses: dict[str, Tensor]
    share: Callable[[], float]
    convolutions: Callable[[], float]


class Border(torch.autograd.Function):
    """The identity of several tensors; reports when all their gradients have arrived.

    A hook on each would not do: it runs when the gradient is used, after other levels' layers.
    """

    @staticmethod
    def forward(ctx, arrived: Callable[[], None], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.arrived = arrived
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.arrived()
        return None, *grads


def mark_gradients(output: Any, arrived: Callable[[], None]) -> None:
    """Put a :class:`Border` after every list of tensors in ``output`` that carry gradients."""
    lists = list(tensor_lists(output))
    passed = iter(Border.apply(arrived, *(x for tensors in lists for x in tensors)))
    for tensors in lists:
        tensors[:] = [next(passed) for _ in tensors]


def tensor_lists(value: Any) -> Iterator[list[Tensor]]:
    """The lists of tensors with gradients in nested lists, tuples, dicts and dataclasses."""
    if is_dataclass(value):
        value = [getattr(value, field.name) for field in fields(value)]
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list) and value and all(isinstance(x, Tensor) for x in value):
        if all(x.requires_grad for x in value):
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensor_lists(item)


def verify_losses(a: Step, b: Step) -> None:
    assert set(a.losses) == set(b.losses), f"{set(a.losses)} and {set(b.losses)}"
    for name, loss in a.losses.items():
        torch.testing.assert_close(loss, b.losses[name], rtol=1e-3, atol=1e-4)


def verify_detections(a: list[dict], b: list[dict]) -> None:
    """The same scores; classes and boxes may be swapped between two nearly equal ones."""
    for x, y in zip(a, b, strict=True):
        x, y = x["instances"], y["instances"]
        assert len(x) == len(y) > 0, f"{len(x)} and {len(y)} detections"
        torch.testing.assert_close(x.scores, y.scores, rtol=1e-3, atol=1e-4)
        same = (x.pred_boxes.tensor - y.pred_boxes.tensor).abs().amax(dim=1) < 0.1
        assert same.float().mean() > 0.9, f"only {int(same.sum())} of {len(x)} boxes are the same"


def post_processing(
    logits: list[Tensor],
    deltas: list[Tensor],
    anchors: list[Tensor],
    num_classes: int,
    *,
    score_thresh: float,
    topk: int,
    nms_thresh: float,
    max_detections: int,
) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """Detectron2's RetinaNet after the head: boxes, scores and classes of one image."""
    boxes = [Boxes(x) for x in anchors]
    model = RetinaNet(
        backbone=NoBackbone(),
        head=nn.Identity(),
        head_in_features=[],
        anchor_generator=lambda features: boxes,
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        anchor_matcher=None,
        num_classes=num_classes,
        test_score_thresh=score_thresh,
        test_topk_candidates=topk,
        test_nms_thresh=nms_thresh,
        max_detections_per_image=max_detections,
        pixel_mean=[0.0],
        pixel_std=[1.0],
    )
    sizes = [inputs.IMAGE]
    if hasattr(model, "forward_inference"):  # since Detectron2 0.6
        images = ImageList(torch.empty(1, 0), sizes)

        def detect() -> list[Instances]:
            return model.forward_inference(images, [], [logits, deltas])
    else:

        def detect() -> list[Instances]:
            flat_logits = [permute_to_N_HWA_K(x, num_classes) for x in logits]
            flat_deltas = [permute_to_N_HWA_K(x, 4) for x in deltas]
            return model.inference(boxes, flat_logits, flat_deltas, sizes)

    def call() -> tuple[Tensor, Tensor, Tensor]:
        (detections,) = detect()
        return detections.pred_boxes.tensor, detections.scores, detections.pred_classes

    return call


class NoBackbone(nn.Module):
    """A placeholder for a backbone, for detectors that ask for feature maps they never get."""

    def output_shape(self) -> dict:
        return {}
