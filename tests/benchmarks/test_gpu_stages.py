"""Stages: time limits, logs that arise while a command runs, and a summary."""

import sys
import time

import pytest

from benchmarks.gpu import stages
from benchmarks.gpu.stages import Run, Stage


def stage(name, code, seconds=60.0, **options):
    return Stage(name=name, command=[sys.executable, "-uc", code], seconds=seconds, **options)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "out", 100.0)


def summary(run):
    return (run.output / "summary.txt").read_text().splitlines()


def test_every_stage_has_a_log_and_a_failing_one_stops_nothing(run, monkeypatch):
    code = "import os, sys; print('much'); print(os.environ['WHERE']); sys.exit(int(sys.argv[-1]))"
    bad = stage("bad one", code, environment={"WHERE": "here"})
    bad.command.append("5")
    assert not run.run(bad)
    assert run.run(stage("good", "print('first'); print('last')"))
    missing = Stage(name="missing", command=["/not/there"], seconds=60.0)
    assert not run.run(missing)
    assert run.failed == ["bad one", "missing"]
    lines = summary(run)
    assert lines[0].startswith("FAILED bad one: exit status 5") and lines[1] == "   here"
    assert lines[2].startswith("ok good") and lines[3] == "   last"
    assert lines[4].startswith("FAILED missing: exit status 127") and "/not/there" in lines[5]
    assert "much\nhere\n" in (run.output / "bad-one.log").read_text()


def test_a_report_says_what_the_summary_shows(run):
    report = stage("s", "print('a'); print('b')", report=lambda text: [text.replace("\n", "+")])
    assert run.run(report)
    assert summary(run)[1] == "   a+b+"


def test_a_stage_that_takes_too_long_ends_with_its_children(run, monkeypatch, tmp_path):
    monkeypatch.setattr(stages, "LEAST_SECONDS", 0.1)
    monkeypatch.setattr(stages, "GRACE", 0.2)
    file = tmp_path / "alive"
    child = f"import time; time.sleep(1.5); open({str(file)!r}, 'w')"
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        f"print('begun'); subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    )
    start = time.monotonic()
    assert not run.run(stage("slow", code, seconds=0.6))
    assert time.monotonic() - start < 20
    assert summary(run)[0].startswith("TIMEOUT slow") and summary(run)[1] == "   begun"
    time.sleep(1.6)
    assert not file.exists()


def test_without_time_a_stage_is_skipped(tmp_path):
    run = Run(tmp_path, stages.LEAST_SECONDS - 1)
    assert not run.run(stage("late", "print(1)"))
    assert summary(run) == ["SKIPPED late: out of time"]
    assert run.failed == ["late"] and not (tmp_path / "late.log").exists()


def test_stages_run_side_by_side(run, tmp_path):
    """Each waits for the file that the other makes."""
    code = (
        "import os, time; open({mine!r}, 'w')\n"
        "while not os.path.exists({other!r}): time.sleep(0.01)"
    )
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    both = [
        stage("a", code.format(mine=a, other=b), seconds=30),
        stage("b", code.format(mine=b, other=a), seconds=30),
    ]
    run.run_together(both)
    assert run.failed == []
    assert {line.split(",")[0] for line in summary(run)} == {"ok a", "ok b"}
