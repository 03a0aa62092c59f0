"""The doctor names what is there and what to do, also without Detectron2 or the kernels."""

import subprocess
import sys

import pytest

from resobj_d2 import doctor
from resobj_d2.install_detectron2 import FoundDetectron2


def run_with(preparation):
    """Run the doctor in a fresh process after a few lines of Python."""
    program = f"import sys\n{preparation}\nfrom resobj_d2 import doctor\nsys.exit(doctor.main())"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def report_with(monkeypatch, **found):
    details = {"version": None, "origin": None, "package": None, "error": None, **found}
    monkeypatch.setattr(
        "resobj_d2.install_detectron2.find_detectron2", lambda: FoundDetectron2(**details)
    )
    return doctor.diagnose()


def test_names_versions_kernels_and_gpu(monkeypatch):
    import torch

    report = report_with(monkeypatch, version="0.6", origin="/somewhere/__init__.py")
    facts = dict(report.facts)
    assert facts["torch"] == torch.__version__
    assert {"python", "torchvision", "cpu kernels", "cuda kernels", "fvcore"} <= set(facts)
    assert "0.6 (from a source folder) at /somewhere" in facts["detectron2"]
    assert not report.broken


def test_the_mended_detectron2_is_recognised(monkeypatch):
    report = report_with(
        monkeypatch, version="0.5", origin="/x", package="detectron2-cdo 0.5+resobj.1"
    )
    assert "the mended 0.5" in dict(report.facts)["detectron2"]


def test_absent_detectron2_is_advice_and_not_an_error(monkeypatch):
    report = report_with(monkeypatch)
    assert dict(report.facts)["detectron2"] == "not installed"
    assert any("python -m resobj_d2.install_detectron2" in line for line in report.advice)
    assert not report.broken


def test_broken_detectron2_is_an_error(monkeypatch):
    report = report_with(monkeypatch, package="detectron2 0.6", error="ImportError('libfoo')")
    assert "libfoo" in dict(report.facts)["detectron2"]
    assert report.broken


def test_missing_kernels_are_named_with_what_to_do(monkeypatch):
    status = {"cpu": "not built: no C++ compiler found", "cuda": "not built: x", "build": {}}
    monkeypatch.setattr("resobj_d2.ops.native_status", lambda: status)
    report = report_with(monkeypatch, version="0.5", origin="/x")
    assert dict(report.facts)["cpu kernels"] == "not built: no C++ compiler found"
    assert any("apt-get install g++" in line for line in report.advice)
    assert not report.broken


@pytest.mark.parametrize("module", ["torch", pytest.param("fvcore", marks=pytest.mark.slow)])
def test_exit_code_when_something_essential_is_missing(module):
    result = run_with(f"sys.modules[{module!r}] = None")
    assert result.returncode == 1, result.stderr
    assert f"- {module} cannot be imported" in result.stdout


@pytest.mark.slow
def test_exit_code_and_output_here():
    result = run_with("")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "cpu kernels" in result.stdout
