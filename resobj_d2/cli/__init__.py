"""The command ``resobj-d2``: one table of commands, each in a module that is imported on use."""

from .dispatch import main

__all__ = ["main"]
