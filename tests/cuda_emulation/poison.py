"""A pytest plugin: uninitialised memory is NaN or the largest integer."""

import torch

torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True
