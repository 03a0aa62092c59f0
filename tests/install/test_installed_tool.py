"""The package as users see it: installed elsewhere and used from an empty folder."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import resobj_d2

pytestmark = pytest.mark.slow

SPLITS = [
    {"name": f"tiny_{split}", "format": "scenes", "split": split, "root": "data",
     "image_size": 64, "num_train": 8, "num_val": 2}
    for split in ("train", "val")
]  # fmt: skip
SMALL = [
    "DATASETS.REGISTER", str(SPLITS),
    "DATASETS.TRAIN", "('tiny_train',)",
    "DATASETS.TEST", "('tiny_val',)",
    "INPUT.MIN_SIZE_TRAIN", "(64,)",
    "INPUT.MIN_SIZE_TEST", "64",
    "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.MAX_ITER", "2",
    "SOLVER.STEPS", "()",
    "DATALOADER.NUM_WORKERS", "0",
    "MODEL.DEVICE", "cpu",
    "OUTPUT_DIR", "out",
]  # fmt: skip
VERSION = f"resobj_d2 {resobj_d2.__version__}\n"
NAME = "small/scenes_retinanet_resobj_t2"
PIP = ("python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet")


DOCTOR = (
    "import resobj_d2, sys; from resobj_d2 import doctor; print(resobj_d2.__file__);"
    "sys.exit(doctor.main())"
)


def copy_of_sources(copy_of_repository, folder):
    folder.mkdir()
    return copy_of_repository(folder)


def test_the_sdist_builds_a_wheel_that_works(sdist, wheel, tmp_path):
    assert wheel.name.startswith(f"resobj_d2-{resobj_d2.__version__}-py3-none-linux_")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        file.extractall(tmp_path / "installed")
    libraries = [Path(name).name for name in names if "libresobj_" in name]
    assert len(libraries) == 1 and libraries[0].startswith("libresobj_cpu")
    assert any(name.endswith("/LICENSE") for name in names)
    assert not any(name.startswith(("tests", "csrc", "configs", "docs")) for name in names)
    assert "resobj_d2/_build.json" in names
    configs = {Path(name) for name in sdist[1] if name.startswith("configs/")}
    expected = {f"resobj_d2/{path}" for path in configs if path.name != "README.md"}
    assert {name for name in names if name.startswith("resobj_d2/configs/")} == expected
    doctor = subprocess.run(
        [sys.executable, "-c", DOCTOR],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path / "installed"),
            "RESOBJ_REQUIRE_NATIVE": "cpu",
        },
        capture_output=True,
        text=True,
    )
    assert doctor.returncode == 0, doctor.stderr
    assert Path(doctor.stdout.splitlines()[0]).is_relative_to(tmp_path / "installed")


def test_a_wheel_is_a_tool(
    wheel, environment, empty_folder, tmp_path, copy_of_repository, one_error
):
    environment.check(*PIP, "--no-deps", wheel, cwd=empty_folder)

    def tool(*arguments):
        return environment.run("resobj-d2", *arguments, cwd=empty_folder)

    assert environment.check("resobj-d2", "--version", cwd=empty_folder) == VERSION
    listed = tool("configs", "scenes_*").stdout.splitlines()
    assert len(listed) == 6 and listed[-2].split()[:3] == [f"{NAME}.yaml", "-", "-"]
    assert "META_ARCHITECTURE: ResObjDenseDetector" in tool("configs", "--show", NAME).stdout
    assert list(empty_folder.iterdir()) == []

    # Train on a user's own yaml, then evaluate and predict by name.
    own = '_BASE_: "resobj_d2://small/scenes_retinanet_resobj_t2.yaml"\nSEED: 5\n'
    (empty_folder / "own.yaml").write_text(own)
    trained = tool("train", "--config-file", "own.yaml", *SMALL)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert re.search(r"^operators +native CPU \(", trained.stdout, re.MULTILINE)
    assert (empty_folder / "out" / "model_final.pth").is_file()
    weights = ["MODEL.WEIGHTS", "out/model_final.pth"]
    evaluated = tool("eval", "--config-file", NAME, *SMALL, *weights)
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert "AP by class, bbox: disc " in evaluated.stdout
    picture = empty_folder / "photo.png"
    Image.new("RGB", (80, 60), "gray").save(picture)
    predicted = tool(
        "predict", "--config-file", NAME, "--input", picture, "--output", "drawn", *SMALL, *weights
    )
    assert predicted.returncode == 0, predicted.stdout + predicted.stderr
    images = json.loads((empty_folder / "drawn" / "images.json").read_text())["images"]
    assert [image["width"] for image in images] == [80]

    assert one_error(tool("train", "--config-file", "scenes_retinanet_resobj")).startswith(
        "error: config file not found: "
    )
    assert "bench needs the checkout" in one_error(tool("bench"))
    assert tool("doctor").returncode == 0

    # In a clone that was never built, the installed kernels are used.
    clone = copy_of_sources(copy_of_repository, tmp_path / "clone")
    report = environment.check("python", "-m", "resobj_d2", "doctor", cwd=clone)
    facts = dict(line.split(None, 1) for line in report.splitlines() if line.startswith("resobj"))
    assert facts["resobj_d2"].endswith(f"at {clone / 'resobj_d2'}")
    assert f"built: borrowed from  {environment.bin.parent}" in report
    assert "comes first on Python's path" in report


def test_an_editable_install_uses_its_source_folder(
    environment, empty_folder, tmp_path, copy_of_repository
):
    clone = copy_of_sources(copy_of_repository, tmp_path / "resobj_d2")
    options = ("--no-deps", "--no-build-isolation", "--config-settings", "editable_mode=compat")
    environment.check(*PIP, *options, "--editable", clone, cwd=empty_folder, RESOBJ_NO_EXT="1")
    record = json.loads((clone / "resobj_d2" / "_build.json").read_text())
    assert record["cpu_not_built"] == "RESOBJ_NO_EXT was set during the build"
    assert not (clone / "resobj_d2" / "configs").exists()
    (clone / "configs" / "small" / "mine.yaml").write_text("SEED: 77\n")
    shown = environment.check("resobj-d2", "configs", "--show", "mine", "--diff", cwd=empty_folder)
    assert shown == "SEED: 77\n"
    options = ("--config-file", NAME, "--input", "photo.jpg", *SMALL)
    failed = environment.run("resobj-d2", "predict", *options, cwd=empty_folder)
    assert failed.stderr.startswith(
        "operators: slower pure torch, no native kernels: RESOBJ_NO_EXT was set during the build\n"
    )
    # In the folder above, the clone is a folder of the package's name, but no package.
    report = environment.check("resobj-d2", "doctor", cwd=tmp_path)
    code = "import resobj_d2; print(resobj_d2.__version__)"
    assert environment.check("python", "-c", code, cwd=tmp_path) == f"{resobj_d2.__version__}\n"
    assert "unset RESOBJ_NO_EXT, then pip install" in report


def test_an_isolated_install_says_what_to_do(
    environment, empty_folder, tmp_path, copy_of_repository
):
    clone = copy_of_sources(copy_of_repository, tmp_path / "clone")
    done = environment.run(*PIP, clone, cwd=empty_folder)
    output = done.stdout + done.stderr
    if "No matching distribution found for setuptools" in output:
        pytest.skip("no package index can be reached")
    assert done.returncode != 0
    (line,) = [x.strip() for x in output.splitlines() if x.strip().startswith("error: resobj_d2")]
    assert "pip install --no-build-isolation ." in line and "RESOBJ_NO_EXT=1" in line
    assert not any(name in output for name in ("torch-2", "nvidia", "Traceback"))

    environment.check(*PIP, "--no-deps", clone, cwd=empty_folder, RESOBJ_NO_EXT="1")
    assert environment.check("resobj-d2", "--version", cwd=empty_folder) == VERSION


def test_a_failing_compiler_leaves_its_reason(
    environment, empty_folder, tmp_path, copy_of_repository
):
    clone = copy_of_sources(copy_of_repository, tmp_path / "clone")
    compiler = tmp_path / "broken-c++"
    compiler.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] || { echo 'error: out of luck'; exit 1; }\n"
    )
    compiler.chmod(0o755)
    options = ("--no-deps", "--no-build-isolation", clone)
    environment.check(*PIP, *options, cwd=empty_folder, CXX=str(compiler))
    program = "from resobj_d2 import ops; print(ops.native_status()['cpu'])"
    status = environment.check("python", "-W", "ignore", "-c", program, cwd=empty_folder)
    assert status == f"not built: {compiler} failed: error: out of luck\n"
