"""The table of commands: every row works, --help is fast, and unknown commands are explained."""

import importlib
import subprocess
import sys

import pytest

import resobj_d2
from resobj_d2.cli import main
from resobj_d2.cli.dispatch import ANALYZE, COMMANDS, DATA
from resobj_d2.command import METAVARS, CommandParser

HELP = [[command.name] for command in COMMANDS if command.module] + [
    ["analyze", command.name] for command in ANALYZE
]
HELP += [["data", command.name] for command in DATA]


@pytest.mark.parametrize("command", [*COMMANDS, *ANALYZE], ids=lambda c: c.name)
def test_every_row_is_a_group_or_a_module_with_main(command):
    assert command.summary
    if not command.module:
        assert command.commands
        return
    assert callable(importlib.import_module(f"resobj_d2.{command.module}").main)


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_is_the_commands_own(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([*words, "--help"])
    assert exit_.value.code == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"usage: resobj-d2 {' '.join(words)} ")
    assert "operators:" not in output.err


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help_has_the_words_of_all_commands(words, monkeypatch):
    def shown(parser, file=None):
        texts = [
            x.metavar or x.dest.upper()
            for x in parser._actions
            if x.nargs != 0 and x.choices is None
        ]
        names = {name for x in texts for name in ([x] if isinstance(x, str) else x)}
        assert names <= set(METAVARS)

    monkeypatch.setattr(CommandParser, "print_help", shown)
    with pytest.raises(SystemExit) as exit_:
        main([*words, "--help"])
    assert exit_.value.code == 0


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_commands(arguments, capsys):
    assert main(arguments) == 0
    output = capsys.readouterr().out
    for command in COMMANDS:
        assert f"  {command.name} " in output and command.summary in output


def test_help_of_a_group(capsys):
    assert main(["analyze"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("usage: resobj-d2 analyze ") and "proposals" in output


def test_help_imports_neither_torch_nor_detectron2(repository):
    code = (
        "import sys; from resobj_d2.cli import main; main(['--help']); main(['configs', 'yolo']); "
        "assert not {'torch', 'numpy', 'detectron2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True, capture_output=True)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"resobj_d2 {resobj_d2.__version__}\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["trian"], "error: there is no command 'trian'. Did you mean train? See resobj-d2 --help"),
        (["xyz"], "error: there is no command 'xyz'. See resobj-d2 --help"),
        (
            ["analyze", "cots"],
            "error: there is no command 'cots'. Did you mean cost? See resobj-d2 analyze --help",
        ),
        (
            ["analyze", "cal"],
            "error: there is no command 'cal'. Did you mean calibration? "
            "See resobj-d2 analyze --help",
        ),
        (
            ["analyze", "co"],
            "error: there is no command 'co'. Did you mean cost or compare? "
            "See resobj-d2 analyze --help",
        ),
    ],
)
def test_unknown_command(arguments, message, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err == f"{message}\n"


def test_python_m_is_the_command(repository):
    done = subprocess.run(
        [sys.executable, "-m", "resobj_d2", "configs", "qqqqq"],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "error: no configuration matches 'qqqqq': `resobj-d2 configs` lists all\n"


def test_bench_needs_the_checkout(monkeypatch, tmp_path, capsys):
    bench = importlib.import_module("resobj_d2.cli.bench")
    monkeypatch.setattr(bench, "_BESIDE_THE_PACKAGE", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["bench"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: bench needs the checkout of resobj_d2")


def test_bench_of_the_checkout(capsys):
    assert main(["bench", "--list"]) == 0
    assert "F1 " in capsys.readouterr().out
