"""The configuration: this package's keys, and the way from a command line to a checked config."""

from .defaults import add_resobj_config
from .load import class_counts, load_config

__all__ = ["add_resobj_config", "class_counts", "load_config"]
