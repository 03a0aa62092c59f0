import errno
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


def test_permissions_of_the_old_file_stay(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o640)
    with replacing(path) as file:
        file.write("new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o640
    umask = os.umask(0o027)
    try:
        with replacing(tmp_path / "other") as file:
            file.write("x")
    finally:
        os.umask(umask)
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_file_is_replaced(tmp_path, there):
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store" / "file", tmp_path / "link"
    if there:
        target.write_text("old")
    link.symlink_to("store/file")
    with replacing(link) as file:
        file.write("new")
    assert link.is_symlink() and target.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["link", "store"]
    assert os.listdir(target.parent) == ["file"]


def test_devices_and_pipes_are_written_as_they_are(tmp_path, capfd):
    with replacing("/dev/stdout") as file:
        file.write("to the terminal")
    assert capfd.readouterr().out == "to the terminal"
    with replacing("/dev/null", binary=True) as file:
        file.write(b"x")
    assert not os.path.isfile("/dev/null")
    read, write = os.pipe()
    with replacing(f"/dev/fd/{write}") as file:
        file.write("to a pipe")
    assert os.read(read, 100) == b"to a pipe"
    os.close(read)
    os.close(write)


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError), replacing(tmp_path / "folder") as file:
        file.write("x")
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("name", ["no/folder/file", "file/below", "folder"])
def test_errors_name_the_file_and_not_the_one_beside_it(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught, replacing(tmp_path / name) as file:
        file.write("new")
    assert caught.value.filename == str(tmp_path / name) and caught.value.strerror
    assert "tmp" not in str(caught.value).removeprefix(str(tmp_path)).replace(str(tmp_path), "")


def test_a_full_disk_is_told_with_the_file_and_other_errors_as_they_are(tmp_path):
    with pytest.raises(OSError) as caught, replacing(tmp_path / "file"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "file") and caught.value.errno == errno.ENOSPC
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "file"):
        open(tmp_path / "other")
    assert caught.value.filename == str(tmp_path / "other")
