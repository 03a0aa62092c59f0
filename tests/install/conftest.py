"""Builds of a copy of the repository, made once, and environments to install them into."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv

import pytest

FOLDERS = ("configs", "csrc", "docs", "resobj_d2", "tests")
FILES = ("LICENSE", "README.md", "pyproject.toml", "setup.py", "train_net.py")
# The two hooks called by build frontends; `build` itself would need an environment and a network.
BUILD = (
    "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
)
# Variables of the test run or a user's shell that an installation must not depend on.
SWITCHES = (
    "PYTHONPATH", "RESOBJ_REQUIRE_NATIVE", "RESOBJ_NO_EXT", "FORCE_CUDA", "CUDA_HOME", "CXX", "CC",
    "RESOBJ_TRACEBACK", "DETECTRON2_DATASETS",
)  # fmt: skip


def clean_environment(**changes):
    kept = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}


@pytest.fixture(scope="session")
def build():
    """A function: runs a build hook on a source folder and returns the result."""

    def run(what, source, output, **environment):
        result = subprocess.run(
            [sys.executable, "-c", BUILD, what, str(output)],
            cwd=source,
            env=clean_environment(**environment),
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        (made,) = output.iterdir()
        return made

    return run


@pytest.fixture(scope="session")
def copy_of_repository(repository):
    """A function: copies what belongs to the repository, without anything built."""

    def copy(folder):
        skip = shutil.ignore_patterns("*.so", "__pycache__", "_build.json")
        for name in FOLDERS:
            shutil.copytree(repository / name, folder / name, ignore=skip)
        for name in FILES:
            shutil.copy(repository / name, folder / name)
        return folder

    return copy


@pytest.fixture(scope="session")
def sdist(tmp_path_factory, build, copy_of_repository):
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


@pytest.fixture(scope="session")
def wheel(tmp_path_factory, sdist, build):
    """A wheel with the CPU kernels, from the sdist; not optimised, which takes most of the time."""
    if all(shutil.which(name) is None for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("wheel") / "dist"
    return build("build_wheel", sdist[0], folder, CUDA_HOME="/none", CXXFLAGS="-O0")


class Environment:
    """A virtual environment that sees this one's packages, except resobj_d2 and the like."""

    def __init__(self, folder):
        venv.create(folder, with_pip=True, symlinks=True)
        self.bin = folder / "bin"
        (site_packages,) = folder.glob("lib/python*/site-packages")
        # Python ignores .pth files, such as an editable install's, in paths named in a .pth file.
        (site_packages / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(self, *command, cwd, **environment):
        """Run a program of the environment; returns the completed process."""
        return subprocess.run(
            [str(self.bin / command[0]), *map(str, command[1:])],
            cwd=cwd,
            env=clean_environment(**environment),
            capture_output=True,
            text=True,
        )

    def check(self, *command, cwd, **environment):
        """The same for a program that must succeed; returns its standard output."""
        done = self.run(*command, cwd=cwd, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def environment(tmp_path):
    return Environment(tmp_path / "venv")


@pytest.fixture
def empty_folder(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def errors_of(done):
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="session")
def one_error():
    """A function: the single error line of a process that ended with status 2."""

    def find(done):
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        (line,) = errors_of(done)
        return line

    return find
