"""Random calls of every operator, odd arguments among them: kernels against references.

    python -m tests.ops.fuzz --calls 1000000 --seed 7

Each call follows from the seed and its number. Nothing may end the process or hang: what a call is
refused for is an exception. Where the public wrapper accepts the arguments, the kernel's results
must be the reference's. ``--only NUMBER`` repeats one call.
"""

from __future__ import annotations

import argparse
import mmap
from pathlib import Path

import torch

from resobj_d2 import ops
from resobj_d2.ops import reference
from tests.ops.fuzz_arguments import ARGUMENTS, Draw

GRADIENTS = {
    "balanced_l1_loss": ("pred",),
    "box_iou_aligned": ("pred", "target"),
    "ciou_loss": ("pred",),
    "diou_loss": ("pred",),
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
    """The same by the references of the operator and of its backward, or its first only."""
    if name in ("nms", "nms_padded"):
        zeros = torch.zeros(len(arguments["boxes"]))
        name, arguments = f"batched_{name}", {**arguments, "idxs": zeros}
    is_plain = arguments.get("reduction", "sum") == "sum" and arguments.get("weight") is None
    if name in ("diou_loss", "ciou_loss") or not is_plain:
        return [reduced_loss(name, arguments)]
    flat = flatten(name, arguments)
    output = getattr(reference, name)(*flat)
    results = list(output) if isinstance(output, tuple) else [output]
    if name not in GRADIENTS or arguments.get("kind") in ("diou", "ciou"):
        return results
    if name == "residual_objectness_bce":
        flat.insert(3, results[2])  # the thresholds
    gradients = getattr(reference, f"{name}_backward")(torch.ones_like(results[0]), *flat)
    return results + (list(gradients) if isinstance(gradients, tuple) else [gradients])


def reduced_loss(name: str, arguments: dict) -> torch.Tensor:
    """The terms of the reference's sum, weighted and reduced."""
    own = dict(arguments)
    reduction, weight = own.pop("reduction"), own.pop("weight")
    steps = ()
    if name == "residual_objectness_bce":
        terms, numbers, *_ = reference.residual_objectness_terms(**own)
        steps, counts = (1, 2), own["labels"] >= 0
    elif name == "balanced_l1_loss":
        terms = reference.elementwise_balanced_l1_loss(**own)
        counts, numbers = True, terms.numel()
    elif name == "sigmoid_focal_loss":
        terms = reference.elementwise_focal_loss(**own)
        counts = reference.counted(own["labels"], own["mask"])
        numbers = counts.sum() * terms.shape[-1]
    else:
        terms = reference.elementwise_box_loss(**own, kind=name.removesuffix("_loss"))
        counts = torch.ones_like(terms) > 0 if own["mask"] is None else own["mask"]
        numbers = counts.sum()
    if weight is not None:
        terms = terms * torch.where(torch.as_tensor(counts), weight, 0.0)
    if reduction == "none":
        return terms
    total = terms.sum(dim=steps) if steps else terms.sum()
    return total if reduction == "sum" else total / torch.as_tensor(numbers).clamp(min=1)


def call(seed: int, number: int, name: str) -> tuple[bool, dict]:
    """Raises AssertionError if kernel and reference differ; whether they were compared."""
    arguments = ARGUMENTS[name](Draw(seed * 1_000_003 + number))
    try:  # without the checks of the wrapper
        if hasattr(torch.ops.resobj_d2, name):
            getattr(torch.ops.resobj_d2, name)(*flatten(name, arguments))
    except REFUSALS:
        pass
    try:
        results = kernel_results(name, arguments)
    except REFUSALS as error:
        assert name in str(error) or not isinstance(error, ValueError), error
        return False, arguments
    expected = reference_results(name, arguments)
    results = results[: len(expected)]
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
