"""No file of a dataset runs code, hangs, leaves its folder or takes much memory."""

import sys
import time

import pytest
from PIL import Image

from resobj_d2.cli.dispatch import main
from tests.hostile.data_sets import SECRET, all_data_sets

DATA_SETS = all_data_sets()


def write(name, folder):
    """The files of a dataset with a picture; returns what is to be opened."""
    secret = folder / "secret.txt"
    secret.write_text("the secret word")
    root = folder / "set"
    for file, data in DATA_SETS[name].items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(data.replace(SECRET.encode(), str(secret).encode()))
    (root / "images").mkdir()
    Image.new("RGB", (8, 8)).save(root / "images/a.png")
    return root if name.startswith("voc") else root / next(iter(DATA_SETS[name]))


@pytest.mark.usefixtures("clean_catalogs")
@pytest.mark.parametrize("name", DATA_SETS)
def test_data_check_tells_what_is_wrong(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    target = write(name, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    start = time.perf_counter()
    try:
        status = main(["data", "check", str(target)])
    except SystemExit as end:
        status = end.code
    assert time.perf_counter() - start < 30
    said = capsys.readouterr()
    ignored = ("operators:", "WARNING")
    lines = [line for line in said.err.splitlines() if not line.startswith(ignored)]
    assert status in (0, 1, 2) and "secret word" not in said.out + said.err
    if status == 2:
        assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 3000
    assert all(len(line) < 1000 for line in said.out.splitlines())
    assert "\x1b" not in said.out + said.err
    assert sorted(tmp_path.rglob("*")) == before


MEASURED = """
import contextlib, io, resource, sys, time
from resobj_d2.cli.dispatch import main
import resobj_d2.inspection.command
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["data", "check", path]) in (0, 1, 2), path
    assert time.perf_counter() - start < 30, path
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(after - before)
"""


@pytest.mark.slow
def test_no_data_set_takes_much_memory(tmp_path, warm_python):
    paths = []
    for name in DATA_SETS:
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        paths.append(str(write(name, folder)))
    command = [sys.executable, "-c", MEASURED, *paths]
    result = warm_python.run(command, cwd=tmp_path, timeout=600)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout.split()[-1]) < 400_000  # KiB
