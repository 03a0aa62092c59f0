"""What a command needs around everything else: warnings, log, signals, files; without torch.

``yaml_text`` needs PyYAML and is imported by itself: ``resobj-d2 doctor`` runs without any package.
"""

from .console import progress_bar, start_log
from .files import put_in_place, replacing, told_as
from .lock import FolderInUse, hold_folder, release_folder
from .signals import StopRequest, forward_to_children
from .third_party import quiet, quiet_imports
from .words import agreeing, counted, did_you_mean, distinct_names, similar_names

__all__ = [
    "FolderInUse",
    "StopRequest",
    "agreeing",
    "counted",
    "did_you_mean",
    "distinct_names",
    "forward_to_children",
    "hold_folder",
    "progress_bar",
    "put_in_place",
    "quiet",
    "quiet_imports",
    "release_folder",
    "replacing",
    "similar_names",
    "start_log",
    "told_as",
]
