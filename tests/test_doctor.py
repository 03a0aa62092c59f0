"""The doctor reports what is installed and what to do, even without Detectron2 or the kernels."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from resobj_d2 import doctor
from resobj_d2.copies import other_copies
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
    assert ("cpu library" in facts) == (facts["cpu kernels"] == "native")
    assert Path(facts.get("cpu library", __file__)).is_file()
    assert not report.broken


def test_the_patched_detectron2_is_recognised(monkeypatch):
    report = report_with(
        monkeypatch, version="0.5", origin="/x", package="detectron2-cdo 0.5+resobj.1"
    )
    assert "the patched 0.5" in dict(report.facts)["detectron2"]


def test_missing_detectron2_is_advice_but_not_an_error(monkeypatch):
    report = report_with(monkeypatch)
    assert dict(report.facts)["detectron2"] == "not installed"
    assert any("python -m resobj_d2.install_detectron2" in line for line in report.advice)
    assert not report.broken


def test_broken_detectron2_is_an_error(monkeypatch):
    report = report_with(monkeypatch, package="detectron2 0.6", error="ImportError('libfoo')")
    assert "libfoo" in dict(report.facts)["detectron2"]
    assert report.broken


def test_missing_kernels_are_named_with_a_remedy(monkeypatch):
    status = {"cpu": "not built: no C++ compiler found", "cuda": "not built: x", "build": {}}
    monkeypatch.setattr("resobj_d2.ops.native_status", lambda: status)
    report = report_with(monkeypatch, version="0.5", origin="/x")
    assert dict(report.facts)["cpu kernels"] == "not built: no C++ compiler found"
    assert any("apt-get install g++" in line for line in report.advice)
    assert not report.broken


@pytest.mark.parametrize(
    "reason, advice",
    [
        ("torch could not be imported while building: x", "hidden by an isolated build"),
        ("RESOBJ_NO_EXT was set during the build", "unset RESOBJ_NO_EXT"),
    ],
)
def test_the_builds_reason_determines_the_advice(monkeypatch, reason, advice):
    status = {"cpu": f"not built: {reason}", "cuda": "native", "build": {}}
    monkeypatch.setattr("resobj_d2.ops.native_status", lambda: status)
    report = report_with(monkeypatch, version="0.5", origin="/x")
    (line,) = [line for line in report.advice if "CPU kernels" in line]
    assert reason in line and advice in line and "apt-get" not in line


def test_a_second_copy_on_the_path_is_named(monkeypatch, tmp_path):
    import resobj_d2

    copy = tmp_path / "resobj_d2"
    copy.mkdir()
    (copy / "__init__.py").touch()
    this = Path(resobj_d2.__file__).resolve().parent
    (tmp_path / "link").symlink_to(this.parent)  # the same copy under another name
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path), str(tmp_path / "link")])
    report = report_with(monkeypatch, version="0.5", origin="/x")
    assert dict(report.facts)["resobj_d2"] == f"{resobj_d2.__version__} at {this}"
    others = [value for name, value in report.facts if name == "another copy"]
    assert str(copy) in others and str(this) not in others
    assert any("two copies" in line and str(copy) in line for line in report.advice)


def test_an_editable_copy_elsewhere_is_found(monkeypatch, tmp_path):
    package = tmp_path / "my clone" / "resobj_d2"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    info = tmp_path / "site" / "resobj_d2-0.2.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: resobj_d2\nVersion: 0.2.0\n")
    url = {"url": package.parent.as_uri(), "dir_info": {"editable": True}}
    (info / "direct_url.json").write_text(json.dumps(url))
    monkeypatch.setattr(sys, "path", [*sys.path, str(info.parent)])
    assert package in other_copies(Path("/elsewhere/resobj_d2"))


@pytest.mark.parametrize(
    "text", ["{", "[]", '"x"', '{"dir_info": []}', '{"dir_info": {"editable": 1}}']
)
def test_a_broken_record_of_an_installation_stops_nothing(monkeypatch, tmp_path, text):
    info = tmp_path / "resobj_d2-0.2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: resobj_d2\nVersion: 0.2.0\n")
    (info / "direct_url.json").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert tmp_path not in [copy.parent for copy in other_copies(Path("/elsewhere/resobj_d2"))]


@pytest.mark.parametrize("version, old", [("59.6.0", True), ("80.10.2", False), (None, False)])
def test_an_old_setuptools_is_named(monkeypatch, version, old):
    found = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: version if name == "setuptools" else found(name)
    )
    report = report_with(monkeypatch, version="0.5", origin="/x")
    assert dict(report.facts)["setuptools"] == version or version is None
    assert any("setuptools>=64,<81" in line for line in report.advice) == old


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
