"""Where the scalars of a run go besides TensorBoard and ``metrics.json``."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable

from detectron2.utils.events import EventWriter, get_event_storage

from resobj_d2.process import replacing

__all__ = ["WRITERS", "CsvWriter", "WandbWriter", "new_scalars"]

CSV_FILE = "metrics.csv"
WANDB_FILE = "wandb_run.txt"


def new_scalars(last_written: int) -> list[tuple[int, str, float]]:
    """(iteration from 0, name, value) of what came after iteration ``last_written``, in order.

    Losses are medians over the last twenty iterations, as in ``metrics.json``.
    """
    latest = get_event_storage().latest_with_smoothing_hint(20)
    rows = [(i, name, float(value)) for name, (value, i) in latest.items() if i > last_written]
    return sorted(rows)


class CsvWriter(EventWriter):
    """``metrics.csv``: iteration, name, value; a row for each scalar.

    Which scalars there are changes in the course of a run, so that columns for them would not do. A
    resumed run appends, after it has taken out the rows of iterations that it trains again.

    Args:
        folder: of the run.
        start: gives its first iteration, once it runs.
    """

    def __init__(self, folder: str, *, start: Callable[[], int]) -> None:
        self._start = start
        self.path = os.path.join(folder, CSV_FILE)
        self._file = None
        self._last = -1

    def write(self) -> None:
        """The scalars since the last call."""
        rows = new_scalars(self._last)
        if not rows:
            return
        if self._file is None:
            self._open(self._start())
        csv.writer(self._file).writerows(rows)
        self._file.flush()
        self._last = rows[-1][0]

    def _open(self, start: int) -> None:
        former = []
        if start and os.path.isfile(self.path):
            with open(self.path, newline="", encoding="utf-8") as file:
                former = [
                    row
                    for row in csv.reader(file)
                    if len(row) == 3 and row[0].isdigit() and int(row[0]) < start
                ]
        with replacing(self.path) as file:
            csv.writer(file).writerows([("iteration", "name", "value"), *former])
        self._file = open(self.path, "a", newline="", encoding="utf-8")  # noqa: SIM115

    def close(self) -> None:
        """At the end of the run."""
        if self._file is not None:
            self._file.close()


class WandbWriter(EventWriter):
    """Weights & Biases; ``WANDB_PROJECT``, ``WANDB_MODE`` and the like are its own variables.

    A resumed run goes on in the run whose id is in ``wandb_run.txt``.

    Args:
        folder: of the run.
        start: gives its first iteration, once it runs.

    Raises:
        ModuleNotFoundError: the package ``wandb`` is not installed.
    """

    def __init__(self, folder: str, *, start: Callable[[], int]) -> None:
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "WRITERS has wandb, which is not installed: pip install wandb", name="wandb"
            ) from error
        self._wandb = wandb
        self._folder = folder
        self._start = start
        self._run = None
        self._last = -1

    def write(self) -> None:
        """The scalars since the last call, one step for each iteration."""
        if self._run is None:
            self._run = self._begin(self._start())
        steps: dict[int, dict[str, float]] = {}
        for iteration, name, value in new_scalars(self._last):
            steps.setdefault(iteration, {})[name] = value
            self._last = iteration
        for iteration, values in steps.items():
            self._run.log({**values, "iteration": iteration})

    def _begin(self, start: int):
        path = os.path.join(self._folder, WANDB_FILE)
        identity = None
        if start and os.path.isfile(path):
            with open(path, encoding="utf-8") as file:
                identity = file.read().strip() or None
        run = self._wandb.init(dir=self._folder, id=identity, resume="allow")
        # Steps of its own would refuse iterations that are trained again.
        run.define_metric("*", step_metric="iteration")
        with replacing(path) as file:
            file.write(run.id)
        return run

    def close(self) -> None:
        """At the end of the run."""
        if self._run is not None:
            self._run.finish()


WRITERS: dict[str, Callable[..., EventWriter]] = {"csv": CsvWriter, "wandb": WandbWriter}
