"""No configuration file runs code, hangs or ends in a traceback, whatever is in it."""

import os
import sys
import time

import pytest
from PIL import Image

from resobj_d2.cli.dispatch import main
from tests.hostile.configs import HARM, ONLY_WRONG_IN_USE, all_configs

CONFIGS = all_configs()
COMMANDS = {
    "train": ["train"],
    "eval": ["eval"],
    "predict": ["predict", "--input", "a.png", "--output", "out"],
    "export": ["export", "--format", "pt2", "--output", "a.pt2"],
    "cost": ["analyze", "cost"],
    "dump": ["analyze", "dump", "--weights", "model.pth"],
    "proposals": ["analyze", "proposals"],
    "sweep": ["analyze", "sweep", "--vary", "TEST.DETECTIONS_PER_IMAGE", "10"],
    "configs": ["configs", "--show"],
    "check": ["data", "check"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with a picture."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    return tmp_path


def write(name, folder):
    for file, data in CONFIGS[name].items():
        (folder / file).write_bytes(data.replace(HARM.encode(), str(folder / "harm").encode()))


def run(command, config, capsys):
    """Exit status and error lines of a command, in this process: a traceback fails the test."""
    arguments = list(COMMANDS[command])
    if command not in ("cost", "configs", "check"):
        arguments.append("--config-file")
    try:
        status = main([*arguments, str(config)])
    except SystemExit as end:
        status = end.code
    lines = capsys.readouterr().err.strip().splitlines()
    return status, [line for line in lines if not line.startswith(("operators:", "WARNING"))]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_file_ends_in_one_line(name, folder, capsys):
    write(name, folder)
    before = sorted(os.listdir())
    for command in ("train", "configs"):
        start = time.perf_counter()
        status, lines = run(command, folder / "config.yaml", capsys)
        assert time.perf_counter() - start < 30
        assert sorted(os.listdir()) == before  # nothing was made, nothing was written
        if command == "configs" and name in ONLY_WRONG_IN_USE:
            assert status == 0
            continue
        assert status == 2, name
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        assert len(lines[0]) < 2100


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "name", ["empty", "a picture", "tag 0", "a tag in a base", "a circle", "bomb of mappings"]
)
def test_every_command_refuses_it(name, command, folder, capsys):
    write(name, folder)
    status, lines = run(command, folder / "config.yaml", capsys)
    assert status == 2 and len(lines) == 1, lines
    assert str(folder) in lines[0] and not os.path.exists("harm")


def test_pipes_devices_and_links_are_no_configurations(folder, capsys):
    os.mkfifo("pipe.yaml")
    os.symlink("loop.yaml", "loop.yaml")
    for path in ("pipe.yaml", "loop.yaml", "/dev/zero", "/dev/stdin", ".", "a.png", ""):
        status, lines = run("predict", path, capsys)
        assert status == 2 and len(lines) == 1, (path, lines)


def test_a_sparse_file_is_not_read(folder, capsys):
    with open("huge.yaml", "wb") as file:
        file.truncate(2**40)
    status, lines = run("train", "huge.yaml", capsys)
    assert status == 2 and "huge.yaml is not a configuration: it has 1,099,511,627,776" in lines[0]


VALUES = [
    "__import__('os').mkdir('harm')", "(lambda: 0)()", "[" * 200, "(" * 3000, "[" * 100_000,
    "[" * 5000 + "]" * 5000, "-" * 5000 + "1", "9" * 5000, "1e999", "{" * 100, "\x00",
    "'", "!!python/name:os.system", "f'{__import__(\"os\")}'", "None", "", "{}", "b'x'",
    "1+" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("key", ["SOLVER.MAX_ITER", "MODEL.DEVICE", "DATASETS.REGISTER", "IMPORTS"])
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_overrides_run_nothing(key, value, folder, capsys):
    arguments = ["train", "DATASETS.TRAIN", "MODEL.WEIGHTS", "", key, value]
    status = main(arguments)
    lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: "), lines
    assert os.listdir() == ["a.png"]


MEASURED = """
import resource, sys, time
from resobj_d2.config import load_config
from resobj_d2.command import is_users_mistake
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    start = time.perf_counter()
    try:
        load_config(path)
    except Exception as error:
        assert is_users_mistake(error), (path, repr(error))
    else:
        raise AssertionError(path)
    assert time.perf_counter() - start < 30, path
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(after - before)
"""


@pytest.mark.slow
def test_no_file_takes_much_memory(tmp_path, warm_python):
    paths = []
    for name in CONFIGS:
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        write(name, folder)
        paths.append(str(folder / "config.yaml"))
    command = [sys.executable, "-c", MEASURED, *paths]
    result = warm_python.run(command)
    assert result.returncode == 0, result.stderr[-2000:]
    assert int(result.stdout.split()[-1]) < 200_000  # KiB
