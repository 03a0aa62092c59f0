"""The files that an exported detector can be, and running them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resobj_d2.process import replacing

from .detector import INPUTS, ExportableDetector
from .program import exported_program, traced_module

__all__ = ["FORMATS", "ExportedDetector", "Format", "load_exported", "write_exported"]

OPSET = 20
METADATA = "resobj_d2"  # key, or name of the file in an archive, of what describes the detector


@dataclass(frozen=True, kw_only=True)
class Format:
    """A row of :data:`FORMATS`.

    Attributes:
        suffix: of its files.
        selection: what finds the detections; see :class:`ExportableDetector`.
        write: ``write(detector, path, metadata)``.
        load: ``load(path)`` returns a function of the inputs, and the metadata as text.
        packages: that must be installed, by the names under which they are imported.
    """

    suffix: str
    selection: str
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
        """See :meth:`ExportableDetector.forward`; tensors on the device it was exported for.

        Raises:
            ValueError: the file's graph does not hold for these sizes.
        """
        try:
            return tuple(self.run(images, image_sizes, original_sizes))
        except AssertionError as error:  # torch.export's guards
            inputs = (images, image_sizes, original_sizes)
            raise ValueError(
                f"the file is not for images of {_size(images)}{_smallest(self.run, *inputs)}: "
                f"{error}"
            ) from error


def _smallest(run: Callable, images: Tensor, *sizes: Tensor) -> str:
    """What to pad pictures to that are too small for a graph, if it says so."""
    guards = getattr(run, "_guards_fn", None)
    for times in range(2, 9) if guards is not None else ():
        height, width = (times * side for side in images.shape[2:])
        larger = images.new_empty(1).expand(*images.shape[:2], height, width)  # takes no memory
        try:
            guards(larger, *sizes)
        except AssertionError:
            continue
        return f", but for {_size(larger)}: pad them to it"
    return ""


def _size(images: Tensor) -> str:
    return "x".join(map(str, images.shape))


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

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as all other formats
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> list[Tensor]:
        arrays = {name: x.numpy() for name, x in zip(INPUTS, inputs, strict=True)}
        return [torch.from_numpy(x) for x in session.run(None, arrays)]

    return run, session.get_modelmeta().custom_metadata_map.get(METADATA, "{}")


def _write_pt2(detector: ExportableDetector, path: str, metadata: str) -> None:
    program = exported_program(detector)
    with replacing(path, binary=True) as file:
        torch.export.save(program, file, extra_files={METADATA: metadata})


def _load_pt2(path: str) -> tuple[Callable[..., Sequence[Tensor]], str]:
    extra = {METADATA: "{}"}
    return torch.export.load(path, extra_files=extra).module(), extra[METADATA]


def _write_aoti(detector: ExportableDetector, path: str, metadata: str) -> None:
    program = exported_program(detector)
    with tempfile.TemporaryDirectory() as folder:
        package = torch._inductor.aoti_compile_and_package(
            program,
            package_path=os.path.join(folder, "detector.pt2"),
            inductor_configs={"aot_inductor.metadata": {METADATA: metadata, **_as_texts(metadata)}},
        )
        with replacing(path, binary=True) as file, open(package, "rb") as written:
            shutil.copyfileobj(written, file)


def _as_texts(metadata: str) -> dict[str, str]:
    """Each entry by itself, lists line by line: C++ has no parser of json."""
    texts = {}
    for key, value in json.loads(metadata).items():
        values = value if isinstance(value, list) else [] if value is None else [value]
        texts[f"{METADATA}.{key}"] = "\n".join(" ".join(str(x).split()) for x in values)
    return texts


def _load_aoti(path: str) -> tuple[Callable[..., Sequence[Tensor]], str]:
    package = torch._inductor.aoti_load_package(path)
    return package, package.loader.get_metadata().get(METADATA, "{}")


def _write_torchscript(detector: ExportableDetector, path: str, metadata: str) -> None:
    traced = traced_module(detector)
    with replacing(path, binary=True) as file:
        torch.jit.save(traced, file, _extra_files={METADATA: metadata})


def _load_torchscript(path: str) -> tuple[Callable[..., Sequence[Tensor]], str]:
    extra = {METADATA: "{}"}
    return torch.jit.load(path, _extra_files=extra), _text(extra[METADATA])


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


FORMATS: Mapping[str, Format] = {
    "pt2": Format(suffix=".pt2", selection="operator", write=_write_pt2, load=_load_pt2),
    "onnx": Format(
        suffix=".onnx",
        selection="onnx",
        write=_write_onnx,
        load=_load_onnx,
        packages=("onnx", "onnxscript", "onnxruntime"),
    ),
    "aoti": Format(suffix=".pt2", selection="nms", write=_write_aoti, load=_load_aoti),
    "torchscript": Format(
        suffix=".pt", selection="operator", write=_write_torchscript, load=_load_torchscript
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
        detector: made with the ``selection`` of the format.
        path: of the file, which must end as the format's files do.
        format: a name of :data:`FORMATS`.
        metadata: describes the detector; anything that ``json`` can write.

    Raises:
        ImportError: a package is missing.
        ValueError: the detector cannot be written in this format.
        OSError: the file cannot be written.
    """
    chosen = FORMATS[format]
    require(format)
    check_path(path, format)
    if detector.selection != chosen.selection and not detector.raw:
        raise ValueError(
            f'{format} needs ExportableDetector(model, selection="{chosen.selection}")'
        )
    chosen.write(detector, os.fspath(path), json.dumps(metadata or {}))


def load_exported(path: str | os.PathLike, *, format: str) -> ExportedDetector:
    """A detector from a file that :func:`write_exported` wrote.

    On a CPU it has as many threads as torch has (``onnx``: when it is loaded).

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


def check_path(path: str | os.PathLike, format: str) -> None:
    """
    Raises:
        ValueError: the name does not end as the format's files do.
        NotADirectoryError: there is no folder for it.
    """
    path, suffix = os.fspath(path), FORMATS[format].suffix
    if not path.endswith(suffix):
        raise ValueError(f"a file of the format {format} must be called *{suffix}, got {path}")
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"{path} cannot be written: there is no folder {folder}")
