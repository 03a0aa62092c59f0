"""The stages of gpu-check with commands that need no GPU."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu_check, table
from benchmarks.__main__ import parse
from benchmarks.gpu_check import Stage


def python(code):
    return [sys.executable, "-c", code]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_stops_at_once(capsys, monkeypatch):
    monkeypatch.setattr(gpu_check, "run", lambda plan: pytest.fail("a stage was run"))
    assert gpu_check.main([]) == 2
    assert "gpu-check needs a GPU" in capsys.readouterr().err


def test_stages_run_in_order_and_are_reported(capfd):
    plan = [
        Stage("first", python("print('mu' + 'ch'); print('the end')")),
        Stage("second", ["/not/there"], skip="no such tool"),
        Stage("third", python("import os; print(os.environ['WHERE'])"), {"WHERE": "here"}),
    ]
    assert gpu_check.run(plan) == 0
    out = capfd.readouterr().out
    assert "ok: first" in out and "the end" in out and "much" not in out
    assert "skipped: second: no such tool" in out
    assert "ok: third" in out and ": here" in out
    assert out.index("first") < out.index("second") < out.index("third")
    assert out.endswith("gpu-check passed\n")


def test_the_first_failure_stops_and_shows_its_output(capfd, tmp_path):
    file = tmp_path / "ran"
    plan = [
        Stage("bad", python("import sys; print('why it failed'); sys.exit(5)")),
        Stage("later", python(f"open({str(file)!r}, 'w')")),
    ]
    assert gpu_check.run(plan) == 1
    out = capfd.readouterr().out
    assert "why it failed" in out
    assert "FAILED: bad, exit status 5" in out
    assert not file.exists()
    assert out.endswith("gpu-check failed: bad\n")


def test_after_a_missed_target_the_tables_are_still_written(capfd):
    plan = [
        Stage("benchmarks", python("print('missed: M1'); raise SystemExit(1)"), go_on=True),
        Stage("tables", python("print('wrote')")),
    ]
    assert gpu_check.run(plan) == 1
    out = capfd.readouterr().out
    assert out.index("missed: M1") < out.index("ok: tables")
    assert out.endswith("gpu-check failed: benchmarks\n")


@pytest.fixture
def started(monkeypatch):
    """A function: runs the plan with processes that only record how they were started.

    Stages whose command contains one of ``failing`` fail. Returns (command, environment) of each.
    """
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)

    def run_plan(*, sanitizer="/bin/cs", quick=False, failing=()):
        calls = []

        def note(command, *, env, **options):
            calls.append((command, env))
            failed = not set(failing).isdisjoint(command)
            return subprocess.CompletedProcess(command, int(failed), stdout="")

        with monkeypatch.context() as patch:
            patch.setattr(gpu_check.subprocess, "run", note)
            status = gpu_check.run(gpu_check.stages("9.0", sanitizer, quick=quick))
        assert status == bool(failing)
        return calls

    return run_plan


def test_kernels_are_built_for_the_gpu_without_fallback(started, monkeypatch):
    (build, environment), *later = started()
    assert build[1:] == ["setup.py", "build_ext", "--inplace"]
    assert environment["FORCE_CUDA"] == "1" and environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    running = [(c, env) for c, env in later if "benchmarks.table" not in c]
    assert len(running) == 5
    # Otherwise torch's own operations would be tested, checked and measured.
    assert all(env["RESOBJ_REQUIRE_NATIVE"] == "cpu,cuda" for _, env in running)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    assert started()[0][1]["TORCH_CUDA_ARCH_LIST"] == "8.0"


def test_sanitizers_only_check_our_kernels(started, capfd):
    memcheck, racecheck = (x for x in started() if x[0][0] == "/bin/cs")
    for (command, environment), tool in ((memcheck, "memcheck"), (racecheck, "racecheck")):
        assert command[command.index("--tool") + 1] == tool
        # pytest's own exit statuses are 0 to 5.
        assert int(command[command.index("--error-exitcode") + 1]) > 5
        assert command[command.index("-m") + 1] == "pytest" and command[-1] == "native-cuda"
        # In torch's cache tensors are adjacent, so memcheck would not notice an overrun.
        assert ("PYTORCH_NO_CUDA_MEMORY_CACHING" in environment) == (tool == "memcheck")
    capfd.readouterr()
    assert not any("--tool" in command for command, _ in started(sanitizer=""))
    skipped = [line for line in capfd.readouterr().out.splitlines() if "skipped" in line]
    assert [line.split(": ")[1:] for line in skipped] == [
        ["memcheck", "compute-sanitizer was not found"],
        ["racecheck", "compute-sanitizer was not found"],
    ]


def modules_run(calls):
    return [command[command.index("-m") + 1] for command, _ in calls if "-m" in command]


@pytest.mark.parametrize("quick", [True, False])
def test_commands_exist_and_accept_these_options(started, repository, quick):
    calls = started(quick=quick)
    assert all(importlib.util.find_spec(name) for name in modules_run(calls))
    ((benchmarks, _),) = (x for x in calls if "benchmarks" in x[0])
    options = parse(benchmarks[benchmarks.index("benchmarks") + 1 :])
    assert (options.device, options.quick, options.check) == ("cuda", quick, not quick)
    ((tables, _),) = (x for x in calls if "benchmarks.table" in x[0])
    page = (repository / tables[-1]).read_text()
    assert table.replace_between_marks(page, "new", table.FULL) != page
    assert options.json.samefile(table.RESULTS)  # which the tables are made from


def test_tables_are_written_after_missed_targets_but_not_a_failed_build(started):
    missed = modules_run(started(failing=["benchmarks"]))
    assert missed[-2:] == ["benchmarks", "benchmarks.table"]
    assert len(started(failing=["setup.py"])) == 1


def test_stages_can_be_skipped(capsys, monkeypatch):
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: ("9.0", ""))
    seen = []
    monkeypatch.setattr(gpu_check, "run", lambda plan: seen.append(plan) or 0)
    assert gpu_check.main(["--skip", "build, racecheck"]) == 0
    skipped = {stage.name for stage in seen[0] if stage.skip == "as asked"}
    assert skipped == {"build", "racecheck"}
    assert gpu_check.main(["--skip", "bild"]) == 2
    assert "bild" in capsys.readouterr().out
