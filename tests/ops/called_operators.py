"""Which operators of this package run."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode


class CalledOperators(TorchDispatchMode):
    """The names of this package's operators that are called in this context."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "resobj_d2":
            self.names.append(function._schema.name.removeprefix("resobj_d2::"))
        return function(*args, **(kwargs or {}))
