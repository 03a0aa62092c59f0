"""Score branches: extra probabilities per anchor."""

from .objectness import ObjectnessBranch, ObjectnessPrediction
from .quality import QualityBranch

__all__ = ["ObjectnessBranch", "ObjectnessPrediction", "QualityBranch"]
