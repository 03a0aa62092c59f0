"""Which of the labelled anchors are trained.

All samplers work on whole batches of fixed shape and never make the host wait for a GPU. Random
numbers come from torch's generator of the anchors' device.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from resobj_d2.ops import batched_nms_padded
from resobj_d2.options import Option
from resobj_d2.structures import Targets

from .base import Sampler
from .build import SAMPLER_REGISTRY

__all__ = [
    "HardExampleSampler",
    "HardNegativeRatio",
    "IoUBalancedSampler",
    "KeepAll",
    "OHEMSampler",
    "RandomSampler",
]


Size = Annotated[int, Option("anchors per image", key="SIZE")]
PositiveFraction = Annotated[
    float,
    Option("largest fraction of them that is foreground", key="POSITIVE_FRACTION"),
]
InstanceBalanced = Annotated[
    bool,
    Option(
        "sample foreground evenly over objects",
        key="INSTANCE_BALANCED",
        source="Libra R-CNN, section 3.1",
    ),
]


def _best(keys: Tensor, eligible: Tensor, quota: Tensor, limit: int) -> Tensor:
    """The ``quota`` eligible anchors of each image with the largest keys.

    Args:
        keys: (N, R), no NaN.
        eligible: (N, R) bool.
        quota: (N,) number per image, at most ``limit``.

    Returns:
        (N, R) bool.
    """
    limit = min(limit, keys.shape[1])
    values, index = torch.where(eligible, keys.float(), -torch.inf).topk(limit, dim=1)
    rank = torch.arange(limit, device=keys.device)
    chosen = (rank < quota[:, None]) & (values > -torch.inf)
    return torch.zeros_like(eligible).scatter(1, index, chosen)


def _some(eligible: Tensor, quota: Tensor, limit: int) -> Tensor:
    """``quota`` random eligible anchors of each image; see :func:`_best`."""
    return _best(torch.rand(eligible.shape, device=eligible.device), eligible, quota, limit)


def _required(difficulty: Tensor | None, sampler: Sampler) -> Tensor:
    if difficulty is None:
        raise ValueError(f"{type(sampler).__name__} ranks anchors by their loss: pass difficulty")
    return difficulty


def _check_size(size: int, positive_fraction: float) -> None:
    if size < 1:
        raise ValueError(f"SAMPLER.SIZE must be at least 1, got {size}")
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"SAMPLER.POSITIVE_FRACTION must be in [0, 1], got {positive_fraction}")


@SAMPLER_REGISTRY.register()
class KeepAll(Sampler):
    """Every labelled anchor, as in RetinaNet and Residual Objectness ("sampling-free")."""

    def __call__(
        self, targets: Targets, *, anchors: Tensor, difficulty: Tensor | None = None
    ) -> Tensor:
        return targets.valid


def _rank_in_group(groups: Tensor, eligible: Tensor) -> tuple[Tensor, Tensor]:
    """A random order within groups.

    Args:
        groups: (N, R) int64 >= -1.
        eligible: (N, R) bool.

    Returns:
        (N, R) the rank of each eligible element among the eligible ones of its group, from 0, and
        (N,) the number of groups with an eligible element.
    """
    last = torch.iinfo(groups.dtype).max
    shuffle = torch.rand(groups.shape, device=groups.device).argsort(dim=1)
    shuffled = torch.where(eligible, groups, last).gather(1, shuffle)
    value, order = shuffled.sort(dim=1, stable=True)
    starts = torch.ones_like(eligible)
    starts[:, 1:] = value[:, 1:] != value[:, :-1]
    place = torch.arange(groups.shape[1], device=groups.device).expand_as(groups)
    rank = place - torch.where(starts, place, 0).cummax(dim=1).values
    index = shuffle.gather(1, order)
    count = (starts & (value != last)).sum(dim=1)
    return torch.zeros_like(groups).scatter(1, index, rank), count


@SAMPLER_REGISTRY.register()
class RandomSampler(Sampler):
    """A fixed number of random anchors per image (Ren et al., Faster R-CNN, section 3.1.3).

    Args:
        size: anchors per image.
        positive_fraction: largest fraction of them that is foreground; background fills the rest.
        instance_balanced: if there is too much foreground, an object gets at most its share plus
            one, as long as there are enough others (Libra R-CNN, section 3.1).
    """

    def __init__(
        self,
        *,
        size: Size = 256,
        positive_fraction: PositiveFraction = 0.5,
        instance_balanced: InstanceBalanced = False,
    ) -> None:
        _check_size(size, positive_fraction)
        self.size = size
        self.max_positive = int(size * positive_fraction)
        self.instance_balanced = instance_balanced

    def __call__(
        self, targets: Targets, *, anchors: Tensor, difficulty: Tensor | None = None
    ) -> Tensor:
        count = targets.foreground.sum(dim=1).clamp(max=self.max_positive)
        positive = self.positives(targets, count, difficulty)
        negative = self.negatives(targets, self.size - count, difficulty)
        return positive | negative

    def positives(self, targets: Targets, quota: Tensor, difficulty: Tensor | None) -> Tensor:
        """(N, R) bool, ``quota`` (N,) foreground anchors per image, which has at least as many."""
        keys = torch.rand(targets.labels.shape, device=targets.labels.device)
        if self.instance_balanced:
            rank, objects = _rank_in_group(targets.gt_index, targets.foreground)
            share = (quota / objects.clamp(min=1)).round() + 1
            # Anchors within their object's share come first.
            keys = keys + (rank < share[:, None])
        return _best(keys, targets.foreground, quota, self.max_positive)

    def negatives(self, targets: Targets, quota: Tensor, difficulty: Tensor | None) -> Tensor:
        """(N, R) bool, ``quota`` (N,) background anchors per image, or all if fewer."""
        return _some(targets.background, quota, self.size)


@SAMPLER_REGISTRY.register()
class IoUBalancedSampler(RandomSampler):
    """Random sampling with negatives spread evenly over IoU bins (Libra R-CNN, section 3.1).

    If a bin has too few, random other negatives make up the number.

    Args:
        num_bins: K bins of equal width over the IoUs at which the assigner makes an anchor
            background (``Targets.background_ious``). Background outside counts in the nearest bin.
    """

    needs_ious = True

    def __init__(
        self,
        *,
        size: Size = 256,
        positive_fraction: PositiveFraction = 0.5,
        instance_balanced: InstanceBalanced = False,
        num_bins: Annotated[
            int,
            Option(
                "bins over the IoUs of background",
                source="Libra R-CNN, section 3.1",
            ),
        ] = 3,
    ) -> None:
        super().__init__(
            size=size, positive_fraction=positive_fraction, instance_balanced=instance_balanced
        )
        if num_bins < 1:
            raise ValueError(f"SAMPLER.NUM_BINS must be at least 1, got {num_bins}")
        self.num_bins = num_bins

    def negatives(self, targets: Targets, quota: Tensor, difficulty: Tensor | None) -> Tensor:
        background = targets.background
        if targets.background_ious is None:
            raise ValueError("IoUBalancedSampler needs targets with background_ious")
        low, high = targets.background_ious
        bins = ((targets.matched_ious - low) * (self.num_bins / (high - low))).long()
        bins = bins.clamp(min=0, max=self.num_bins - 1)
        share = quota // self.num_bins
        chosen = torch.zeros_like(background)
        for b in range(self.num_bins):
            chosen = chosen | _some(background & (bins == b), share, self.size)
        rest = quota - chosen.sum(dim=1)
        return chosen | _some(background & ~chosen, rest, self.size)


@SAMPLER_REGISTRY.register()
class HardExampleSampler(RandomSampler):
    """A fixed number of the hardest foreground and hardest background anchors of each image.

    Online hard example mining as later toolboxes implement it: without the paper's NMS and with a
    limit on the foreground (Shrivastava et al. 2016; :class:`OHEMSampler` follows the paper).

    Args:
        size: anchors per image.
        positive_fraction: largest fraction of them that is foreground; background fills the rest.
    """

    needs_loss = True

    def __init__(
        self,
        *,
        size: Annotated[int, Option("anchors per image", follows=True)] = 512,
        positive_fraction: Annotated[
            float, Option("largest fraction of them that is foreground", follows=True)
        ] = 0.25,
    ) -> None:
        super().__init__(size=size, positive_fraction=positive_fraction)

    def positives(self, targets: Targets, quota: Tensor, difficulty: Tensor | None) -> Tensor:
        return _best(_required(difficulty, self), targets.foreground, quota, self.max_positive)

    def negatives(self, targets: Targets, quota: Tensor, difficulty: Tensor | None) -> Tensor:
        return _best(_required(difficulty, self), targets.background, quota, self.size)


@SAMPLER_REGISTRY.register()
class HardNegativeRatio(Sampler):
    """All foreground, and the hardest background at a fixed ratio (Liu et al., SSD, section 2.2).

    An image without foreground contributes no background either.

    Args:
        negative_ratio: background anchors per foreground anchor.
    """

    needs_loss = True

    def __init__(
        self,
        *,
        negative_ratio: Annotated[
            float, Option("background anchors per foreground anchor", source="SSD, section 2.2")
        ] = 3.0,
    ) -> None:
        if negative_ratio <= 0:
            raise ValueError(f"SAMPLER.NEGATIVE_RATIO must be positive, got {negative_ratio}")
        self.negative_ratio = negative_ratio

    def __call__(
        self, targets: Targets, *, anchors: Tensor, difficulty: Tensor | None = None
    ) -> Tensor:
        difficulty = _required(difficulty, self)
        foreground = targets.foreground
        quota = (foreground.sum(dim=1) * self.negative_ratio).long()
        negatives = _best(difficulty, targets.background, quota, foreground.shape[1])
        return foreground | negatives


@SAMPLER_REGISTRY.register()
class OHEMSampler(Sampler):
    """The hardest anchors of each image after NMS (Shrivastava et al. 2016, "OHEM").

    As in the baseline of the focal loss paper (Lin et al., RetinaNet, section 5.1): anchors are
    ranked by their loss and pass through NMS, and the first ``size`` are trained.

    Args:
        size: anchors per image.
        nms_thresh: IoU threshold of the NMS over the anchors.
        positive_fraction: 0 disables it; .25 is the paper's 1:3 variant: foreground and background
            go through NMS separately, and at most three background anchors are kept per foreground
            anchor that is left.
    """

    needs_loss = True

    def __init__(
        self,
        *,
        size: Annotated[int, Option("anchors per image", follows=True)] = 128,
        nms_thresh: Annotated[float, Option("IoU threshold of the NMS over the anchors")] = 0.5,
        positive_fraction: Annotated[
            float,
            Option(
                "fraction of foreground; 0 ranks foreground and background together", follows=True
            ),
        ] = 0.0,
    ) -> None:
        _check_size(size, positive_fraction)
        if not 0 <= nms_thresh <= 1:
            raise ValueError(f"SAMPLER.NMS_THRESH must be in [0, 1], got {nms_thresh}")
        self.size = size
        self.nms_thresh = nms_thresh
        self.positive_fraction = positive_fraction

    def __call__(
        self, targets: Targets, *, anchors: Tensor, difficulty: Tensor | None = None
    ) -> Tensor:
        difficulty = _required(difficulty, self)
        rows = []
        for i, loss in enumerate(difficulty):
            boxes = anchors if anchors.dim() == 2 else anchors[i]
            if self.positive_fraction == 0:
                rows.append(self._hardest(boxes, loss, targets.valid[i], self.size))
                continue
            most = max(1, int(self.size * self.positive_fraction))
            positive = self._hardest(boxes, loss, targets.foreground[i], most)
            quota = positive.sum() * (self.size - most) // most
            negative = self._hardest(boxes, loss, targets.background[i], self.size - most, quota)
            rows.append(positive | negative)
        return torch.stack(rows)

    def _hardest(
        self, boxes: Tensor, loss: Tensor, eligible: Tensor, size: int, quota: Tensor | None = None
    ) -> Tensor:
        """(R,) bool: the first ``size`` (or ``quota`` if smaller) after NMS."""
        if size < 1:
            return torch.zeros_like(eligible)
        # NMS drops boxes with a NaN score.
        scores = torch.where(eligible, loss.float(), torch.nan)
        one_class = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        keep, count = batched_nms_padded(boxes, scores, one_class, self.nms_thresh, size)
        if quota is not None:
            count = torch.minimum(count, quota)
        used = torch.arange(len(keep), device=keep.device) < count
        # An extra entry takes the padding.
        chosen = torch.zeros(len(boxes) + 1, dtype=torch.bool, device=boxes.device)
        index = torch.where(used, keep, len(boxes))
        return chosen.scatter(0, index, torch.ones_like(used))[:-1]
