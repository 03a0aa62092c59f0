import os
import signal
import subprocess
import sys

import pytest

from resobj_d2.process import replacing


def test_takes_the_place_of_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as file:
        file.write("nü")
        assert path.read_text() == "old"
    assert path.read_text(encoding="utf-8") == "nü"
    with replacing(path, binary=True) as file:
        file.write(b"\x00")
    assert path.read_bytes() == b"\x00"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_old_file_stays_when_writing_fails(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)), replacing(path) as file:
        file.write("half of the n")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_old_file_stays_when_the_process_is_killed(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    code = (
        "import os, signal\nfrom resobj_d2.process import replacing\n"
        f"with replacing({str(path)!r}) as file:\n"
        "    file.write('half of the n'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    with replacing(path) as file:  # what the process left behind is not in the way
        file.write("new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]
