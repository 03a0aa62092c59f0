"""The cost table: counts by hand on networks of a few layers."""

import itertools
import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from torch import nn

from resobj_d2.analysis.cost import Cost, count, main, table, time_forward
from resobj_d2.analysis.cost_memory import measure_memory, peak_bytes
from resobj_d2.modeling.necks import NonLocalRefine


class TwoConvs(nn.Module):
    """The attributes of Detectron2's RetinaNet that the count uses."""

    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.head = Head()
        self.head_in_features = ["p3"]


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image):
        return {"p3": self.conv(image)}


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, features):
        return [self.conv(x) for x in features], []


def test_counts_by_hand():
    cost = count("two", TwoConvs(), (8, 10))
    assert cost.parameters == 3 * 4 * 9 + 4 + 4 * 2
    assert cost.flops == (3 * 4 * 9 + 4 * 2) * 80


def test_attention_is_counted():
    model = TwoConvs()
    model.head.conv = NonLocalRefine(channels=4)
    cost = count("attention", model, (4, 5))
    convolutions = (3 * 4 * 9 + 4 * 4 * 4) * 20
    assert cost.flops == convolutions + 2 * 20 * 20 * 4


def test_unknown_model_is_refused():
    with pytest.raises(ValueError, match="cannot find the network inside a Sequential"):
        model = nn.Sequential(nn.Conv2d(3, 1, 1))
        model.backbone = nn.Identity()
        count("x", model, (8, 8))


def test_each_residual_step_costs_two_convolutions(tiny_resobj):
    costs = [
        count("t", build_model(tiny_resobj("MODEL.DENSE.OBJECTNESS.STEPS", t)), (64, 64))
        for t in (1, 2)
    ]
    per_cell = 16 * 16 * 9 + 16 * 9 * 9
    assert costs[1].parameters - costs[0].parameters == per_cell + 16 + 9
    cells = 64 + 16 + 4 + 1 + 1
    # fvcore does not count biases and ReLUs.
    assert costs[1].flops - costs[0].flops == per_cell * cells


def test_table_by_hand():
    first = Cost("a", 1_500_000, 2e9, [10.0, 20.0, 30.0])
    second = Cost("b", 2_000_000, 3e9, [11.0, 24.0, 27.0])
    rows = table([first, second]).splitlines()
    assert rows[2] == "| a | 1.50 | 2.00 | 1.000 | 20.0 | 1.000 (1.000..1.000) |"
    assert rows[3] == "| b | 2.00 | 3.00 | 1.500 | 24.0 | 1.100 (0.900..1.200) |"
    first.inference_bytes, first.training_bytes = 12_400_000, 98_600_000
    assert table([first]).splitlines()[2].endswith(" 1.000 (1.000..1.000) | 12 | 99 |")
    untimed = table([Cost("a", 1_500_000, 2e9)]).splitlines()
    assert untimed[2] == "| a | 1.50 | 2.00 | 1.000 |"
    assert {row.count("|") for row in rows} == {7} and {row.count("|") for row in untimed} == {5}


def test_first_round_is_not_counted():
    ticks = itertools.count()
    times = time_forward([TwoConvs(), TwoConvs()], (8, 8), rounds=3, clock=lambda: next(ticks))
    assert times == [[1000.0] * 3] * 2


def test_command(tiny_options, tmp_path, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text('DATASETS:\n  TRAIN: ("nobody_registered_this",)\n')
    output = tmp_path / "cost.json"
    options = ["--size", "64", "64", "--rounds", "1", "--memory", "--json", str(output)]
    assert main([str(config), str(config), *options, "--opts", *tiny_options]) == 0
    assert capsys.readouterr().out.count("| tiny |") == 2
    first, second = json.loads(output.read_text())
    assert first["flops"] == second["flops"] > 0
    assert len(first["milliseconds"]) == 1
    assert first["inference_bytes"] > 4 * first["parameters"]
    # Weights, gradients and momentum.
    assert first["training_bytes"] > 12 * first["parameters"]


def test_configurations_of_the_same_name_and_trailing_overrides(
    tiny_options, tmp_path, capsys, monkeypatch
):
    files = [tmp_path / name / "run" / "config.yaml" for name in ("a", "b")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("VERSION: 2\n")
    arguments = [*map(str, files), "--size", "64", "64", "--threads", "1", *tiny_options]
    used = []
    monkeypatch.setattr(
        "resobj_d2.analysis.cost.build_model", lambda cfg: used.append(cfg) or build_model(cfg)
    )
    assert main([*arguments, "MODEL.DENSE.NUM_CLASSES", "5"]) == 0
    assert [cfg.MODEL.DENSE.NUM_CLASSES for cfg in used] == [5, 5]
    printed = capsys.readouterr().out
    assert "one image of 64x64, 1 thread\n" in printed
    assert "| a/run/config |" in printed and "| b/run/config |" in printed
    with pytest.raises(ValueError, match="name a configuration before MODEL.DEVICE"):
        main(["MODEL.DEVICE", "cpu"])


@pytest.mark.parametrize("key, value", [("PRETRAINED", "True"), ("WEIGHTS", "package:nowhere")])
def test_no_weights_are_fetched(key, value, tiny_options, tmp_path, monkeypatch):
    config = tmp_path / "tiny.yaml"
    config.write_text(f"MODEL: {{TIMM: {{{key}: {value}}}}}\n")
    built = []
    monkeypatch.setattr(
        "resobj_d2.analysis.cost.build_model", lambda cfg: built.append(cfg) or build_model(cfg)
    )
    assert main([str(config), "--size", "64", "64", "--opts", *tiny_options]) == 0
    (cfg,) = built
    assert (cfg.MODEL.TIMM.PRETRAINED, cfg.MODEL.TIMM.WEIGHTS) == (False, "")


def test_peak_memory_by_hand():
    """Two of three tensors live at once; what was there before does not count, nor do its frees."""
    earlier = [torch.zeros(500_000)]

    def call():
        first = torch.empty(1_000_000)
        second = first.half()
        del first
        earlier.clear()
        return torch.cat((second, second[:250_000]))

    assert peak_bytes(call, torch.device("cpu")) == pytest.approx(6e6, abs=1e3)


def test_memory_of_a_model_by_hand():
    """Conv's output and the loss; the weight with its gradient and momentum are small."""
    model = OneConv()
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "OneConv"
    before = {name: x.clone() for name, x in model.state_dict().items()}
    inference, training = measure_memory(cfg, model, (200, 300))
    image, maps = 4 * 3 * 200 * 300, 4 * 8 * 200 * 300
    assert inference == pytest.approx(image + maps, abs=1e4)
    assert inference < training < 5 * (image + maps)
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert not any(x.grad is not None for x in model.parameters())


class OneConv(nn.Module):
    """A detector's interface: an image to losses or detections."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, inputs):
        image = inputs[0]["image"].float()
        maps = self.conv(image[None])
        return {"loss": maps.mean()} if self.training else maps


@pytest.mark.parametrize("kind", [[], ["MODEL.MASK_ON", True, "MODEL.KEYPOINT_ON", True]])
def test_two_stage_detectors_are_measured_with_what_they_learn(tiny_rcnn, kind):
    cfg = tiny_rcnn("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", "(8,)", *kind)
    cfg.MODEL.ROI_MASK_HEAD.NAME, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = "MaskRCNNConvUpsampleHead", 8
    # Untrained, it detects as much as it may, which can take more than training.
    for found in measure_memory(cfg, build_model(cfg), (96, 128)):
        assert 10**6 < found < 10**8
