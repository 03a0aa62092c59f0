"""All differences between Detectron2 0.5 and upstream main that affect this package."""

from __future__ import annotations

import contextlib
import functools
import gc
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.data import build as data_build
from detectron2.engine import defaults
from detectron2.engine import launch as detectron2_launch
from detectron2.structures import ImageList
from detectron2.utils import comm
from torch import Tensor, nn

from .process import forward_to_children, start_log

__all__ = [
    "TRAINER_SAVES_OPTIMIZER",
    "batch_images",
    "close_process_groups",
    "ddp_on_cpu",
    "largest_of_all_processes",
    "launch",
    "training_sampler",
    "update_loss_normalizer",
]

# Detectron2 0.5 does not save the optimiser: a resumed run would start with momentum 0.
TRAINER_SAVES_OPTIMIZER = "state_dict" in vars(defaults.DefaultTrainer)


def batch_images(images: list[Tensor], backbone) -> ImageList:
    """Pad (C, H_i, W_i) images to one size that is divisible as the backbone requires.

    Upstream main adds ``Backbone.padding_constraints`` (square inputs), which 0.5 lacks.
    """
    constraints = getattr(backbone, "padding_constraints", None)
    if constraints:
        return ImageList.from_tensors(
            images, backbone.size_divisibility, padding_constraints=constraints
        )
    return ImageList.from_tensors(images, backbone.size_divisibility)


def update_loss_normalizer(retinanet: nn.Module, value: float) -> float:
    """Move RetinaNet's running mean of foreground counts towards ``value`` and return it.

    Upstream main has a method for it, shared by all dense detectors; 0.5 does it inside the loss.
    """
    if hasattr(retinanet, "_ema_update"):
        return retinanet._ema_update("loss_normalizer", value, 100)
    momentum = retinanet.loss_normalizer_momentum
    retinanet.loss_normalizer = momentum * retinanet.loss_normalizer + (1 - momentum) * value
    return retinanet.loss_normalizer


def training_sampler(cfg, records: Sequence[dict], seed: int) -> Iterable[int]:
    """The sampler of ``DATALOADER.SAMPLER_TRAIN``, seeded; each version has other ones.

    Raises:
        ValueError: there is no such sampler.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = seed  # main gives it to some of its samplers
    before = np.random.get_state()
    np.random.seed(seed)  # all others draw theirs from it
    try:
        arguments = data_build._train_loader_from_config(cfg, mapper=len, dataset=records)
    finally:
        np.random.set_state(before)
    return arguments["sampler"]


def launch(
    main: Callable,
    *,
    num_processes: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str,
    args: tuple = (),
) -> None:
    """Detectron2's ``launch``, also on CPUs, which 0.5 does not support.

    Each process leaves its process groups once ``main`` has returned. Ctrl-C and SIGTERM reach all
    processes, and this one waits for them to finish.

    Args:
        num_processes: per machine, one per GPU if there are any; 0 means 1.
        dist_url: "auto" or e.g. ``tcp://host:port``.
    """
    if num_processes < 0:
        raise ValueError(f"the number of processes (--num-gpus) is negative: {num_processes}")
    if num_processes * num_machines <= 1:
        main(*args)
        return
    knows_cpu = hasattr(comm, "create_local_process_group")
    if knows_cpu or torch.cuda.is_available():
        with forward_to_children():
            detectron2_launch(
                _run_and_close, num_processes, num_machines, machine_rank, dist_url, (main, *args)
            )
        return
    with tempfile.TemporaryDirectory() as folder:
        if dist_url == "auto":
            if num_machines > 1:
                raise ValueError("--dist-url auto is for one machine; use tcp://<host>:<port>")
            # A file needs no free port, so two runs on one machine cannot clash.
            dist_url = f"file://{folder}/rendezvous"
        with forward_to_children():
            mp.spawn(
                _cpu_worker,
                nprocs=num_processes,
                args=(main, num_processes, num_machines, machine_rank, dist_url, args),
            )


def _cpu_worker(
    local_rank: int,
    main: Callable,
    num_processes: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    args: tuple,
) -> None:
    dist.init_process_group(
        backend="gloo",
        init_method=dist_url,
        world_size=num_processes * num_machines,
        rank=machine_rank * num_processes + local_rank,
    )
    for machine in range(num_machines):
        ranks = range(machine * num_processes, (machine + 1) * num_processes)
        group = dist.new_group(list(ranks))
        if machine == machine_rank:
            comm._LOCAL_PROCESS_GROUP = group
    _run_and_close(main, *args)


def _run_and_close(main: Callable, *args) -> None:
    start_log(rank=comm.get_rank())
    try:
        main(*args)
    except (SystemExit, KeyboardInterrupt):  # the others stop as well
        close_process_groups()
        raise
    close_process_groups()


def close_process_groups() -> None:
    """Leave all process groups; must be the last thing a process does.

    A gloo group that lives until the interpreter exits still has threads then, and occasionally the
    process aborts ("terminate called without an active exception"), which looks like a failed run.
    Detectron2 keeps two groups in its own module, and reference cycles such as
    DistributedDataParallel's keep theirs until they are collected.
    """
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    gc.collect()
    dist.destroy_process_group()


def largest_of_all_processes(value: int) -> int:
    """The maximum over all processes; every process must call it. Runs on the CPU in any case.

    Between two processes of a machine with two busy cores it took 0.3 ms (median of 2,000).
    """
    if comm.get_world_size() == 1:
        return value
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=comm._get_global_gloo_group())
    return int(tensor)


@contextlib.contextmanager
def ddp_on_cpu(device: str) -> Iterator[None]:
    """Lets ``DefaultTrainer`` wrap a CPU model: both versions always pass a GPU to DDP."""
    if torch.device(device).type != "cpu" or comm.get_world_size() == 1:
        yield
        return
    if dist.get_backend() != "gloo":
        raise ValueError(
            "several processes on CPUs need gloo, but since a GPU is visible the launcher chose "
            f"{dist.get_backend()}: hide the GPUs with CUDA_VISIBLE_DEVICES=''"
        )
    original = defaults.create_ddp_model
    defaults.create_ddp_model = functools.partial(original, device_ids=None)
    try:
        yield
    finally:
        defaults.create_ddp_model = original
