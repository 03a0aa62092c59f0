"""What ``python -m build`` makes: a complete sdist, and from it a wheel for every Python."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = ("configs", "csrc", "docs", "resobj_d2", "tests")
FILES = ("LICENSE", "README.md", "pyproject.toml", "setup.py", "train_net.py")
# The two hooks that build frontends call; `build` itself would want an environment and a network.
BUILD = (
    "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
)
DOCTOR = (
    "import resobj_d2, sys; from resobj_d2 import doctor; print(resobj_d2.__file__);"
    "sys.exit(doctor.main())"
)


def build(what, source, output, **environment):
    result = subprocess.run(
        [sys.executable, "-c", BUILD, what, str(output)],
        cwd=source,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (made,) = output.iterdir()
    return made


def copy_of_repository(folder):
    skip = shutil.ignore_patterns("*.so", "__pycache__")
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, folder / name, ignore=skip)
    for name in FILES:
        shutil.copy(REPOSITORY / name, folder / name)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The unpacked sdist of a copy of the repository, and the files of that copy."""
    folder = tmp_path_factory.mktemp("sdist")
    (folder / "source").mkdir()
    copy_of_repository(folder / "source")
    files = {
        str(path.relative_to(folder / "source"))
        for path in (folder / "source").rglob("*")
        if path.is_file()
    }
    archive = build("build_sdist", folder / "source", folder / "dist")
    with tarfile.open(archive) as file:
        file.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return unpacked, files


def test_the_sdist_has_every_file(sdist):
    unpacked, files = sdist
    found = {str(path.relative_to(unpacked)) for path in unpacked.rglob("*") if path.is_file()}
    assert files - found == set()


@pytest.mark.slow
def test_the_sdist_builds_a_wheel_that_works(sdist, tmp_path):
    if all(shutil.which(name) is None for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler")
    wheel = build(
        "build_wheel",
        sdist[0],
        tmp_path / "wheel",
        CUDA_HOME="/none",
        RESOBJ_NO_EXT="",
        FORCE_CUDA="",
    )
    assert wheel.name.startswith("resobj_d2-") and "-py3-none-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        file.extractall(tmp_path / "installed")
    libraries = [Path(name).name for name in names if "libresobj_" in name]
    assert len(libraries) == 1 and libraries[0].startswith("libresobj_cpu")
    assert any(name.endswith("/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "csrc", "configs", "docs")) for name in names)
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
