"""A detector as one graph for all batch and image sizes (``torch.export``)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx.experimental import _config as symbolic_shapes

from .detector import ExportableDetector

__all__ = ["example_inputs", "exported_program"]


def example_inputs(detector: ExportableDetector) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs from which a graph is traced: no two of their sizes are equal by chance, none is 1."""
    unit = detector.size_divisibility
    height, width = (-(-cells * detector.coarsest_stride // unit) * unit for cells in (3, 5))
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
    unit = detector.size_divisibility
    batch, height, width = (torch.export.Dim(name, min=1) for name in ("batch", "height", "width"))
    shapes = ({0: batch, 2: unit * height, 3: unit * width}, {0: batch}, {0: batch})
    # By default a graph traced for two images would not take one, and so on.
    with torch.no_grad(), symbolic_shapes.patch(backed_size_oblivious=True):
        return torch.export.export(
            detector, example_inputs(detector), dynamic_shapes=shapes, strict=strict
        )
