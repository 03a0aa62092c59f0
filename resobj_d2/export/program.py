"""A detector as one graph for all batch and image sizes (``torch.export``)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes

from .detector import ExportableDetector

__all__ = ["example_inputs", "exported_program", "traced_module"]


def example_inputs(detector: ExportableDetector) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs from which a graph is traced: no two of their sizes are equal by chance, none is 1."""
    unit = detector.size_divisibility
    step = max(detector.coarsest_stride, unit)
    height, width = (-(-cells * step // unit) * unit for cells in (3, 5))
    sizes = torch.tensor([[height, width], [height - 1, width - 1]], device=detector.device)
    images = torch.zeros((2, 3, height, width), dtype=torch.uint8, device=detector.device)
    return images, sizes, sizes.clone()


def exported_program(
    detector: ExportableDetector, *, strict: bool = True
) -> torch.export.ExportedProgram:
    """The detector's graph; batch, height and width stay free, the last two in the stride's steps.

    Args:
        detector: the detector.
        strict: as for ``torch.export.export``: by analysis of the Python code, not by running it.
    """
    detector = _with_contiguous_weights(detector)
    unit = detector.size_divisibility
    batch, height, width = (torch.export.Dim(name, min=1) for name in ("batch", "height", "width"))
    shapes = ({0: batch, 2: unit * height, 3: unit * width}, {0: batch}, {0: batch})
    # By default a graph traced for two images would not take one, and so on.
    with torch.no_grad(), symbolic_shapes.patch(backed_size_oblivious=True):
        return torch.export.export(
            detector, example_inputs(detector), dynamic_shapes=shapes, strict=strict
        )


def _with_contiguous_weights(detector: ExportableDetector) -> ExportableDetector:
    """The detector, or a copy if its weights have their channels side by side: maps of that layout
    would fix in the graph whether there is one picture, and which maps have one row or column.
    """
    if all(x.is_contiguous() for x in detector.parameters()):
        return detector
    return copy.deepcopy(detector).to(memory_format=torch.contiguous_format)


def traced_module(detector: ExportableDetector) -> torch.jit.ScriptModule:
    """The detector as TorchScript, by tracing.

    A trace silently keeps what the Python code computed from sizes as constants. So it is run at
    other sizes, and, since it may find nothing there, a trace of all anchors' predictions is too,
    or, of a two-stage detector, of detections of any score.

    Raises:
        ValueError: a trace differs from the detector there.
    """
    traced = _checked_trace(detector)
    if not detector.raw:
        _checked_trace(detector.finding_more())
    return traced


def _checked_trace(detector: ExportableDetector) -> torch.jit.ScriptModule:
    images, *sizes = example_inputs(detector)
    with torch.no_grad(), warnings.catch_warnings():
        # Of its deprecation, and of each check of an argument, which a trace leaves out.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(detector, (images, *sizes), check_trace=False)
        if not all(_agree(detector, traced, inputs) for inputs in _other_inputs(detector)):
            raise ValueError(
                f"traced, this detector is wrong for pictures of another size than "
                f"{tuple(images.shape[2:])}: use the format pt2, aoti or onnx"
            )
    return traced


def _agree(detector: nn.Module, traced: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    expected = detector(*inputs)
    try:
        found = traced(*inputs)
    except RuntimeError:  # sizes that do not fit
        return False
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4)
        for a, b in zip(expected, found, strict=True)
    )


def _other_inputs(detector: ExportableDetector) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Noise in three other sizes, one of them the smallest."""
    unit, largest = detector.size_divisibility, detector.coarsest_stride * 6
    generator = torch.Generator().manual_seed(0)
    for count, height, width in ((1, unit, unit), (3, largest, unit), (1, unit, largest)):
        height, width = (-(-side // unit) * unit for side in (height, width))
        images = torch.randint(0, 256, (count, 3, height, width), generator=generator)
        sizes = torch.tensor([[height - i, width - i] for i in range(count)])
        inputs = (images.to(torch.uint8), sizes, 2 * sizes)
        yield tuple(x.to(detector.device) for x in inputs)
