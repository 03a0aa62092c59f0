"""What a command needs around everything else: warnings, log, signals, files; without torch."""

from .console import progress_bar, start_log
from .files import replacing
from .signals import StopRequest, forward_to_children
from .third_party import quiet_imports

__all__ = [
    "StopRequest",
    "forward_to_children",
    "progress_bar",
    "quiet_imports",
    "replacing",
    "start_log",
]
