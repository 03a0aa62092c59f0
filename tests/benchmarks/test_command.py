"""The command line: rejected arguments, exit status, and one case from end to end."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import worker
from benchmarks.case import FIRST, all_cases, most_valuable_first, select_cases


@pytest.fixture
def one_row(monkeypatch, toy_case):
    """Pretends that one case was measured; returns a function that sets its row's fields."""
    fields = {}

    def ask_worker(job, keep):
        if job.task == worker.BANDWIDTH:
            keep({"key": "", "rates": {"1": {"read": 1e9, "fill": 1e9, "copy": 1e9}}})
            return 0, ""
        if fields.get("crash"):
            return -11, "exit status -11: it crashed"
        row = command.failed_row(toy_case(), job.malloc, "")
        found = {"ratio": 2.0, "p10": 1.9, "p90": 2.1, "noisy": False}
        row |= {"peer": "them", "comparison": found, "target": 3.0, **fields}
        keep({"key": toy_case().key, "rows": [row]})
        return 0, ""

    monkeypatch.setattr(command.processes, "ask_worker", ask_worker)
    monkeypatch.setattr(command, "all_cases", lambda: [toy_case()])
    monkeypatch.setattr(command, "why_not", lambda device: "")
    return fields.update


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_cuda_without_a_gpu_is_refused(capsys):
    assert command.main(["--device", "cuda"]) == 2
    assert "--device cuda" in capsys.readouterr().err


def test_unknown_cases_are_refused(capsys):
    assert command.main(["--only", "M1,Q7"]) == 2
    error = capsys.readouterr().err
    assert "'Q7'" in error and "M1" in error


@pytest.mark.parametrize("threads", ["0", "one", "1,,2"])
def test_wrong_threads_are_refused(threads, capsys):
    with pytest.raises(SystemExit):
        command.main(["--threads", threads])
    assert "--threads" in capsys.readouterr().err


def test_missing_kernels_are_refused(monkeypatch, capsys):
    from resobj_d2 import ops

    monkeypatch.setattr(ops, "native_status", lambda: {"cpu": "not built: no compiler"})
    assert command.main(["--quick"]) == 2
    assert "not built: no compiler" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "without_check", "with_check"),
    [
        ({"verdict": "pass"}, 0, 0),
        ({"verdict": "noisy"}, 0, 0),
        ({"verdict": "fail"}, 0, 1),
        ({"peak_mb": 5.0, "peak_limit_mb": 4.0, "verdict": "pass"}, 0, 1),
        ({"verdict": "fail", "error": "a wrong result"}, 1, 1),
        ({"crash": True}, 1, 1),
    ],
)
def test_exit_status(one_row, fields, without_check, with_check):
    one_row(fields)
    assert command.main(["--threads", "1"]) == without_check
    assert command.main(["--threads", "1", "--check"]) == with_check


def test_results_in_a_folder_are_named_after_the_processor(one_row, tmp_path):
    one_row({"verdict": "pass"})
    folder = tmp_path / "results"
    assert command.main(["--threads", "1", "--json", str(folder)]) == 0
    (path,) = folder.glob("*.json")
    results = json.loads(path.read_text())
    assert path.stem == command.machine.slug(results["machine"])
    assert results["rows"][0]["peer"] == "them"
    assert results["settings"]["seed"] == 0
    assert {"cpu", "torch", "git", "instructions", "kernels"} <= set(results["machine"])


def test_results_of_each_instruction_set_have_a_name_of_their_own(monkeypatch):
    best = {"avx2", "avx512f", "avx512bw", "avx512dq", "avx512vl"}
    names = {}
    for flags, used in ((best, "avx512"), (best, "avx2"), ({"avx2"}, "avx2"), ({"avx2"}, None)):
        monkeypatch.setattr(command.machine, "processor", lambda flags=flags: ("X 1", flags))
        monkeypatch.setattr(command.machine, "used_instructions", lambda used=used: used)
        names[len(flags), used] = command.machine.slug(command.machine.describe("cpu"))
    assert names == {
        (5, "avx512"): "x-1",
        (5, "avx2"): "x-1-avx2-only",
        (1, "avx2"): "x-1-avx2",
        (1, None): "x-1-avx2",
    }


def test_cases_of_one_process_are_grouped(toy_case):
    a, b, c = toy_case(), toy_case(size="b", process="p"), toy_case(size="c", process="p")
    both = toy_case(size="d", malloc=("warm", "default"))
    found = command.groups([a, b, c, both], None)
    assert found == [("warm", [a]), ("warm", [b, c]), ("warm", [both]), ("default", [both])]
    assert command.groups([a, both], "default") == [("default", [a]), ("default", [both])]


def test_all_cases_share_one_process_on_a_gpu(toy_case):
    compiled = toy_case(id="M1", size="201600 x 50 c", peers={"torch.compile": None}, targets={})
    a, b, c = toy_case(), toy_case(id="T1"), toy_case(id="M1", size="201600 x 50")
    both = toy_case(id="M1", size="d", malloc=("warm", "default"))
    found = command.groups([compiled, a, b, c, both], None, "cuda")
    assert found == [("warm", [c, b, both, a, compiled])]
    everything = all_cases()
    keys = {case.key for case in everything}
    assert {case.key for case in most_valuable_first(everything)} == keys
    assert set(FIRST) <= keys | {case.id for case in everything}


def test_a_gpu_is_timed_before_launches_are_counted(monkeypatch, toy_case, tmp_path):
    """Results are written after every case, in the order of the cases, and launches are added."""
    jobs, files = [], []
    path = tmp_path / "gpu.json"

    def ask_worker(job, keep):
        jobs.append((job.task, job.keys))
        if job.task == worker.BANDWIDTH:
            keep({"key": "", "rates": {"1": {"read": 1e9, "fill": 1e9}}})
        for key in job.keys:
            if job.task == worker.LAUNCHES:
                keep({"key": key, "launches": {"ours": 2, "adding": 5}})
                continue
            bad = key == "T1 8"
            row = command.failed_row(cases[key], job.malloc, "it failed" if bad else "")
            times = {} if bad else {"peer": "adding", "ours_ms": 1.0, "peer_ms": 2.0}
            keep({"key": key, "rows": [{**row, "verdict": "", **times}]})
            files.append([row["id"] for row in json.loads(path.read_text())["rows"]])
        return 0, ""

    cases = {case.key: case for case in (toy_case(id=x) for x in ("A", "T1", "M3"))}
    monkeypatch.setattr(command, "all_cases", lambda: list(cases.values()))
    monkeypatch.setattr(command, "why_not", lambda device: "")
    gpu = {**command.machine.describe("cpu"), "device": "cuda", "gpu": "NVIDIA X"}
    monkeypatch.setattr(command.machine, "describe", lambda device: gpu)
    monkeypatch.setattr(command.processes, "ask_worker", ask_worker)
    assert command.main(["--device", "cuda", "--seconds", "100", "--json", str(path)]) == 1
    assert jobs == [
        ("bandwidth", []),
        ("measure", ["T1 8", "M3 8", "A 8"]),
        ("launches", ["M3 8", "A 8"]),
    ]
    assert files == [["T1"], ["T1", "M3"], ["A", "T1", "M3"]]
    rows = json.loads(path.read_text())["rows"]
    assert [row["id"] for row in rows] == ["A", "T1", "M3"]
    counted = {"launches": 2, "peer_launches": 5}
    assert [row["cuda"] for row in rows] == [counted, {}, counted]


def test_selection(toy_case):
    a, b = toy_case(id="A", size="1"), toy_case(id="A", size="2", slow=True)
    c = toy_case(id="C", devices=("cuda",))
    everything = [a, b, c]
    assert select_cases(everything, only=[], device="cpu", quick=False) == [a, b]
    assert select_cases(everything, only=[], device="cpu", quick=True) == [a]
    assert select_cases(everything, only=["A 2"], device="cuda", quick=False) == [b]
    assert select_cases(everything, only=["C"], device="cuda", quick=False) == [c]


def test_quick_keeps_the_training_step_on_a_gpu():
    for device, kept in (("cuda", {"T1", "T2"}), ("cpu", set())):
        cases = select_cases(all_cases(), only=[], device=device, quick=True)
        assert {case.id for case in cases} & {"T1", "T2"} == kept


def test_the_targets_are_those_promised():
    """The table of targets, for one thread, with AVX-512 and with AVX2 alone."""
    found = {
        (case.key, peer): (target.at("cpu", 1), target.at("cpu", 1, "avx2"))
        for case in all_cases()
        for peer, target in case.targets.items()
    }
    expected = {
        ("P1 201600 x 50", "Detectron2"): (12, 12),
        ("P2 201600 x 50", "torchvision"): (12, 12),
        ("M1 201600 x 1", "Detectron2"): (4, 4),
        ("M1 201600 x 200", "Detectron2"): (100, 100),
        ("M2 201600 x 50", "torch.compile"): (8, 8),
        ("M4 201600 x 1000", "Detectron2"): (150, 150),
        ("R1 2 x 201600 T=2", "eager, masked"): (6, 5),
        ("R1 2 x 201600 T=2", "eager, indexed"): (10, 6),
        ("L1 403200 x 80", "fvcore jit"): (14, 10),
        ("L2 403200", "fvcore"): (14, 14),
        ("L3 500", "eager"): (2, 2),
        ("L3 20000", "eager"): (6, 6),
    }
    assert expected.items() <= found.items()


@pytest.mark.slow
def test_one_case_from_end_to_end(repository, tmp_path):
    result = tmp_path / "result.json"
    name = "G match 100 x 2"
    command_line = ["--quick", "--only", name, "--json", str(result)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *command_line],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    if "kernels are not in use" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert "| G small inputs | match 100 x 2 | Detectron2 |" in done.stdout
    (row,) = json.loads(result.read_text())["rows"]
    assert row["comparison"]["rounds"] >= 5
    assert row["error"] == ""
