"""Darknet's weight files in YOLOv3, against Darknet's own network written in numpy."""

import logging

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from resobj_d2.checkpoint.checkpointer import CheckpointError, ResObjCheckpointer
from resobj_d2.checkpoint.darknet_file import save_darknet_weights
from resobj_d2.checkpoint.yolov3 import (
    _darknet_layers,
    _number_of_classes,
    _usual_rest,
    _yolo_layers,
)
from resobj_d2.modeling import DarkNet

K = 2
PRIORS = {8: [(10, 13), (16, 30), (33, 23)], 16: [(30, 61), (62, 45), (59, 119)],
          32: [(116, 90), (156, 198), (373, 326)]}  # fmt: skip
STEM = 2
DARKNET_DETECTOR = [
    "MODEL.BACKBONE.NAME", "build_darknet_backbone",
    "MODEL.DARKNET.STEM_CHANNELS", STEM,
    "MODEL.DARKNET.BLOCKS", [1, 1, 1, 1, 1],
    "MODEL.DENSE.IN_FEATURES", ["dark3", "dark4", "dark5"],
    "MODEL.DENSE.PREDICTOR.NAME", "PerLevelConv",
    "MODEL.DENSE.TOWER.NAME", "NoTower",
]  # fmt: skip
WIDTHS = (3, 4, 5)  # of the 1x1 convolutions at strides 8, 16, 32


def conv(filters, size, stride=1, bn=True):
    return {"kind": "conv", "filters": filters, "size": size, "stride": stride, "bn": bn}


def network():
    """yolov3.cfg with one residual block per stage, line by line."""
    layers = [conv(STEM, 3)]
    for i in range(5):
        width = STEM * 2 ** (i + 1)
        layers += [conv(width, 3, 2), conv(width // 2, 1), conv(width, 3), {"kind": "shortcut"}]
    stage = {2: 4 * 3, 3: 4 * 4}  # layers of the last shortcuts at strides 8 and 16
    for i in (2, 1, 0):
        if i < 2:
            layers += [{"kind": "route", "layers": [len(layers) - 4]}]
            layers += [conv(WIDTHS[i], 1), {"kind": "upsample"}]
            layers += [{"kind": "route", "layers": [len(layers) - 1, stage[i + 2]]}]
        for _ in range(3):
            layers += [conv(WIDTHS[i], 1), conv(2 * WIDTHS[i], 3)]
        layers += [conv(3 * (5 + K), 1, bn=False), {"kind": "yolo", "stride": 8 * 2**i}]
    return layers


def draw_weights(layers, seed=0):
    """The numbers of each convolution, and the file: a header of version 0.2 and all of them."""
    rng = np.random.default_rng(seed)
    found, file = [], [np.array([0, 2, 0], "<i4").tobytes(), np.array([640], "<i8").tobytes()]
    widths = []
    for layer in layers:
        if layer["kind"] == "conv":
            before = widths[-1] if widths else 3
            n, size = layer["filters"], layer["size"]
            parts = {"bias": rng.normal(size=n) * 0.5}
            if layer["bn"]:
                parts["gamma"] = rng.uniform(0.5, 1.5, n)
                parts["mean"] = rng.normal(size=n)
                parts["var"] = rng.uniform(0.5, 2, n)
            # Small in the last layers: exp(tw) stays below this package's limit on sizes.
            scale = np.sqrt(2 / (before * size * size)) * (1.0 if layer["bn"] else 0.1)
            parts["kernel"] = rng.normal(size=(n, before, size, size)) * scale
            parts = {k: v.astype("<f4") for k, v in parts.items()}
            file += [v.tobytes() for v in parts.values()]
            found.append(parts)
            widths.append(n)
        elif layer["kind"] == "route":
            widths.append(sum(widths[i] for i in layer["layers"]))
        else:
            widths.append(widths[-1])
    return found, b"".join(file)


def convolve(x, layer, w):
    pad, stride = layer["size"] // 2, layer["stride"]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (layer["size"],) * 2, axis=(1, 2))
    out = np.einsum("chwij,ocij->ohw", windows[:, ::stride, ::stride], w["kernel"].astype(float))
    if not layer["bn"]:
        return out + w["bias"][:, None, None]
    out = (out - w["mean"][:, None, None]) / (np.sqrt(w["var"])[:, None, None] + 1e-6)
    out = out * w["gamma"][:, None, None] + w["bias"][:, None, None]
    return np.where(out > 0, out, 0.1 * out)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def detect(x, stride):
    """Darknet's yolo layer: boxes (H, W, 3, 4) in pixels, objectness times class (H, W, 3, K)."""
    _, h, w = x.shape
    x = x.reshape(3, 5 + K, h, w).transpose(2, 3, 0, 1)
    column, row = np.arange(w)[None, :, None], np.arange(h)[:, None, None]
    prior = np.array(PRIORS[stride], float)
    cx, cy = (column + sigmoid(x[..., 0])) * stride, (row + sigmoid(x[..., 1])) * stride
    bw, bh = prior[:, 0] * np.exp(x[..., 2]), prior[:, 1] * np.exp(x[..., 3])
    boxes = np.stack((cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2), axis=-1)
    return boxes, sigmoid(x[..., 4:5]) * sigmoid(x[..., 5:])


def run_darknet(layers, weights, image):
    """image (3, H, W) of RGB from 0 to 1. Boxes (R, 4), scores (R, K), finest scale first."""
    weights = iter(weights)
    outputs, scales = [], []
    x = image
    for layer in layers:
        if layer["kind"] == "conv":
            x = convolve(x, layer, next(weights))
        elif layer["kind"] == "shortcut":
            x = x + outputs[-3]
        elif layer["kind"] == "upsample":
            x = x.repeat(2, axis=1).repeat(2, axis=2)
        elif layer["kind"] == "route":
            x = np.concatenate([outputs[i] for i in layer["layers"]])
        else:
            scales.insert(0, detect(x, layer["stride"]))
        outputs.append(x)
    return [np.concatenate([s[i].reshape(-1, s[i].shape[-1]) for s in scales]) for i in (0, 1)]


@pytest.fixture(scope="module")
def darknet():
    layers = network()
    return layers, *draw_weights(layers)


@pytest.fixture
def path(darknet, tmp_path):
    path = tmp_path / "small.weights"
    path.write_bytes(darknet[2])
    return path


@pytest.fixture
def yolo(tiny_cfg, repository):
    """A function: T and overrides to the same network of this package."""

    def build(steps=0, *opts):
        torch.manual_seed(1)
        cfg = tiny_cfg()
        cfg.merge_from_file(str(repository / "configs/methods/yolov3.yaml"))
        cfg.merge_from_list(
            [
                "MODEL.DARKNET.STEM_CHANNELS", STEM,
                "MODEL.DARKNET.BLOCKS", [1, 1, 1, 1, 1],
                "MODEL.YOLO_PYRAMID.CHANNELS", list(WIDTHS),
                "MODEL.DENSE.NUM_CLASSES", K,
                "MODEL.DENSE.OBJECTNESS.STEPS", steps,
                "MODEL.PIXEL_MEAN", [0.0, 0.0, 0.0],
                "MODEL.PIXEL_STD", [255.0, 255.0, 255.0],
                *opts,
            ]
        )  # fmt: skip
        return build_model(cfg).eval()

    return build


@pytest.fixture
def image():
    return torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255


def test_file_computes_what_darknet_does(darknet, path, yolo, image):
    layers, weights, _ = darknet
    model = yolo()
    ResObjCheckpointer(model, strict=True).load(str(path))
    boxes, scores = run_darknet(layers, weights, image.numpy() / 255)
    assert len(boxes) == 3 * (8 * 12 + 4 * 6 + 2 * 3)
    with torch.no_grad():
        stream = model.streams["anchors"]
        output = model.predict(model._preprocess([{"image": image}]))["anchors"]
        stage = output.stages[0]
        decoded = stream.coder.decode(stage.anchors, stage.deltas, output.priors.anchor_strides)
        objectness = stream.branches["objectness"].probability(output.branches["objectness"])
    product = torch.sigmoid(stage.cls_logits) * objectness[..., None]
    np.testing.assert_allclose(decoded[0].numpy(), boxes, rtol=2e-3, atol=1e-2)
    np.testing.assert_allclose(product[0].numpy(), scores, atol=2e-5)
    assert scores.max() - scores.min() > 0.2  # random weights that say something

    model.postprocess.score_thresh = 0.0
    with torch.no_grad():
        found = model([{"image": image}])[0]["instances"]
    best = np.unravel_index(scores.argmax(), scores.shape)
    assert found.scores[0].item() == pytest.approx(scores.max(), abs=2e-5)
    assert found.pred_classes[0].item() == best[1]
    x0, y0, x1, y1 = boxes[best[0]]
    inside = [max(x0, 0), max(y0, 0), min(x1, 96), min(y1, 64)]
    assert found.pred_boxes.tensor[0].tolist() == pytest.approx(inside, rel=2e-3, abs=1e-2)


def test_residual_subnets_stay_and_the_log_names_them(path, yolo, caplog):
    model = yolo(2)
    branch = model.streams["anchors"].branches["objectness"]
    before = {k: v.clone() for k, v in branch.residuals.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        ResObjCheckpointer(model).load(str(path))
    assert "residuals" in caplog.text
    assert all(torch.equal(v, branch.residuals.state_dict()[k]) for k, v in before.items())
    plain = yolo()
    ResObjCheckpointer(plain).load(str(path))
    loaded = model.state_dict()
    assert all(torch.equal(v, loaded[k]) for k, v in plain.state_dict().items())
    with pytest.raises(CheckpointError, match="not in the checkpoint .*residuals"):
        ResObjCheckpointer(yolo(1), strict=True).load(str(path))


def test_file_of_the_backbone_alone(path, yolo, tmp_path):
    whole = yolo()
    ResObjCheckpointer(whole).load(str(path))
    part = tmp_path / "darknet53.conv.74"
    save_darknet_weights(part, whole.backbone.bottom_up.convolutions())
    model = yolo()
    heads = {k: v.clone() for k, v in model.tower.state_dict().items()}
    ResObjCheckpointer(model).load(str(part))
    expected = whole.backbone.bottom_up.state_dict()
    found = model.backbone.bottom_up.state_dict()
    assert all(torch.equal(v, found[k]) for k, v in expected.items())
    assert all(torch.equal(v, model.tower.state_dict()[k]) for k, v in heads.items())


def test_backbone_of_another_detector(path, yolo, tiny_cfg, tmp_path):
    whole = yolo()
    part = tmp_path / "small.weights"
    save_darknet_weights(part, whole.backbone.bottom_up.convolutions())
    model = build_model(tiny_cfg(*DARKNET_DETECTOR))
    ResObjCheckpointer(model).load(str(part))
    assert torch.equal(model.backbone.stem.conv.weight, whole.backbone.bottom_up.stem.conv.weight)
    part.write_bytes(part.read_bytes() + b"\0" * 8)
    with pytest.raises(CheckpointError, match="rest of the model is no YOLOv3"):
        ResObjCheckpointer(model).load(str(part))


def test_truncated_and_longer_files_are_refused_and_nothing_changes(darknet, path, yolo):
    model = yolo()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    # The last tensor, 3 (5 + K) kernels of twice the finest width, is cut by one number.
    size, last = len(darknet[2]), 4 * 3 * (5 + K) * 2 * WIDTHS[0]
    path.write_bytes(darknet[2][:-4])
    message = f"ends inside .*box.levels.0 kernel .*bytes {size - last} to {size}"
    with pytest.raises(CheckpointError, match=message):
        ResObjCheckpointer(model).load(str(path))
    path.write_bytes(darknet[2] + b"\0" * 4)
    with pytest.raises(CheckpointError, match=f"4 bytes are left over .*at byte {size}"):
        ResObjCheckpointer(model).load(str(path))
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_of_another_number_of_classes_all_but_the_predictors_are_taken(path, yolo, caplog):
    same, model = yolo(), yolo(0, "MODEL.DENSE.NUM_CLASSES", 3)
    before = {k: v.clone() for k, v in model.streams.state_dict().items()}
    ResObjCheckpointer(same).load(str(path))
    with caplog.at_level(logging.WARNING):
        ResObjCheckpointer(model).load(str(path))
    assert "its predictors are of 2 classes, not 3, and are left out" in caplog.text
    assert all(torch.equal(v, model.streams.state_dict()[k]) for k, v in before.items())
    for part in ("backbone", "tower"):
        found = getattr(model, part).state_dict()
        assert all(torch.equal(v, found[k]) for k, v in getattr(same, part).state_dict().items())
    with pytest.raises(CheckpointError, match="not in the checkpoint .*cls"):
        ResObjCheckpointer(model, strict=True).load(str(path))


def test_of_a_whole_file_another_detector_takes_the_darknet(yolo, tiny_cfg, tmp_path, caplog):
    """Widths in the proportions of yolov3.cfg, by which the file is known."""
    whole = yolo(0, "MODEL.YOLO_PYRAMID.CHANNELS", [8, 16, 32])
    layers = [x.convolution for x in _yolo_layers(whole, _darknet_layers(whole))]
    path = tmp_path / "whole.weights"
    save_darknet_weights(path, layers)
    model = build_model(tiny_cfg(*DARKNET_DETECTOR))
    with caplog.at_level(logging.WARNING):
        ResObjCheckpointer(model).load(str(path))
    assert "it is a YOLOv3 of 2 classes, of which the DarkNet is taken" in caplog.text
    # The file has the random numbers of predictors before those of the rest.
    expected = layers[0][1].weight
    assert torch.equal(model.backbone.stem.conv.weight, expected) and expected.std() > 0


def test_the_size_of_the_published_file_is_that_of_80_classes():
    with torch.device("meta"):
        backbone = _darknet_layers(DarkNet())
    assert _number_of_classes(248_007_048, [*backbone, *_usual_rest(backbone)]) == 80


def test_model_without_darknet_is_refused(path, tiny_cfg):
    with pytest.raises(CheckpointError, match="no DarkNet"):
        ResObjCheckpointer(build_model(tiny_cfg())).load(str(path))


def test_other_pixels_are_warned_of(path, yolo, caplog):
    with caplog.at_level(logging.WARNING):
        ResObjCheckpointer(yolo()).load(str(path))
    assert "PIXEL_MEAN" not in caplog.text
    with caplog.at_level(logging.WARNING):
        ResObjCheckpointer(yolo(0, "MODEL.PIXEL_MEAN", [1.0, 2.0, 3.0])).load(str(path))
    assert "PIXEL_MEAN" in caplog.text
