"""Messages of other packages that are no use to whoever runs a command, at one place.

Each is filtered by its own words; every other warning is shown as always.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator

__all__ = ["quiet", "quiet_imports"]

# (category, beginning of the message). No commas: PYTHONWARNINGS could not hold them.
_WARNINGS = (
    # fvcore and Detectron2 script functions when they are imported. They work as before.
    (FutureWarning, "`torch.jit.script` is deprecated"),
    (DeprecationWarning, "`torch.jit.script` is deprecated"),
    # Detectron2's AMPTrainer uses the old spelling of torch.amp.
    (FutureWarning, "`torch.cuda.amp.GradScaler(args...)` is deprecated"),
    (FutureWarning, "`torch.cuda.amp.autocast(args...)` is deprecated"),
    # Detectron2's create_ddp_model means what the old name says: buffers are not sent at the start.
    (FutureWarning, "`broadcast_buffers` is deprecated"),
    # Its comm.gather, once in each process.
    (UserWarning, "TypedStorage is deprecated"),
    # detectron2.model_zoo; the set-up keeps a setuptools that still has it.
    (UserWarning, "pkg_resources is deprecated as an API"),
    (DeprecationWarning, "pkg_resources is deprecated as an API"),
    # The anchor generator of Detectron2's main branch.
    (UserWarning, "torch.meshgrid: in an upcoming release"),
    # Detectron2 0.5 in annotations_to_instances: a few boxes for each image.
    (UserWarning, "Creating a tensor from a list of numpy.ndarrays is extremely slow"),
)
# (logger, beginning of the message)
_RECORDS = (
    # collect_env on a machine with the CUDA toolkit and without a GPU; doctor tells about both.
    ("torch.utils.cpp_extension", "No CUDA runtime is found"),
)


class _Drop(logging.Filter):
    """Lets every record pass but those that begin with ``words``."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.words)


def quiet_imports() -> None:
    """Filter the known warnings of torch, fvcore and Detectron2 about each other.

    To be called before they are imported. Processes that are started later inherit the filters
    through ``PYTHONWARNINGS``. A second call changes nothing.
    """
    _ignore_warnings()
    # A colon ends the message there.
    rules = [f"ignore:{words.split(':')[0]}:{category.__name__}" for category, words in _WARNINGS]
    present = list(filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")))
    added = [rule for rule in rules if rule not in present]
    os.environ["PYTHONWARNINGS"] = ",".join(present + added)
    for name, words in _RECORDS:
        logger = logging.getLogger(name)
        if not any(isinstance(f, _Drop) and f.words == words for f in logger.filters):
            logger.addFilter(_Drop(words))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the known warnings inside it alone, for where a process is the user's own."""
    with warnings.catch_warnings():
        _ignore_warnings()
        yield


def _ignore_warnings() -> None:
    for category, words in _WARNINGS:
        warnings.filterwarnings("ignore", message=re.escape(words), category=category)
