"""A loss of the user's own package: named by a yaml, with options of its own, in every command."""

import importlib
import json
import os
import sys
import textwrap

import pytest

from resobj_d2.config import load_config
from resobj_d2.config.imports import import_modules
from resobj_d2.losses import CLS_LOSS_REGISTRY

PACKAGE = {
    "my_losses/__init__.py": "",
    "my_losses/power.py": """
        from typing import Annotated

        from torch.nn import functional as F

        from resobj_d2.losses import CLS_LOSS_REGISTRY, SigmoidScores
        from resobj_d2.options import Option


        @CLS_LOSS_REGISTRY.register()
        class PowerLoss(SigmoidScores):
            def __init__(
                self, *, exponent: Annotated[float, Option("of the error", key="POWER")] = 2.0
            ) -> None:
                self.exponent = exponent

            def __call__(self, logits, labels, mask):
                targets = F.one_hot(labels.clamp(min=0), logits.shape[-1] + 1)[..., :-1]
                error = (logits.float().sigmoid() - targets).abs() ** self.exponent
                return (error * mask[..., None]).sum()

            def per_anchor(self, logits, labels):
                raise NotImplementedError
    """,
}
YAML = """
_BASE_: {base}
IMPORTS: ["my_losses.power"]
MODEL:
  DENSE:
    CLS_LOSS: {{NAME: "PowerLoss", POWER: 1.5}}
DATASETS:
  REGISTER:
    - {{name: "s_train", format: "scenes", split: "train", root: "{root}", image_size: 64,
       num_train: 4, num_val: 2}}
    - {{name: "s_val", format: "scenes", split: "val", root: "{root}", image_size: 64,
       num_train: 4, num_val: 2}}
  TRAIN: ["s_train"]
  TEST: ["s_val"]
SOLVER: {{MAX_ITER: 2, STEPS: [], IMS_PER_BATCH: 2}}
INPUT: {{MIN_SIZE_TRAIN: [64], MIN_SIZE_TEST: 64}}
OUTPUT_DIR: "{root}/out"
"""


@pytest.fixture
def project(tmp_path, repository):
    """A folder outside the tree with a package and a yaml of the user's own."""
    for name, source in PACKAGE.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(source))
    base = repository / "configs/small/scenes_retinanet_fl.yaml"
    (tmp_path / "mine.yaml").write_text(YAML.format(base=base, root=tmp_path))
    before = dict(CLS_LOSS_REGISTRY._obj_map)
    yield tmp_path
    # Its keys would be part of every configuration of the tests that follow.
    CLS_LOSS_REGISTRY._obj_map.clear()
    CLS_LOSS_REGISTRY._obj_map.update(before)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_losses"]:
        del sys.modules[name]


@pytest.fixture
def run(project, warm_python):
    """A function that runs a command of Python's which finds the project."""
    path = os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return lambda *command: warm_python.run(
        [sys.executable, *command], env=environment, timeout=280, check=True
    )


@pytest.mark.slow
def test_a_package_outside_the_tree_trains_evaluates_and_predicts(project, repository, run):
    config = ["--config-file", str(project / "mine.yaml")]
    weights = ["MODEL.WEIGHTS", str(project / "out/model_final.pth")]
    train = str(repository / "train_net.py")
    run(train, *config)
    run(train, *config, "--eval-only", *weights)
    # What the yaml does not import the command line may.
    (project / "mine.yaml").write_text((project / "mine.yaml").read_text().replace("IMPORTS:", "#"))
    run(
        "-m", "resobj_d2", "predict", *config, "--import", "my_losses.power",
        "--input", str(project / "scenes/val"), "--output", str(project / "drawn"), *weights,
    )  # fmt: skip
    results = json.loads((project / "drawn/results.json").read_text())
    assert isinstance(results, list)


def test_its_options_are_keys_with_their_defaults(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    cfg = load_config(str(project / "mine.yaml"), training=False)
    assert cfg.MODEL.DENSE.CLS_LOSS.POWER == 1.5
    other = load_config("", ["DATASETS.TEST", "()", "DATASETS.TRAIN", "()"])
    assert other.MODEL.DENSE.CLS_LOSS.POWER == 2.0
    opts = ["IMPORTS", "['my_losses.power']", "MODEL.DENSE.CLS_LOSS.NAME", "SigmoidCE"]
    with pytest.raises(ValueError, match="CLS_LOSS.POWER is 1.5, .* PowerLoss would, with"):
        load_config(str(project / "mine.yaml"), opts, training=False)


def test_modules_that_are_not_there_are_explained(project, monkeypatch):
    monkeypatch.syspath_prepend(project)
    with pytest.raises(ImportError, match="IMPORTS: there is no module my_loses.*PYTHONPATH"):
        load_config("", ["IMPORTS", "['my_loses']"])
    with pytest.raises(ImportError, match="IMPORTS: there is no module my_losses.powr"):
        import_modules(["my_losses.powr"])
    (project / "broken_losses.py").write_text("import not_installed_at_all")
    importlib.invalidate_caches()
    with pytest.raises(ImportError, match="broken_losses cannot be imported: .*not_installed"):
        import_modules(["broken_losses"])
    with pytest.raises(ValueError, match="IMPORTS"):
        load_config("", ["IMPORTS", "my_losses"])
