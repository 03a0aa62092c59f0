"""EfficientDet's compound scaling: the networks have the published sizes."""

import pytest
import torch
from torch import nn

pytest.importorskip("timm", reason="EfficientNet comes from the optional package timm")

from docs.generators.efficientdet_scaling import PUBLISHED, main, measure, multiply_adds


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "d0" else [pytest.mark.slow]) for n in PUBLISHED],
)
def test_size_is_the_published_one(name, repository):
    cost, _ = measure(repository / f"configs/COCO-Detection/efficientdet_{name}.yaml")
    published = PUBLISHED[name]
    assert cost.parameters / 1e6 == pytest.approx(published.parameters, rel=0.02)
    assert cost.flops / 1e9 == pytest.approx(published.gflops, rel=0.02)


def test_every_yaml_of_the_family_has_a_row(repository):
    yamls = (repository / "configs/COCO-Detection").glob("efficientdet_d?.yaml")
    assert {f"efficientdet_{name}" for name in PUBLISHED} == {path.stem for path in yamls}


class Convs(nn.Module):
    """The attributes of Detectron2's RetinaNet that the count uses."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.SiLU()
        )
        self.backbone.forward = lambda x, run=self.backbone.forward: {"p3": run(x)}
        self.head = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 5, 1))
        self.head.forward = lambda maps, run=self.head.forward: run(maps[0])
        self.head_in_features = ["p3"]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_multiply_adds_by_hand(device):
    with torch.device(device):
        model = Convs()
    cells = 4 * 6
    expected = cells * (3 * 9 * 4 + 4 + 9 * 4 + 4 * 5)  # dense, normalisation, depthwise, 1x1
    assert multiply_adds(model, (8, 12)) == expected


def test_table_has_the_published_columns(repository, monkeypatch, capsys):
    monkeypatch.setattr("docs.generators.efficientdet_scaling.PUBLISHED", {"d0": PUBLISHED["d0"]})
    assert main(["--configs", str(repository / "configs/COCO-Detection")]) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == ["D0", "512", "3.88", "3.9"] and cells[6] == "2.5"
    assert len(header.split("|")) == len(row.split("|"))
