"""The best IoU of objects with anchors: by hand, and against the anchors that detectors use."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from detectron2.structures import Boxes, pairwise_iou

from resobj_d2.config import add_resobj_config, get_config
from resobj_d2.config.zoo import find_config
from resobj_d2.inspection.anchors import AnchorFit, AnchorSet, anchor_sets, best_ious, network_of
from resobj_d2.inspection.input_size import InputObjects, input_sizes

SQUARE = np.array([[-16.0, -16, 16, 16]])  # an anchor of 32 pixels around the corner of its cell


def objects_of(boxes, inputs=(64, 64), classes=None, names=("a", "b")):
    boxes = np.asarray(boxes, dtype=float).reshape(-1, 4)
    return InputObjects(
        boxes=boxes,
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        classes=np.zeros(len(boxes), dtype=int) if classes is None else np.array(classes),
        inputs=np.tile(np.array(inputs, dtype=float), (len(boxes), 1)),
        class_names=names,
    )


def anchors_of(cells, strides, **options):
    return AnchorSet(node="N", kind="K", strides=strides, cells=cells, **options)


def test_best_iou_by_hand():
    anchors = anchors_of([SQUARE], [32])  # centres at 0 and 32
    objects = objects_of(
        [
            [16, 16, 48, 48],  # an anchor
            [24, 24, 40, 40],  # its middle: a quarter of its area
            [0, 0, 32, 32],  # between four anchors: 16 * 16 of 2 * 32 * 32
            [40, 16, 72, 48],  # 8 of 32 columns shared with the last anchor, whose centre is 32
        ]
    )
    expected = [1, 1 / 4, 256 / (2048 - 256), 256 / (2048 - 256)]
    assert best_ious(anchors, objects) == pytest.approx(expected)


def test_shapes_alone_by_hand():
    anchors = anchors_of([np.array([[-5.0, -10, 5, 10]]), SQUARE], [8, 16], centred=True)
    objects = objects_of([[100, 100, 110, 110], [7, 3, 39, 35]])
    assert best_ious(anchors, objects) == pytest.approx([1 / 2, 1])


def test_shares_and_histogram_by_hand():
    objects = objects_of(
        [[0, 0, 10, 10], [0, 0, 31, 31], [0, 0, 64, 64], [0, 0, 100, 100]], classes=[0, 0, 1, 1]
    )
    fitted = AnchorFit(
        anchors=anchors_of([SQUARE], [32]), objects=objects, ious=np.array([0.49, 0.5, 0.95, 1.0])
    )
    assert fitted.histogram() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 2]
    assert fitted.share() == 0.75
    assert fitted.share_by_band() == {"small": 0.5, "medium": 1.0, "large": 1.0}
    assert fitted.share_by_class() == {"a": 0.5, "b": 1.0}
    reached, iou = fitted.mean_over_classes()
    assert (reached, iou) == pytest.approx((0.75, (0.495 + 0.975) / 2))


def config(name, *overrides):
    cfg = get_cfg()
    add_resobj_config(cfg)
    cfg.merge_from_file(str(find_config(name)))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *overrides])
    return cfg


CONFIGS = {
    "RetinaNet": ("cells_retinanet_fl", "MODEL.DENSE.PRIORS"),
    "SSD": ("cells_ssd_plain", "MODEL.DENSE.PRIORS"),
    "EfficientDet": ("cells_efficientdet_d0", "MODEL.DENSE.PRIORS"),
    "RPN": ("cells_faster_rcnn_sampling", "MODEL.ANCHOR_GENERATOR"),
    "Detectron2's RetinaNet": ("cells_faster_rcnn_sampling", "MODEL.ANCHOR_GENERATOR"),
}


@pytest.mark.parametrize("detector", CONFIGS)
def test_as_with_all_anchors_of_a_detector(detector):
    """The model's own anchors for its own feature maps, every one compared with every object."""
    name, node = CONFIGS[detector]
    cfg = config(name)
    if detector == "Detectron2's RetinaNet":
        cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
        cfg.MODEL.RETINANET.IN_FEATURES = ["p4", "p5", "p6"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[20, 25], [40, 50], [80, 100]]
        cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5
    height, width = 160, 256
    anchors = all_anchors(cfg, height, width)
    random = np.random.default_rng(0)
    centres = random.uniform(-10, 1, (300, 2)) + random.uniform(0, 1, (300, 2)) * [width, height]
    sides = np.exp(random.uniform(1, 5, (300, 2)))
    boxes = np.hstack([centres - sides / 2, centres + sides / 2])
    expected = pairwise_iou(Boxes(torch.tensor(boxes)), Boxes(anchors.double())).amax(dim=1)

    (found,), remarks = anchor_sets(cfg, network_of(cfg))
    assert (found.node, found.centred, remarks) == (node, False, [])
    ious = best_ious(found, objects_of(boxes, inputs=(height, width)))
    np.testing.assert_allclose(ious, expected, atol=1e-5)


def all_anchors(cfg, height, width):
    """(R, 4), from a forward through the model."""
    from detectron2.modeling import build_model

    model = build_model(cfg).eval()
    with torch.no_grad():
        features = model.backbone(torch.zeros(1, 3, height, width))
        if cfg.MODEL.META_ARCHITECTURE == "ResObjDenseDetector":
            maps = [features[name].shape[-2:] for name in model.in_features]
            return model.streams["anchors"].priors(maps).boxes
        if cfg.MODEL.META_ARCHITECTURE == "RetinaNet":
            maps = [features[name] for name in cfg.MODEL.RETINANET.IN_FEATURES]
            return Boxes.cat(model.anchor_generator(maps)).tensor
        rpn = model.proposal_generator
        return Boxes.cat(rpn.anchor_generator([features[f] for f in rpn.in_features])).tensor


@pytest.mark.parametrize("key, value", [("WEIGHTS", "package:nowhere"), ("PRETRAINED", True)])
def test_shapes_need_no_weights(key, value, monkeypatch):
    """The strides are those of the levels, and nothing is fetched."""
    monkeypatch.setattr("timm.models._builder.load_pretrained", None)  # whoever calls it fails
    cfg = config("cells_retinanet_fl_lite0")
    cfg.MODEL.TIMM.WEIGHTS = ""
    cfg.MODEL.TIMM[key] = value
    assert [shape.stride for shape in network_of(cfg).levels] == [8, 16, 32, 64, 128]


def test_yolo_compares_shapes_and_anchor_free_streams_have_none():
    cfg = config("cells_yolov3_obj")
    (found,), _ = anchor_sets(cfg, network_of(cfg))
    assert found.centred and found.cells[0][0].tolist() == [-3, -3.5, 11, 11.5]  # 14 x 15 around 4

    cfg = config("cells_retinanet_fsaf")
    sets, remarks = anchor_sets(cfg, network_of(cfg))
    assert [one.node for one in sets] == ["MODEL.DENSE.PRIORS"]
    assert remarks == ["MODEL.DENSE.ANCHOR_FREE is anchor-free (FSAFAssigner): it has no anchors"]
    cfg.MODEL.DENSE.ANCHOR_BASED = False
    assert anchor_sets(cfg, network_of(cfg))[0] == []


@pytest.mark.parametrize(
    "name, remark",
    [
        ("fcos", "MODEL.DENSE is anchor-free (FCOSAssigner): it has no anchors"),
        ("tood", "MODEL.DENSE is anchor-free (TaskAlignedAssigner): it has no anchors"),
        ("atss", "MODEL.DENSE: ATSSAssigner has no IoU that an anchor must reach"),
        ("paa", "MODEL.DENSE: PAAAssigner has no IoU that an anchor must reach"),
    ],
)
def test_assigners_without_iou_thresholds_have_nothing_to_compare(name, remark):
    cfg = get_config(f"{name}_R_50_FPN_800_1x", training=False)
    sets, remarks = anchor_sets(cfg, network_of(cfg))
    assert sets == [] and len(remarks) == 1 and remarks[0].startswith(remark)


SIZES = [(640, 480), (480, 640), (1000, 100), (33, 57)]


@pytest.mark.parametrize(
    ("overrides", "augmentation"),
    [
        (("INPUT.MIN_SIZE_TRAIN", "(200, 256, 300)"), T.ResizeShortestEdge(256, 400)),
        (("INPUT.FIXED_SIZE", "[96, 128]"), T.Resize((96, 128))),
    ],
)
def test_input_sizes_are_those_of_training(overrides, augmentation):
    cfg = config("cells_retinanet_fl", *overrides)
    widths, heights = np.array(SIZES).T
    expected = []
    for width, height in SIZES:
        image = T.AugInput(np.zeros((height, width, 3), dtype=np.uint8))
        augmentation(image)
        expected.append(list(image.image.shape[:2]))
    assert input_sizes(cfg, widths, heights).tolist() == expected


def test_other_input_sizes_by_hand():
    widths, heights = np.array([400]), np.array([200])
    jitter = ("INPUT.SCALE_JITTER", "[0.1, 2.0]", "INPUT.MAX_SIZE_TRAIN", "512")
    cfg = config("cells_retinanet_fl", *jitter)
    assert input_sizes(cfg, widths, heights).tolist() == [[256, 512]]
    cfg = config("cells_retinanet_fl", "INPUT.MULTI_SCALE", "[320, 416, 608]")
    assert input_sizes(cfg, widths, heights).tolist() == [[208, 416]]
    assert input_sizes(cfg, widths, heights, is_train=False).tolist() == [[200, 400]]
