"""Configurations by name: from any folder, in a user's _BASE_, and the list of them."""

import copy
import csv
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import get_cfg

import resobj_d2
from resobj_d2.config import add_resobj_config, get_config, load_config, zoo
from resobj_d2.config.zoo import Figure, find_config, zoo_entries, zoo_folder

NAME = "COCO-Detection/retinanet_resobj_t2_R_50_FPN_600_1x.yaml"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [NAME, f"configs/{NAME}", f"resobj_d2://{NAME}", NAME.removesuffix(".yaml"), Path(NAME).stem],
)
def test_a_name_is_found_from_any_folder(name, elsewhere, repository):
    assert find_config(name) == repository / "configs" / NAME


def test_a_file_that_exists_wins_over_the_zoo(elsewhere):
    own = Path(NAME)
    own.parent.mkdir()
    own.write_text("SEED: 11\n")
    assert find_config(NAME) == own
    assert load_config(NAME, training=False).SEED == 11
    assert load_config(f"resobj_d2://{NAME}", training=False).SEED == -1


@pytest.mark.parametrize("name", [f"./{NAME}", f"/nowhere/{NAME}"])
def test_a_path_that_is_missing_is_no_name(name, elsewhere):
    with pytest.raises(FileNotFoundError, match=f"config file not found: /.*Did you mean {NAME}"):
        find_config(name)


@pytest.mark.parametrize(
    "name, message",
    [
        ("retinanet_resobj_t2_R50_FPN_600_1x.yaml", f"Did you mean {NAME} or "),
        ("resobj_d2://Base-SSD51.yaml", "not found: resobj_d2://.*Did you mean Base-SSD512.yaml"),
        ("zzz", "config file not found: /.*zzz. `resobj-d2 configs` lists"),
        (".", "config file not found: /.* is a folder"),
    ],
)
def test_an_unknown_name_is_answered_with_similar_ones(name, message, elsewhere):
    with pytest.raises(FileNotFoundError, match=message):
        find_config(name)


def test_a_name_of_two_folders_has_to_be_written_out(monkeypatch):
    names = ("a/same.yaml", "b/same.yaml")
    monkeypatch.setattr(zoo, "zoo_names", lambda: names)
    with pytest.raises(FileNotFoundError, match="same can mean a/same.yaml or b/same.yaml"):
        find_config("same")


@pytest.fixture
def own_yaml(tmp_path):
    """A yaml on bases of the zoo and one beside it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "beside.yaml").write_text("SEED: 21\nOUTPUT_DIR: there\n")
    (folder / "own.yaml").write_text(
        '_BASE_: ["resobj_d2://Base-Dense.yaml", "resobj_d2://methods/retinanet_resobj.yaml",'
        ' "resobj_d2://schedules/500_1x", "beside.yaml"]\nOUTPUT_DIR: here\n'
    )
    return folder / "own.yaml"


def check_own(cfg):
    assert (cfg.SEED, cfg.OUTPUT_DIR) == (21, "here")
    assert cfg.MODEL.DENSE.OBJECTNESS.ENABLED and cfg.INPUT.MIN_SIZE_TRAIN == (500,)


@pytest.mark.parametrize("where", ["absolute", "same folder", "parent"])
def test_bases_of_the_zoo_and_of_the_own_folder(own_yaml, monkeypatch, where):
    monkeypatch.chdir(own_yaml.parent if where == "same folder" else own_yaml.parents[1])
    path = {"absolute": own_yaml, "same folder": "own.yaml", "parent": "mine/own.yaml"}[where]
    check_own(load_config(str(path), training=False))


@pytest.mark.parametrize("how", ["itself", "clone", "pickle"])
def test_detectron2s_own_merge_understands_the_scheme(own_yaml, how):
    cfg = get_cfg()
    add_resobj_config(cfg)
    cfg = {"itself": lambda x: x, "clone": copy.deepcopy, "pickle": reload}[how](cfg)
    cfg.merge_from_file(str(own_yaml))
    check_own(cfg)
    cfg.merge_from_file(f"resobj_d2://{NAME}")
    assert cfg.OUTPUT_DIR == f"output/{Path(NAME).stem}"


def reload(cfg):
    return pickle.loads(pickle.dumps(cfg))


def test_a_single_base_inherits_its_own_bases(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(f'_BASE_: "resobj_d2://{NAME}"\nSEED: 3\n')
    expected = load_config(NAME, ["SEED", "3"], training=False)
    assert load_config(str(path), training=False) == expected


def test_a_base_that_the_zoo_has_not(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text('_BASE_: "resobj_d2://Base-Dens.yaml"\n')
    with pytest.raises(FileNotFoundError, match="resobj_d2://Base-Dens.yaml. Did you mean Base-D"):
        load_config(str(path), training=False)


def test_get_config_takes_keys_with_double_underscores(elsewhere):
    cfg = get_config(NAME, SOLVER__MAX_ITER=5, SOLVER__STEPS=(), MODEL__DENSE__NUM_CLASSES=80)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (5, ())
    assert cfg.MODEL.DENSE.OBJECTNESS.STEPS == 2
    cfg.SEED = 9  # not frozen
    assert get_config(NAME, training=False).DATASETS.TRAIN == ()
    with pytest.raises(ValueError, match="no key SOLVER.MAX_ITERS. Did you mean SOLVER.MAX_ITER"):
        get_config(NAME, SOLVER__MAX_ITERS=5)
    with pytest.raises(ValueError, match="MODEL.DENSE.NUM_CLASSES is 3"):
        get_config(NAME, MODEL__DENSE__NUM_CLASSES=3, DATASETS__TRAIN=("coco_2017_val_100",))


def test_every_configuration_to_train_is_listed_once():
    folder = zoo_folder()
    # Bases, methods and schedules have no output folder of their own.
    trainable = sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*.yaml")
        if re.search("^OUTPUT_DIR:", p.read_text(), re.M)
    )
    assert len(trainable) > 100
    entries = zoo_entries()
    assert sorted(entry.name for entry in entries) == trainable
    assert all(entry.method for entry in entries)
    by_name = {entry.name: entry for entry in entries}
    assert by_name[NAME].figures == (Figure("35.4", "box AP", "val", "ResObj", "paper"),)


def test_every_figure_says_what_was_measured_on_which_images_and_where_it_is_printed():
    figures = [figure for entry in zoo_entries() for figure in entry.figures]
    assert len(figures) > 80
    for figure in figures:
        assert re.fullmatch(r"[2-8]\d\.\d\d?", figure.ap), figure
        assert figure.metric in ("box AP", "mask AP", "keypoint AP", "AP50, 11 points"), figure
        assert figure.split in ("val", "test-dev", "VOC 2007 test"), figure
        assert figure.source, figure


def test_figures_of_a_configuration_that_is_not_listed_are_refused(tmp_path, monkeypatch):
    (tmp_path / "zoo.csv").write_text("config,method\na.yaml,plain\n")
    row = "b.yaml,40.0,box AP,val,A paper\n"
    (tmp_path / "figures.csv").write_text("config,ap,metric,split,source\n" + row)
    monkeypatch.setattr(zoo, "zoo_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="a figure of b.yaml, which zoo.csv does not list"):
        zoo_entries()


def test_a_printed_figure_is_in_the_table_of_configurations(repository):
    """Every row of figures.csv, with its split, so that a dash cannot hide it."""
    lines = (repository / "configs/README.md").read_text().splitlines()
    table = {line.partition("]")[0][3:]: line for line in lines if line.startswith("| [")}
    with (repository / "configs/figures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        cells = table[Path(row["config"]).stem].strip("| ").split(" | ")
        _, _, aps, splits, sources, seen, differs = cells
        printed = row["ap"] if row["metric"] == "box AP" else f"{row['ap']} {row['metric']}"
        assert printed in aps.split("; "), row
        assert row["split"] in splits.split("; ") and row["source"] in sources.split("; "), row
        assert (row["checked"] or "not confirmed") in seen.split("; "), row
        assert (row["note"] or "-") in differs.split("; "), row


def test_folder_inside_an_installed_package(tmp_path, monkeypatch):
    package = tmp_path / "site-packages" / "resobj_d2"
    monkeypatch.setattr(zoo, "_PACKAGE", package)
    with pytest.raises(FileNotFoundError, match="are missing: .*Install the package again"):
        zoo_folder()
    for folder in (package.parent / "configs", package / "configs"):  # another's, then ours
        folder.mkdir(parents=True)
        (folder / ("Base-Dense.yaml" if folder.parent == package else "x.yaml")).touch()
    assert zoo_folder() == package / "configs"


def test_a_list_of_the_zoo_needs_no_torch(repository):
    code = (
        "import sys; from resobj_d2.config.zoo import zoo_entries, zoo_names; "
        "assert zoo_entries() and zoo_names(); "
        "assert not {'torch', 'detectron2'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(resobj_d2.__file__).parents[1])},
    )


def test_a_longer_name_is_suggested_before_parts_that_are_similar():
    with pytest.raises(FileNotFoundError) as caught:
        find_config("retinanet_resobj_t2")
    first = str(caught.value).partition("Did you mean ")[2].split()[0]
    assert first == "COCO-Detection/retinanet_resobj_t2_R_50_FPN_600_1x.yaml"
