"""A run that is killed (kills.py): a part of the moments here, all of them by hand."""

import re
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "kills"),
    [
        (["--every", "3", "--random", "3"], 27),
        (["--every", "0", "--random", "3", "--workers", "2"], 3),
    ],
)
def test_killed_runs_go_on_to_the_same_end(repository, options, kills, warm_python):
    done = warm_python.run([sys.executable, "-m", "tests.engine.kills", *options], cwd=repository)
    assert done.returncode == 0, done.stdout + done.stderr
    number, operations = re.search(r"(\d+) kills, (\d+) file operations", done.stdout).groups()
    assert int(operations) > 50 and int(number) >= kills
