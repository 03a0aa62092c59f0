"""Kills a run, resumes it, and compares it with one that was never interrupted.

    python -m tests.engine.kills --random 25 --every 1

Processes are forked from one that has imported everything, so that a run takes a second. They are
killed (SIGKILL) at each of their file operations in ``OUTPUT_DIR``, in the middle of what is
written too, and at random moments, again and again, until the run comes to its end.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog

import resobj_d2.plots.objectness_curves  # noqa: F401 (else each run would import matplotlib)
import tests.toy_backbone  # noqa: F401 (registers it)
from resobj_d2.config import load_config
from resobj_d2.engine import Trainer, run_setup
from resobj_d2.process import quiet_imports
from tests.conftest import TINY

ITERATIONS = 6


def options(data: Path, output: Path, workers: int) -> list[str]:
    entries = [
        {"name": f"killed_{split}", "format": "scenes", "split": split, "root": str(data),
         "image_size": 64, "num_train": 12, "num_val": 3}
        for split in ("train", "val")
    ]  # fmt: skip
    pairs = [
        *TINY,
        "OUTPUT_DIR", output,
        "DATASETS.REGISTER", entries,
        "DATASETS.TRAIN", "('killed_train',)",
        "DATASETS.TEST", "('killed_val',)",
        "DATALOADER.NUM_WORKERS", workers,
        "INPUT.MIN_SIZE_TRAIN", "(64,)",
        "INPUT.MIN_SIZE_TEST", 64,
        "INPUT.PHOTOMETRIC", True,
        "INPUT.IOU_CROP", True,
        "INPUT.MULTI_SCALE", "[64, 96]",
        "INPUT.MULTI_SCALE_PERIOD", 1,
        "MODEL.DENSE.NUM_CLASSES", 8,
        "MODEL.DENSE.CLS_LOSS.NAME", "GHMCLoss",
        "SEED", 3,
        "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.MAX_ITER", ITERATIONS,
        "SOLVER.STEPS", "()",
        "SOLVER.BASE_LR", 0.001,
        "SOLVER.EMA_DECAY", 0.9,
        "SOLVER.CHECKPOINT_PERIOD", 2,
        "SOLVER.CHECKPOINT_KEEP", 1,
        "TEST.EVAL_PERIOD", 3,
        "TEST.VALIDATION_LOSS", True,
        "TEST.BEST_METRIC", "validation/total_loss",
        "WRITERS", "['csv']",
    ]  # fmt: skip
    return list(map(str, pairs))


class Operations:
    """Counts what this process does with files below a folder, and kills it at one of them.

    Args:
        folder: whose files count.
        fatal: the number of the operation that is not survived, from 1; 0 for none.
    """

    def __init__(self, folder: Path, fatal: int) -> None:
        self.folder, self.fatal, self.done = str(folder), fatal, 0
        self.open = builtins.open
        builtins.open = self._open
        for name in ("replace", "unlink", "fsync"):
            setattr(os, name, self._counted(getattr(os, name)))

    def happens(self) -> bool:
        """Whether it is the fatal one."""
        self.done += 1
        return self.done == self.fatal

    def _counted(self, operation):
        def counted(target, *args, **options):
            if isinstance(target, int) or str(target).startswith(self.folder):
                if self.happens():
                    os.kill(os.getpid(), signal.SIGKILL)
            return operation(target, *args, **options)

        return counted

    def _open(self, path, mode="r", *args, **options):
        file = self.open(path, mode, *args, **options)
        own = isinstance(path, (str, os.PathLike)) and str(path).startswith(self.folder)
        if own and set(mode) & set("wax+") and self.happens():
            if not str(path).endswith(".tmp"):
                os.kill(os.getpid(), signal.SIGKILL)
            return HalfWritten(file)
        return file


class HalfWritten:
    """A file whose process does not survive the second time that something is written to it."""

    def __init__(self, file) -> None:
        self._file, self._written = file, 0

    def write(self, content):
        self._written += 1
        if self._written == 2 or len(content) < 4096:  # small files are written at once
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self._file.write(content)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return self._file.__exit__(*exception)

    def __getattr__(self, name):
        return getattr(self._file, name)


@dataclass
class Runs:
    """Runs of one configuration in folders of their own.

    Attributes:
        survived: kills after which a run went on.
        problems: what differed from the uninterrupted run, or failed.
    """

    root: Path
    workers: int
    survived: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0
    operations: int = 0

    def train(self, folder: Path, *, fatal: int = 0, after: float | None = None) -> int:
        """In a forked process; returns its wait status.

        Args:
            folder: OUTPUT_DIR; a run in it goes on.
            fatal: the file operation that kills it.
            after: seconds after which it is killed.
        """
        child = os.fork()
        if not child:
            self._child(folder, fatal)
        if after is not None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1]

    def _child(self, folder: Path, fatal: int) -> None:
        status = 1
        try:
            log = os.open(folder.with_suffix(".txt"), os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.dup2(log, 1), os.dup2(log, 2)
            counted = Operations(folder, fatal)
            cfg = load_config("", options(self.root, folder, self.workers))
            run_setup(cfg)
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=True)
            trainer.train()
            folder.with_suffix(".json").write_text(json.dumps(counted.done))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def reference(self) -> Path:
        """An uninterrupted run; how long it took and how many operations it had."""
        folder = self.root / f"whole{self.workers}"
        start = time.monotonic()
        if self.train(folder):
            raise RuntimeError(folder.with_suffix(".txt").read_text())
        self.seconds = time.monotonic() - start
        self.operations = json.loads(folder.with_suffix(".json").read_text())
        return folder

    def finish(self, folder: Path, reference: Path) -> None:
        """Let a killed run go on to its end and compare it."""
        name = folder.name
        if self.train(folder):
            last = folder.with_suffix(".txt").read_text().strip().splitlines()[-1]
            self.problems.append(f"{name} could not go on: {last}")
            return
        for file in ("model_final.pth", "model_best.pth"):
            if not (folder / file).is_file():
                self.problems.append(f"{name} has no {file}")
                continue
            expected, found = (
                torch.load(path / file, weights_only=True) for path in (reference, folder)
            )
            problem = difference(expected, found)
            if problem:
                self.problems.append(f"{name}: {file} differs in {problem}")
        expected, found = (
            sorted(p.name for p in path.iterdir() if p.suffix in (".pth", ".tmp"))
            for path in (reference, folder)
        )
        if [x for x in found if x != "model_best.pth.old"] != expected:
            self.problems.append(f"{name} has files {found}, not {expected}")


def difference(expected, found, path: str = "") -> str:
    """Where two checkpoints differ in a bit; "" for nowhere."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        pairs = [(f"{path}/{key}", expected[key], found[key]) for key in expected]
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = [(f"{path}/{i}", *both) for i, both in enumerate(zip(expected, found, strict=True))]
    elif isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
        return "" if torch.equal(expected, found) else path
    else:
        return "" if expected == found or path == "/config" else path
    return next(filter(None, (difference(x, y, name) for name, x, y in pairs)), "")


def kill(root: Path, *, every: int, at_random: int, workers: int, seed: int) -> Runs:
    """Kill runs at each ``every``-th file operation and so many times at random."""
    runs = Runs(root, workers)
    reference = runs.reference()
    for fatal in range(1, runs.operations + 1, every) if every else ():
        folder = root / f"at{fatal}"
        if runs.train(folder, fatal=fatal) == 0:
            continue  # it had fewer: a thread of TensorBoard's writes now and then
        runs.survived += 1
        runs.finish(folder, reference)
    generator = random.Random(seed)
    number = 0
    while number < at_random:
        folder = root / f"random{number}"
        for _ in range(3):  # and killed again
            number += 1
            runs.train(folder, after=generator.uniform(0.05, runs.seconds))
            runs.survived += 1
        runs.finish(folder, reference)
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="n-th file operation; 0 for none")
    parser.add_argument("--random", type=int, default=25, help="kills at random moments")
    parser.add_argument("--workers", type=int, default=0, help="of the data loader")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", help="to look at afterwards; by default a temporary one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    quiet_imports()
    start = time.process_time()
    with contextlib.ExitStack() as stack:
        folder = args.folder or stack.enter_context(tempfile.TemporaryDirectory())
        cfg = load_config("", options(Path(folder), Path(folder) / "unused", 0))
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            DatasetCatalog.get(name)  # writes the pictures, once
        runs = kill(
            Path(folder),
            every=args.every,
            at_random=args.random,
            workers=args.workers,
            seed=args.seed,
        )
    children = os.times()
    seconds = time.process_time() - start + children.children_user + children.children_system
    print(
        f"{runs.survived} kills, {runs.operations} file operations in a run of "
        f"{runs.seconds:.1f} s, {seconds:.0f} s of CPU time"
    )
    print("\n".join(runs.problems) or "each resumed run equals the uninterrupted one")
    return 1 if runs.problems else 0


if __name__ == "__main__":
    sys.exit(main())
