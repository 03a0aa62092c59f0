"""``ExportableRCNN`` finds what Detectron2's ``GeneralizedRCNN`` finds."""

import pytest
import torch

from resobj_d2.export import FORMATS, exportable, load_exported, write_exported
from resobj_d2.export.check import as_batch, compare

SMALL = (
    "MODEL.RPN.PRE_NMS_TOPK_TEST", "150",
    "MODEL.RPN.POST_NMS_TOPK_TEST", "60",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.26",
)  # fmt: skip
RESOBJ = (
    "MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", "True",
    "MODEL.RESOBJ_RPN.SAMPLER.NAME", "KeepAll",
    "MODEL.ROI_HEADS.NAME", "ResObjROIHeads",
)  # fmt: skip
FAMILIES = {
    "faster_rcnn": (),
    "resobj": RESOBJ,
    "quality": (*RESOBJ, "MODEL.RESOBJ_ROI.QUALITY.ENABLED", "True"),
    "soft_nms": (*RESOBJ, "MODEL.RESOBJ_ROI.NMS", "soft_linear"),
    "one_level_agnostic": (
        "MODEL.ROI_HEADS.IN_FEATURES", "['p4']",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True",
        "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign",
        "MODEL.PROPOSAL_GENERATOR.MIN_SIZE", "12",
    ),
}  # fmt: skip
# Hardly padded: anchors that see nothing but padding have equal scores, and which of them come
# first differs from one call of Detectron2 to another.
SIZES = ([(30, 32)], [(60, 96)], [(192, 30)], [(60, 128), (50, 120), (64, 100)])


@pytest.fixture(scope="module")
def spread_rcnn(tiny_rcnn):
    """A function: options to a model whose scores, boxes and levels differ."""
    from detectron2.modeling import build_model

    def build(*opts):
        torch.manual_seed(0)
        model = build_model(tiny_rcnn(*SMALL, *opts)).eval()
        for name, parameter in model.named_parameters():
            if "backbone" not in name and parameter.dim() > 1 and parameter.std() < 0.02:
                parameter.data.mul_(20)
        return model

    return build


@pytest.mark.parametrize("selection", ["operator", "onnx"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_finds_what_the_model_finds(family, selection, spread_rcnn, pictures):
    model = spread_rcnn(*FAMILIES[family])
    if (family, selection) == ("soft_nms", "onnx"):
        with pytest.raises(ValueError, match="no operator for MODEL.RESOBJ_ROI.NMS soft_linear"):
            exportable(model, selection=selection)
        return
    detector = exportable(model, selection=selection)
    found = []
    for sizes in SIZES:
        for parity in compare(model, detector, pictures(sizes), detector=detector):
            assert parity.holds, parity
            found.append(parity.found)
    print(family, found)
    assert max(found) > 9 and len(set(found)) > 2


@pytest.mark.parametrize(
    "format",
    [
        "torchscript",
        pytest.param("pt2", marks=pytest.mark.slow),
        pytest.param("onnx", marks=pytest.mark.slow),
    ],
)
def test_files_find_what_the_model_finds(format, spread_rcnn, pictures, tmp_path):
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="ONNX needs the extra 'export'")
    model = spread_rcnn(*RESOBJ, "MODEL.ROI_HEADS.IN_FEATURES", "['p3', 'p4']")
    path = tmp_path / f"model{FORMATS[format].suffix}"
    detector = exportable(model, selection=FORMATS[format].selection)
    write_exported(detector, path, format=format, metadata=detector.limits)
    loaded = load_exported(path, format=format)
    assert loaded.metadata["proposals"] == 60 and loaded.metadata["score_threshold"] == 0.26
    found = []
    for sizes in SIZES:
        for parity in compare(model, loaded, pictures(sizes), detector=detector):
            assert parity.holds, parity
            found.append(parity.found)
    assert max(found) > 9 and len(set(found)) > 2


def test_a_picture_without_detections(spread_rcnn, pictures):
    model = spread_rcnn("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")
    inputs = pictures([(64, 64)])
    for selection in ("operator", "onnx"):
        detector = exportable(model, selection=selection)
        (parity,) = compare(model, detector, inputs, detector=detector)
        assert parity.holds and parity.found == 0
        boxes, scores, classes, counts = detector(*as_batch(inputs, detector.size_divisibility))
        assert boxes.shape == (1, 100, 4) and not boxes.any() and not scores.any()
        assert (classes == -1).all() and counts.tolist() == [0]


@pytest.mark.parametrize(
    "options, message",
    [
        (("MODEL.MASK_ON", "True"), "returns boxes alone: set MODEL.MASK_ON False"),
        (("TEST.DETECTIONS_PER_IMAGE", "-1"), "set TEST.DETECTIONS_PER_IMAGE to at least 1"),
        (("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIPool"), "POOLER_TYPE ROIAlign .*, got RoIPool"),
        (("MODEL.ROI_HEADS.NAME", "CascadeROIHeads",
          "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"), "got CascadeROIHeads"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_named(options, message, tiny_rcnn):
    from detectron2.modeling import build_model

    with pytest.raises(ValueError, match=message):
        exportable(build_model(tiny_rcnn(*options)))


def test_raw_is_refused(spread_rcnn):
    with pytest.raises(ValueError, match="--raw .* a two-stage detector does not have"):
        exportable(spread_rcnn(), raw=True)


def test_pooling_takes_each_box_from_its_level():
    """Against ``ROIPooler`` itself: sizes at, below and above every border of levels."""
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.structures import Boxes

    from resobj_d2.export.two_stage import pool

    g = torch.Generator().manual_seed(0)
    maps = [torch.rand(2, 3, 512 // s, 512 // s, generator=g) for s in (8, 16, 32)]
    side = torch.tensor([1.0, 111.9, 112.0, 112.1, 223.9, 224.0, 300.0, 448.0, 512.0, 0.0])
    boxes = torch.stack((side * 0, side * 0, side, side), dim=1).repeat(2, 1, 1)
    boxes[1] += 3.5
    for sampling_ratio, kind in ((0, "ROIAlignV2"), (2, "ROIAlignV2"), (0, "ROIAlign")):
        pooler = ROIPooler(4, [1 / 8, 1 / 16, 1 / 32], sampling_ratio, kind)
        expected = pooler(maps, [Boxes(x) for x in boxes])
        torch.testing.assert_close(pool(pooler, maps, boxes), expected, rtol=0, atol=0)
