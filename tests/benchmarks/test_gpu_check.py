"""The stages of gpu-check, without a GPU: what is started, in which order, and what is reported."""

import importlib.util
import re

import pytest
import torch

from benchmarks import gpu_check, table
from benchmarks.__main__ import parse
from benchmarks.gpu import sanitize
from benchmarks.gpu.stages import Run

STAGES = list(gpu_check.STAGES)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_stops_at_once(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "run_stages", lambda *a: pytest.fail("a stage was run"))
    assert gpu_check.main(["--output", str(tmp_path / "out")]) == 2
    assert "gpu-check needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--stages", "bild"], "unknown bild; known are packages, build"),
        (["--python", "py312"], "--python takes a version such as 3.12"),
        (["--limit", "0"], "--limit must be positive"),
        (["--prepared", "/not/there"], "/not/there has no folder wheels"),
    ],
)
def test_wrong_options_are_refused(arguments, said, capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(arguments)
    assert said in capsys.readouterr().err


@pytest.fixture
def started(monkeypatch, tmp_path):
    """A function: runs the stages with commands that are only recorded; returns the stages.

    Stages named in ``failing`` fail.
    """
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(gpu_check, "publish", lambda results: None)

    def run_all(*, device="cuda", wanted=STAGES, failing=(), limit=540.0, prepared=None):
        found = []
        run = Run(tmp_path / "out", limit)
        (run.output / "results.json").write_text("{}")

        def note(stage):
            found.append(stage)
            return stage.name not in failing

        monkeypatch.setattr(run, "run", note)
        site = tmp_path / "site"
        check = gpu_check.Check(run, device=device, capability="9.0", site=site)
        gpu_check.run_stages(check, wanted, prepared, budget=0.3)
        return found

    return run_all


def by_name(stages):
    return {stage.name: stage for stage in stages}


def test_the_most_valuable_come_first_and_no_failure_stops_the_others(started):
    names = [stage.name for stage in started(failing=STAGES)]
    assert names[:3] == ["build", "doctor", "tests"]
    assert set(names[3:5]) == {"detectors", "memcheck"}  # side by side
    assert names[5:] == ["racecheck", "benchmarks", "tables"]
    assert [stage.name for stage in started(wanted=["tests"])] == ["tests"]


def test_all_fits_into_the_time(started):
    found = by_name(started())
    before = sum(found[x].seconds for x in ("build", "doctor", "tests", "racecheck"))
    before += max(found[x].seconds for x in ("detectors", "memcheck"))
    assert before < 540 + 60  # the limits; what is expected is half of them
    options = benchmark_options(found["benchmarks"])
    assert options.seconds < 540 and options.case_seconds < options.seconds


def test_kernels_are_built_for_the_gpu_without_fallback(started, monkeypatch):
    build, *later = started()
    assert build.command[1:] == ["setup.py", "build_ext", "--inplace"]
    assert build.environment["FORCE_CUDA"] == "1"
    assert build.environment["TORCH_CUDA_ARCH_LIST"] == "9.0"
    # Otherwise torch's own operations would be tested, checked and measured.
    assert all(stage.environment["RESOBJ_REQUIRE_NATIVE"] == "cpu,cuda" for stage in later)
    assert all(stage.environment["PYTHONUNBUFFERED"] == "1" for stage in later)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    assert "TORCH_CUDA_ARCH_LIST" not in started()[0].environment


def test_a_prepared_folder_gives_packages_and_a_library(started, tmp_path, monkeypatch):
    (tmp_path / "wheels").mkdir()
    wheel = tmp_path / "wheels" / "a_package_that_nobody_has-1-py3-none-any.whl"
    wheel.touch()
    used = []
    monkeypatch.setattr(gpu_check, "use_carried_library", lambda run, folder: used.append(folder))
    first = started(prepared=tmp_path)[0]
    assert first.name == "packages" and "--no-index" in first.command
    assert first.command[-1] == str(wheel)
    target = first.command[first.command.index("--target") + 1]
    assert target in first.environment["PYTHONPATH"].split(":") and used == []
    started(prepared=tmp_path, failing=["build"])
    assert used == [tmp_path / "lib"]


def test_a_rehearsal_needs_no_gpu(started):
    found = by_name(started(device="cpu"))
    assert "FORCE_CUDA" not in found["build"].environment and "tables" not in found
    assert found["tests"].environment["RESOBJ_REQUIRE_NATIVE"] == "cpu"
    assert benchmark_options(found["benchmarks"]).device == "cpu"


def benchmark_options(stage):
    return parse(stage.command[stage.command.index("benchmarks") + 1 :])


def test_commands_exist_and_accept_these_options(started, repository):
    found = by_name(started())
    for stage in found.values():
        if "-m" in stage.command[:2]:
            assert importlib.util.find_spec(stage.command[2])
    options = benchmark_options(found["benchmarks"])
    assert (options.device, options.check, options.quick) == ("cuda", True, False)
    assert options.json.name == "results.json"
    for name in ("tests", "detectors"):
        paths = [x for x in found[name].command if x.startswith("tests/")]
        assert paths and all((repository / path).exists() for path in paths)
        assert found[name].command[-2:] == ["-m", "cuda"]
    page = (repository / found["tables"].command[-1]).read_text()
    assert table.replace_between_marks(page, "new", table.FULL) != page


def test_measurements_are_put_where_the_tables_are_made_from(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "REPOSITORY", tmp_path)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    results = tmp_path / "results.json"
    results.write_text('{"machine": {"device": "cuda", "gpu": "NVIDIA H200"}}')
    gpu_check.publish(results)
    assert (tmp_path / "benchmarks/results/nvidia-h200.json").read_text() == results.read_text()


def test_reports_show_what_matters():
    text = "...F\nFAILED tests/a.py::b - assert 1\nmore\n1 failed, 3 passed, 2 skipped in 4.0s\n"
    failed = "FAILED tests/a.py::b - assert 1"
    assert gpu_check.pytest_report(text) == ["1 failed, 3 passed, 2 skipped in 4.0s", failed]
    text = "M1 1 | them | 1 thread | 2 → 1 ms\n| a | table |\nmissed: M1 | slow\nwrote x\n"
    expected = ["missed: M1 | slow", "M1 1 | them | 1 thread | 2 → 1 ms"]
    assert gpu_check.benchmarks_report(text) == expected
    text = "nvcc -c a.cu\na.cu(3): error: no such thing\nerror: FORCE_CUDA=1, but nvcc failed\n"
    assert gpu_check.build_report(text) == text.splitlines()[1:]


def test_the_report_of_a_sanitizer_names_files_that_are_not_clean(started):
    report = by_name(started())["memcheck"].report
    bad = "memcheck test_b.py: FAILED, out of time"
    assert report(f"x\nmemcheck test_a.py: clean: 3 passed\n{bad}\n") == [
        "1 of 2 files clean",
        bad,
    ]
    assert report("error: none\n") == ["0 of 0 files clean", "error: none"]


@pytest.mark.parametrize("tool", sanitize.TOOLS)
def test_sanitizers_only_check_our_kernels(tool, repository):
    path = repository / "tests/ops/test_giou_loss.py"
    command = sanitize.command("/bin/cs", tool, path)
    assert command[:3] == ["/bin/cs", "--tool", tool]
    assert command[command.index("--kernel-name") + 1] == "kernel_substring=resobj"
    # pytest's own exit statuses are 0 to 5.
    assert int(command[command.index("--error-exitcode") + 1]) > 5
    assert "cuda and not slow" in command and str(path) in command
    # In torch's cache tensors are adjacent, so memcheck would not notice an overrun.
    uncached = "PYTORCH_NO_CUDA_MEMORY_CACHING" in sanitize.environment(tool)
    assert uncached == (tool == "memcheck")


def test_sanitizers_get_every_file_with_tests_on_a_gpu(repository):
    found = [path.name for path in sanitize.files_of_tests()]
    assert {"test_match_anchors.py", "test_batched_nms.py", "test_every_operator.py"} <= set(found)
    assert "test_cuda_emulation.py" not in found
    text = (repository / "tests/ops/test_every_operator.py").read_text()
    names = re.split(r" or ", sanitize.SELECTED["test_every_operator.py"])
    assert all(re.search(rf"def test_\w*{name}", text) for name in names)


FAKE = """#!/bin/sh
for x; do case $x in *.py) name=$(basename $x .py);; esac; done
case $name in
  test_good) echo "3 passed in 1 s"; echo "========= ERROR SUMMARY: 0 errors" ;;
  test_none) echo "5 deselected in 1 s"; exit 5 ;;
  test_bad) echo "3 passed in 1 s"; echo "========= ERROR SUMMARY: 2 errors"; exit 9 ;;
  test_skipped) echo "3 skipped in 1 s" ;;
  test_hangs) exec sleep 60 ;;
esac
"""


def test_each_file_has_a_verdict(tmp_path, monkeypatch, capsys):
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(FAKE)
    sanitizer.chmod(0o755)
    files = [tmp_path / f"test_{x}.py" for x in ("good", "none", "bad", "skipped", "hangs")]
    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: str(sanitizer))
    monkeypatch.setattr(sanitize, "files_of_tests", lambda: files)
    assert sanitize.main(["memcheck", "--seconds", "3", "--jobs", "5"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line for line in lines if line.startswith("memcheck ")) == [
        "memcheck test_bad.py: FAILED, errors found: 3 passed in 1 s: ERROR SUMMARY: 2 errors",
        "memcheck test_good.py: clean: 3 passed in 1 s: ERROR SUMMARY: 0 errors",
        "memcheck test_hangs.py: FAILED, out of time",
        "memcheck test_skipped.py: FAILED, no test was run",
    ]


def test_a_missing_sanitizer_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: "")
    assert sanitize.main(["racecheck"]) == 2
    assert "compute-sanitizer was not found" in capsys.readouterr().out
