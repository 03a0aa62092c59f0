"""The files that an exported detector can be, and running them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resobj_d2.process import replacing

from .detector import INPUTS, ExportableDetector
from .program import exported_program

__all__ = ["FORMATS", "ExportedDetector", "Format", "load_exported", "write_exported"]

OPSET = 20
METADATA = "resobj_d2"  # key, or name of the file in an archive, of what describes the detector


@dataclass(frozen=True, kw_only=True)
class Format:
    """A row of :data:`FORMATS`.

    Attributes:
        suffix: of its files.
        standard: its graphs have no operator of this package.
        write: ``write(detector, path, metadata)``.
        load: ``load(path)`` returns a function of the inputs, and the metadata as text.
        packages: that must be installed, by the names under which they are imported.
    """

    suffix: str
    standard: bool
    write: Callable[[ExportableDetector, str, str], None]
    load: Callable[[str], tuple[Callable[..., Sequence[Tensor]], str]]
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportedDetector:
    """An exported detector, loaded: it takes and returns what :class:`ExportableDetector` does.

    Attributes:
        run: the function.
        metadata: what the file says about the detector.
    """

    run: Callable[..., Sequence[Tensor]]
    metadata: Mapping[str, Any]

    @torch.no_grad()
    def __call__(
        self, images: Tensor, image_sizes: Tensor, original_sizes: Tensor
    ) -> tuple[Tensor, ...]:
        """See :meth:`ExportableDetector.forward`; tensors on the device it was exported for."""
        return tuple(self.run(images, image_sizes, original_sizes))


def _write_onnx(detector: ExportableDetector, path: str, metadata: str) -> None:
    from .onnx_nodes import translations

    program = torch.onnx.export(
        exported_program(detector, strict=False),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(INPUTS),
        output_names=list(detector.outputs),
        custom_translation_table=translations(),
        verbose=False,
    )
    model = program.model_proto
    model.metadata_props.add(key=METADATA, value=metadata)
    with replacing(path, binary=True) as file:
        file.write(model.SerializeToString())


def _load_onnx(path: str) -> tuple[Callable[..., Sequence[Tensor]], str]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        arrays = {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)}
        return [torch.from_numpy(x) for x in session.run(None, arrays)]

    return run, session.get_modelmeta().custom_metadata_map.get(METADATA, "{}")


FORMATS: Mapping[str, Format] = {
    "onnx": Format(
        suffix=".onnx",
        standard=True,
        write=_write_onnx,
        load=_load_onnx,
        packages=("onnx", "onnxscript", "onnxruntime"),
    ),
}
"""The formats, by the names that the command takes."""


def write_exported(
    detector: ExportableDetector,
    path: str | os.PathLike,
    *,
    format: str,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a detector to a file, which is whole or not there.

    Args:
        detector: made with ``standard`` where the format asks for it.
        path: of the file.
        format: a name of :data:`FORMATS`.
        metadata: describes the detector; anything that ``json`` can write.

    Raises:
        ImportError: a package is missing.
        ValueError: the detector cannot be written in this format.
        OSError: the file cannot be written.
    """
    chosen = FORMATS[format]
    require(format)
    if chosen.standard and not (detector.standard or detector.raw):
        raise ValueError(f"{format} needs ExportableDetector(..., standard=True)")
    chosen.write(detector, os.fspath(path), json.dumps(metadata or {}))


def load_exported(path: str | os.PathLike, *, format: str) -> ExportedDetector:
    """A detector from a file that :func:`write_exported` wrote.

    Args:
        path: of the file, which must be your own: some formats hold code.
        format: a name of :data:`FORMATS`.

    Raises:
        ImportError: a package is missing.
    """
    require(format)
    run, metadata = FORMATS[format].load(os.fspath(path))
    return ExportedDetector(run, json.loads(metadata))


def require(format: str) -> None:
    """
    Raises:
        ImportError: a package that the format needs is not installed.
    """
    for package in FORMATS[format].packages:
        try:
            __import__(package)
        except ImportError as error:
            raise ImportError(
                f"the format {format} needs {' and '.join(FORMATS[format].packages)}: pip install "
                f"{' '.join(FORMATS[format].packages)} (or the extra 'export')",
                name=package,
            ) from error
