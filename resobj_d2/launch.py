"""Several processes: started here, by torchrun or by SLURM, they meet and end in the same way."""

from __future__ import annotations

import gc
import logging
import os
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from .process import forward_to_children, start_log

__all__ = [
    "Place",
    "close_process_groups",
    "largest_of_all_processes",
    "launch",
    "place_from_environment",
    "was_restarted",
]

TIMEOUT = timedelta(minutes=30)  # of a collective, as in Detectron2
# A process whose peer has failed waits so long for its end: the peer's own message comes first.
PEER_SECONDS = 5.0
# After one has failed, the others end so many seconds later, twice where they do not obey.
GRACE_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a process stands among all of a run.

    Attributes:
        rank: among all.
        world_size: number of all.
        local_rank: on its machine; with GPUs the number of its GPU.
        machine: a number that the processes of one machine share.
        address: where they meet, for torch's ``init_process_group``.
    """

    rank: int
    world_size: int
    local_rank: int
    machine: int
    address: str


def place_from_environment(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place that torchrun or ``srun`` gave this process; None where neither started it.

    Raises:
        ValueError: SLURM's variables do not say where to meet.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(environment):
        return Place(
            rank=int(environment["RANK"]),
            world_size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment["LOCAL_RANK"]),
            machine=int(environment.get("GROUP_RANK", 0)),
            address="env://",
        )
    # Of a job step; a batch script that calls no srun is one process of no step.
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return Place(
            rank=int(environment["SLURM_PROCID"]),
            world_size=int(environment["SLURM_STEP_NUM_TASKS"]),
            local_rank=int(environment["SLURM_LOCALID"]),
            machine=int(environment["SLURM_NODEID"]),
            address=_slurm_address(environment),
        )
    return None


def _slurm_address(environment: Mapping[str, str]) -> str:
    """The first node of the step, and a port that two jobs are unlikely to share."""
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    host = environment.get("MASTER_ADDR") or _first_node(nodes)
    if not host:
        raise ValueError(
            f"SLURM's variables name no first node (SLURM_STEP_NODELIST is {nodes!r}): set "
            "MASTER_ADDR to the host of process 0"
        )
    job = int(environment.get("SLURM_JOB_ID", 0)) * 10 + int(environment.get("SLURM_STEP_ID", 0))
    return f"tcp://{host}:{environment.get('MASTER_PORT') or 20000 + job % 20000}"


def _first_node(nodes: str) -> str:
    """Of ``gpu[03-05,09],cpu1`` gpu03."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodes)
    return "".join(part or "" for part in match.groups()) if match else ""


def was_restarted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun (``--max-restarts``) or SLURM (``--requeue``) has started the run again."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(int(environment.get(name) or 0) > 0 for name in counts)


def launch(
    main: Callable,
    *,
    num_processes: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str,
    args: tuple = (),
) -> None:
    """Run ``main(*args)`` in each process of a run: NCCL with GPUs, gloo without.

    torchrun and ``srun`` have started the processes already: this one joins them. Otherwise they
    are started here. Ctrl-C and SIGTERM then reach all of them, and this one waits for what they do
    about it. Where one fails, all end within seconds, and its message is the one that is shown.

    Args:
        num_processes: per machine; with GPUs one for each. 0 is 1.
        dist_url: "auto" or e.g. ``tcp://host:port``.

    Raises:
        ValueError: the numbers do not fit each other or the machine.
    """
    if num_processes < 0:
        raise ValueError(f"the number of processes (--num-gpus) is negative: {num_processes}")
    world_size = num_processes * num_machines
    given = place_from_environment()
    if given is not None and given.address == "env://" and world_size > 1:
        raise ValueError(
            f"torchrun has started {given.world_size} processes: leave out --num-gpus and "
            "--num-machines"
        )
    if given is not None and world_size <= 1:
        if given.world_size == 1:
            main(*args)
        else:
            _join_and_end(given, main, args)
        return
    if world_size <= 1:
        main(*args)
        return
    with tempfile.TemporaryDirectory() as folder:
        if dist_url == "auto":
            if num_machines > 1:
                raise ValueError("--dist-url auto is for one machine; give tcp://<host>:<port>")
            # A file needs no free port, so two runs on one machine cannot collide.
            dist_url = f"file://{folder}/rendezvous"
        arguments = (main, num_processes, world_size, machine_rank, dist_url, args)
        with forward_to_children():
            started = mp.spawn(_spawned, nprocs=num_processes, args=arguments, join=False)
            while not started.join(grace_period=GRACE_SECONDS):
                pass


def _join_and_end(place: Place, main: Callable, args: tuple) -> None:
    """In a process that others wait for: one that fails ends at once, its threads with it."""
    try:
        _join(place, main, args)
    except Exception:
        traceback.print_exc()
        logging.shutdown()
        os._exit(1)


def _spawned(
    local_rank: int,
    main: Callable,
    num_processes: int,
    world_size: int,
    machine: int,
    address: str,
    args: tuple,
) -> None:
    place = Place(
        rank=machine * num_processes + local_rank,
        world_size=world_size,
        local_rank=local_rank,
        machine=machine,
        address=address,
    )
    _join(place, main, args)


def _join(place: Place, main: Callable, args: tuple) -> None:
    """Meet the other processes, run, and leave them."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus and place.local_rank >= gpus:
        raise ValueError(
            f"process {place.local_rank} of this machine has no GPU: there are {gpus}. Start one "
            "process for each GPU, or hide the GPUs with CUDA_VISIBLE_DEVICES=''"
        )
    if gpus:
        torch.cuda.set_device(place.local_rank)
    store, rank, world_size = next(
        dist.rendezvous(place.address, place.rank, place.world_size, timeout=TIMEOUT)
    )
    # torchrun keeps one store for all attempts. Without names of its own, an attempt may read the
    # addresses of processes that have ended, and wait for them.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(
        backend="nccl" if gpus else "gloo",
        store=dist.PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=world_size,
        timeout=TIMEOUT,
    )
    _make_local_group(place.machine)
    start_log(rank=place.rank, file_follows=True)
    try:
        main(*args)
    except (SystemExit, KeyboardInterrupt):  # the others stop as well
        close_process_groups()
        raise
    except Exception as error:
        if _tells_of_a_peer(error):
            time.sleep(PEER_SECONDS)
        raise
    close_process_groups()


def _make_local_group(machine: int) -> None:
    """The processes of this machine, as Detectron2 keeps them."""
    machines: list[int] = [0] * dist.get_world_size()
    dist.all_gather_object(machines, machine)
    for each in sorted(set(machines)):
        group = dist.new_group([rank for rank, number in enumerate(machines) if number == each])
        if each == machine:
            comm._LOCAL_PROCESS_GROUP = group


def _tells_of_a_peer(error: Exception) -> bool:
    """Whether it says that another process has gone, which that one's own error explains."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and re.search(r"gloo|NCCL", str(error)) is not None


def close_process_groups() -> None:
    """Leave all process groups; the last thing that a process does.

    A gloo group that lives until the interpreter ends still has its threads then, and now and
    then the process aborts on the way out ("terminate called without an active exception"),
    which looks like a failed run. Detectron2 keeps two groups in its own module, and cycles such
    as DistributedDataParallel's keep theirs until they are collected.
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
