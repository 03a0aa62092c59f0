"""What setup.py decides to build, without compilers, with and without a GPU, and what it prints."""

import importlib.util
import runpy
import sys
from pathlib import Path

import pytest
import setuptools
import torch

NVCC = """#!/bin/sh
case "$1" in
  --version) echo "Cuda compilation tools, release 13.0, V13.0.1" ;;
  --list-gpu-code) printf 'sm_75\\nsm_80\\nsm_86\\nsm_90\\nsm_100\\nsm_120\\n' ;;
esac
"""


@pytest.fixture
def plan(repository, monkeypatch):
    """A fresh copy of csrc/build_plan.py with a torch with CUDA, no GPU and no switches."""
    path = repository / "csrc" / "build_plan.py"
    spec = importlib.util.spec_from_file_location("build_plan_under_test", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look up their module
    spec.loader.exec_module(module)
    for name in ("RESOBJ_NO_EXT", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST", "CXX", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    module.real_visible_gpus = module.visible_gpus
    monkeypatch.setattr(module, "visible_gpus", list)
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    return module


@pytest.fixture
def nvcc(tmp_path, monkeypatch):
    """An nvcc of CUDA 13.0 that reports what it supports and compiles nothing."""
    program = tmp_path / "bin" / "nvcc"
    program.parent.mkdir()
    program.write_text(NVCC)
    program.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    return program


def codes(made):
    return [flag.rpartition("code=")[2] for flag in made.arch_flags]


def test_without_a_gpu_no_cuda_kernels_are_compiled(plan, nvcc):
    made = plan.make_plan()
    assert set(made.skipped) - {plan.BUILD_INFO} == {plan.CUDA}
    reason = "no GPU was visible during the build (FORCE_CUDA=1 builds them anyway)"
    assert made.record()["cuda_not_built"] == reason
    assert made.arch_flags == []
    assert f"CUDA kernels: left out, {reason}" in made.lines()
    assert any(line.startswith("CPU kernels: compiled with ") for line in made.lines())


def test_with_a_gpu_its_own_architecture_is_compiled(plan, nvcc, monkeypatch):
    monkeypatch.setattr(plan, "visible_gpus", lambda: ["8.0", "8.6"])
    made = plan.make_plan()
    assert codes(made) == ["sm_80", "sm_86", "compute_86"]
    line = "CUDA kernels: compiled with nvcc 13.0 for sm_80 sm_86 compute_86 (this machine's GPUs)"
    assert line in made.lines()
    assert "cuda_not_built" not in made.record()


def test_a_gpu_unknown_to_nvcc_gets_ptx_of_the_newest(plan, nvcc, monkeypatch):
    monkeypatch.setattr(plan, "visible_gpus", lambda: ["13.0"])
    made = plan.make_plan()
    assert codes(made)[-2:] == ["sm_120", "compute_120"]
    assert made.why_archs == "one per generation"


def test_force_cuda_compiles_for_every_generation(plan, nvcc, monkeypatch):
    monkeypatch.setenv("FORCE_CUDA", "1")
    made = plan.make_plan()
    assert codes(made) == ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120", "compute_120"]


def test_the_list_of_architectures_is_honoured(plan, nvcc, monkeypatch):
    monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0a+PTX")
    made = plan.make_plan()
    assert codes(made) == ["sm_80", "sm_90a", "compute_90a"]
    assert made.why_archs == "TORCH_CUDA_ARCH_LIST"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    plan.make_plan.cache_clear()
    with pytest.raises(SystemExit, match="error: TORCH_CUDA_ARCH_LIST: 'Hopper' is not understood"):
        plan.make_plan()


def test_force_cuda_without_nvcc_is_an_error(plan, monkeypatch):
    monkeypatch.setenv("FORCE_CUDA", "1")
    with pytest.raises(SystemExit, match="error: FORCE_CUDA=1, but .*: nvcc not found on PATH"):
        plan.make_plan()
    monkeypatch.setenv("RESOBJ_NO_EXT", "1")
    plan.make_plan.cache_clear()
    with pytest.raises(SystemExit, match="FORCE_CUDA=1, but nothing can be built: RESOBJ_NO_EXT"):
        plan.make_plan()


@pytest.mark.parametrize(
    "variable, value, reason",
    [
        ("RESOBJ_NO_EXT", "1", "RESOBJ_NO_EXT was set during the build"),
        ("CXX", "/nonexistent", "no C++ compiler found (looked for /nonexistent)"),
    ],
)
def test_the_reason_for_building_nothing_is_recorded(plan, monkeypatch, variable, value, reason):
    monkeypatch.setenv(variable, value)
    made = plan.make_plan()
    record = made.record()
    assert record["cpu_not_built"] == record["cuda_not_built"] == reason
    assert f"CPU kernels: left out, {reason}" in made.lines()
    plan.require_torch()  # not needed without a compiler


def test_without_torch_an_installation_stops_but_a_build_continues(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit) as caught:
        plan.require_torch()
    (line,) = str(caught.value).splitlines()
    assert "pip install --no-build-isolation ." in line
    assert "RESOBJ_NO_EXT=1 pip install ." in line
    assert plan.make_plan().record()["cpu_not_built"].startswith("torch could not be imported")
    monkeypatch.setenv("RESOBJ_NO_EXT", "1")
    plan.require_torch()


def test_gpus_are_listed_once_per_architecture(plan, monkeypatch):
    capabilities = [(9, 0), (8, 6), (9, 0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    assert plan.real_visible_gpus() == ["8.6", "9.0"]


def test_with_torch_an_installation_continues(plan):
    plan.require_torch()


@pytest.mark.parametrize("forced", [False, True])
def test_a_failed_compilation_leaves_no_library_of_an_earlier_build(
    repository, plan, nvcc, monkeypatch, tmp_path, capsys, forced
):
    nvcc.write_text(NVCC + "echo 'x.cu(1): error: no' >&2; exit 1\n")
    monkeypatch.setitem(sys.modules, "build_plan", plan)
    monkeypatch.setattr(plan, "visible_gpus", lambda: ["9.0"])
    if forced:
        monkeypatch.setenv("FORCE_CUDA", "1")
    monkeypatch.chdir(repository)
    setup = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: setup.update(options))
    runpy.run_path("setup.py")
    build = setuptools.Distribution(setup).get_command_obj("build_ext")
    build.inplace, build.build_lib, build.build_temp = True, "made", "temp"
    build.ensure_finalized()
    build.extensions = [x for x in build.extensions if x.name == plan.CUDA]
    (extension,) = build.extensions
    extension.sources = [str(repository / name) for name in extension.sources]
    monkeypatch.chdir(tmp_path)
    stale = [Path(folder, "resobj_d2/ops/libresobj_cuda.so") for folder in ("", "made")]
    for path in stale:
        path.parent.mkdir(parents=True)
        path.write_text("old")
    if forced:
        with pytest.raises(SystemExit, match="FORCE_CUDA=1, but .* error: no"):
            build.run()
    else:
        build.run()
        assert "left out" in capsys.readouterr().out
    assert not any(path.exists() for path in stale)
