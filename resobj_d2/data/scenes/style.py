"""What kind of scenes are drawn: the usual ones, or harder ones with COCO's imbalance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .look_alikes import LOOK_ALIKES
from .shapes import CLASS_NAMES, OBJECT_OUTLINES, Outline

__all__ = ["SceneStyle"]


@dataclass(frozen=True, kw_only=True)
class SceneStyle:
    """Options of the scenes; the defaults draw the usual ones.

    Attributes:
        max_objects: 0 for one to fifteen or, in crowds, more; else a picture has 0 to so many,
            all equally likely.
        max_diameter: of objects in pixels; 0 for a share of the picture.
        look_alikes: twenty classes of which several share a colour, instead of eight.
        distractors: most shapes of no class in a picture.
    """

    max_objects: int = 0
    max_diameter: int = 0
    look_alikes: bool = False
    distractors: int = 8

    @property
    def class_names(self) -> tuple[str, ...]:
        """By class number."""
        return tuple(LOOK_ALIKES) if self.look_alikes else CLASS_NAMES

    def outline(self, category: int, rng: np.random.Generator) -> Outline:
        """Of an object of a class."""
        name = self.class_names[category]
        return (LOOK_ALIKES[name][1] if self.look_alikes else OBJECT_OUTLINES[name])(rng)

    def family(self, category: int) -> int:
        """The usual class whose typical colour a class has."""
        if not self.look_alikes:
            return category
        return CLASS_NAMES.index(LOOK_ALIKES[self.class_names[category]][0])
