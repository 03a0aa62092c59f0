import io
import logging
import re
import warnings

import pytest

from resobj_d2.process import progress_bar, start_log
from resobj_d2.process.console import CONSOLE_ONLY, FILE_ONLY, log_to_folder

pytestmark = pytest.mark.usefixtures("clean_logging")

own = logging.getLogger("resobj_d2.some.module")
detectron2 = logging.getLogger("detectron2.data")


def write_all():
    own.debug("own detail")
    own.info("own line\nof two")
    own.info("for the file", extra=FILE_ONLY)
    own.info("for the console", extra=CONSOLE_ONLY)
    own.warning("own warning")
    detectron2.info("their line")
    detectron2.warning("their warning\nand a long list\nof names")
    logging.getLogger("fvcore.common").error("their error")


def test_console_is_short_and_the_file_has_everything(tmp_path, capsys):
    path = log_to_folder(str(tmp_path))
    assert path == str(tmp_path / "log.txt")
    write_all()
    assert capsys.readouterr().out.splitlines() == [
        "own line", "of two", "for the console", "warning: own warning",
        "warning: their warning (more in log.txt)", "error: their error",
    ]  # fmt: skip
    text = (tmp_path / "log.txt").read_text()
    assert "for the console" not in text
    for line in (
        "resobj_d2.some.module DEBUG: own detail",
        "resobj_d2.some.module INFO: own line\nof two\n",
        "resobj_d2.some.module INFO: for the file",
        "resobj_d2.some.module WARNING: own warning",
        "detectron2.data INFO: their line",
        "detectron2.data WARNING: their warning\nand a long list\nof names\n",
        "fvcore.common ERROR: their error",
    ):
        assert re.search(rf"^\[\d\d/\d\d \d\d:\d\d:\d\d\] {re.escape(line)}", text, re.M), line


def test_what_ends_a_training_is_left_to_the_command(tmp_path, capsys):
    log_to_folder(str(tmp_path))
    loop = logging.getLogger("detectron2.engine.train_loop")
    try:
        raise OSError("no such picture")
    except OSError:
        loop.exception("Exception during training:")
    loop.error("something else")
    assert capsys.readouterr().out == "error: something else\n"
    assert "OSError: no such picture" in (tmp_path / "log.txt").read_text()


def test_file_has_what_was_logged_before_there_was_a_folder(tmp_path, capsys):
    start_log()
    own.warning("first")
    detectron2.info("second")
    log_to_folder(str(tmp_path))
    own.info("third")
    assert capsys.readouterr().out == "warning: first\nthird\n"
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(": ")[-1] for line in lines] == ["first", "second", "third"]


def test_warnings_of_any_package_reach_the_file(tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        start_log(file_follows=True)
        warnings.warn("early words", stacklevel=1)
        log_to_folder(str(tmp_path))
        warnings.warn("late\nwords", FutureWarning, stacklevel=1)
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = shown.out.splitlines()
    assert len(lines) == 2 and all(line.startswith("warning: ") for line in lines)
    assert "UserWarning: early words (more in log.txt)" in lines[0]
    text = (tmp_path / "log.txt").read_text()
    assert "py.warnings WARNING: " in text and "FutureWarning: late\nwords\n" in text


def test_without_a_file_nothing_is_left_to_it(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        start_log()
        detectron2.warning("keys that are not used:\n" + "\n".join("abcde"))
        detectron2.warning("one line\nand another")
        warnings.warn("late\nwords", FutureWarning, stacklevel=1)
    *lines, late, words = capsys.readouterr().out.splitlines()
    assert lines == [
        "warning: keys that are not used: a, b, c, ... 5 in all",
        "warning: one line", "and another",
    ]  # fmt: skip
    assert late.endswith("FutureWarning: late") and words == "words"


def test_a_list_of_another_package_is_shown_in_part(tmp_path, capsys):
    log_to_folder(str(tmp_path))
    names = [f"  \x1b[35mhead.{i}.weight\x1b[0m" for i in range(5)]
    detectron2.warning("keys that are not used:\n" + "\n".join(names))
    assert capsys.readouterr().out.splitlines() == [
        "warning: keys that are not used: head.0.weight, head.1.weight, head.2.weight, ... 5 in all"
        " (more in log.txt)"
    ]
    assert "head.4.weight" in (tmp_path / "log.txt").read_text()


def test_further_processes_write_to_files_of_their_own(tmp_path, capsys):
    start_log(rank=3)
    own.warning("early")
    assert log_to_folder(str(tmp_path), rank=3) == str(tmp_path / "log.txt.rank3")
    own.error("late")
    assert capsys.readouterr() == ("", "")
    text = (tmp_path / "log.txt.rank3").read_text()
    assert "WARNING: early" in text and "ERROR: late" in text
    assert not (tmp_path / "log.txt").exists()


def test_next_folder_takes_over(tmp_path, capsys):
    """Two runs in one process; and a logger that somebody else has set up prints nothing twice."""
    foreign = logging.StreamHandler(io.StringIO())
    detectron2.root.manager.getLogger("detectron2").addHandler(foreign)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        log_to_folder(str(tmp_path / name))
        own.info("in %s", name)
        detectron2.warning("careful in %s", name)
    assert capsys.readouterr().out.splitlines() == [
        "in one", "warning: careful in one", "in two", "warning: careful in two",
    ]  # fmt: skip
    assert foreign.stream.getvalue() == ""
    assert "two" not in (tmp_path / "one/log.txt").read_text()
    assert "one" not in (tmp_path / "two/log.txt").read_text()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_appear_above_the_bar_on_a_terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.stderr", screen)
    assert progress_bar(total=3, label="training", unit="it") is None  # no command runs
    start_log()
    bar = progress_bar(total=4, done=2, label="training", unit="it")
    bar.update()
    own.info("a line")
    bar.close()
    drawn = screen.getvalue()
    assert "training:  50%" in drawn and "2/4" in drawn
    # The bar is wiped, the line has a row to itself, the bar is drawn again.
    assert re.search(r"\r +\ra line\n\r?training", drawn), drawn


def test_no_bar_without_a_terminal(capsys):
    start_log()
    assert progress_bar(total=3, label="training", unit="it") is None
    assert capsys.readouterr() == ("", "")
