"""Detections of single images and drawings of them; ``predict`` is a command."""

from .predictor import ImageError, Predictor

__all__ = ["ImageError", "Predictor"]
