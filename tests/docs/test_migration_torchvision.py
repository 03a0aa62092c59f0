"""docs/migration.md is right about torchvision, and its code runs."""

import inspect
import re

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from torch import nn
from torchvision.models.detection import retinanet
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from resobj_d2 import ops
from resobj_d2.matching import DeltaCoder

MAPS = [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
SIDE = 128
CHANNELS = 16  # of the tower of tiny_cfg
# Position of each anchor of a cell in torchvision's and mmdetection's order, in our order.
THEIR_ORDER = [0, 3, 6, 1, 4, 7, 2, 5, 8]


def torchvision_anchors():
    maps = [torch.zeros(1, 1, h, w) for h, w in MAPS]
    images = ImageList(torch.zeros(1, 3, SIDE, SIDE), [(SIDE, SIDE)])
    return retinanet._default_anchorgen()(images, maps)[0]


def make_targets():
    boxes = [
        [[10.0, 12.0, 70.0, 60.0], [12.0, 10.0, 64.0, 66.0], [90.0, 90.0, 110.0, 120.0]],
        [[3.0, 4.0, 100.0, 90.0]],
        [],
    ]
    classes = [[0, 2, 1], [1], []]
    return [
        {"boxes": torch.tensor(b).reshape(-1, 4), "labels": torch.tensor(c, dtype=torch.int64)}
        for b, c in zip(boxes, classes, strict=True)
    ]


def small_model():
    """torchvision's RetinaNet without a backbone, for its methods."""
    backbone = nn.Identity()
    backbone.out_channels = 8
    return retinanet.RetinaNet(backbone, num_classes=3)


def test_anchors_are_torchvisions(migration_code, octave):
    generator = retinanet._default_anchorgen()
    ours = migration_code["same_anchors"](generator, octave.strides)(MAPS)
    assert torch.equal(ours.boxes, torchvision_anchors())
    assert ours.boxes.frac().eq(0).all() and not octave(MAPS).boxes.frac().eq(0).all()


def test_orders_of_anchors(migration_code, octave):
    ours = octave(MAPS).boxes[:9]
    rounded = torchvision_anchors()[:9]
    assert migration_code["size_by_size"](torch.arange(9)).tolist() == THEIR_ORDER
    torch.testing.assert_close(migration_code["size_by_size"](rounded), ours, rtol=0, atol=1.0)
    assert (rounded - ours).abs().max() > 5  # their own order differs
    # mmdetection's AnchorGenerator: the same two loops, without rounding.
    height = torch.tensor([0.5, 1.0, 2.0]).sqrt()
    scale = 8 * 4 * torch.tensor([2 ** (i / 3) for i in range(3)])
    width, height = (1 / height[:, None] * scale).flatten(), (height[:, None] * scale).flatten()
    theirs = torch.stack((-width, -height, width, height), dim=1) / 2
    torch.testing.assert_close(migration_code["size_by_size"](theirs), ours)


def test_losses_are_torchvisions(migration_code):
    generator = torch.Generator().manual_seed(0)
    targets, anchors = make_targets(), torchvision_anchors()
    logits = torch.randn(3, len(anchors), 3, generator=generator)
    deltas = torch.randn(3, len(anchors), 4, generator=generator)
    outputs = {"cls_logits": logits, "bbox_regression": deltas}
    expected = small_model().compute_loss(targets, outputs, [anchors] * 3)
    found = migration_code["retinanet_losses"](logits, deltas, anchors, targets)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)
    assert min(expected.values()) > 1


def test_the_matchers_own_result(migration):
    targets, anchors = make_targets()[0], torchvision_anchors()
    iou = torchvision.ops.box_iou(targets["boxes"], anchors)
    expected = Matcher(0.5, 0.4, allow_low_quality_matches=True)(iou)
    match = ops.match_anchors(
        anchors, targets["boxes"], [3], thresholds=[0.4, 0.5], labels=[0, -1, 1]
    )
    match = type(match)(*(x[0] for x in match))
    (line,) = re.findall(r"`(torch\.where\(match[^`]*)`", migration.text)
    assert torch.equal(eval(line, {"torch": torch, "match": match}), expected)
    assert set(expected.tolist()) == {-2, -1, 0, 1, 2}


def test_operators_are_torchvisions(migration):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(60, 2, generator=generator) * 50
    a = torch.cat((corner, corner + 5 + 20 * torch.rand(60, 2, generator=generator)), dim=1)
    b = a.roll(1, 0) + 2
    classes = torch.randint(4, (60,), generator=generator)  # 3 is background
    x = torch.randn(60, 3, generator=generator)
    variables = {
        "a": a, "b": b, "x": x, "classes": classes, "t": 0.4, "boxes": a, "idxs": classes,
        "one_hot": nn.functional.one_hot(classes, 4)[:, :3].float(),
        "scores": torch.rand(60, generator=generator),
    }  # fmt: skip
    table = [row for row in migration.rows("### Operators") if "(" in row[0]]
    assert len(table) == 4
    for theirs, ours, _ in table:
        expected = eval(f"torchvision.{theirs}", {"torchvision": torchvision, **variables})
        found = eval(ours, {"ops": ops, **variables})
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [1, 2])
def test_images_are_normalised_as_by_torchvision(migration, number):
    cfg = migration.config(number)
    transform = GeneralizedRCNNTransform(8, 8, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    image = torch.randint(0, 256, (3, 8, 8)).float()
    mean, std = (
        torch.tensor(x)[:, None, None] for x in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    )
    torch.testing.assert_close((image - mean) / std, transform.normalize(image / 255))
    assert cfg.INPUT.FORMAT == "RGB" and not cfg.MODEL.RESNETS.STRIDE_IN_1X1


def test_the_yaml_for_mmdetections_model(migration):
    dense = migration.config(2).MODEL.DENSE
    assert dense.BOX_LOSS.NAME == "L1Loss" and dense.NORMALIZER.NAME == "ForegroundCount"


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, CHANNELS, h, w, generator=generator) for h, w in MAPS[1:4]]


def spread(module):
    """Weights that make every channel distinguishable."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.15, generator=generator)
    return module.requires_grad_(False)


def predictions(tiny_cfg, weights, features):
    """Class logits and deltas (N, cells, 9, channels) of the detector with a converted head."""
    detector = build_model(tiny_cfg("MODEL.DENSE.TOWER.NUM_CONVS", 4)).requires_grad_(False)
    incompatible = detector.load_state_dict(weights, strict=False)
    assert not incompatible.unexpected_keys
    left = {k for k in incompatible.missing_keys if not k.startswith("backbone.")}
    assert left == {"streams.anchors.stages.0.normalizer.mean"}
    (stage,) = detector.streams["anchors"].stages
    tower = detector.tower(features)
    return by_cell(stage.cls.maps(tower.cls).levels), by_cell(stage.box.maps(tower.box).levels)


def by_cell(levels):
    """(N, 9 * channels, H, W) per level to (N, cells, 9, channels)."""
    return torch.cat([x.flatten(2).unflatten(1, (9, -1)).permute(0, 3, 1, 2) for x in levels], 1)


def test_head_of_torchvision(migration_code, tiny_cfg, features):
    head = spread(retinanet.RetinaNetHead(CHANNELS, 9, 4))  # class 0 is background
    state = {f"head.{name}": value for name, value in head.state_dict().items()}
    names = migration_code["TORCHVISION"]
    weights = migration_code["head_weights"](state, names, background_first=True)
    logits, deltas = predictions(tiny_cfg, weights, features)
    out = {k: v.unflatten(1, (-1, 9))[:, :, THEIR_ORDER] for k, v in head(features).items()}
    torch.testing.assert_close(logits, out["cls_logits"][..., 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deltas, out["bbox_regression"], rtol=1e-4, atol=1e-4)
    assert logits.std() > 0.1


def test_head_of_mmdetection(migration_code, tiny_cfg, features):
    """Its RetinaHead: plain convolutions under its names, each but the last followed by a ReLU."""
    state, expected = {}, {}
    for task, channels in (("cls", 3), ("reg", 4)):
        convs = [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(4)]
        layers = spread(nn.ModuleList([*convs, nn.Conv2d(CHANNELS, 9 * channels, 3, padding=1)]))
        prefixes = [f"{task}_convs.{i}.conv" for i in range(4)] + [f"retina_{task}"]
        for prefix, layer in zip(prefixes, layers, strict=True):
            state |= {f"bbox_head.{prefix}.{k}": v for k, v in layer.state_dict().items()}
        maps = []
        for x in features:
            for layer in layers[:-1]:
                x = layer(x).relu()
            maps.append(layers[-1](x))
        expected[task] = by_cell(maps)[:, :, THEIR_ORDER]
    weights = migration_code["head_weights"](state, migration_code["MMDETECTION"])
    logits, deltas = predictions(tiny_cfg, weights, features)
    torch.testing.assert_close(logits, expected["cls"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deltas, expected["reg"], rtol=1e-4, atol=1e-4)


def test_defaults_of_torchvision():
    parameters = inspect.signature(retinanet.RetinaNet).parameters
    expected = {
        "score_thresh": 0.05, "topk_candidates": 1000, "nms_thresh": 0.5,
        "detections_per_img": 300, "bg_iou_thresh": 0.4, "fg_iou_thresh": 0.5,
    }  # fmt: skip
    assert {name: parameters[name].default for name in expected} == expected
    assert retinanet.RetinaNetRegressionHead(8, 9)._loss_type == "l1"


def test_torchvisions_dw_and_dh_have_an_upper_limit_only():
    anchor = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    theirs = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    for size in (20.0, -8.0):
        deltas = torch.tensor([[0.0, 0.0, size, size]])
        expected = theirs.decode_single(deltas, anchor)
        torch.testing.assert_close(DeltaCoder().decode(anchor, deltas), expected)


def test_torchvisions_network():
    first, second = (
        builder(weights=None, weights_backbone=None)
        for builder in (retinanet.retinanet_resnet50_fpn, retinanet.retinanet_resnet50_fpn_v2)
    )
    assert first.backbone.fpn.extra_blocks.use_P5 and not second.backbone.fpn.extra_blocks.use_P5
    block = first.backbone.body.layer2[0]
    assert block.conv1.stride == (1, 1) and block.conv2.stride == (2, 2)
    assert second.head.regression_head._loss_type == "giou"
    assert first.head.classification_head.num_classes == 91


def test_torchvision_clips_before_nms():
    """Boxes that only overlap much inside the image: one remains, with ours and Detectron2 two."""
    anchors = torch.tensor([[-80.0, 0.0, 10.0, 10.0], [0.0, 0.0, 90.0, 10.0]])
    logits = torch.tensor([[2.0], [1.0]])
    outputs = {"cls_logits": [logits[None]], "bbox_regression": [torch.zeros(1, 2, 4)]}
    (found,) = small_model().postprocess_detections(outputs, [[anchors]], [(10, 10)])
    assert len(found["boxes"]) == 1
    ours = ops.dense_detections(
        [logits.reshape(1, 1, 1, 2)], [torch.zeros(1, 4, 1, 2)], [anchors], num_classes=1,
        score_thresh=0.05, topk=10, nms_thresh=0.5, max_detections=10,
    )  # fmt: skip
    assert ours.counts.tolist() == [2] and ours.boxes.min() < 0
