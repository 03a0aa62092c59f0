"""Who owns a loss: against the losses written out anchor by anchor."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from PIL import Image

from resobj_d2.analysis.imbalance import main, measure_imbalance
from resobj_d2.config import load_config
from resobj_d2.data.augmentation import build_size_augmentations
from resobj_d2.data.mapper import PictureMapper
from resobj_d2.engine.validation import measuring
from tests.analysis import plain_loops

EASY, IMAGES = 0.3, 2


@pytest.fixture
def configured(tmp_path, clean_catalogs):
    """A function: a config to that with random weights on two generated pictures."""

    def build(cfg):
        scenes = [
            {"name": "imbalance_val", "format": "scenes", "split": "val", "root": str(tmp_path),
             "image_size": 64, "num_train": 2, "num_val": IMAGES}
        ]  # fmt: skip
        opts = [
            "DATASETS.REGISTER", str(scenes),
            "DATASETS.TEST", "('imbalance_val',)",
            "INPUT.MIN_SIZE_TEST", "64",
        ]  # fmt: skip
        dense = cfg.MODEL.META_ARCHITECTURE == "ResObjDenseDetector"
        cfg.MODEL["DENSE" if dense else "ROI_HEADS"].NUM_CLASSES = 8
        torch.manual_seed(0)
        model = build_model(cfg)
        for name, weight in model.named_parameters():
            if name.endswith("weight") and "backbone" not in name:
                torch.nn.init.normal_(weight, std=0.1)
        torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
        cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
        (tmp_path / "config.yaml").write_text(cfg.dump())
        return load_config(str(tmp_path / "config.yaml"), opts, training=False)

    return build


def measured(cfg):
    """The model of ``cfg``, ready for each picture of the set, with its inputs."""
    model = build_model(cfg)
    model.load_state_dict(torch.load(cfg.MODEL.WEIGHTS)["model"])
    mapper = PictureMapper(cfg, True, augmentations=build_size_augmentations(cfg, is_train=False))
    with measuring(model) as restore:
        for record in DatasetCatalog.get("imbalance_val"):
            restore()
            yield model, mapper(record)


def predictions(cfg):
    """For each image: labels and logits of the anchors as numpy arrays, and the model's losses."""
    for model, inputs in measured(cfg):
        stream = model.streams["anchors"]
        outputs, truth = model.training_inputs([inputs])
        output = outputs["anchors"]
        targets = stream.stages[0].assigner(output.priors, output.stages[0].anchors, truth, None)
        objectness = output.branches.get("objectness")
        yield {
            "labels": targets.labels[0].numpy(),
            "cls": output.stages[0].cls_logits[0].double().numpy(),
            "objectness": None if objectness is None else [
                stream.branches["objectness"].score_logits(objectness, t)[0].double().numpy()
                for t in range(3)
            ],
            "levels": output.priors.anchors_per_level,
            "losses": {k: float(v) for k, v in model([inputs]).items()},
        }  # fmt: skip


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def shares(rows):
    """(label of the anchor, probability, loss, gradient) to percentages by group."""
    groups = {"positives": [], "hard negatives": [], "easy negatives": []}
    for label, probability, *parts in rows:
        kind = "hard negatives" if probability >= EASY else "easy negatives"
        groups["positives" if label else kind].append(parts)
    sums = {name: np.sum(parts, axis=0) if parts else np.zeros(2) for name, parts in groups.items()}
    total = sum(sums.values())
    return {
        name: [len(groups[name]) / IMAGES, *(100 * sums[name] / total).tolist()] for name in groups
    }


def found_shares(table, loss):
    return {
        row["anchors"]: [row["number"], row["loss share"], row["gradient share"]]
        for row in table
        if row["loss"] == loss
    }


def assert_shares(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-4), name


def test_focal_loss_written_out(tiny_cfg, configured):
    cfg = configured(tiny_cfg())
    result = measure_imbalance(cfg, easy=EASY)
    rows = []
    for image in predictions(cfg):
        p = sigmoid(image["cls"])
        own = np.arange(8) == image["labels"][:, None]
        loss = np.where(own, -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p))
        right = 0.25 * (1 - p) ** 2 * (2 * p * np.log(p) - (1 - p))
        wrong = 0.75 * p**2 * (p - 2 * (1 - p) * np.log(1 - p))
        gradient = np.abs(np.where(own, right, wrong))
        # Each image's losses are divided by its own number, as in a batch of one.
        scale = image["losses"]["loss_cls"] / loss[image["labels"] >= 0].sum()
        for i in np.flatnonzero(image["labels"] >= 0):
            label = image["labels"][i] < 8
            rows.append((label, p[i].max(), scale * loss[i].sum(), scale * gradient[i].sum()))
    assert_shares(found_shares(result.share_table(), "loss_cls"), shares(rows))


def test_residual_objectness_written_out(tiny_resobj, configured):
    cfg = configured(tiny_resobj())
    result = measure_imbalance(cfg, easy=EASY)
    table = result.share_table()
    for step, name in enumerate(("loss_objectness", "loss_residual_1", "loss_residual_2")):
        rows = []
        for image in predictions(cfg):
            labels, o = image["labels"], image["objectness"]
            positive = (labels >= 0) & (labels < 8)
            chosen = labels >= 0
            if step:
                chosen &= o[step - 1] >= o[step - 1][positive].min()
            p = sigmoid(o[step])
            loss = -np.log(np.where(positive, p, 1 - p))
            scale = image["losses"][name] / loss[chosen].sum()
            for i in np.flatnonzero(chosen):
                rows.append((positive[i], p[i], scale * loss[i], scale * abs(p[i] - positive[i])))
        assert_shares(found_shares(table, name), shares(rows))
    # Of the classes just the positives are trained.
    of_classes = found_shares(table, "loss_cls")
    assert of_classes["positives"][1:] == pytest.approx([100, 100])
    assert of_classes["easy negatives"][0] == of_classes["hard negatives"][0] == 0


def test_levels_and_histograms_by_counting(tiny_resobj, configured):
    cfg = configured(tiny_resobj())
    result = measure_imbalance(cfg, easy=EASY, bins=5)
    images = list(predictions(cfg))
    ends = np.cumsum([0, *images[0]["levels"]])
    rows = {row["level"]: row for row in result.level_table()}
    for level, (low, high) in enumerate(zip(ends[:-1], ends[1:], strict=True)):
        labels = np.stack([image["labels"][low:high] for image in images])
        assert rows[level]["positives"] == ((labels >= 0) & (labels < 8)).sum() / IMAGES
        assert rows[level]["negatives"] == (labels == 8).sum() / IMAGES
        assert rows[level]["ignored"] == (labels < 0).sum() / IMAGES
    assert rows[-1]["negatives"] == sum(rows[i]["negatives"] for i in range(len(ends) - 1))
    assert rows[-1]["ratio"] == pytest.approx(rows[-1]["negatives"] / rows[-1]["positives"])
    for row in result.histogram_table():
        if not row["value"].startswith("objectness"):
            continue
        step = int(row["value"][-1])
        for name, is_own in (
            ("negatives", lambda x: x == 8),
            ("positives", lambda x: (0 <= x) & (x < 8)),
        ):
            p = np.concatenate(
                [sigmoid(image["objectness"][step])[is_own(image["labels"])] for image in images]
            )
            inside = (p >= row["from"]) & (p < row["to"])
            assert row[name] == pytest.approx(inside.sum() / IMAGES)


@pytest.mark.parametrize(
    "options",
    [
        ["MODEL.DENSE.CLS_LOSS.NAME", "GHMCLoss"],
        ["MODEL.DENSE.CLS_LOSS.NAME", "QualityFocalLoss"],
        ["MODEL.DENSE.CLS_LOSS.NAME", "SoftmaxCE", "MODEL.DENSE.SAMPLER.NAME", "HardNegativeRatio"],
        ["MODEL.DENSE.STAGES", "[{}]"],
        ["MODEL.DENSE.ANCHOR_FREE.ENABLED", "True"],
    ],
)
def test_other_methods_are_measured(tiny_cfg, configured, options):
    result = measure_imbalance(configured(tiny_cfg(*options)), max_images=1)
    table = result.share_table()
    for loss in {(row["stream"], row["loss"]) for row in table}:
        own = [row for row in table if (row["stream"], row["loss"]) == loss]
        assert sum(row["gradient share"] for row in own) == pytest.approx(100)
        for row in own:
            alone = options[1] not in ("GHMCLoss", "QualityFocalLoss")
            assert (row["loss share"] is not None) == alone
    names = {row["loss"] for row in table}
    assert ("loss_cls_stage1" in names) == ("[{}]" in options)
    assert ({row["stream"] for row in table} == {"anchors", "anchor_free"}) == ("True" in options)


def test_command(tiny_resobj, configured, tmp_path, capsys):
    cfg = configured(tiny_resobj())
    (tmp_path / "whole.yaml").write_text(cfg.dump())
    output = tmp_path / "out.json"
    arguments = ["--config-file", str(tmp_path / "whole.yaml"), "--images", "1"]
    picture = tmp_path / "out.png"
    assert main([*arguments, "--json", str(output), "--plot", str(picture)]) == 0
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    for color in ((0, 158, 115), (213, 94, 0), (154, 160, 166)):  # the groups of the bars
        assert (pixels == color).all(axis=-1).sum() > 100
    printed = capsys.readouterr().out
    assert "Anchors of an image, mean of 1" in printed and "| loss_residual_2" in printed
    tables = json.loads(output.read_text())
    assert set(tables) == {"levels", "shares", "histograms"}
    with pytest.raises(ValueError, match="give --weights FILE"):
        main([*arguments, "MODEL.WEIGHTS", ""])


def rpn_predictions(cfg):
    """Of each image labels 1, 0, -1, the objectness after each step, and the losses, as arrays."""
    for model, inputs in measured(cfg):
        rpn = model.proposal_generator
        features = model.backbone(model.preprocess_image([inputs]).tensor)
        maps = [features[name] for name in rpn.in_features]
        anchors = rpn.anchor_generator(maps)
        if rpn.__class__.__name__ == "ResObjRPN":
            predicted, _ = rpn.rpn_head.predict(maps)
            steps = [rpn.rpn_head.score_logits(predicted, t)[0] for t in range(3)]
            labels = rpn.assign(anchors, maps, [inputs["instances"]]).binary_labels[0]
        else:
            logits, _ = rpn.rpn_head(maps)
            steps = [torch.cat([x.permute(0, 2, 3, 1).flatten() for x in logits])]
            labels = rpn.label_and_sample_anchors(anchors, [inputs["instances"]])[0][0]
        losses = {k: float(v) for k, v in model([inputs]).items()}
        yield labels.numpy(), [x.double().numpy() for x in steps], losses


RESIDUAL = [
    "MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED",
    "True",
    "MODEL.RESOBJ_RPN.SAMPLER.NAME",
    "KeepAll",
]
PLAIN = [
    "MODEL.PROPOSAL_GENERATOR.NAME", "RPN",
    "MODEL.RPN.HEAD_NAME", "StandardRPNHead",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "1000000",  # no anchor is left out
]  # fmt: skip


@pytest.mark.parametrize(
    "options, names",
    [
        (RESIDUAL, ["loss_rpn_objectness", "loss_rpn_residual_1", "loss_rpn_residual_2"]),
        (PLAIN, ["loss_rpn_cls"]),
    ],
)
def test_proposal_networks_written_out(tiny_rcnn, configured, options, names):
    cfg = configured(tiny_rcnn(*options))
    table = measure_imbalance(cfg, easy=EASY).share_table()
    images = list(rpn_predictions(cfg))
    for step, name in enumerate(names):
        rows = []
        for labels, o, losses in images:
            chosen = labels >= 0
            if step:
                chosen &= o[step - 1] >= o[step - 1][labels == 1].min()
            p = sigmoid(o[step])
            loss = -np.log(np.where(labels == 1, p, 1 - p))
            scale = losses[name] / loss[chosen].sum()
            for i in np.flatnonzero(chosen):
                gradient = abs(p[i] - (labels[i] == 1))
                rows.append((labels[i] == 1, p[i], scale * loss[i], scale * gradient))
        assert_shares(found_shares(table, name), shares(rows))
    assert {row["loss"] for row in table if row["stream"] == "rpn"} == set(names)


def test_sampled_proposal_networks_are_measured(tiny_rcnn, configured):
    options = [*PLAIN[:4], "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "64"]
    result = measure_imbalance(configured(tiny_rcnn(*options)))
    (whole,) = (x for x in result.level_table() if (x["stream"], x["level"]) == ("rpn", -1))
    assert whole["positives"] + whole["negatives"] == 64
    assert sum(row["number"] for row in result.share_table() if row["stream"] == "rpn") == 64


def rois_by_loops(cfg):
    """For each image: labels, levels and class logits of all RoIs, and the model's class loss."""
    for model, inputs in measured(cfg):
        heads = model.roi_heads
        images = model.preprocess_image([inputs])
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, [inputs["instances"]])
        objects = inputs["instances"].gt_boxes.tensor
        boxes = torch.cat((proposals[0].proposal_boxes.tensor, objects))
        maps = [features[name] for name in heads.box_in_features]
        logits = heads.box_predictor(heads.box_head(heads.box_pooler(maps, [Boxes(boxes)])))[0]
        labels, levels = [], []
        for x0, y0, x1, y1 in boxes.tolist():
            ious = [
                plain_loops.iou([x0, y0, x1 - x0, y1 - y0], [a, b, c - a, d - b])
                for a, b, c, d in objects.tolist()
            ]
            best = int(np.argmax(ious))
            kind = 8 if ious[best] < 0.4 else -1 if ious[best] < 0.6 else None
            number = int(inputs["instances"].gt_classes[best])
            labels.append(number if kind is None else kind)
            # FPN, Eq. 1: boxes of 224 pixels on p4, of the heads' p3 to p5.
            level = np.floor(4 + np.log2(np.sqrt((x1 - x0) * (y1 - y0)) / 224 + 1e-8))
            levels.append(int(np.clip(level, 3, 5)) - 3)
        loss = float(model([inputs])["loss_cls"])
        yield np.array(labels), np.array(levels), logits.double().numpy(), loss


IGNORING = [
    "MODEL.ROI_HEADS.IOU_THRESHOLDS", "[0.4, 0.6]",
    "MODEL.ROI_HEADS.IOU_LABELS", "[0, -1, 1]",
]  # fmt: skip
WITHOUT_SAMPLING = [
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "100000",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION", "1.0",
]  # fmt: skip


def test_roi_heads_written_out(tiny_rcnn, configured):
    cfg = configured(tiny_rcnn(*IGNORING, *WITHOUT_SAMPLING))
    result = measure_imbalance(cfg, easy=EASY)
    rows, known, trained = [], [], []
    for labels, levels, logits, whole in rois_by_loops(cfg):
        known += zip(levels.tolist(), labels.tolist(), strict=True)
        trained += [(level, label) for level, label in known[-len(labels) :] if label >= 0]
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        chosen = np.flatnonzero(labels >= 0)
        loss = -np.log(p[np.arange(len(p)), labels])
        scale = whole / loss[chosen].sum()
        for i in chosen:
            gradient = np.abs(p[i] - (np.arange(9) == labels[i])).sum() / len(chosen)
            rows.append((labels[i] < 8, p[i, :8].max(), scale * loss[i], gradient))
    assert_shares(found_shares(result.share_table(), "loss_cls"), shares(rows))
    for stream, pairs in (("proposals", known), ("roi", trained)):
        for row in result.level_table():
            if row["stream"] != stream:
                continue
            own = [label for level, label in pairs if row["level"] in (-1, level)]
            assert row["positives"] == sum(0 <= label < 8 for label in own) / IMAGES
            assert row["negatives"] == sum(label == 8 for label in own) / IMAGES
            assert row["ignored"] == sum(label < 0 for label in own) / IMAGES
    assert sum(label < 0 for _, label in known) > 0


@pytest.mark.parametrize(
    "heads, sampler",
    [("StandardROIHeads", ""), ("ResObjROIHeads", "OHEMSampler"), ("ResObjCascadeROIHeads", "")],
)
def test_sampled_roi_heads_are_measured(tiny_rcnn, configured, heads, sampler):
    options = [
        "MODEL.ROI_HEADS.NAME", heads, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
        "MODEL.RESOBJ_ROI.SAMPLER.NAME", sampler,
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "Cascade" in heads,
    ]  # fmt: skip
    cfg = configured(tiny_rcnn(*options))
    result = measure_imbalance(cfg, max_images=1)
    whole = {(x["stream"], x["stage"]): x for x in result.level_table() if x["level"] == -1}
    assert whole["roi", 0]["positives"] + whole["roi", 0]["negatives"] == 16
    assert whole["proposals", 0]["negatives"] > whole["roi", 0]["negatives"]
    names = {row["loss"] for row in result.share_table() if row["stream"] == "roi"}
    stages = {f"loss_cls_stage{i}" for i in range(3)}  # as a training logs them
    assert names == (stages if "Cascade" in heads else {"loss_cls"})
    again = measure_imbalance(cfg, max_images=1)
    assert again.share_table() == result.share_table()


def test_other_models_are_refused(tiny_cfg):
    cfg = tiny_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    with pytest.raises(ValueError, match="of ResObjDenseDetector, .*, and this is a RetinaNet"):
        measure_imbalance(cfg)
