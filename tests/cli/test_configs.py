"""``resobj-d2 configs``: the list, and one configuration printed in full."""

import os
import sys

import pytest
import yaml
from detectron2.config import get_cfg

from resobj_d2.cli import main
from resobj_d2.cli.configs import difference
from resobj_d2.config import add_resobj_config, load_config
from resobj_d2.config.zoo import zoo_entries

NAME = "COCO-Detection/retinanet_resobj_t2_R_50_FPN_600_1x.yaml"


def plain(cfg):
    return yaml.safe_load(cfg.dump())


def run(capsys, *arguments):
    assert main(["configs", *arguments]) == 0
    return capsys.readouterr().out


def test_the_list_has_every_configuration_and_its_ap(capsys, repository):
    lines = run(capsys).splitlines()
    assert lines[0].split() == ["name", "AP", "reported", "in", "method"]
    assert len(lines) == 1 + len(zoo_entries())
    coco = (repository / "configs" / "COCO-Detection").glob("*.yaml")
    names = {line.split()[0] for line in lines}
    assert {f"COCO-Detection/{path.name}" for path in coco} < names
    (line,) = [x for x in lines if x.startswith(NAME)]
    assert line.split() == [NAME, "35.4", "ResObj", "ResObj,", "T", "=", "2"]
    (line,) = [x for x in lines if x.startswith("small/scenes_retinanet_fl.yaml")]
    assert line.split()[1:3] == ["-", "-"]


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("ssd512_r_50", ["COCO-Detection/ssd512_R_50.yaml"]),
        ("small/*ssd_*[nt].yaml", [f"small/cells_ssd_{x}.yaml" for x in ("consistent", "plain")]),
        ("efficientdet_d[01].yaml", [f"COCO-Detection/efficientdet_d{i}.yaml" for i in (0, 1)]),
    ],
)
def test_a_pattern_selects(pattern, names, capsys):
    assert [line.split()[0] for line in run(capsys, pattern).splitlines()[1:]] == names


def test_a_pattern_that_matches_nothing_gets_suggestions(capsys):
    assert main(["configs", "yolo3_obj_320"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no configuration matches 'yolo3_obj_320'. Did you mean ")
    assert "COCO-Detection/yolov3_obj_320.yaml" in line


def test_parts_are_listed_on_their_own(capsys):
    names = set(run(capsys, "--parts").splitlines())
    assert {"Base-Dense.yaml", "methods/retinanet_resobj.yaml", "schedules/600_1x.yaml"} <= names
    assert NAME not in names


def test_show_prints_a_yaml_that_loads_to_the_same(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "shown.yaml"
    text = run(capsys, "--show", NAME)
    path.write_text(text)
    assert plain(load_config(str(path))) == plain(load_config(NAME))
    assert "*id" not in text


def test_showing_scenes_generates_none(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = yaml.safe_load(run(capsys, "--show", "scenes_retinanet_resobj_t2"))
    assert shown["DATASETS"]["REGISTER"][0]["format"] == "scenes"
    assert list(tmp_path.iterdir()) == []


def test_diff_prints_what_differs_from_the_defaults(capsys, tmp_path):
    text = run(capsys, "--show", NAME, "--diff")
    shown = yaml.safe_load(text)
    assert shown["MODEL"]["DENSE"]["OBJECTNESS"] == {"ENABLED": True}  # STEPS is 2 by default
    assert "SEED" not in shown
    cfg = get_cfg()
    add_resobj_config(cfg)
    path = tmp_path / "diff.yaml"
    path.write_text(text)
    cfg.merge_from_file(str(path))
    expected = load_config(NAME, ["MODEL.DEVICE", "cpu"])
    cfg.MODEL.DEVICE = "cpu"
    assert plain(cfg) == plain(expected)


POWER_LOSS = """
from typing import Annotated
from resobj_d2.losses import CLS_LOSS_REGISTRY, SigmoidScores
from resobj_d2.options import Option

@CLS_LOSS_REGISTRY.register()
class PowerLoss(SigmoidScores):
    def __init__(self, *, power: Annotated[float, Option("exponent", key="POWER")] = 2.5):
        pass
"""


@pytest.mark.parametrize("how", ["option", "file"])
def test_show_knows_the_keys_of_imported_entries(how, tmp_path, repository, warm_python):
    (tmp_path / "my_losses.py").write_text(POWER_LOSS)
    path = tmp_path / "own.yaml"
    path.write_text('IMPORTS: ["my_losses"]\n' if how == "file" else "SEED: 1\n")
    options = ["--import", "my_losses"] if how == "option" else []
    # In a separate process: the registry would keep the loss for other tests.
    shown = warm_python.run(
        [sys.executable, "-m", "resobj_d2", "configs", "--show", str(path), *options],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
    ).stdout
    assert yaml.safe_load(shown)["MODEL"]["DENSE"]["CLS_LOSS"]["POWER"] == 2.5


def test_difference_by_hand():
    defaults = {"A": 1, "B": {"C": [1], "D": {"E": 2}}, "F": 0}
    values = {"A": 1, "B": {"C": [2], "D": {"E": 2}}, "F": 0, "G": 3}
    assert difference(values, defaults) == {"B": {"C": [2]}, "G": 3}


def test_show_of_an_unknown_name(capsys):
    assert main(["configs", "--show", "retinanet_resobj_t2_R50_FPN_600_1x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: config file not found: ") and f"Did you mean {NAME}" in line
