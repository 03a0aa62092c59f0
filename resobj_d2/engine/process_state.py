"""What each process keeps for itself, in the checkpoint that the first one writes."""

from __future__ import annotations

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

__all__ = ["ProcessState"]

# Detectron2's dense detectors keep their running count of foreground as a plain number.
_NUMBER = "loss_normalizer"


class ProcessState(HookBase):
    """Running means that are not the same in all processes, and numbers that are no buffers.

    Without them a resumed run would go on from those of the first process, or from anew: the bins
    of :class:`.GHMCLoss`, and the normaliser of Detectron2's own RetinaNet and FCOS. All processes
    have this hook, in front of the one that writes checkpoints.

    Args:
        model: may be wrapped in ``DistributedDataParallel``.
        period: iterations between two checkpoints.
    """

    def __init__(self, model: nn.Module, *, period: int) -> None:
        self.model = getattr(model, "module", model)
        self.period = period
        self._gathered: list[dict] = []
        self._loaded: list[dict] = []

    def before_train(self) -> None:
        if self._loaded:
            self._take_over(self._loaded)
            self._loaded = []

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.trainer.max_iter:
            self.collect()

    def collect(self) -> None:
        """Before a checkpoint is written; all processes have to call it."""
        self._gathered = comm.gather(self._own(), dst=0)

    def state_dict(self) -> dict:
        """One entry for each process; empty where none keeps anything."""
        return {"processes": self._gathered} if any(self._gathered) else {}

    def load_state_dict(self, state: dict) -> None:
        """Take over this process's entry; where their number has changed, that of the first."""
        # When the run begins: averaged weights are put in place meanwhile.
        self._loaded = self._gathered = state["processes"]

    def _take_over(self, entries: list[dict]) -> None:
        rank = comm.get_rank() if len(entries) == comm.get_world_size() else 0
        modules = dict(self.model.named_modules())
        for key, value in entries[rank].items():
            module, _, name = key.rpartition(".")
            if name == _NUMBER:
                setattr(modules[module], name, value)
            else:
                modules[module]._buffers[name].copy_(value)

    def _own(self) -> dict:
        own: dict = {}
        for path, module in self.model.named_modules():
            number = getattr(module, _NUMBER, None)
            if isinstance(number, float):
                own[f"{path}.{_NUMBER}"] = number
            if getattr(module, "counts_batch", False):
                buffers = module._buffers.items()
                own |= {f"{path}.{k}": x.cpu().clone() for k, x in buffers if x is not None}
        return own
