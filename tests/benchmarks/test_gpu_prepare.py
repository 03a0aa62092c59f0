"""What a machine without network is given."""

from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu import prepare

CONSTRAINTS = """
# a comment
Pygments==2.21.0
pillow==12.3.0; python_version < "3.11"
pillow==13.0.0; python_version >= "3.11"
pytest-xdist==3.8.0
"""


@pytest.mark.parametrize(
    "name, python, expected",
    [
        ("pygments", "3.12", "Pygments==2.21.0"),
        ("pillow", "3.10", "pillow==12.3.0"),
        ("pillow", "3.12", "pillow==13.0.0"),
        ("pytest", "3.12", "pytest"),
    ],
)
def test_versions_are_those_of_the_constraints_for_that_python(name, python, expected):
    assert prepare.pinned(name, python, CONSTRAINTS) == expected


def test_packages_have_pinned_versions():
    text = prepare.CONSTRAINTS.read_text()
    unpinned = {x for x in prepare.PACKAGES if "==" not in prepare.pinned(x, "3.12", text)}
    assert unpinned <= {"termcolor"}  # the newest of any Python will do
    assert set(prepare.SOURCE_ONLY) < set(prepare.PACKAGES)


def test_wheels_of_another_python_are_refused(tmp_path):
    good = [
        "a-1-py3-none-any.whl",
        "b-1-py2.py3-none-any.whl",
        "c-1-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "d-1-cp38-abi3-manylinux_2_28_x86_64.whl",
    ]
    for name in good:
        (tmp_path / name).touch()
    prepare.check_wheels(tmp_path, "3.12")
    bad = ["e-1-cp311-cp311-manylinux_2_17_x86_64.whl", "f-1-cp312-cp312-win_amd64.whl", "g.tar.gz"]
    for name in bad:
        (tmp_path / name).touch()
    with pytest.raises(prepare.PrepareError) as error:
        prepare.check_wheels(tmp_path, "3.12")
    assert str(error.value) == f"for another Python than 3.12: {', '.join(bad)}"


@pytest.fixture
def without_tools(monkeypatch):
    """Records the calls of pip and makes the wheel of Detectron2 at once."""
    calls = []
    monkeypatch.setattr(prepare, "pip", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(
        prepare.install_detectron2,
        "install",
        lambda *, wheel: (wheel / "detectron2_cdo-0.5-py3-none-any.whl").touch(),
    )
    monkeypatch.setattr(prepare.shutil, "which", lambda name: None)
    return calls


def test_the_folder_has_wheels_and_nothing_of_an_earlier_call(tmp_path, without_tools, capsys):
    old = tmp_path / "wheels" / "old-1-py3-none-any.whl"
    old.parent.mkdir()
    old.touch()
    assert gpu_check.main(["--prepare", str(tmp_path), "--python", "3.12"]) == 0
    assert [path.name for path in old.parent.iterdir()] == ["detectron2_cdo-0.5-py3-none-any.whl"]
    download, wheel = without_tools
    assert download[0] == "download" and download[download.index("--python-version") + 1] == "3.12"
    assert any(x.startswith("yacs==") for x in download)
    assert wheel[0] == "wheel" and {x.partition("==")[0] for x in wheel[-2:]} == {
        "fvcore",
        "antlr4-python3-runtime",
    }
    assert "1 wheels" in capsys.readouterr().out


def test_a_folder_of_something_else_is_left_alone(tmp_path, without_tools, capsys):
    wheel, system = tmp_path / "wheels" / "a-1-py3-none-any.whl", tmp_path / "lib" / "system"
    for path in (wheel, system):
        path.parent.mkdir()
        path.touch()
    assert gpu_check.main(["--prepare", str(tmp_path)]) == 1
    assert "lib has files of something else (system)" in capsys.readouterr().err
    assert wheel.exists() and system.exists() and without_tools == []
    assert gpu_check.main(["--prepare", str(system)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_failed_build_of_the_kernels_is_an_error(tmp_path, without_tools, monkeypatch, capsys):
    (tmp_path / "setup.py").write_text("raise SystemExit('x.cu(1): error: no')\n")
    monkeypatch.setattr(prepare, "REPOSITORY", tmp_path)
    monkeypatch.setattr(prepare.shutil, "which", lambda name: "/bin/nvcc")
    assert gpu_check.main(["--prepare", str(tmp_path / "made")]) == 1
    error = capsys.readouterr().err
    assert "the kernels cannot be built" in error and "x.cu(1): error: no" in error


def test_the_built_kernels_are_carried_and_used_where_there_are_none(tmp_path, monkeypatch):
    made = "lib/resobj_d2/ops"
    (tmp_path / "setup.py").write_text(
        "import os, sys, pathlib\n"
        "assert os.environ['FORCE_CUDA'] == '1' and os.environ['TORCH_CUDA_ARCH_LIST'] == '8.0'\n"
        "lib = pathlib.Path(sys.argv[sys.argv.index('--build-lib') + 1]) / 'resobj_d2/ops'\n"
        "lib.mkdir(parents=True)\n"
        "[(lib / f'libresobj_{x}.so').write_text('new') for x in ('cpu', 'cuda')]\n"
    )
    monkeypatch.setattr(prepare, "REPOSITORY", tmp_path)
    library = tmp_path / made
    library.mkdir(parents=True)
    prepare.build_kernels(library, "8.0")
    here = tmp_path / "resobj_d2" / "ops"
    here.mkdir(parents=True)
    (here / "libresobj_cpu.so").write_text("built here")
    monkeypatch.setattr(gpu_check, "REPOSITORY", tmp_path)
    run = gpu_check.Run(tmp_path / "out", 100.0)
    gpu_check.use_carried_library(run, library)
    assert (here / "libresobj_cpu.so").read_text() == "built here"
    assert (here / "libresobj_cuda.so").read_text() == "new"
    assert "libresobj_cuda.so" in (run.output / "summary.txt").read_text()


def test_only_missing_packages_are_installed(tmp_path, monkeypatch):
    for name in ("torch", "a_package_that_nobody_has", "detectron2_cdo", "pytest"):
        (tmp_path / f"{name}-1-py3-none-any.whl").touch()

    def missing():
        return [Path(path).name.partition("-")[0] for path in gpu_check.missing_wheels(tmp_path)]

    assert missing() == ["a_package_that_nobody_has"]  # Detectron2 is here, whatever its name
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: None)
    assert missing() == ["a_package_that_nobody_has", "detectron2_cdo"]
