"""What the README and the docs show exists and runs."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "configs/README.md", "csrc/README.md",
         *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]  # fmt: skip


def test_operator_example_runs(repository):
    (code,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.S)
    corners = torch.rand(500, 2) * 100
    gt_corners = torch.rand(19, 2) * 100
    variables = {
        "anchors": torch.cat((corners, corners + 20), dim=1),
        "gt_boxes": torch.cat((gt_corners, gt_corners + 25), dim=1),
        "logits": torch.randn(3, 500, 5, requires_grad=True),
        "classes": torch.randint(-1, 6, (3, 500)),
        "objectness": torch.randn(3, 500, requires_grad=True),
        "residuals": torch.randn(2, 3, 500, requires_grad=True),
        "num_foreground": 3,
        "cls_maps": [torch.randn(3, 10, 10, 25)],
        "box_maps": [torch.randn(3, 8, 10, 25)],
        "level_anchors": [torch.cat((corners, corners + 20), dim=1)],
        "objectness_maps": [torch.randn(3, 2, 10, 25)],
    }
    variables["boxes"] = variables["gt_boxes"]
    exec(code, variables)
    assert variables["ious"].shape == (19, 500)
    assert variables["match"].label.shape == (3, 500)
    assert torch.isfinite(variables["loss"])
    assert variables["detections"].boxes.shape == (3, 100, 4)


def test_yaml_of_a_method_loads(repository, tmp_path):
    from resobj_d2.config import load_config

    (yaml,) = re.findall(r"```yaml\n(.*?)```", (repository / "README.md").read_text(), re.S)
    (tmp_path / "mine.yaml").write_text(yaml)
    dense = load_config(str(tmp_path / "mine.yaml"), training=False).MODEL.DENSE
    assert dense.OBJECTNESS.ENABLED and dense.OBJECTNESS.SOURCE == "class"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_config_files_exist(repository, page):
    path = repository / page
    text = path.read_text()
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    missing = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    configs = re.findall(r"(?<![\w./])configs/[\w./-]+\.yaml", text)
    missing += [c for c in configs if not (repository / c).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_config_keys_exist(repository, page):
    from detectron2.config import get_cfg

    from resobj_d2.config import add_resobj_config

    cfg = get_cfg()
    add_resobj_config(cfg)
    keys = re.findall(r"\b(?:MODEL|DATASETS|DATALOADER|SOLVER|TEST|INPUT)\.[A-Z0-9_.]*[A-Z0-9_]",
                      (repository / page).read_text())  # fmt: skip
    for key in keys:
        node = cfg
        for part in key.split("."):
            assert part in node, f"{page} names {key}, which does not exist"
            node = node[part]
