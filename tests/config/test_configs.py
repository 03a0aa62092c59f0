"""Every yaml's detector builds, trains a step, evaluates and survives a checkpoint; the table is
complete."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.utils.events import EventStorage
from torch import nn

import tests.toy_backbone  # noqa: F401 (registers it)
from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.config.unused import unused_keys
from resobj_d2.engine import MultiScale
from resobj_d2.engine.schedule import build_schedule
from tests.narrow_configs import (
    COMPLETE,
    CONFIGS,
    accept_everything,
    build_narrow,
    distinct,
    narrow,
    read,
)


@pytest.mark.parametrize("path", distinct(), ids=lambda p: p.stem)
def test_yaml_steps_evaluates_and_round_trips(path, make_batch, tmp_path):
    cfg, model, batch = build_narrow(path, make_batch, [(64, 64, 2), (64, 64, 0)])
    with EventStorage():
        losses = model(batch)
    assert all(torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    torch.optim.SGD(model.parameters(), lr=1e-3).step()

    accept_everything(model)
    with torch.no_grad():
        before = model(batch)
    assert len(before[0]["instances"]) > 0
    ResObjCheckpointer(model, str(tmp_path)).save("model")
    copied = accept_everything(build_model(copy.deepcopy(cfg)))
    ResObjCheckpointer(copied, strict=True).load(str(tmp_path / "model.pth"))
    with torch.no_grad():
        after = copied(batch)
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a["instances"].scores, b["instances"].scores)
        assert torch.equal(a["instances"].pred_boxes.tensor, b["instances"].pred_boxes.tensor)


@pytest.mark.parametrize("name", ["everything", "everything_fsaf"])
def test_everything_together_learns(name, make_batch):
    cfg = narrow(read(CONFIGS / f"small/cells_retinanet_{name}.yaml"))
    # The running mean would fall from its initial 100, and with it the losses would rise.
    cfg.MODEL.DENSE.NORMALIZER.NAME = "ForegroundCount"
    cfg.MODEL.BFP.PYRAMID = "build_toy_pyramid"
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batch = make_batch([(96, 96, 3), (96, 96, 1)])
    totals = []
    for _ in range(30):
        total = sum(model(batch).values())
        totals.append(total.item())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
    # First it rises: the better the boxes, the more of them are foreground of the second stage.
    assert totals[-1] < 0.2 * totals[0]
    suffixes = ("", "_stage1", "_anchor_free") if name == "everything_fsaf" else ("", "_stage1")
    assert all(model.statistics[f"num_foreground{x}"] > 0 for x in suffixes)


@pytest.mark.parametrize("path", COMPLETE, ids=lambda p: p.stem)
def test_output_folder_is_named_after_the_yaml(path):
    assert read(path).OUTPUT_DIR == f"output/{path.stem}"


def test_no_yaml_sets_a_key_that_its_model_does_not_read():
    found = {path.stem: list(unused_keys(read(path))) for path in COMPLETE}
    assert {stem: keys for stem, keys in found.items() if keys} == {}


def test_table_lists_every_coco_config():
    """configs/README.md names each yaml once."""
    rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in (CONFIGS / "README.md").read_text().splitlines()
        if line.startswith("| [")
    ]
    listed = [row[0].split("]")[0].strip("[") for row in rows]
    assert sorted(listed) == sorted(p.stem for p in CONFIGS.glob("*-Detection/*.yaml"))


def darknets_rate(iteration):
    """Darknet's ``get_current_rate`` with the numbers of yolov3.cfg."""
    if iteration < 1000:
        return 0.001 * ((iteration + 1) / 1000) ** 4
    return 0.001 * 0.1 ** sum(iteration >= step for step in (400000, 450000))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("COCO-Detection/yolov3_*.yaml")))
def test_yolov3_is_trained_on_darknets_schedule(path):
    cfg = read(path)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = build_optimizer(cfg, network)
    groups = optimizer.param_groups
    assert {group["momentum"] for group in groups} == {0.9}
    for group in groups:  # Darknet decays the weights of convolutions alone
        convolution = {p is network[0].weight for p in group["params"]}
        assert convolution == {group["weight_decay"] == 0.0005}
        assert group["weight_decay"] in (0.0005, 0.0)
    schedule = build_schedule(cfg, optimizer)
    optimizer.step()
    end = 500200
    for iteration in (0, 9, 499, 999, 1000, 399999, 400000, 449999, 450000, end - 1):
        schedule.last_epoch = iteration - 1
        schedule.step()
        for group in groups:
            assert group["lr"] == pytest.approx(darknets_rate(iteration), rel=1e-6), iteration
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH) == (end, 64)

    # ``(rand() % 10 + 10) * 32`` pixels for ten batches each; 608 for the last 200.
    size_at = MultiScale.from_config(cfg).size_at
    sizes = [size_at(i, end) for i in range(3000)]
    assert set(sizes) == {(i + 10) * 32 for i in range(10)}
    assert all(len(set(sizes[i : i + 10])) == 1 for i in range(0, len(sizes), 10))
    assert len({size_at(i, end) for i in range(end - 400, end - 200)}) > 1
    assert {size_at(i, end) for i in range(end - 200, end)} == {608}


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("COCO-Detection/yolov3_*.yaml")))
def test_yolov3_is_what_its_name_says(path):
    """yolov3_<method>_<side of the test images>, T in the method."""
    _, *method, size = path.stem.split("_")
    cfg = narrow(read(path))
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (int(size), int(size))
    steps = int(method[-1].removeprefix("t")) if method[0] == "resobj" else 0
    assert build_model(cfg).num_steps == steps


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("COCO-Detection/ssd512_*.yaml")))
def test_ssd512_decays_biases_like_weights(path):
    """As mmdetection does; without a word from the yaml, Detectron2 0.5 would not."""
    groups = build_optimizer(read(path), nn.Conv2d(3, 4, 1)).param_groups
    assert {group["weight_decay"] for group in groups} == {0.0005}


@pytest.mark.parametrize(
    "name, sizes, iterations, steps",
    [
        ("500_1x", (500,), 90000, (60000, 80000)),
        ("400_1x", (400,), 90000, (60000, 80000)),
        ("600_1x", (600,), 90000, (60000, 80000)),
        ("700_1x", (700,), 90000, (60000, 80000)),
        ("600_2x", (600,), 180000, (120000, 160000)),
        ("800_1x", (800,), 90000, (60000, 80000)),
        ("800_2x", (800,), 180000, (120000, 160000)),
        ("jitter_1.5x", (640, 672, 704, 736, 768, 800), 135000, (90000, 120000)),
    ],
)
def test_schedules(name, sizes, iterations, steps):
    paths = list(CONFIGS.glob(f"COCO-Detection/*_{name}.yaml"))
    assert paths
    for path in paths:
        cfg = read(path)
        assert tuple(cfg.INPUT.MIN_SIZE_TRAIN) == sizes
        assert cfg.SOLVER.MAX_ITER == iterations
        assert tuple(cfg.SOLVER.STEPS) == steps
        rate = 0.02 if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" else 0.01
        assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, rate)
        assert cfg.MODEL.RESNETS.DEPTH == (101 if "_101_" in path.stem else 50)
