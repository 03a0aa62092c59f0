"""A study of a tiny detector on eight tiny scenes, and trainers that train nothing."""

import sys

import pytest

from resobj_d2.study.command import run_study
from resobj_d2.study.plan import read_plan

STUDY = """
name: tiny
seeds: [1, 2, 3]
options:
  IMPORTS: [tests.toy_backbone]
  MODEL:
    META_ARCHITECTURE: ResObjDenseDetector
    DEVICE: cpu
    WEIGHTS: ""
    BACKBONE: {{NAME: build_toy_pyramid}}
    DENSE: {{NUM_CLASSES: 8, TOWER: {{CHANNELS: 16, NUM_CONVS: 1}}}}
  SOLVER: {{MAX_ITER: 2, STEPS: [], IMS_PER_BATCH: 2, WARMUP_ITERS: 0}}
  DATALOADER: {{NUM_WORKERS: 0}}
  TEST: {{REPORT: false}}
  DATASETS:
    TRAIN: [study_train]
    TEST: [study_val]
    REGISTER:
      - {{name: study_train, format: scenes, split: train, root: "{root}", image_size: 64,
         num_train: 4, num_val: 2}}
      - {{name: study_val, format: scenes, split: val, root: "{root}", image_size: 64,
         num_train: 4, num_val: 2}}
config: resobj_d2://Base-Dense.yaml
datasets:
  scenes:
methods:
  fl:
  ce: {{options: {{MODEL.DENSE.CLS_LOSS.NAME: SigmoidCE}}}}
"""

# AP 40 + seed of the first method, half a point more of the other: told from the configuration.
TRAINER = """
import json, os, pathlib, sys, yaml
cfg = yaml.safe_load(open(sys.argv[1]))
folder = pathlib.Path(cfg["OUTPUT_DIR"])
other = cfg["MODEL"]["DENSE"]["CLS_LOSS"]["NAME"] == "SigmoidCE"
if other and cfg["SEED"] == int(os.environ.get("FAILING_SEED", -1)):
    print("some output")
    sys.exit("error: the loss is not finite")
ap = 40.0 + cfg["SEED"] + 0.5 * other * (1 + cfg["SEED"] / 10)
with open(folder / "metrics.json", "a") as file:
    for iteration, value in ((0, ap - 9), (1, ap)):
        file.write(json.dumps({"iteration": iteration, "bbox/AP": value, "loss": 1.0}) + "\\n")
with open(folder.parent / "order.txt", "a") as file:
    file.write(folder.name + "\\n")
"""


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


def remove_data_sets():
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for name in ("study_train", "study_val"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def write_trainer(folder):
    script = folder / "trainer.py"
    script.write_text(TRAINER)
    return lambda config: [sys.executable, str(script), str(config)]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, scenes_root):
    """The lines of a finished study's results."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "study.yaml").write_text(STUDY.format(root=scenes_root))
    plan = read_plan(folder / "study.yaml")
    assert run_study(plan, folder / "out", jobs=2, train=write_trainer(folder)) == 0
    remove_data_sets()
    return (folder / "out" / "results.jsonl").read_text().splitlines()


@pytest.fixture
def study_file(tmp_path, scenes_root):
    """A function: changes of text, and the file with them."""

    def write(*changes, name="study.yaml"):
        text = STUDY.format(root=scenes_root)
        for before, after in changes:
            assert before in text
            text = text.replace(before, after, 1)
        file = tmp_path / name
        file.write_text(text)
        return file

    return write


@pytest.fixture
def trainer(tmp_path):
    """The command of a trainer, to be given to ``run_study``."""
    return write_trainer(tmp_path)
