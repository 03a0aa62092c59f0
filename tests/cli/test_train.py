"""What ``train`` tells before it starts."""

from argparse import Namespace

import pytest
import torch

from resobj_d2.cli import main, train
from resobj_d2.engine.startup import make_output_folder


@pytest.mark.parametrize("eval_only", [False, True])
def test_without_a_configuration_it_says_what_to_give(eval_only):
    with pytest.raises(ValueError, match="there is no configuration: give --config-file FILE"):
        train._load(Namespace(config_file="", opts=[], eval_only=eval_only, imports=[]))


def test_more_processes_than_gpus_are_told_at_once(monkeypatch):
    told = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    train._check_number(2)
    with pytest.raises(ValueError, match="--num-gpus 8: this machine has 2 that can be used"):
        train._check_number(8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(train.logger, "warning", lambda text, *x: told.append(text % x))
    train._check_number(8)
    assert "no GPU can be used: 8 processes share" in told[-1]


def test_an_output_folder_that_cannot_be_made_is_named_with_its_key(tmp_path):
    taken = tmp_path / "fast.yaml"
    taken.write_text("")
    with pytest.raises(OSError, match=f"OUTPUT_DIR {taken} cannot be created: it is a file"):
        make_output_folder(str(taken))
    with pytest.raises(OSError, match="OUTPUT_DIR /proc/x cannot be created: No such file"):
        make_output_folder("/proc/x")
    make_output_folder(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("prog", ["resobj-d2 train", "resobj-d2 eval"])
def test_help_is_of_this_command(prog, capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"], prog=prog)
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {prog} ") and "LazyConfig" not in text
    assert ("--eval-only" in text.partition("Examples")[0]) == (prog == "resobj-d2 train")
    args = train._parser(prog, "").parse_args(["--config-file", "a", "--resume", "SEED", "1"])
    assert (args.config_file, args.resume, args.opts) == ("a", True, ["SEED", "1"])


def test_eval_takes_weights_and_refuses_them_beside_resume(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(train, "launch", lambda run, *, args, **options: seen.append(args[0].opts))
    assert main(["eval", "--weights", "a.pth", "SEED", "1"]) == 0
    assert seen == [["SEED", "1", "MODEL.WEIGHTS", "a.pth"]]
    with pytest.raises(SystemExit):
        main(["eval", "--resume", "--weights", "a.pth"])
    assert "leave out --weights" in capsys.readouterr().err
