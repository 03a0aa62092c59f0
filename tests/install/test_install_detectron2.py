"""Installing Detectron2: existing ones are left alone, mismatches stop with a clear message."""

import hashlib
import os
import subprocess
import sys
import tarfile
import types
import venv
from pathlib import Path

import pytest

from resobj_d2 import install_detectron2 as installer
from resobj_d2.install_detectron2 import InstallError, Replacement

SCRIPT = Path(installer.__file__).resolve()


def run_script(*arguments, python=sys.executable, path=None):
    """Run the installer as a plain file, as it is used before anything is installed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [str(python), str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def make_detectron2(folder, source):
    package = folder / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text(source)
    return package


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter with only the standard library, not even pip."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    return folder / "bin" / "python"


def test_replacement_is_applied(tmp_path):
    (tmp_path / "a.py").write_text("x = np.int(1) + np.int(2)\n")
    change = Replacement(path="a.py", old="np.int", new="int", why="numpy", count=2)
    installer.apply_replacements(tmp_path, [change])
    assert (tmp_path / "a.py").read_text() == "x = int(1) + int(2)\n"


@pytest.mark.parametrize("source", ["nothing to see\n", "np.int np.int\n"])
def test_replacement_that_does_not_match_stops(tmp_path, source):
    (tmp_path / "a.py").write_text(source)
    change = Replacement(path="a.py", old="np.int", new="int", why="numpy removed it")
    found = source.count("np.int")
    with pytest.raises(InstallError, match=f"a.py: expected 1, but found {found} occ") as error:
        installer.apply_replacements(tmp_path, [change])
    assert "np.int" in str(error.value)
    assert "numpy removed it" in str(error.value)
    assert (tmp_path / "a.py").read_text() == source


def test_replacement_in_a_missing_file_stops(tmp_path):
    change = Replacement(path="gone.py", old="a", new="b", why="c")
    with pytest.raises(InstallError, match="gone.py: the source package has no such file"):
        installer.apply_replacements(tmp_path, [change])


def test_wrong_hash_stops_before_anything_is_installed(tmp_path, monkeypatch):
    sdist = tmp_path / "detectron2_cdo-0.5.tar.gz"
    (tmp_path / "setup.py").write_text("raise SystemExit('must not run')\n")
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(tmp_path / "setup.py", "detectron2_cdo-0.5/setup.py")
    commands = []
    monkeypatch.setattr(installer.subprocess, "run", commands.append)
    with pytest.raises(InstallError, match="its SHA-256 is .* Nothing was installed"):
        installer.install(sdist=sdist)
    assert commands == []


def test_importable_detectron2_is_left_untouched(tmp_path):
    package = make_detectron2(tmp_path, "__version__ = '9.9'\n")
    before = (package / "__init__.py").stat()
    # The missing file would be an error if it were used.
    result = run_script("--sdist", tmp_path / "missing.tar.gz", path=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"Detectron2 9.9 (from a source folder) at {package}" in result.stdout
    assert "used as is" in result.stdout
    assert (package / "__init__.py").stat().st_mtime_ns == before.st_mtime_ns


def test_detectron2_that_fails_to_import_is_reported(tmp_path, bare_python):
    make_detectron2(tmp_path, "import no_such_module\n")
    result = run_script(python=bare_python, path=tmp_path)
    assert result.returncode == 1
    assert "cannot be imported" in result.stderr
    assert "no_such_module" in result.stderr
    assert "left untouched" in result.stderr


def test_folder_without_code_does_not_count_as_detectron2(tmp_path, bare_python):
    (tmp_path / "detectron2").mkdir()
    result = run_script("--check", python=bare_python, path=tmp_path)
    assert "detectron2 is not installed" in result.stdout


def test_check_lists_every_replacement_and_installs_nothing(bare_python):
    result = run_script("--check", python=bare_python)
    assert result.returncode == 0, result.stderr
    for change in installer.REPLACEMENTS:
        assert f"{change.path}: {change.why}" in result.stdout
    site_packages = list(bare_python.parent.parent.glob("lib/python*/site-packages/*"))
    assert site_packages == []


def test_missing_build_tools_are_named(bare_python):
    result = run_script(python=bare_python)
    assert result.returncode == 1
    assert "pip cannot be imported" in result.stderr
    assert "Install torch first" in result.stderr


def test_placeholder_explains_compiled_operations():
    compiled = types.ModuleType("detectron2._C")
    exec(installer.PLACEHOLDER_SOURCE, compiled.__dict__)
    with pytest.raises(AttributeError, match="_C.nms_rotated is a compiled operation") as error:
        _ = compiled.nms_rotated
    assert "pip uninstall detectron2-cdo" in str(error.value)
    # Detectron2's collect_env calls these, and Python itself looks up names like the last one.
    assert compiled.get_compiler_version() == "compiled operations not built"
    assert compiled.get_cuda_version() == "compiled operations not built"
    assert compiled.has_cuda() is False
    assert not hasattr(compiled, "__path__")


def test_a_wheel_is_made_of_the_patched_source(tmp_path, monkeypatch):
    root = tmp_path / "detectron2_cdo-0.5"
    (root / "detectron2").mkdir(parents=True)
    (root / "detectron2" / "a.py").write_text("kind = np.int\n")
    (root / "setup.py").write_text("raise SystemExit('must not run')\n")
    sdist = tmp_path / "detectron2_cdo-0.5.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(root, root.name)
    expected = hashlib.sha256(sdist.read_bytes()).hexdigest()
    monkeypatch.setattr(installer.verify_hash, "__defaults__", (expected,))
    change = Replacement(path="detectron2/a.py", old="np.int", new="int", why="numpy")
    monkeypatch.setattr(installer.apply_replacements, "__defaults__", ([change],))
    calls = []

    def pip(*arguments):
        source = Path(arguments[-1])
        calls.append((arguments[:-1], (source / "detectron2" / "a.py").read_text()))
        assert (source / installer.PLACEHOLDER_PATH).is_file()

    monkeypatch.setattr(installer, "_run_pip", pip)
    assert installer.main(["--wheel", "whl", "--sdist", str(sdist)]) == 0
    ((arguments, text),) = calls
    assert arguments[0] == "wheel" and arguments[arguments.index("--wheel-dir") + 1] == "whl"
    assert "--no-deps" in arguments
    assert text == "kind = int\n"
