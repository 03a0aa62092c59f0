"""A dump holds what an evaluation of the same model sees, and what its detections came from."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, pairwise_iou

from resobj_d2.analysis.dump import dump_model, main
from resobj_d2.analysis.dump_file import load_dump
from resobj_d2.config import load_config
from resobj_d2.data.catalog import dataset_record
from resobj_d2.engine import Trainer
from resobj_d2.ops import batched_nms

THRESHOLD = "MODEL.DENSE.POSTPROCESS.SCORE_THRESH"
CASCADE = [
    "MODEL.ROI_HEADS.NAME", "CascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "2000",
]  # fmt: skip


@pytest.fixture
def configured(tmp_path, clean_catalogs):
    """A function: a config to that with random weights on three generated pictures."""

    def build(cfg):
        scenes = [
            {"name": "dump_val", "format": "scenes", "split": "val", "root": str(tmp_path),
             "image_size": 64, "num_train": 2, "num_val": 3}
        ]  # fmt: skip
        opts = [
            "DATASETS.REGISTER", str(scenes),
            "DATASETS.TEST", "('dump_val',)",
            "DATALOADER.NUM_WORKERS", "0",
            "INPUT.MIN_SIZE_TEST", "96",
            "OUTPUT_DIR", str(tmp_path),
        ]  # fmt: skip
        torch.manual_seed(0)
        model = build_model(cfg)
        for name, weight in model.named_parameters():
            if name.endswith("weight") and "backbone" not in name:
                torch.nn.init.normal_(weight, std=0.05)
        torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
        cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
        (tmp_path / "config.yaml").write_text(cfg.dump())
        return load_config(str(tmp_path / "config.yaml"), opts, training=False)

    return build


def outputs_of(cfg, record):
    """The model's own detections by row of the record."""
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(cfg.MODEL.WEIGHTS)["model"])
    rows = {identity: row for row, identity in enumerate(record.images.ids)}
    with torch.no_grad():
        for inputs in Trainer.build_test_loader(cfg, record.name):
            yield rows[inputs[0]["image_id"]], model(inputs)[0]["instances"]


def check_detections(dump, cfg, record):
    for row, expected in outputs_of(cfg, record):
        mine = dump.detections.image_index == row
        assert mine.sum() == len(expected) > 0
        np.testing.assert_allclose(dump.detections.scores[mine], expected.scores, rtol=1e-4)
        assert dump.detections.classes[mine].tolist() == expected.pred_classes.tolist()
        boxes = expected.pred_boxes.tensor
        np.testing.assert_allclose(dump.detections.boxes[mine], boxes, rtol=1e-4, atol=1e-3)


def check_ground_truth(dump, record):
    assert dump.images.ids == record.images.ids
    assert dump.class_names == record.class_names
    for row, own in enumerate(record.rows_by_image()):
        mine = dump.objects.image_index == row
        x, y, width, height = record.annotations.boxes[own].T
        expected = np.stack((x, y, x + width, y + height), axis=1)
        np.testing.assert_array_equal(dump.objects.boxes[mine], expected)
        np.testing.assert_array_equal(dump.objects.areas[mine], record.annotations.areas[own])
        assert dump.objects.classes[mine].tolist() == record.annotations.classes[own].tolist()


def check_prior_ious(dump):
    """Against Detectron2's function, image by image."""
    table = dump.candidates
    for row in range(len(dump.images)):
        mine = table.image_index == row
        boxes = dump.objects.boxes[(dump.objects.image_index == row) & ~dump.objects.crowd]
        ious = pairwise_iou(
            Boxes(torch.from_numpy(boxes).float()), Boxes(torch.from_numpy(table.priors[mine]))
        )
        np.testing.assert_allclose(table.prior_ious[mine], ious.amax(dim=0), atol=1e-5)


def test_dense_detector(tiny_resobj, configured):
    cfg = configured(
        tiny_resobj(
            "MODEL.DENSE.NUM_CLASSES", "8",
            "MODEL.DENSE.STAGES", "[{}]",
            "MODEL.DENSE.QUALITY.ENABLED", "True",
            THRESHOLD, "0.0",
        )
    )  # fmt: skip
    record = dataset_record("dump_val")
    dump = load_dump(dump_model(cfg, cfg.OUTPUT_DIR + "/dump"))
    check_ground_truth(dump, record)
    check_detections(dump, cfg, record)
    check_prior_ious(dump)
    table = dump.candidates
    assert np.bincount(table.image_index).tolist() == [1000] * 3 and table.levels.max() > 0
    assert dump.about["num_steps"] == 2 and dump.about["max_candidates"] == 1000
    factors = table.factors
    np.testing.assert_allclose(factors["objectness"], factors["objectness_step2"], rtol=1e-5)
    assert (factors["objectness_step0"] != factors["objectness"]).any()
    alpha = cfg.MODEL.DENSE.QUALITY.ALPHA
    score = (factors["cls"] * factors["objectness"]) ** (1 - alpha)
    score *= factors["quality"] ** alpha
    np.testing.assert_allclose(score, table.scores, rtol=1e-4)
    assert len(dump.steps) == 3 and dump.steps[-1] is dump.detections
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(cfg.MODEL.WEIGHTS)["model"])
    inputs = next(iter(Trainer.build_test_loader(cfg, "dump_val")))
    for own, outputs in zip(dump.steps, model.detections_per_step(inputs), strict=True):
        expected = outputs[0]["instances"].scores
        np.testing.assert_allclose(own.scores[own.image_index == 0], expected, rtol=1e-5)
    # Two stages move the boxes: prior, after the first, after the second.
    assert len(table.stages) == 2
    assert np.abs(table.stages[0] - table.priors).max() > 0.1
    assert np.abs(table.boxes - table.stages[0]).max() > 0.1
    # The best anchor of an object is at least as good as that of any candidate.
    assert np.nanmax(dump.objects.anchor_ious) >= table.prior_ious.max() - 1e-6 > 0
    # NMS on the candidates gives the detections.
    first = torch.from_numpy(table.image_index == 0)
    boxes, scores = (torch.from_numpy(x)[first] for x in (table.boxes, table.scores))
    classes = torch.from_numpy(table.classes)[first].long()
    kept = batched_nms(boxes, scores, classes, cfg.MODEL.DENSE.POSTPROCESS.NMS_THRESH, 100)
    top = dump.detections.scores[dump.detections.image_index == 0][:5]
    np.testing.assert_allclose(scores[kept][:5], top, rtol=1e-5)


@pytest.mark.parametrize("heads", [[], CASCADE], ids=["faster", "cascade"])
def test_two_stages(tiny_rcnn, configured, heads):
    cfg = configured(
        tiny_rcnn(
            "MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", "True",
            "MODEL.RESOBJ_RPN.SAMPLER.NAME", "KeepAll",
            "MODEL.ROI_HEADS.NUM_CLASSES", "8",
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.1",
            *heads,
        )
    )  # fmt: skip
    record = dataset_record("dump_val")
    dump = load_dump(dump_model(cfg, cfg.OUTPUT_DIR + "/dump", max_candidates=200))
    check_detections(dump, cfg, record)
    check_prior_ious(dump)
    table = dump.candidates
    assert dump.sources == ["rpn", "roi"] and dump.about["num_steps"] == 2
    rpn, roi = table.sources == 0, table.sources == 1
    assert np.bincount(table.image_index[rpn]).tolist() == [200] * 3
    assert (table.classes[rpn] == -1).all() and (table.classes[roi] >= 0).all()
    assert (table.levels[rpn] >= 0).all() and (table.levels[roi] == -1).all()
    np.testing.assert_array_equal(
        table.factors["objectness_step2"][rpn], table.factors["objectness"][rpn]
    )
    assert np.isnan(table.factors["objectness"][roi]).all()
    assert len(table.stages) == (3 if heads else 1)
    if heads:
        assert np.isnan(table.stages[0][rpn]).all() and np.isfinite(table.stages[0][roi]).all()
    # A detection is a candidate of the RoI heads, clipped to the picture.
    image = table.image_index == 0
    clipped = table.boxes[roi & image].clip(0, 64)
    found = dump.detections.boxes[dump.detections.image_index == 0][0]
    assert np.abs(clipped - found).max(axis=1).min() < 1e-3


def test_command(tiny_cfg, configured, tmp_path, capsys):
    cfg = configured(tiny_cfg("MODEL.DENSE.NUM_CLASSES", "8", THRESHOLD, "0.0"))
    (tmp_path / "own.yaml").write_text(cfg.dump())
    weights = str(tmp_path / "model.pth")
    arguments = ["--config-file", str(tmp_path / "own.yaml"), "--weights", weights]
    assert main([*arguments, "--candidates", "7", "MODEL.WEIGHTS", "elsewhere.pth"]) == 0
    assert f"{tmp_path}/dump" in capsys.readouterr().out
    dump = load_dump(tmp_path)  # the run's folder
    assert len(dump.candidates) == 21 and dump.about["weights"] == weights
    assert list(dump.detections.factors) == []
    # It is replaced as a whole, and nothing else is.
    main([*arguments, "--candidates", "3"])
    assert len(load_dump(tmp_path).candidates) == 9
    assert not list(tmp_path.glob("dump.*"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="is there and is no dump: name another --output"):
        main([*arguments, "--output", str(tmp_path / "mine")])


def test_a_broken_pass_leaves_the_old_dump(tiny_cfg, configured, tmp_path, monkeypatch):
    cfg = configured(tiny_cfg("MODEL.DENSE.NUM_CLASSES", "8", THRESHOLD, "0.0"))
    dump_model(cfg, tmp_path / "dump", max_candidates=2)
    before = (tmp_path / "dump" / "about.json").read_bytes()

    def stopped(self, batched_inputs):
        raise KeyboardInterrupt

    monkeypatch.setattr("resobj_d2.analysis.capture.DenseCapture.__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        dump_model(cfg, tmp_path / "dump", max_candidates=3)
    assert (tmp_path / "dump" / "about.json").read_bytes() == before
    assert not list(tmp_path.glob("dump.*"))


CONTENT = {
    "images": [
        {"id": 5, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "b.png", "width": 40, "height": 30},
    ],
    "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 2, "category_id": 9, "bbox": [1, 2, 10, 20], "area": 150},
        {"id": 2, "image_id": 5, "category_id": 4, "bbox": [0, 0, 5, 5], "area": 25,
         "iscrowd": 1, "segmentation": {"size": [30, 40], "counts": [0, 1200]}},
    ],
}  # fmt: skip
RESULTS = [
    {"image_id": 2, "category_id": 9, "bbox": [1, 2, 9, 20], "score": 0.5},
    {"image_id": 5, "category_id": 9, "bbox": [3, 3, 4, 4], "score": 0.25},
    {"image_id": 2, "category_id": 4, "bbox": [1, 2, 10, 21], "score": 0.75},
]


@pytest.fixture
def coco_files(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).write_bytes(b"")
    (tmp_path / "truth.json").write_text(json.dumps(CONTENT))
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    return tmp_path


def from_json(folder, results="results.json"):
    return main(
        ["--data", str(folder / "truth.json"), "--detections", str(folder / results),
         "--output", str(folder / "dump")]
    )  # fmt: skip


def test_results_of_another_toolkit_by_hand(coco_files):
    assert from_json(coco_files) == 0
    dump = load_dump(coco_files / "dump")
    classes = {name: number for number, name in enumerate(dump.class_names)}
    assert dump.images.ids == [2, 5] and dump.candidates is None
    assert dump.images.files[1] == str(coco_files / "images" / "a.png")
    assert dump.detections.image_index.tolist() == [0, 0, 1]
    assert dump.detections.scores.tolist() == [0.75, 0.5, 0.25]
    assert dump.detections.classes.tolist() == [classes["dog"], classes["cat"], classes["cat"]]
    assert dump.detections.boxes.tolist() == [[1, 2, 11, 23], [1, 2, 10, 22], [3, 3, 7, 7]]
    assert dump.objects.crowd.tolist() == dump.objects.ignore.tolist() == [False, True]
    assert dump.objects.areas.tolist() == [150, 25]
    assert np.isnan(dump.objects.anchor_ious).all()


@pytest.mark.parametrize(
    "content, message",
    [
        ({"annotations": []}, "holds no list"),
        ([{**RESULTS[0], "image_id": 77}], "image_id 77, which dataset"),
        ([{**RESULTS[0], "category_id": 1}], "category_id 1, which dataset"),
        ([{**RESULTS[0], "bbox": [1, 2, 3]}], "detection 0: bbox must be four numbers"),
        ([{**RESULTS[0], "score": 10**400}], "detection 0: score must be a number, got 1000"),
        ([{**RESULTS[0], "score": float("nan")}], "a score of NaN or inf"),
        ([{"image_id": 2}], "detection 0 needs image_id"),
    ],
)
def test_results_that_are_none_are_refused(coco_files, content, message):
    (coco_files / "wrong.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        from_json(coco_files, "wrong.json")
    assert not (coco_files / "dump").exists() and not (coco_files / "dump.tmp").exists()


def test_no_detections_and_damaged_dumps(coco_files):
    (coco_files / "none.json").write_text("[]")
    from_json(coco_files, "none.json")
    dump = load_dump(coco_files / "dump")
    assert len(dump.detections) == 0 and dump.detections.boxes.shape == (0, 4)
    for file in (coco_files / "dump").glob("detections.*"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match="detections"):
        load_dump(coco_files / "dump")
    boxes = {name: np.zeros(1) for name in ("image", "class", "score", "x0", "y0", "x1", "y1")}
    for harm in (
        {"image": np.array([7])},  # there are two images
        {"image": np.array([-1])},
        {"class": np.array([2])},
        {"score": np.array(["a"])},
        {"score": np.array([None])},  # would be unpickled
        {"score": np.zeros(2)},
    ):
        for file in (coco_files / "dump").glob("detections.*"):
            file.unlink()
        np.savez(coco_files / "dump" / "detections.npz", **{**boxes, **harm})
        with pytest.raises(ValueError, match="detections"):
            load_dump(coco_files / "dump")
    with pytest.raises(FileNotFoundError, match="is no dump: it has no about.json"):
        load_dump(coco_files / "images")
    about = json.loads((coco_files / "dump" / "about.json").read_text())
    (coco_files / "dump" / "about.json").write_text(json.dumps({**about, "version": 99}))
    with pytest.raises(ValueError, match="update the package"):
        load_dump(coco_files / "dump")


def test_parquet_and_npz_hold_the_same(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    from resobj_d2.analysis import column_files

    parts = [
        {"id": np.array([1, 2]), "name": np.array(["a", "bb"]), "p": np.array([0.5, np.nan])},
        {"id": np.array([3]), "name": np.array(["c"]), "p": np.array([1.5])},
    ]
    tables = []
    for parquet in (True, False):
        folder = tmp_path / str(parquet)
        folder.mkdir()
        writer = column_files.ColumnWriter(folder, "t")
        writer._parquet = parquet
        monkeypatch.setattr(column_files, "_GROUP", 1)
        for part in parts:
            writer.write(part)
        writer.close()
        tables.append(column_files.read_columns(folder, "t"))
        assert (folder / "t.parquet").exists() is parquet
    for name in parts[0]:
        assert tables[0][name].tolist()[::2] == tables[1][name].tolist()[::2]
