"""Average recall: by hand, against Detectron2's own computation, and through the command."""

import json

import pytest
import torch
from detectron2.evaluation.coco_evaluation import _evaluate_box_proposals
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances

from resobj_d2.analysis.proposals import (
    average_recall,
    evaluate_proposals,
    main,
    proposals_per_step,
)
from resobj_d2.config import load_config
from resobj_d2.data.proposals import add_proposals
from resobj_d2.data.register import evaluation_records
from resobj_d2.engine import Trainer
from resobj_d2.evaluation.backend import load_backend
from resobj_d2.evaluation.ground_truth import ground_truth_index, prepare_ground_truth


@pytest.fixture(params=["pycocotools", "faster-coco-eval"])
def backend(request):
    if request.param == "faster-coco-eval":
        pytest.importorskip("faster_coco_eval")
    return load_backend(request.param)


def index(backend, images):
    """COCO's index; ``images`` has the (category, XYWH box) pairs of each image."""
    annotations = [
        {"image_id": i, "category_id": category, "bbox": box}
        for i, objects in enumerate(images)
        for category, box in objects
    ]
    content = {
        "images": [{"id": i, "height": 400, "width": 400} for i in range(len(images))],
        "categories": [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}],
        "annotations": annotations,
    }
    return backend.index(prepare_ground_truth(content)[0])


def entry(image, box, score):
    return {"image_id": image, "bbox": box, "score": score}


def test_by_hand(backend):
    truth = index(
        backend,
        [[(3, [0, 0, 20, 20]), (7, [100, 100, 50, 50])], [(7, [0, 0, 200, 100])], []],
    )
    proposals = [
        entry(0, [0, 0, 20, 20], -1.0),  # the first object, at every threshold
        entry(0, [0, 0, 20, 18], 5.0),  # the same object: IoU .9, ranked higher
        entry(0, [100, 100, 50, 31], -9.0),  # IoU .62: at .5, .55 and .6; ranked third
        entry(1, [0, 0, 200, 76], 0.0),  # IoU .76: six thresholds
        entry(2, [5, 5, 9, 9], 9.0),
    ]
    found = average_recall(backend, truth, proposals, [2, 1, 3])
    # The top proposal finds it up to .9: nine of ten thresholds; the second one also at .95.
    assert found["AR@1"] == pytest.approx(100 * (0.9 + 0 + 0.6) / 3)
    assert found["AR@2"] == pytest.approx(100 * (1.0 + 0 + 0.6) / 3)
    assert found["AR@3"] == pytest.approx(100 * (1.0 + 0.3 + 0.6) / 3)
    assert found["ARs@3"] == pytest.approx(100)
    assert found["ARm@3"] == pytest.approx(30)
    assert found["ARl@3"] == pytest.approx(60)
    assert found["ARm@2"] == 0


def test_equals_detectron2s(backend):
    """Detectron2 matches the best pairs first, COCO the best ranks; otherwise they agree."""
    g = torch.Generator().manual_seed(0)
    images, predictions, proposals = [], [], []
    for i in range(12):
        corner = torch.rand(6, 2, generator=g) * 250
        boxes = torch.cat((corner, 8 + torch.rand(6, 2, generator=g) ** 2 * 140), dim=1)
        images.append([(3 + 4 * (k % 2), box.tolist()) for k, box in enumerate(boxes)])
        near = (
            boxes.repeat(20, 1) + torch.randn(120, 4, generator=g) * boxes[:, 2:].repeat(20, 2) / 8
        )
        near[:, 2:].clamp_(min=1.0)
        scores = torch.randn(120, generator=g)
        proposals += [entry(i, b.tolist(), s.item()) for b, s in zip(near, scores, strict=True)]
        xyxy = torch.cat((near[:, :2], near[:, :2] + near[:, 2:]), dim=1)
        instances = Instances((400, 400), proposal_boxes=Boxes(xyxy), objectness_logits=scores)
        predictions.append({"image_id": i, "proposals": instances})
    truth = index(backend, images)
    found = average_recall(backend, truth, proposals, [10, 120])
    for name, area in (("AR", "all"), ("ARs", "small"), ("ARm", "medium"), ("ARl", "large")):
        for limit in (10, 120):
            expected = _evaluate_box_proposals(predictions, truth, area=area, limit=limit)
            value = 100 * expected["ar"].item()
            assert found[f"{name}@{limit}"] == pytest.approx(value, abs=2.0)
    assert 20 < found["AR@10"] < found["AR@120"] < 95


def test_areas_without_objects_are_nan_and_no_proposals_are_refused(backend):
    truth = index(backend, [[(3, [0, 0, 20, 20])]])
    found = average_recall(backend, truth, [entry(0, [0, 0, 20, 20], 0.0)], [1])
    assert found["AR@1"] == found["ARs@1"] == 100
    assert found["ARl@1"] != found["ARl@1"]
    with pytest.raises(ValueError, match="there are no proposals"):
        average_recall(backend, truth, [], [1])


@pytest.fixture
def options(tiny_rcnn, tmp_path, clean_catalogs):
    """A detector with random weights on six generated pictures: its config's path, overrides."""
    scenes = [
        {"name": "proposals_val", "format": "scenes", "split": "val", "root": str(tmp_path),
         "image_size": 64, "num_train": 2, "num_val": 6}
    ]  # fmt: skip
    cfg = tiny_rcnn(
        "MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", "True",
        "MODEL.RESOBJ_RPN.SAMPLER.NAME", "KeepAll",
        "MODEL.ROI_HEADS.NUM_CLASSES", "8",
        "DATASETS.REGISTER", str(scenes),
        "DATASETS.TEST", "('proposals_val',)",
        "DATALOADER.NUM_WORKERS", "0",
        "INPUT.MIN_SIZE_TEST", "96",
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for name, weight in model.proposal_generator.named_parameters():
            if name.endswith("weight"):
                weight.normal_(std=0.05)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return str(tmp_path / "config.yaml")


def test_command_reports_every_step(options, tmp_path, capsys):
    output = tmp_path / "recall.json"
    arguments = ["--config-file", options, "--limits", "10", "100", "--json", str(output)]
    arguments += ["--write", str(tmp_path / "files")]
    assert main([*arguments, "TEST.COCO_BACKEND", "pycocotools"]) == 0
    printed = capsys.readouterr().out
    assert "| dataset | step | AR@10 | AR@100 | ARs@100 | ARm@100 | ARl@100 |" in printed
    assert "DONE" not in printed  # printed by COCO's code
    rows = json.loads(output.read_text())
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert all(f"| proposals_val | {t} | " in printed for t in range(3))
    recalls = [row["results"]["AR@10"] for row in rows]
    assert len(set(recalls)) > 1 and all(0 < x < 100 for x in recalls)
    check_file(options, tmp_path / "files" / "proposals_val.pkl")


def check_file(options, path):
    """The file has the proposals of the last step, as Fast R-CNN's data loader reads them."""
    cfg = load_config(options, training=False)
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(cfg.MODEL.WEIGHTS)["model"])
    records = evaluation_records(cfg, "proposals_val")
    add_proposals(records, str(path))
    by_id = {record["image_id"]: record for record in records}
    assert len(by_id) == 6
    for inputs in Trainer.build_test_loader(cfg, "proposals_val"):
        (proposals,) = proposals_per_step(model, inputs)[-1]
        record = by_id[inputs[0]["image_id"]]
        assert record["proposal_bbox_mode"] == BoxMode.XYXY_ABS
        boxes = torch.as_tensor(record["proposal_boxes"].copy())
        torch.testing.assert_close(boxes, proposals.proposal_boxes.tensor)


def test_command_reports_the_recall_of_the_models_proposals(options, tmp_path):
    """Against Detectron2's evaluator on the model's own proposals, rescaled by hand."""
    cfg = load_config(options, training=False)
    rows = evaluate_proposals(cfg, limits=[20])
    model = build_model(cfg).eval()
    model.load_state_dict(torch.load(tmp_path / "model.pth")["model"])
    truth, _ = ground_truth_index("proposals_val", load_backend("pycocotools"))
    predictions = []
    for inputs in Trainer.build_test_loader(cfg, "proposals_val"):
        with torch.no_grad():
            images = model.preprocess_image(inputs)
            found, _ = model.proposal_generator(images, model.backbone(images.tensor))
        found[0].proposal_boxes.scale(64 / 96, 64 / 96)
        predictions.append({"image_id": inputs[0]["image_id"], "proposals": found[0]})
    expected = _evaluate_box_proposals(predictions, truth, limit=20)
    assert rows[-1]["results"]["AR@20"] == pytest.approx(100 * expected["ar"].item(), abs=1.0)


def test_any_rpn_has_one_step(options):
    options_of_theirs = [
        "MODEL.PROPOSAL_GENERATOR.NAME", "RPN",
        "MODEL.RPN.HEAD_NAME", "StandardRPNHead",
        "MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", "False",
        "MODEL.RESOBJ_RPN.SAMPLER.NAME", "",
        "MODEL.WEIGHTS", "",
    ]  # fmt: skip
    cfg = load_config(options, options_of_theirs, training=False)
    path = options.replace("config.yaml", "theirs.pth")
    torch.save({"model": build_model(cfg).state_dict()}, path)
    cfg.defrost()
    cfg.MODEL.WEIGHTS = path
    rows = evaluate_proposals(cfg, limits=[100])
    assert [row["step"] for row in rows] == [0] and rows[0]["results"]["AR@100"] > 0


@pytest.mark.parametrize(
    "overrides, limits, message",
    [
        ([], [101], r"POST_NMS_TOPK_TEST \(100\), got \[101\]"),
        ([], [0], "must be from 1 to"),
        (
            ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", "8"],
            [1],
            "a RetinaNet makes no proposals: those with an RPN do, as .* GeneralizedRCNN",
        ),
    ],
)
def test_impossible_requests_are_refused(options, overrides, limits, message):
    cfg = load_config(options, training=False)
    cfg.defrost()
    cfg.merge_from_list(overrides)  # bypasses the checks of load_config
    with pytest.raises(ValueError, match=message):
        evaluate_proposals(cfg, limits=limits)


def test_needs_weights(options):
    with pytest.raises(ValueError, match="MODEL.WEIGHTS"):
        main(["--config-file", options, "MODEL.WEIGHTS", ""])


def test_weights_are_given_as_in_other_commands(options, monkeypatch, capsys):
    used = []
    monkeypatch.setattr(
        "resobj_d2.analysis.proposals.evaluate_proposals", lambda cfg, **_: used.append(cfg) or []
    )
    monkeypatch.setattr("resobj_d2.analysis.proposals.table", lambda rows: "")
    assert main(["--config-file", options, "--weights", "mine.pth", "SEED", "3"]) == 0
    assert used[0].MODEL.WEIGHTS == "mine.pth" and used[0].SEED == 3
