"""A new run does not write into the folder of an earlier one."""

from __future__ import annotations

import os
import re

from detectron2.utils import comm

__all__ = ["refuse_earlier_run"]

_CHECKPOINT = re.compile(r"model_(\d{7,}|final)\.pth")


def refuse_earlier_run(folder: str, *, how_to_resume: str) -> None:
    """Refuse a folder that has checkpoints of a run, for one that starts anew.

    It would replace some files of the earlier run, append to others and leave the rest beside its
    own, so that afterwards nobody could tell which are whose. ``model_best.pth`` alone does not
    count: there is nothing to resume from, and it is put aside.

    The main process alone looks.

    Args:
        folder: ``OUTPUT_DIR``; it need not be there.
        how_to_resume: for the message.

    Raises:
        FileExistsError: there is a checkpoint.
    """
    if not comm.is_main_process() or not os.path.isdir(folder):
        return
    found = sorted(name for name in os.listdir(folder) if _CHECKPOINT.fullmatch(name))
    if found:
        raise FileExistsError(
            f"OUTPUT_DIR {os.path.abspath(folder)} has {found[-1]} of an earlier run, which a new "
            f"one would overwrite: {how_to_resume} to go on with it; to start anew set another "
            "OUTPUT_DIR or remove the folder"
        )
