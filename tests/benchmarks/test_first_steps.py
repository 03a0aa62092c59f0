"""Expected hours, and what counts as a stable start."""

import math

import pytest

from benchmarks import first_steps
from benchmarks.first_steps import Start, hours
from resobj_d2.config import load_config

CONFIG = "scenes_retinanet_fl"


def start(losses, gradients=(1.0, 1.0)):
    return Start(losses=list(losses), gradients=list(gradients), size=(8, 8), objects=1, flops=1.0)


@pytest.mark.parametrize(
    "losses, gradients, stable",
    [
        ([2.0, 1.0], [3.0, 3.0], True),
        ([2.0, 2.5], [3.0, 3.0], False),
        ([2.0, math.nan], [3.0, 3.0], False),
        ([2.0, 1.0], [3.0, math.inf], False),
    ],
)
def test_stable_is_finite_and_not_growing(losses, gradients, stable):
    assert start(losses, gradients).stable is stable


def test_hours_follow_flops_and_images():
    cfg = load_config("retinanet_fl_R_50_FPN_800_1x", ["MODEL.DEVICE", "cpu"])
    # 90,000 iterations of 0.205 s
    assert hours(cfg, 7e9, 7e9) == pytest.approx(5.125)
    assert hours(cfg, 14e9, 7e9) == pytest.approx(10.25)
    cfg.defrost()
    cfg.SOLVER.IMS_PER_BATCH = 4
    assert hours(cfg, 7e9, 7e9) == pytest.approx(5.125 / 4)
    assert math.isnan(hours(cfg, None, 7e9))


@pytest.mark.slow
def test_a_small_detector_starts_and_an_unstable_one_fails(tmp_path, monkeypatch, clean_catalogs):
    """The reference is a small one too; of it only the FLOPs count."""
    monkeypatch.setattr(first_steps, "REFERENCE", CONFIG)
    data = {"name": "few", "format": "scenes", "root": str(tmp_path)}
    data |= {"image_size": 64, "num_train": 4, "num_val": 1, "split": "train"}
    opts = ["DATASETS.REGISTER", str([data]), "DATASETS.TRAIN", "('few',)"]
    opts += ["DATASETS.TEST", "()", "MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TRAIN", "(64,)"]
    page = tmp_path / "page.md"
    mark = first_steps.NAME
    page.write_text(f"<!-- begin: {mark} -->\n<!-- end: {mark} -->")
    command = [CONFIG, "--iterations", "2", *opts]
    assert first_steps.main(["--write", str(page), *command]) == 0
    cells = [cell.strip() for cell in page.read_text().splitlines()[4].split("|")[1:-1]]
    assert cells[:2] == [CONFIG, "-"] and cells[3] == "64x64"
    assert cells[7] == "yes" and float(cells[5]) <= float(cells[4])
    assert first_steps.main([*command, "SOLVER.BASE_LR", "1e4", "--no-warmup"]) == 1
