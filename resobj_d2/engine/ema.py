"""Exponential moving average of the weights (Polyak averaging), as EfficientDet is evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["WeightAverage", "WeightAverageHook"]


class WeightAverage:
    """``average = d * average + (1 - d) * weights`` after each step, from the first weights on.

    ``d = min(decay, (1 + n) / (10 + n))`` after n updates, as in TensorFlow's
    ``ExponentialMovingAverage(decay, num_updates)``: the first weights are soon forgotten. Means
    and variances of batch normalisation are averaged like the weights, as EfficientDet's code does,
    and with them every other buffer of floating point numbers; counters stay the model's own.

    Hand it to a :class:`resobj_d2.checkpoint.ResObjCheckpointer` as ``ema=``. A checkpoint
    then holds the averages as its ``model``, which is what every reader of checkpoints evaluates,
    and the weights themselves in ``ema``, with which training goes on.

    Args:
        model: may be wrapped in ``DistributedDataParallel``; each process has its own average, of
            the same weights.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"SOLVER.EMA_DECAY must be in (0, 1), or 0 for no EMA, got {decay}")
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.decay = decay
        self.updates = 0
        self.averages: dict[str, Tensor] = {}
        self._applied = False

    def start(self) -> None:
        """Begin with the present weights, unless a checkpoint was resumed."""
        if not self.averages:
            self.averages = {name: x.clone() for name, x in self._weights().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Call it after each step of the optimiser."""
        self.start()
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = self._weights()
        averages = [self.averages[name] for name in weights]
        torch._foreach_lerp_(averages, list(weights.values()), 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averages inside, and its weights again afterwards."""
        self.start()
        self._exchange()
        self._applied = True
        try:
            yield
        finally:
            self._exchange()
            self._applied = False

    def state_dict(self) -> dict:
        """The weights, not their averages, which are a checkpoint's ``model``."""
        self.start()
        weights = self.averages if self._applied else self._weights()
        return {"updates": self.updates, "weights": dict(weights)}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Call it when the model has the averages, and ``state`` its weights.

        Raises:
            ValueError: they are of another model.
        """
        weights = self._weights()
        saved = {name: tuple(x.shape) for name, x in state["weights"].items()}
        expected = {name: tuple(x.shape) for name, x in weights.items()}
        if saved != expected:
            names = sorted(k for k in {*saved, *expected} if saved.get(k) != expected.get(k))
            raise ValueError(
                "the checkpoint's averaged weights are of another model: "
                f"{len(names)} tensors differ, the first is {names[0]}"
            )
        self.averages = {name: x.clone() for name, x in weights.items()}
        self.updates = state["updates"]
        for name, x in weights.items():
            x.copy_(state["weights"][name])

    def _weights(self) -> dict[str, Tensor]:
        state = self.model.state_dict()
        return {name: x for name, x in state.items() if x.is_floating_point()}

    @torch.no_grad()
    def _exchange(self) -> None:
        weights = self._weights()
        # All first: a tensor that the model has under two names would be exchanged twice.
        kept = {name: x.clone() for name, x in weights.items()}
        for name, x in weights.items():
            x.copy_(self.averages[name])
        self.averages = kept


class WeightAverageHook(HookBase):
    """Updates a :class:`WeightAverage` after each step.

    Register it before the hooks that evaluate and save.
    """

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def before_train(self) -> None:
        self.average.start()

    def after_step(self) -> None:
        self.average.update()
