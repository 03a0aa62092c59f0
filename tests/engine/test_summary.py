import io
from types import SimpleNamespace

import pytest
from torch import nn

from resobj_d2 import ops
from resobj_d2.engine.best import Best
from resobj_d2.engine.summary import (
    Contents,
    count_contents,
    final_summary,
    results_line,
    results_table,
    start_summary,
    write_model,
)

NAN = float("nan")
BBOX = {"AP": 12.34, "AP50": 50.0, "APs": NAN, "AP-cat": 1.0, "AP-dog": 2.0}


def test_crowd_regions_are_no_boxes():
    records = [{"annotations": [{}, {"iscrowd": 1}, {"iscrowd": 0}]}, {"annotations": []}, {}]
    assert count_contents(records) == Contents(images=3, boxes=2)


def test_table_has_a_row_for_each_task_and_the_classes_below():
    table = results_table({"bbox": BBOX, "voc": {"AP": 40.0, "AP75": 3.0}})
    head, _, bbox, voc, classes = table.splitlines()
    assert head.split() == ["AP", "AP50", "APs", "AP75"]
    assert bbox.split() == ["bbox", "12.3", "50.0", "-", "-"]
    assert voc.split() == ["voc", "40.0", "-", "-", "3.0"]
    assert classes == "AP by class, bbox: cat 1.0, dog 2.0"


def test_table_of_several_data_sets():
    results = {"set a": {"bbox": {"AP": 1.0}}, "set b": {"bbox": {"AP": 2.0}}}
    assert [line.split() for line in results_table(results).splitlines()[2:]] == [
        ["set", "a", "bbox", "1.0"],
        ["set", "b", "bbox", "2.0"],
    ]
    assert results_line(results) == "set a bbox AP 1.0; set b bbox AP 2.0"


def test_many_classes_stay_within_the_width():
    row = {"AP": 1.0, **{f"AP-class number {i}": float(i) for i in range(80)}}
    lines = results_table({"bbox": row}).splitlines()
    assert len(lines) > 10 and max(map(len, lines)) <= 100
    assert " ".join(" ".join(lines).split()).count("class number") == 80


@pytest.mark.parametrize(
    ("best", "checkpoints", "used"),
    [
        (None, ["last checkpoint  out/model_final.pth"], "out/model_final.pth"),
        (
            Best("out/model_final.pth", 12.0, 9),
            ["best checkpoint  out/model_final.pth (AP 12.0 after iteration 10)"],
            "out/model_final.pth",
        ),
        (
            Best("out/model_best.pth", 12.0, 4),
            [
                "best checkpoint  out/model_best.pth (AP 12.0 after iteration 5)",
                "last checkpoint  out/model_final.pth",
            ],
            "out/model_best.pth",
        ),
    ],
)
def test_final_summary_names_the_checkpoint_to_use(best, checkpoints, used):
    text = final_summary(
        SimpleNamespace(OUTPUT_DIR="out", DATASETS=SimpleNamespace(TEST=("cells_test",))),
        {"bbox": BBOX},
        best=best,
        last="out/model_final.pth",
        pictures=["out/curves.png"],
        iterations=10,
    )
    lines = text.splitlines()
    assert f"Evaluation after iteration 10:\n{results_table({'bbox': BBOX})}\n" in text
    assert [line for line in lines if "checkpoint  " in line] == checkpoints
    assert "picture          out/curves.png" in lines
    commands = [line for line in lines if line.startswith(("evaluate ", "predict "))]
    assert len(commands) == 2 and all(f" --weights {used}" in line for line in commands)


def test_start_summary(tiny_cfg):
    model = nn.Linear(1000, 1000)
    model.bias.requires_grad_(False)
    cfg = tiny_cfg("DATASETS.TRAIN", "()", "SOLVER.MAX_ITER", 50, "SOLVER.CHECKPOINT_PERIOD", 20)
    parts = {"train": Contents(5, 6), "test": {"val": Contents(7, 8)}, "weights": "", "seed": 9}
    lines = start_summary(cfg, model, start_iter=0, **parts).splitlines()
    rows = {line[:15].strip(): line[15:] for line in lines}
    assert rows["model"] == "Linear, 1.0 million parameters, 0.0 million of them frozen"
    assert rows["weights"] == "random"
    assert rows["test data"] == "val: 7 images, 8 boxes"
    assert rows["training"] == "iterations 1 to 50, 16 images each"
    assert rows["seed"] == "9, drawn; SEED 9 repeats the run"
    assert rows["checkpoints"].startswith("every 20 iterations")
    operators = ops.describe_operators().removeprefix("operators: ")
    assert operators in " ".join(" ".join(lines).split())
    cfg.merge_from_list(
        ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.WEIGHTS", "x.pth"]
    )
    assert "weights        x.pth in the backbone, random elsewhere" in start_summary(
        cfg, model, start_iter=0, **parts
    )
    loaded = start_summary(cfg, model, start_iter=0, **{**parts, "weights": "y.pth"})
    assert "weights        y.pth\n" in loaded  # which replaces them
    text = start_summary(cfg, model, start_iter=50, **parts)
    assert "iteration 50 of 50 is reached, so this evaluates and ends" in " ".join(text.split())


def test_model_file_lists_structure_and_parameters():
    model = nn.Sequential(nn.Linear(2, 3))
    model[0].bias.requires_grad_(False)
    file = io.StringIO()
    write_model(model, file)
    assert "(0): Linear(in_features=2, out_features=3" in file.getvalue()
    rows = [line.split() for line in file.getvalue().splitlines()[-2:]]
    assert rows == [["0.weight", "(3,", "2)", "6"], ["0.bias", "(3,)", "3", "frozen"]]


def test_without_a_test_set_there_is_no_command_to_evaluate():
    cfg = SimpleNamespace(OUTPUT_DIR="out", DATASETS=SimpleNamespace(TEST=()))
    text = final_summary(cfg, None, best=None, last="out/a.pth", pictures=[], iterations=3)
    assert " eval " not in text and " predict " in text
