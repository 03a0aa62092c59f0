"""Runs of several processes: however they are started, killed or stopped, they have one outcome."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY

pytestmark = pytest.mark.slow

ITERATIONS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def command(folder):
    """A function: the arguments of a run in a folder."""

    def build(name, *opts, flags=()):
        entries = [
            {"name": f"small_{split}", "format": "scenes", "split": split, "root": str(folder),
             "image_size": 64, "num_train": 16, "num_val": 5}
            for split in ("train", "val")
        ]  # fmt: skip
        return [
            *flags, "--import", "tests.toy_backbone", *TINY,
            "MODEL.DENSE.NUM_CLASSES", "8",
            "MODEL.DENSE.CLS_LOSS.NAME", "GHMCLoss",  # each process counts for itself
            "DATASETS.REGISTER", str(entries),
            "DATASETS.TRAIN", "('small_train',)",
            "DATASETS.TEST", "('small_val',)",
            "INPUT.MIN_SIZE_TRAIN", "(64,)",
            "INPUT.MIN_SIZE_TEST", "64",
            "SEED", "1",
            "SOLVER.IMS_PER_BATCH", "4",
            "SOLVER.MAX_ITER", str(ITERATIONS),
            "SOLVER.STEPS", "()",
            "SOLVER.BASE_LR", "0.001",
            "SOLVER.CHECKPOINT_PERIOD", "4",
            "DATALOADER.NUM_WORKERS", "0",
            "TEST.REPORT", "False",
            "OUTPUT_DIR", str(folder / name),
            *opts,
        ]  # fmt: skip

    return build


@pytest.fixture(scope="module")
def environment(repository):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "MASTER"))}
    return {**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}


@pytest.fixture(scope="module")
def start(repository, environment):
    """A function that starts a program; it is killed at the end if it still runs."""
    started = []

    def begin(program, arguments, log, **variables):
        with open(log, "w") as file:
            process = subprocess.Popen(
                [*program, *arguments], cwd=repository, env={**environment, **variables},
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()  # torchrun's workers are in sessions of their own: it ends them
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=45)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def train(repository, environment, warm_python):
    """A function that starts train_net.py, which starts the processes of ``--num-gpus`` itself."""

    def begin(arguments, log, *, spawns=(), **variables):
        with open(log, "w") as file:
            return warm_python.start(
                [*TRAIN, *arguments], cwd=repository, env={**environment, **variables},
                stdout=file, stderr=subprocess.STDOUT, spawns=spawns,
            )  # fmt: skip

    return begin


TRAIN = [sys.executable, "train_net.py"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def finished(process, log, seconds=240):
    assert process.wait(timeout=seconds) == 0, Path(log).read_text(errors="replace")
    return Path(log).read_text(errors="replace")


@pytest.fixture(scope="module")
def undisturbed(train, command, folder):
    """The outcome of --num-gpus 2: the final checkpoint, and the results of its evaluation."""
    log = folder / "undisturbed.txt"
    arguments = command("undisturbed", flags=["--num-gpus", "2"])
    text = finished(train(arguments, log, spawns=(2,)), log)
    assert "World size: 2" in (folder / "undisturbed/log.txt.rank1").read_text()
    return final(folder / "undisturbed"), table(text)


def final(path):
    return torch.load(path / "model_final.pth", weights_only=True)


def table(text):
    return re.findall(r"^bbox +[\d.]+ .*$", text, re.M)


def assert_same(found, expected):
    assert found["iteration"] == expected["iteration"] == ITERATIONS - 1
    assert found["model"].keys() == expected["model"].keys()
    for name, value in expected["model"].items():
        assert torch.equal(found["model"][name], value), name


def workers_of(process):
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def test_worker_killed_under_torchrun_goes_on_to_the_same_weights(
    start, command, folder, undisturbed
):
    """The first one, which writes the checkpoints and holds the folder."""
    name = "killed"
    program = [*TORCHRUN, "--standalone", "--max-restarts", "2", "train_net.py"]
    log = folder / f"{name}.txt"
    process = start(program, command(name), log)
    deadline = time.monotonic() + 200
    while not (folder / name / "model_0000003.pth").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    text = finished(process, log)
    resumed = re.findall(r"^training +iterations (\d+) to", text, re.M)
    assert len(resumed) == 2 and int(resumed[1]) > 4, text
    expected, results = undisturbed
    assert_same(final(folder / name), expected)
    assert table(text) == results and len(results) == 1


def test_processes_of_slurm_meet(train, command, folder, undisturbed):
    """What srun tells its tasks is enough; the weights are those of --num-gpus 2."""
    slurm = {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "localhost",
    }  # fmt: skip
    logs = [folder / f"slurm{rank}.txt" for rank in range(2)]
    tasks = [
        train(command("slurm"), log, **slurm, SLURM_PROCID=rank, SLURM_LOCALID=rank)
        for rank, log in zip("01", logs, strict=True)
    ]
    texts = [finished(task, log) for task, log in zip(tasks, logs, strict=True)]
    assert_same(final(folder / "slurm"), undisturbed[0])
    assert table(texts[0]) == undisturbed[1] and table(texts[1]) == []


TWO_HOSTS = """
mount -t tmpfs none /run && ip netns add other || exit 77
ip link add here type veth peer name there netns other || exit 77
ip addr add 10.77.0.1/24 dev here && ip link set here up && ip link set lo up
ip -n other addr add 10.77.0.2/24 dev there && ip -n other link set there up
ip -n other link set lo up
train="$1 train_net.py --num-machines 2 --dist-url tcp://10.77.0.1:29777 --machine-rank"; shift
GLOO_SOCKET_IFNAME=here $train 0 "$@" & first=$!
GLOO_SOCKET_IFNAME=there ip netns exec other $train 1 "$@" & second=$!
wait $first; status=$?; wait $second && exit $status
"""


def test_two_hosts(start, command, folder, undisturbed):
    """Two network namespaces with a cable between them, a process in each."""
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("there is no unshare or no ip")
    log = folder / "hosts.txt"
    program = ["unshare", "--user", "--map-root-user", "--net", "--mount", "bash", "-c", TWO_HOSTS]
    process = start(program, ["hosts", sys.executable, *command("hosts")], log)
    status = process.wait(timeout=240)
    text = log.read_text(errors="replace")
    if status == 77 or "Operation not permitted" in text or "not found" in text:
        pytest.skip(f"network namespaces are not permitted: {text[-200:]}")
    assert status == 0, text
    assert_same(final(folder / "hosts"), undisturbed[0])


def test_evaluation_on_two_processes_equals_that_on_one(train, command, folder, undisturbed):
    weights = str(folder / "undisturbed/model_final.pth")
    files, tables = [], []
    for number, spawns in (("1", ()), ("2", (2,))):
        log = folder / f"evaluated{number}.txt"
        options = ["MODEL.WEIGHTS", weights, "MODEL.DENSE.POSTPROCESS.SCORE_THRESH", "0.0"]
        flags = ["--eval-only", "--num-gpus", number]
        name = f"evaluated{number}"
        process = train(command(name, *options, flags=flags), log, spawns=spawns)
        tables.append(table(finished(process, log)))
        written = folder.glob(f"{name}/inference/**/coco_instances_results.json")
        files.append(next(written).read_text())
    assert tables[0] == tables[1] and len(tables[0]) == 1
    assert files[0] == files[1] and len(files[0]) > 1000


def test_processes_without_any_object_train_on(warm_python, repository):
    """400 steps: no hang, no NaN, a gradient for every parameter, the same weights in both."""
    command = [sys.executable, "-m", "tests.engine.empty_ranks", "400"]
    done = warm_python.run(command, cwd=repository, spawns=(2,), check=True)
    assert sorted(re.findall(r"rank \d: \d+ steps", done.stdout)) == [
        "rank 0: 400 steps", "rank 1: 400 steps",
    ]  # fmt: skip
