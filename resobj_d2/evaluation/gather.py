"""The predictions of several processes on one of them."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.utils import comm

__all__ = ["gather_in_parts"]


def gather_in_parts(items: Sequence, *, size: int = 100) -> list:
    """The items of all processes on the main one, in the order of the processes; [] elsewhere.

    A part at a time: masks of a whole dataset in one pickle, and padded to the longest in every
    process, would take several times their memory. All processes have to call it.

    Args:
        items: of this process, such as the predictions of an image each.
        size: items of a process in one part.
    """
    longest = max(comm.all_gather(len(items)))
    gathered: list[list] = [[] for _ in range(comm.get_world_size())]
    for start in range(0, longest, size):
        parts = comm.gather(list(items[start : start + size]), dst=0)
        for own, part in zip(gathered, parts, strict=False):  # no parts but on the main process
            own.extend(part)
    return [item for own in gathered for item in own]
