"""The missing runs of a study: each a ``resobj-d2 train``, its result a line of the file."""

from __future__ import annotations

import datetime
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy
import PIL
import torch

from resobj_d2.plots.scalars import read_scalars
from resobj_d2.process import counted, replacing

from .pool import CONSOLE, Ended, Job, run_jobs
from .progress import Progress, readable_time
from .results import DONE, FAILED, Result, append_result
from .runs import Run, revision

__all__ = ["environments", "execute", "train_command"]

logger = logging.getLogger(__name__)

CONFIG = "study.yaml"
# glibc's malloc returns large blocks to the system, and every step would get them anew.
_KEEP_FREED_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "8000000000"}


def train_command(config: Path) -> list[str]:
    """Trains the configuration of a run, or goes on with it."""
    command = [sys.executable, "-m", "resobj_d2", "train"]
    return [*command, "--resume", "--config-file", str(config)]


def execute(
    runs: Sequence[Run],
    output: Path,
    *,
    study: str,
    jobs: int,
    total: int,
    train: Callable[[Path], list[str]] | None = None,
    file: str = "results.jsonl",
) -> int:
    """Run them all and append their results.

    Args:
        runs: that are missing.
        output: folder of the study.
        study: its name.
        jobs: at a time; 0 for one on each core, or on each GPU where one is used.
        total: runs of the study, for the progress.
        train: see :func:`.command.run_study`.
        file: of results, in ``output``.

    Returns:
        The signal that stopped it, 0 for none.
    """
    uses_gpu = any(str(run.cfg.MODEL.DEVICE).startswith("cuda") for run in runs)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    places = torch.cuda.device_count() if uses_gpu else cores or 1
    at_once = min(jobs or places, len(runs))
    by_name = {
        str(run): (run, _prepare(run, output / "runs" / run.folder, train or train_command))
        for run in runs
    }
    resumed = {name for name, (_, job) in by_name.items() if _has_checkpoint(job.folder)}
    logger.info(
        "%d of %s to do, %d at a time, in %s",
        *(len(runs), counted(total, "run"), at_once, output / "runs"),
    )
    progress = Progress(
        lengths={name: run.iterations for name, (run, _) in by_name.items()},
        folders={name: job.folder for name, (_, job) in by_name.items()},
        done=total - len(runs),
        total=total,
        say=logger.info,
    )
    about = {"revision": revision(), "environment": _environment(uses_gpu)}

    def ended(end: Ended) -> None:
        if end.stopped:
            return
        run, job = by_name[end.job.name]
        result = _result(run, end, study=study, resumed=job.name in resumed, about=about)
        append_result(output / file, result)
        progress.ended(end.job, _outcome(result, end))

    return run_jobs(
        [job for _, job in by_name.values()],
        at_once=at_once,
        ended=ended,
        slot_environment=environments(at_once, cores or 1, uses_gpu),
        look=progress.look,
        say=logger.info,
    )


def _has_checkpoint(folder: Path) -> bool:
    return (folder / "last_checkpoint").exists()


def _prepare(run: Run, folder: Path, train: Callable[[Path], list[str]]) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.SEED = run.seed
    cfg.OUTPUT_DIR = str(folder)
    # Resolved: what the run was based on may change until its turn comes.
    with replacing(folder / CONFIG) as file:
        file.write(cfg.dump())
    return Job(name=str(run), folder=folder, command=train(folder / CONFIG), environment={})


def environments(at_once: int, cores: int, uses_gpu: bool) -> Callable[[int], Mapping[str, str]]:
    """Variables by slot: a GPU for each, or its share of the cores. The user's own stay.

    Args:
        at_once: number of slots.
        cores: to share.
        uses_gpu: runs are on GPUs.
    """
    if uses_gpu:
        listed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        devices = [one for one in listed.split(",") if one]
        devices = devices or [str(k) for k in range(torch.cuda.device_count())]
        return lambda slot: {"CUDA_VISIBLE_DEVICES": devices[slot % len(devices)]}
    wanted = {"OMP_NUM_THREADS": str(max(1, cores // at_once)), **_KEEP_FREED_MEMORY}
    chosen = {name: value for name, value in wanted.items() if name not in os.environ}
    return lambda slot: chosen


def _result(run: Run, end: Ended, *, study: str, resumed: bool, about: Mapping) -> Result:
    scalars = read_scalars(end.job.folder)
    results = {name: values[-1][1] for name, values in scalars.items() if "/" in name}
    curve = [list(point) for point in scalars.get(run.metric, [])]
    error = end.error
    if not error and run.metric not in results:
        error = f"the evaluation has given no {run.metric}"
    return Result(
        key=run.key,
        study=study,
        dataset=run.dataset,
        method=run.method,
        seed=run.seed,
        status=FAILED if error else DONE,
        metric=run.metric,
        decides=run.decides,
        error=error,
        results={} if error else results,
        curve=[] if error else curve,
        iterations=run.iterations,
        seconds=None if resumed else round(end.seconds, 1),
        finished=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        **about,
    )


def _outcome(result: Result, end: Ended) -> str:
    if result.status == FAILED:
        return f"failed: {result.error} ({end.job.folder / CONSOLE})"
    return f"{result.metric} {result.value:.1f} in {readable_time(end.seconds)}"


def _environment(uses_gpu: bool) -> dict[str, str]:
    device = torch.cuda.get_device_name() if uses_gpu else platform.machine()
    return {
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
        "device": device,
        "cores": str(os.cpu_count()),
    }
