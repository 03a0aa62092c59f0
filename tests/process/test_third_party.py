import logging
import os
import subprocess
import sys
import warnings

import pytest

from resobj_d2.process import quiet_imports
from resobj_d2.process.third_party import _RECORDS, _WARNINGS


@pytest.fixture(autouse=True)
def clean_process(monkeypatch):
    """The environment and loggers are as before afterwards; pytest does that for warnings."""
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:a rule of the user")
    before = {name: list(logging.getLogger(name).filters) for name, _ in _RECORDS}
    yield
    for name, filters in before.items():
        logging.getLogger(name).filters[:] = filters


def test_known_warnings_are_dropped_and_others_are_not():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        quiet_imports()
        for category, words in _WARNINGS:
            warnings.warn(f"{words} and more", category, stacklevel=1)
            warnings.warn(f"other words, {words}", category, stacklevel=1)
        warnings.warn("`torch.jit.script` is deprecated", UserWarning, stacklevel=1)
    kept = [str(w.message) for w in shown]
    others = [f"other words, {words}" for _, words in _WARNINGS]
    assert kept == [*others, "`torch.jit.script` is deprecated"]  # of another category


def test_known_log_record_is_dropped_and_others_are_not(caplog):
    quiet_imports()
    name, words = _RECORDS[0]
    logging.getLogger(name).warning("%s, using CUDA_HOME='/usr/local'", words)
    logging.getLogger(name).warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]


def test_processes_started_later_inherit_the_filters_and_the_users_stay():
    quiet_imports()
    once = os.environ["PYTHONWARNINGS"]
    quiet_imports()
    assert os.environ["PYTHONWARNINGS"] == once
    assert once.startswith("ignore:a rule of the user,")
    code = "import warnings\n" + "".join(
        f"warnings.warn({words + ' and more'!r}, {category.__name__})\n"
        for category, words in _WARNINGS
    )
    code += "warnings.warn('another one')\n"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    shown = [line for line in ran.stderr.splitlines() if "Warning: " in line]
    assert len(shown) == 1 and shown[0].endswith("UserWarning: another one")


def test_light():
    """Commands call it before anything heavy is imported."""
    code = (
        "import resobj_d2.process, sys\n"
        "heavy = {'torch', 'numpy', 'detectron2', 'tqdm'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [True, False])
def test_importing_detectron2_prints_nothing(quiet):
    code = "from resobj_d2.process import quiet_imports\n"
    code += ("quiet_imports()\n" if quiet else "") + "import resobj_d2.engine"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    ran = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    assert ran.stdout == ""
    # What the filter is for: should it come to an end, so may the filter.
    assert (ran.stderr == "") is quiet
