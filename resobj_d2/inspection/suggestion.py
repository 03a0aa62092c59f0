"""Which keys would make a model's anchors fit its data better.

Candidates are tried one by one, sizes first, then the best sizes with other aspect ratios: the
anchors are built from the changed configuration and compared with a sample of the objects, in which
every class has an equal part. The best candidate is then compared with all objects; that is what is
reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from resobj_d2.data.record import Record

from .anchors import AnchorFit, AnchorSet, Network, anchor_sets, fit
from .clusters import cluster_shapes
from .input_size import InputObjects, input_objects

__all__ = ["Suggestion", "input_overrides", "sample_objects", "suggest"]

_SAMPLE = 4000
_GAIN = 0.01  # of the score, below which nothing is suggested
_INPUT_GAIN = 0.05  # the same for a larger input, which costs time
_IOU_WEIGHT = 0.25  # of the mean best IoU in the score
_SCALES = (0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 10, 12, 16)
_FACTORS = tuple(2 ** (k / 4) for k in range(-12, 13))
_LONGER = (1.5, 2.0, 2.5, 3.0, 4.0)  # aspect ratios to try, with 1 and their inverse
_FINALISTS = 3  # sizes that are tried with other ratios
_INPUT_FACTORS = (1.25, 1.5, 2.0)
_ENOUGH = 0.97  # share of reached objects, mean over the classes, that asks for no larger input

Overrides = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Keys that fit the data better.

    Attributes:
        overrides: key to value.
        fit: with them, on all objects.
        cost: pixels of the network's input, relative to those of now.
    """

    overrides: Overrides
    fit: AnchorFit
    cost: float = 1.0


def suggest(
    cfg, network: Network, anchors: AnchorSet, before: AnchorFit, records: Sequence[Record]
) -> list[Suggestion]:
    """Other anchors for the same input, and for a larger one where that helps much more.

    Args:
        cfg: the configuration.
        network: its feature maps.
        anchors: the anchors to replace.
        before: their fit.
        records: of the training data.

    Returns:
        None, one or two, each with a better fit than ``before``.
    """
    if not len(before.objects):
        return []
    best_score = _score(before)
    suggestions = []
    found = _best_anchors(cfg, network, anchors, before.objects)
    if found is not None:
        after = _fit_with(cfg, found, network, anchors.node, before.objects)
        if _score(after) > best_score + _GAIN:
            suggestions.append(Suggestion(overrides=found, fit=after))
            best_score = _score(after)
    best = suggestions[-1].fit if suggestions else before
    if best.mean_over_classes()[0] < _ENOUGH and not anchors.centred:
        suggestions += _larger_input(cfg, network, anchors, before, records, best_score)
    return suggestions


def _score(fitted: AnchorFit) -> float:
    reached, iou = fitted.mean_over_classes()
    return iou if fitted.anchors.centred else reached + _IOU_WEIGHT * iou


def sample_objects(objects: InputObjects, size: int = _SAMPLE) -> InputObjects:
    """At most about ``size`` objects, as many of each class as there are; always the same ones."""
    if len(objects) <= size:
        return objects
    random = np.random.default_rng(0)
    share = max(50, size // max(1, len(np.unique(objects.classes))))
    chosen = []
    for number in np.unique(objects.classes):
        rows = np.flatnonzero(objects.classes == number)
        chosen.append(rows if len(rows) <= share else random.choice(rows, share, replace=False))
    return objects.take(np.sort(np.concatenate(chosen)))


def _with(cfg, overrides: Overrides):
    changed = cfg.clone()
    changed.defrost()
    changed.merge_from_list([word for pair in overrides.items() for word in pair])
    return changed


def _fit_with(
    cfg, overrides: Overrides, network: Network, node: str, objects: InputObjects
) -> AnchorFit:
    sets, _ = anchor_sets(_with(cfg, overrides), network)
    return fit(next(one for one in sets if one.node == node), objects)


def _best_anchors(
    cfg, network: Network, anchors: AnchorSet, objects: InputObjects
) -> Overrides | None:
    """The best candidate on a sample; None without one."""
    make = _CANDIDATES.get(anchors.kind)
    if make is None:
        return None
    sample = sample_objects(objects)
    node = _node(cfg, anchors.node)

    def scored(candidates: Iterable[Overrides]) -> list[tuple[float, Overrides]]:
        pairs = [
            (_score(_fit_with(cfg, overrides, network, anchors.node, sample)), overrides)
            for overrides in candidates
        ]
        return sorted(pairs, key=lambda pair: -pair[0])

    sizes = scored(make(node, anchors, sample))
    if not sizes:
        return None
    ratios = list(_ratios(node, anchors, sample))
    both = scored({**size, **other} for _, size in sizes[:_FINALISTS] for other in ratios)
    # A further key has to be worth it.
    best = both[0] if both and both[0][0] > sizes[0][0] + _GAIN else sizes[0]
    return best[1]


def _node(cfg, path: str):
    for name in path.split("."):
        cfg = cfg[name]
    return cfg


def _larger_input(
    cfg,
    network: Network,
    anchors: AnchorSet,
    before: AnchorFit,
    records: Sequence[Record],
    best_score: float,
) -> list[Suggestion]:
    pixels = before.objects.inputs.prod(axis=1).mean()
    for factor in _INPUT_FACTORS:
        sizes = input_overrides(cfg.INPUT, factor)
        changed = _with(cfg, sizes)
        objects = input_objects(changed, records, divisor=network.divisor, square=network.square)
        overrides = _best_anchors(changed, network, anchors, objects) or {}
        after = _fit_with(changed, overrides, network, anchors.node, objects)
        if _score(after) > best_score + _INPUT_GAIN:
            cost = float(objects.inputs.prod(axis=1).mean() / pixels)
            return [Suggestion(overrides={**sizes, **overrides}, fit=after, cost=cost)]
    return []


def input_overrides(node, factor: float) -> Overrides:
    """Keys of ``INPUT`` that make all sizes so many times as large, in multiples of 32."""

    def larger(sizes: Iterable[float]) -> list[int]:
        return [round(size * factor / 32) * 32 for size in sizes]

    if node.FIXED_SIZE:
        return {"INPUT.FIXED_SIZE": larger(node.FIXED_SIZE)}
    overrides: Overrides = {}
    if node.MULTI_SCALE:
        overrides["INPUT.MULTI_SCALE"] = larger(node.MULTI_SCALE)
    sizes = node.MIN_SIZE_TRAIN
    if not node.SCALE_JITTER:
        sizes = sizes if isinstance(sizes, Sequence) else (sizes,)
        overrides["INPUT.MIN_SIZE_TRAIN"] = tuple(larger(sizes))
    return {
        **overrides,
        "INPUT.MAX_SIZE_TRAIN": larger([node.MAX_SIZE_TRAIN])[0],
        "INPUT.MIN_SIZE_TEST": larger([node.MIN_SIZE_TEST])[0],
        "INPUT.MAX_SIZE_TEST": larger([node.MAX_SIZE_TEST])[0],
    }


def _ratios(node, anchors: AnchorSet, objects: InputObjects) -> Iterator[Overrides]:
    """Other ``ASPECT_RATIOS``, height / width, as many as now: usual ones, and the objects'."""
    now = node.get("ASPECT_RATIOS") or ()
    nested = len(now) == 1 and isinstance(now[0], Sequence)  # as Detectron2's
    now = now[0] if nested else now
    if not now or any(isinstance(ratio, Sequence) for ratio in now):
        return
    lists = [[round(1 / longer, 2), 1.0, longer] for longer in _LONGER if len(now) == 3]
    sizes = objects.boxes[:, 2:] - objects.boxes[:, :2]
    centres = cluster_shapes(sizes / np.sqrt(sizes.prod(axis=1, keepdims=True)), len(now))
    if len(centres) == len(now):
        lists.append(sorted(round(float(height / width), 2) for width, height in centres))
    for ratios in lists:
        yield {f"{anchors.node}.ASPECT_RATIOS": [ratios] if nested else ratios}


def _octaves(node, anchors: AnchorSet, objects: InputObjects) -> Iterator[Overrides]:
    """``SCALE`` of RetinaNet; the number of anchors stays."""
    for scale in _SCALES:
        yield {f"{anchors.node}.SCALE": float(scale)}


def _geometric(objects: InputObjects, number: int) -> Iterator[list[float]]:
    """So many ascending sizes, from the small objects to the large ones."""
    sides = np.sqrt((objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(axis=1))
    for low in np.quantile(sides, (0.0, 0.02, 0.05, 0.1)):
        for high in np.quantile(sides, (0.9, 0.95, 1.0)):
            if low < high:
                yield np.geomspace(low, high, number).tolist()


def _whole(sizes: Iterable[float]) -> list[int]:
    return [max(1, round(size)) for size in sizes]


def _default_boxes(node, anchors: AnchorSet, objects: InputObjects) -> Iterator[Overrides]:
    """``MIN_SIZES`` of SSD: those of now times a factor, and steps between the objects' sizes."""
    number = len(node.MIN_SIZES)
    lists = [[size * factor for size in node.MIN_SIZES] for factor in _FACTORS]
    lists += _geometric(objects, number)
    lists += [[*sizes, sizes[-1] ** 2 / sizes[-2]] for sizes in _geometric(objects, number - 1)]
    for sizes in map(_whole, lists):
        if sorted(set(sizes)) == sizes:
            yield {f"{anchors.node}.MIN_SIZES": sizes}


def _clusters(node, anchors: AnchorSet, objects: InputObjects) -> Iterator[Overrides]:
    """``SIZES`` of YOLO by k-means, the smallest on the finest level."""
    sizes = objects.boxes[:, 2:] - objects.boxes[:, :2]
    counts = [len(cell) for cell in anchors.cells]
    ends = np.cumsum(counts).tolist()
    per_class = 1 / np.bincount(objects.classes)[objects.classes]
    for weights in (None, per_class):  # every object or every class counts the same
        centres = cluster_shapes(sizes, sum(counts), weights=weights)
        if len(centres) < sum(counts):
            return
        pairs = np.maximum(np.round(centres), 1).astype(int).tolist()
        levels = [pairs[end - count : end] for count, end in zip(counts, ends, strict=True)]
        yield {f"{anchors.node}.SIZES": levels}


def _generator(node, anchors: AnchorSet, objects: InputObjects) -> Iterator[Overrides]:
    """``SIZES`` of Detectron2: those of now times a factor, or steps between the objects' sizes."""
    nested = [list(level) if isinstance(level, Sequence) else [level] for level in node.SIZES]
    lists: list[list[list[float]]] = [
        [[size * factor for size in level] for level in nested] for factor in _FACTORS
    ]
    if len(nested) > 1 and all(len(level) == 1 for level in nested):
        lists += [[[size] for size in steps] for steps in _geometric(objects, len(nested))]
    for sizes in lists:
        yield {f"{anchors.node}.SIZES": [_whole(level) for level in sizes]}


_CANDIDATES: dict[str, Callable[..., Iterator[Overrides]]] = {
    "OctaveAnchors": _octaves,
    "SSDAnchors": _default_boxes,
    "YOLOAnchors": _clusters,
    "DefaultAnchorGenerator": _generator,
}
