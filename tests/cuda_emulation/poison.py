"""A pytest plugin: memory that nobody wrote to is NaN, or the largest whole number."""

import torch

torch.use_deterministic_algorithms(True, warn_only=True)
torch.utils.deterministic.fill_uninitialized_memory = True
