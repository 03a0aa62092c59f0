"""Detectors for programs without Detectron2, or without Python; ``export`` is a command."""

from .detector import ExportableDetector
from .formats import FORMATS, ExportedDetector, load_exported, write_exported

__all__ = [
    "FORMATS",
    "ExportableDetector",
    "ExportedDetector",
    "load_exported",
    "write_exported",
]
