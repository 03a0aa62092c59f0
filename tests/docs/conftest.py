"""Shared by the tests of docs/migration.md."""

import re
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model

from resobj_d2.config import load_config
from resobj_d2.matching import OctaveAnchors

STRIDES = [8, 16, 32, 64, 128]


@pytest.fixture
def migration(repository, tmp_path):
    """The page: its text, ``rows(heading)`` of a table, and ``config(n)`` of its n-th yaml."""
    text = (repository / "docs/migration.md").read_text()

    def rows(heading):
        table = re.search(r"\n\|.*?\n\n", text[text.index(heading) :], re.S)[0]
        lines = table.strip().splitlines()[2:]
        return [[cell.strip().strip("`") for cell in line.split("|")[1:-1]] for line in lines]

    def config(number):
        yaml = re.findall(r"```yaml\n(.*?)```", text, re.S)[number]
        path = tmp_path / "page.yaml"
        path.write_text(yaml)
        return load_config(str(path), training=False)

    return SimpleNamespace(text=text, rows=rows, config=config)


@pytest.fixture
def retinanets(tiny_cfg):
    """A function: overrides to our detector and Detectron2's RetinaNet."""

    def build(*opts):
        cfg = tiny_cfg("MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.NUM_CLASSES", 3, *opts)
        sizes = [[4 * s * 2 ** (i / 3) for i in range(3)] for s in STRIDES]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = sizes
        ours = build_model(cfg)
        cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
        torch.manual_seed(0)
        return ours, build_model(cfg)

    return build


@pytest.fixture
def migration_code(migration, retinanets):
    """What the page's Python defines; the line that needs one of Detectron2's models gets one."""
    variables = {"model": retinanets()[1]}
    for block in re.findall(r"```python\n(.*?)```", migration.text, re.S):
        exec(block, variables)
    return variables


@pytest.fixture
def octave():
    """RetinaNet's anchors as created by a config."""
    return OctaveAnchors(strides=STRIDES)
