"""The stages of gpu-check with commands that need no GPU."""

import sys

import pytest
import torch

from benchmarks import gpu_check
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


def test_the_first_failure_stops_with_its_output(capfd, tmp_path):
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


def test_plan(monkeypatch):
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    plan = {stage.name: stage for stage in gpu_check.stages("9.0", "/bin/cs", quick=False)}
    assert list(plan) == [
        "build", "doctor", "CUDA tests", "memcheck", "racecheck", "benchmarks", "tables",
    ]  # fmt: skip
    assert plan["build"].environment == {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
    assert plan["CUDA tests"].environment["RESOBJ_REQUIRE_NATIVE"] == "cpu,cuda"
    assert not any(stage.skip for stage in plan.values())
    assert [name for name, stage in plan.items() if stage.go_on] == ["benchmarks"]
    without = gpu_check.stages("9.0", "", quick=True)
    assert [s.name for s in without if s.skip] == ["memcheck", "racecheck"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    assert gpu_check.stages("9.0", "", quick=True)[0].environment == {"FORCE_CUDA": "1"}


def test_a_stage_can_be_left_out(capsys, monkeypatch):
    monkeypatch.setattr(gpu_check, "find_gpu", lambda: ("9.0", ""))
    seen = []
    monkeypatch.setattr(gpu_check, "run", lambda plan: seen.append(plan) or 0)
    assert gpu_check.main(["--skip", "build, racecheck"]) == 0
    skipped = {stage.name for stage in seen[0] if stage.skip == "as asked"}
    assert skipped == {"build", "racecheck"}
    assert gpu_check.main(["--skip", "bild"]) == 2
    assert "bild" in capsys.readouterr().out
