"""Processes that meet, and end together."""

import os
import sys
import time
import weakref

import pytest
import torch.distributed as dist
from detectron2.utils import comm

from resobj_d2.launch import (
    Place,
    close_process_groups,
    launch,
    place_from_environment,
    was_restarted,
)

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "GROUP_RANK": "2",
    "MASTER_ADDR": "node", "MASTER_PORT": "29500",
}  # fmt: skip
SLURM = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_NODEID": "2",
    "SLURM_STEP_NODELIST": "gpu[03-05,09]", "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "3",
}  # fmt: skip


def test_places_that_torchrun_and_slurm_give():
    place = Place(rank=5, world_size=8, local_rank=1, machine=2, address="env://")
    assert place_from_environment(TORCHRUN) == place
    # 20000 + 1234563 % 20000
    place = Place(rank=5, world_size=8, local_rank=1, machine=2, address="tcp://gpu03:34563")
    assert place_from_environment(SLURM) == place
    chosen = place_from_environment({**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "1234"})
    assert chosen.address == "tcp://head:1234"
    assert place_from_environment({**SLURM, **TORCHRUN}).address == "env://"


def test_places_of_a_process_that_stands_alone():
    assert place_from_environment({}) is None
    # A batch script, which srun has not started, sees the job's variables.
    batch = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    assert place_from_environment(batch) is None
    assert place_from_environment({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("localhost", "localhost"),
        ("a1,a2", "a1"),
        ("gpu[03-05,09]", "gpu03"),
        ("gpu[7]", "gpu7"),
        ("r1-n[12,14-20],other", "r1-n12"),
        ("n[1-2]-ib", "n1-ib"),
    ],
)
def test_first_node_of_slurms_lists(nodes, first):
    address = place_from_environment({**SLURM, "SLURM_STEP_NODELIST": nodes}).address
    assert address == f"tcp://{first}:34563"


def test_slurm_without_a_node_says_what_to_set():
    with pytest.raises(ValueError, match="set MASTER_ADDR to the host of process 0"):
        place_from_environment({**SLURM, "SLURM_STEP_NODELIST": ""})


def test_a_run_that_is_started_again_knows_it():
    assert not was_restarted({}) and not was_restarted({"TORCHELASTIC_RESTART_COUNT": "0"})
    assert was_restarted({"TORCHELASTIC_RESTART_COUNT": "1"})
    assert was_restarted({"SLURM_RESTART_COUNT": "2"})


def test_processes_are_started_once(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="torchrun has started 8 processes: leave out --num-gpus"):
        launch(print, num_processes=2, dist_url="auto")
    monkeypatch.setenv("WORLD_SIZE", "1")
    calls = []
    launch(calls.append, num_processes=1, dist_url="auto", args=("alone",))
    assert calls == ["alone"]


FAILS = """
import sys, time, torch, torch.distributed as dist
from resobj_d2.launch import launch
from resobj_d2.command import one_line_per_process, run_command
from resobj_d2.process import StopRequest

@one_line_per_process
def work(what):
    with StopRequest(message="").listening():  # as a training does: SIGTERM is a request
        dist.all_reduce(torch.ones(1))
        if dist.get_rank() == 1 and what == "mistake":
            raise FileNotFoundError("the own words of one")
        if dist.get_rank() == 1:
            raise KeyError("one")
        if what == "mistake":
            time.sleep(600)  # in something that hears no signal
        while True:
            dist.all_reduce(torch.ones(1))

def main(argv):
    launch(work, num_processes=2, dist_url="auto", args=tuple(argv))

if __name__ == "__main__":
    sys.exit(run_command(main, uses_operators=False))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "words", "status"),
    [("mistake", "error: the own words of one\n", 2), ("defect", "KeyError: 'one'\n", 1)],
)
def test_process_that_raises_ends_all_with_its_own_message(
    tmp_path, repository, what, words, status, warm_python
):
    script = tmp_path / "fails.py"
    script.write_text(FAILS)
    start = time.monotonic()
    done = warm_python.run(
        [sys.executable, str(script), what], cwd=repository, spawns=(2,), timeout=120,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    assert words in done.stderr and "peer" not in done.stderr
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("number", [0, 1])
def test_none_and_one_are_this_process(number):
    calls = []
    launch(calls.append, num_processes=number, dist_url="auto", args=("ran",))
    assert calls == ["ran"]


def test_negative_number_of_processes():
    with pytest.raises(ValueError, match=r"--num-gpus\) is negative: -1"):
        launch(print, num_processes=-1, dist_url="auto")


def test_no_process_group_outlives_its_closing(tmp_path):
    """Not even those that Detectron2 keeps: their threads would end with the interpreter."""
    meet = f"file://{tmp_path}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
    groups = [weakref.ref(comm._get_global_gloo_group())]
    comm._LOCAL_PROCESS_GROUP = dist.new_group([0])
    groups.append(weakref.ref(comm._LOCAL_PROCESS_GROUP))
    assert all(group() is not None for group in groups)
    close_process_groups()
    assert not dist.is_initialized()
    assert all(group() is None for group in groups)
