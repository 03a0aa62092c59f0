"""The results of ``python -m build``: a complete sdist, and from it a wheel for every Python."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import resobj_d2

DOCTOR = (
    "import resobj_d2, sys; from resobj_d2 import doctor; print(resobj_d2.__file__);"
    "sys.exit(doctor.main())"
)


def test_the_sdist_has_every_file(sdist):
    unpacked, files = sdist
    found = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert files - found == set()


@pytest.mark.slow
def test_the_sdist_builds_a_wheel_that_works(sdist, wheel, tmp_path):
    assert wheel.name.startswith(f"resobj_d2-{resobj_d2.__version__}-py3-none-linux_")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        file.extractall(tmp_path / "installed")
    libraries = [Path(name).name for name in names if "libresobj_" in name]
    assert len(libraries) == 1 and libraries[0].startswith("libresobj_cpu")
    assert any(name.endswith("/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "csrc", "configs", "docs")) for name in names)
    assert "resobj_d2/_build.json" in names
    configs = {Path(name) for name in sdist[1] if name.startswith("configs/")}
    expected = {f"resobj_d2/{path}" for path in configs if path.name != "README.md"}
    assert {name for name in names if name.startswith("resobj_d2/configs/")} == expected
    doctor = subprocess.run(
        [sys.executable, "-c", DOCTOR],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path / "installed"),
            "RESOBJ_REQUIRE_NATIVE": "cpu",
        },
        capture_output=True,
        text=True,
    )
    assert doctor.returncode == 0, doctor.stderr
    assert Path(doctor.stdout.splitlines()[0]).is_relative_to(tmp_path / "installed")
