"""Random arguments of every operator, odd ones among them, for ``fuzz.py``."""

from __future__ import annotations

import math
import random

import torch

ODD_NUMBERS = (0.0, -1.0, 1e-60, 1e-40, 1e60, math.inf, -math.inf, math.nan)
ODD_INTEGERS = (-1, 0, -(2**63), 2**31, 2**62, 2**63 - 1)
ODD_COORDINATES = (math.nan, math.inf, -math.inf, 1e30, -1e30, 1e-30, 0.0)


class Draw:
    """Random arguments; ``odd`` is the probability of an odd one."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.odd = self.random.choice((0.0, 0.0, 0.05, 0.3))
        self.dtype = self.random.choice((torch.float32, torch.float64))

    def number(self, low: float, high: float) -> float:
        if self.random.random() < self.odd:
            return self.random.choice(ODD_NUMBERS)
        return self.random.uniform(low, high)

    def integer(self, low: int, high: int) -> int:
        if self.random.random() < self.odd:
            return self.random.choice(ODD_INTEGERS)
        return self.random.randint(low, high)

    def size(self) -> int:
        return self.random.randint(0, 9)

    def choice(self, *values):
        return self.random.choice((*values, "other") if self.random.random() < self.odd else values)

    def maybe(self, value):
        return value if self.random.random() < 0.5 else None

    def tensor(self, *shape: int) -> torch.Tensor:
        """Multiples of 1/8, so that sums and products are exact."""
        values = torch.randn(shape, generator=self.generator, dtype=self.dtype)
        return self.spoil((values * 8).round() / 8)

    def boxes(self, *shape: int) -> torch.Tensor:
        corner = torch.randint(0, 8, (*shape, 2), generator=self.generator)
        size = torch.randint(0, 6, (*shape, 2), generator=self.generator)
        boxes = self.spoil(torch.cat((corner, corner + size), dim=-1).to(self.dtype))
        return boxes.flip(-1) if self.random.random() < self.odd else boxes

    def spoil(self, values: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            if values.numel() and self.random.random() < self.odd:
                place = self.random.randrange(values.numel())
                values.view(-1)[place] = self.random.choice(ODD_COORDINATES)
        return values

    def integers(self, low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def mask(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self.generator) < 0.7

    def sizes(self, images: int) -> list[int]:
        return [self.integer(0, 3) for _ in range(images)]

    def rows(self, sizes: list[int]) -> int:
        """The sum of the sizes as an int64 would hold it, if that is a possible number of rows."""
        total = (sum(sizes) + 2**63) % 2**64 - 2**63
        return total if 0 <= total < 100 else self.size()


def overlap_arguments(draw: Draw) -> dict:
    return {
        "boxes1": draw.boxes(draw.size()),
        "boxes2": draw.boxes(draw.size()),
        "kind": draw.choice("iou", "giou", "diou", "ciou", "iof"),
    }


def pair_arguments(draw: Draw) -> dict:
    size = draw.size()
    return {"pred": draw.boxes(size), "target": draw.boxes(size)}


def aligned_arguments(draw: Draw) -> dict:
    return {**pair_arguments(draw), "kind": draw.choice("iou", "giou", "diou", "ciou")}


def giou_arguments(draw: Draw) -> dict:
    pair = pair_arguments(draw)
    return {**pair, "mask": draw.maybe(draw.mask(len(pair["pred"])))}


def reduction(draw: Draw, *shape: int) -> dict:
    """A plain sum most often: the rest has no kernel."""
    if draw.random.random() < 0.5:
        return {"reduction": "sum", "weight": None}
    weight = draw.tensor(*(n if draw.random.random() < 0.7 else 1 for n in shape))
    return {"reduction": draw.choice("none", "mean", "sum"), "weight": draw.maybe(weight)}


def reduced_giou_arguments(draw: Draw) -> dict:
    arguments = giou_arguments(draw)
    return {**arguments, **reduction(draw, len(arguments["pred"]))}


def balanced_arguments(draw: Draw) -> dict:
    options = {key: draw.number(0.2, 3) for key in ("alpha", "gamma", "beta")}
    pair = pair_arguments(draw)
    return {**pair, **options, **reduction(draw, *pair["pred"].shape)}


def focal_arguments(draw: Draw) -> dict:
    size, classes = draw.size(), draw.random.randint(0, 4)
    labels = draw.integers(-2, classes + 2, size)
    if size and draw.random.random() < draw.odd:
        labels[0] = draw.integer(0, 1)
    return {
        "logits": draw.tensor(size, classes),
        "labels": labels,
        "mask": draw.maybe(draw.mask(size)),
        "alpha": draw.number(-1, 1),
        "gamma": draw.random.choice((0.0, 2.0, draw.number(0, 4))),
        **reduction(draw, size, classes),
    }


def residual_arguments(draw: Draw) -> dict:
    images, steps = draw.random.randint(0, 3), draw.random.randint(0, 3)
    scope = draw.choice("image", "batch", "level", "none")
    levels = draw.sizes(3) if scope == "level" else []
    anchors = draw.rows(levels) if levels else draw.size()
    return {
        "logits": draw.tensor(images, anchors),
        "residuals": draw.tensor(steps, images, anchors),
        "labels": draw.integers(-1, 2, images, anchors).to(torch.int8),
        "detach": draw.choice("all", "objectness", "none"),
        "min_scope": scope,
        "unselected": draw.choice("update", "keep"),
        "anchors_per_level": levels,
        **reduction(draw, images, anchors),
    }


def match_arguments(draw: Draw) -> dict:
    images, anchors = draw.random.randint(0, 4), draw.size()
    sizes, regions = draw.sizes(images), draw.sizes(images)
    ignored = draw.maybe(draw.boxes(draw.rows(regions)))
    thresholds = sorted(draw.number(0.1, 0.9) for _ in range(draw.random.randint(1, 2)))
    shape = draw.random.choice(((anchors,), (images, anchors)))
    return {
        "anchors": draw.boxes(*shape),
        "gt_boxes": draw.boxes(draw.rows(sizes)),
        "gt_sizes": sizes,
        "thresholds": thresholds,
        "labels": [draw.random.choice((0, -1)), *(draw.integer(-1, 1) for _ in thresholds)],
        "allow_low_quality": draw.random.random() < 0.5,
        "d2_compat": draw.random.random() < 0.5,
        "ignore_boxes": ignored,
        "ignore_sizes": [] if ignored is None else regions,
        "ignore_iof": draw.number(0.1, 0.9),
    }


def reassign_arguments(draw: Draw) -> dict:
    arguments = match_arguments(draw)
    return {
        **arguments,
        # Zero most often: exp and log are not exact, and thresholds show every bit.
        "deltas": draw.spoil(
            torch.zeros(
                len(arguments["gt_sizes"]), arguments["anchors"].shape[-2], 4, dtype=draw.dtype
            )
        ),
        "weights": [draw.number(1, 10) for _ in range(4)],
        "scale_clamp": draw.number(2, 5),
    }


def candidates(draw: Draw) -> dict:
    size = draw.size()
    idxs = draw.integers(0, 3, size)
    if size and draw.random.random() < draw.odd:
        idxs[0] = draw.integer(0, 1)
    scores = draw.integers(0, 9, size).to(draw.dtype) / 8
    return {"boxes": draw.boxes(size), "scores": draw.spoil(scores), "idxs": idxs}


def output_limit(draw: Draw) -> int:
    # More would be filled: that ends in a lack of memory, not in a defect.
    return draw.random.choice((-1, draw.random.randint(0, 9), -(2**63), 2**62, 2**63 - 1))


def nms_arguments(draw: Draw) -> dict:
    return {
        **candidates(draw),
        "iou_threshold": draw.number(0, 1),
        "max_output": output_limit(draw),
    }


def one_class_arguments(draw: Draw) -> dict:
    arguments = nms_arguments(draw)
    del arguments["idxs"]
    return arguments


def fusion_arguments(draw: Draw) -> dict:
    arguments = candidates(draw)
    models = draw.random.randint(1, 3)
    return {
        **arguments,
        "models": draw.integers(0, models, len(arguments["boxes"])),
        "model_weights": [draw.number(0.5, 2) for _ in range(models)],
        "iou_threshold": draw.number(0, 1),
        "confidence": draw.choice("mean", "sum", "max"),
    }


def soft_arguments(draw: Draw) -> dict:
    return {
        **candidates(draw),
        "method": draw.choice("linear", "gaussian"),
        "iou_threshold": draw.number(0, 1),
        "sigma": draw.number(0.1, 1),
        "min_score": draw.number(0, 0.3),
        "max_output": output_limit(draw),
    }


def matrix_arguments(draw: Draw) -> dict:
    kernel = draw.choice("linear", "gaussian")
    return {**candidates(draw), "kernel": kernel, "sigma": draw.number(0.1, 1)}


def dense_arguments(draw: Draw) -> dict:
    images, classes, per_cell = (draw.random.randint(0, 3) for _ in range(3))
    factors = draw.random.randint(0, 2)
    cells = [(draw.random.randint(0, 3), draw.random.randint(1, 3)) for _ in range(2)]

    def maps(channels):
        return [draw.tensor(images, channels, h, w) for h, w in cells]

    return {
        "cls_logits": maps(per_cell * classes),
        "deltas": draw.maybe([torch.zeros_like(x) for x in maps(per_cell * 4)]),
        "anchors": [draw.boxes(h * w * per_cell) for h, w in cells],
        "num_classes": draw.random.choice((classes, max(draw.integer(1, 3), 1))),
        "factor_logits": [maps(per_cell) for _ in range(factors)],
        "exponents": draw.maybe([draw.number(0, 2) for _ in range(1 + factors)]),
        "floors": draw.maybe([draw.number(-0.1, 0.6) for _ in range(1 + factors)]),
        "score_thresh": draw.number(-0.1, 0.6),
        "topk": max(draw.integer(1, 9), 1),
        "nms_thresh": draw.number(0, 1),
        "max_detections": draw.random.choice((1, 5, 0, 2**62)),
        "weights": [draw.number(1, 10) for _ in range(4)],
        "scale_clamp": draw.number(2, 5),
        "image_sizes": draw.maybe([(draw.integer(1, 9), draw.integer(1, 9))] * images),
    }


ARGUMENTS = {
    "balanced_l1_loss": balanced_arguments,
    "batched_nms": nms_arguments,
    "batched_nms_padded": nms_arguments,
    "box_iou_aligned": aligned_arguments,
    "ciou_loss": reduced_giou_arguments,
    "dense_detections": dense_arguments,
    "diou_loss": reduced_giou_arguments,
    "giou_loss": reduced_giou_arguments,
    "match_anchors": match_arguments,
    "matrix_nms": matrix_arguments,
    "nms": one_class_arguments,
    "nms_padded": one_class_arguments,
    "pairwise_box_iou": overlap_arguments,
    "reassign_anchors": reassign_arguments,
    "residual_objectness_bce": residual_arguments,
    "sigmoid_focal_loss": focal_arguments,
    "soft_nms": soft_arguments,
    "soft_nms_padded": soft_arguments,
    "weighted_box_fusion": fusion_arguments,
}
