"""Detectors for programs without Detectron2, or without Python; ``export`` is a command."""

from .detector import ExportableDetector, ExportableRCNN, exportable
from .formats import FORMATS, ExportedDetector, load_exported, write_exported

__all__ = [
    "FORMATS",
    "ExportableDetector",
    "ExportableRCNN",
    "ExportedDetector",
    "exportable",
    "load_exported",
    "write_exported",
]
