"""No picture runs code, hangs or takes much memory, whatever is in its file."""

import os
import re
import subprocess
import sys
import time
import warnings

import pytest
from detectron2.modeling import build_model
from PIL import Image

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.data.pictures import ImageError, read_picture
from tests.hostile import pictures

SMALL = dict(pictures.small())
HARMLESS = dict(pictures.harmless())
# Runs a command and prints its peak memory in KiB. A process of its own, since a peak also counts
# what its starter had in memory, and the tests before this one may have left gigabytes.
PEAK_OF = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


@pytest.mark.parametrize("name", SMALL)
def test_it_is_refused_by_name_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(SMALL[name])
    start = time.perf_counter()
    with warnings.catch_warnings(), pytest.raises(ImageError, match=f"^{name}: ") as error:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        read_picture(name)
    assert time.perf_counter() - start < 30
    assert "\n" not in str(error.value) and os.listdir() == [name]


@pytest.mark.parametrize("name", HARMLESS)
def test_strange_files_are_read(name, tmp_path):
    (tmp_path / name).write_bytes(HARMLESS[name])
    assert not read_picture(tmp_path / name).any()


@pytest.mark.parametrize("name", ["pipe.png", "zero.png", "loop.png", "folder.png"])
def test_what_is_no_file_is_not_opened(name, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink("/dev/zero", tmp_path / "zero.png")
    os.symlink("loop.png", tmp_path / "loop.png")
    os.mkdir(tmp_path / "folder.png")
    with pytest.raises(ImageError, match=f"{name}: (it is not a file|there is no such|Is a dir)"):
        read_picture(tmp_path / name)


@pytest.mark.slow
def test_prediction_on_all_of_them_leaves_out_what_cannot_be_read(tiny_cfg, tmp_path):
    """In less than 2 GB beside the libraries, which on a machine with CUDA take a part of it."""
    cfg = tiny_cfg(
        *("INPUT.MIN_SIZE_TEST", "64", "DATASETS.TEST", "()", "DATASETS.TRAIN", "()"),
        *("IMPORTS", "['tests.toy_backbone']"),
    )
    ResObjCheckpointer(build_model(cfg), str(tmp_path), cfg=cfg).save("model_final")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    (tmp_path / "in").mkdir()
    limit = dict(pictures.at_the_limit())
    for name, data in (SMALL | HARMLESS | limit).items():
        (tmp_path / "in" / name).write_bytes(data)
    os.symlink("/dev/zero", tmp_path / "in" / "zero.png")
    command = [
        *(sys.executable, "-m", "resobj_d2", "predict", "--config-file", tmp_path / "config.yaml"),
        *("--input", tmp_path / "in", "--output", tmp_path / "out"),
        *("MODEL.WEIGHTS", tmp_path / "model_final.pth"),
    ]
    measured = [sys.executable, "-c", PEAK_OF, *command]
    result = subprocess.run(measured, capture_output=True, text=True, timeout=500)
    assert result.returncode == 1, result.stderr
    known = [name for name in SMALL if name.rpartition(".")[2] in ("png", "jpg", "gif")]
    count = len(known) + len(HARMLESS) + len(limit)
    summary = f"{len(known)} of {count} images were left out:\n"
    assert summary in result.stderr and "Traceback" not in result.stderr
    told = result.stderr.partition(summary)[2].splitlines()
    assert sorted(re.search(r"/in/(.*?): ", line)[1] for line in told) == sorted(known)
    assert len(os.listdir(tmp_path / "out")) == len(HARMLESS) + len(limit) + 2
    assert int(result.stdout.split()[-1]) < 2_400_000  # KiB
