"""Random numbers that depend on the seed, the process and the iteration.

No generator's state has to travel in a checkpoint, of which the first process alone could write its
own: what an iteration draws does not depend on what was drawn before it.
"""

from __future__ import annotations

import logging
import random

import numpy as np
import torch
from detectron2.utils import comm

__all__ = ["choose_seed", "seed_iteration"]

logger = logging.getLogger(__name__)


def choose_seed(seed: int) -> int:
    """``SEED`` of a run: the one of the configuration, or for -1 one that is drawn.

    It is drawn from torch's generator of the first process, so that a caller who has seeded that
    gets the same one again. All processes have to call it.
    """
    if seed >= 0:
        return seed
    return comm.all_gather(int(torch.randint(2**31, ())))[0]


def seed_iteration(seed: int, iteration: int, *, part: int = 0) -> None:
    """Seed Python, NumPy and torch (with its GPUs) for one iteration of this process.

    Args:
        seed: of the run.
        iteration: of the run.
        part: of the iteration's batch, where that is trained in parts.
    """
    state = np.random.SeedSequence((seed, comm.get_rank(), iteration, part)).generate_state(4)
    random.seed(state.tobytes())
    np.random.seed(state)
    torch.manual_seed(int.from_bytes(state[:2].tobytes(), "little"))
