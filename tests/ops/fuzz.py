"""Random calls of every operator, odd arguments among them: kernels against references.

    python -m tests.ops.fuzz --calls 1000000 --seed 7

Each call follows from the seed and its number. Nothing may end the process or hang: what a call is
refused for is an exception. Where the public wrapper accepts the arguments, the kernel's results
must be the reference's. ``--only NUMBER`` repeats one call.
"""

from __future__ import annotations

import argparse
import math
import mmap
import random
from pathlib import Path

import torch

from resobj_d2 import ops
from resobj_d2.ops import reference

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
        "kind": draw.choice("iou", "giou", "iof"),
    }


def pair_arguments(draw: Draw) -> dict:
    size = draw.size()
    return {"pred": draw.boxes(size), "target": draw.boxes(size)}


def aligned_arguments(draw: Draw) -> dict:
    return {**pair_arguments(draw), "kind": draw.choice("iou", "giou")}


def giou_arguments(draw: Draw) -> dict:
    pair = pair_arguments(draw)
    return {**pair, "mask": draw.maybe(draw.mask(len(pair["pred"])))}


def balanced_arguments(draw: Draw) -> dict:
    options = {key: draw.number(0.2, 3) for key in ("alpha", "gamma", "beta")}
    return {**pair_arguments(draw), **options}


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
    "dense_detections": dense_arguments,
    "giou_loss": giou_arguments,
    "match_anchors": match_arguments,
    "matrix_nms": matrix_arguments,
    "pairwise_box_iou": overlap_arguments,
    "reassign_anchors": reassign_arguments,
    "residual_objectness_bce": residual_arguments,
    "sigmoid_focal_loss": focal_arguments,
    "soft_nms": soft_arguments,
    "soft_nms_padded": soft_arguments,
}
GRADIENTS = {
    "balanced_l1_loss": ("pred",),
    "box_iou_aligned": ("pred", "target"),
    "giou_loss": ("pred",),
    "residual_objectness_bce": ("logits", "residuals"),
    "sigmoid_focal_loss": ("logits",),
}
REFUSALS = (ValueError, TypeError, RuntimeError, OverflowError)


def flatten(name: str, arguments: dict) -> list:
    """The arguments of ``torch.ops.resobj_d2.<name>``."""
    own = dict(arguments)
    if name == "dense_detections":
        count = 1 + len(own["factor_logits"])
        own["factor_logits"] = [x for maps in own["factor_logits"] for x in maps]
        own["image_sizes"] = [x for size in own["image_sizes"] or () for x in size]
        own["deltas"] = own["deltas"] or []
        own["exponents"] = own["exponents"] or [1.0] * count
        own["floors"] = own["floors"] or [0.0] * count
    operator = getattr(torch.ops.resobj_d2, name).default
    return [own[argument.name] for argument in operator._schema.arguments]


def kernel_results(name: str, arguments: dict) -> list[torch.Tensor]:
    """The results, and the gradients of the sum of the first."""
    keys = GRADIENTS.get(name, ())
    leaves = [arguments[key].clone().requires_grad_() for key in keys]
    output = getattr(ops, name)(**{**arguments, **dict(zip(keys, leaves, strict=True))})
    results = list(output) if isinstance(output, tuple) else [output]
    gradients = torch.autograd.grad(results[0].sum(), leaves) if leaves else ()
    return [result.detach() for result in results] + list(gradients)


def reference_results(name: str, arguments: dict) -> list[torch.Tensor]:
    """The same by the references of the operator and of its backward."""
    flat = flatten(name, arguments)
    output = getattr(reference, name)(*flat)
    results = list(output) if isinstance(output, tuple) else [output]
    if name not in GRADIENTS:
        return results
    if name == "residual_objectness_bce":
        flat.insert(3, results[2])  # the thresholds
    gradients = getattr(reference, f"{name}_backward")(torch.ones_like(results[0]), *flat)
    return results + (list(gradients) if isinstance(gradients, tuple) else [gradients])


def call(seed: int, number: int, name: str) -> tuple[bool, dict]:
    """Raises AssertionError if kernel and reference differ; whether they were compared."""
    arguments = ARGUMENTS[name](Draw(seed * 1_000_003 + number))
    try:  # without the checks of the wrapper
        getattr(torch.ops.resobj_d2, name)(*flatten(name, arguments))
    except REFUSALS:
        pass
    try:
        results = kernel_results(name, arguments)
    except REFUSALS as error:
        assert name in str(error) or not isinstance(error, ValueError), error
        return False, arguments
    expected = reference_results(name, arguments)
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    return True, arguments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of the one call to make")
    parser.add_argument("--progress", type=Path, help="file that holds the number of the last call")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = sorted(ARGUMENTS)
    numbers = range(options.calls) if options.only is None else [options.only]
    progress = bytearray(8)
    if options.progress is not None:
        options.progress.write_bytes(progress)
        file = options.progress.open("r+b")
        progress = mmap.mmap(file.fileno(), 8)
    compared = dict.fromkeys(names, 0)
    for number in numbers:
        progress[:8] = number.to_bytes(8, "little")  # survives the end of the process
        name = names[number % len(names)]
        try:
            compared[name] += call(options.seed, number, name)[0]
        except Exception as error:
            raise SystemExit(f"{name}, --seed {options.seed} --only {number}: {error}") from error
    print(*(f"{name} {count}" for name, count in compared.items()), sep="\n")


if __name__ == "__main__":
    main()
