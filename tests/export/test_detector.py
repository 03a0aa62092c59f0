"""``ExportableDetector`` in eager mode finds what the model finds, by both ways of selection."""

import pytest
import torch

from resobj_d2.export import ExportableDetector, exportable
from resobj_d2.export.check import as_batch, compare
from resobj_d2.export.selection import SELECTIONS
from resobj_d2.export.suppression import ABSENT, keep_greedy, suppressed_scores
from resobj_d2.modeling.suppression import Suppression

FAMILIES = {
    "retinanet": (),
    "resobj": ("retinanet_resobj",),
    "conf": ("retinanet_conf",),
    "consistent": ("retinanet_consistent",),
    "gated_cascade": ("retinanet_gated_cascade",),
    "libra": ("libra",),
    "fsaf": ("fsaf",),
    "fcos": ("fcos",),
    "gfl": ("gfl",),
    "everything": ("everything_fsaf",),
    "yolov3": ("yolov3",),
    "ssd": ("ssd",),
    "efficientdet": ("efficientdet",),
}
FLAT = ("MODEL.DENSE.POSTPROCESS.SCORE_THRESH", 0.0)


def accept(parities):
    for parity in parities:
        assert parity.holds, parity
    return [parity.found for parity in parities]


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_finds_what_the_model_finds(family, selection, method_cfg, spread_out, pictures):
    model = spread_out(method_cfg(*FAMILIES[family], opts=FLAT))
    detector = ExportableDetector(model, selection=selection)
    inputs = pictures([(70, 100), (64, 90)])
    found = accept(compare(model, detector, inputs, detector=detector))
    assert min(found) > 3


def test_a_picture_without_detections(method_cfg, spread_out, pictures):
    model = spread_out(method_cfg("retinanet_resobj", opts=(*FLAT[:1], 0.999)))
    for selection in SELECTIONS:
        detector = ExportableDetector(model, selection=selection)
        inputs = pictures([(64, 64)])
        assert accept(compare(model, detector, inputs, detector=detector)) == [0]
        boxes, scores, classes, counts = detector(*as_batch(inputs, 32))
        assert boxes.shape == (1, 100, 4) and not boxes.any() and not scores.any()
        assert (classes == -1).all() and counts.tolist() == [0]


def test_more_objects_than_the_limit(method_cfg, spread_out, pictures):
    model = spread_out(method_cfg(opts=(*FLAT, "TEST.DETECTIONS_PER_IMAGE", 9)))
    for selection in SELECTIONS:
        detector = ExportableDetector(model, selection=selection)
        found = accept(compare(model, detector, pictures([(96, 96)]), detector=detector))
        assert 0 < found[0] <= 9  # those outside the picture are dropped after the limit
        assert detector(*as_batch(pictures([(96, 96)]), 32))[0].shape == (1, 9, 4)


@pytest.mark.parametrize("method", ["soft_linear", "soft_gaussian", "matrix"])
def test_other_suppressions(method, method_cfg, spread_out, pictures):
    model = spread_out(method_cfg(opts=(*FLAT, "MODEL.DENSE.POSTPROCESS.NMS", method)))
    detector = ExportableDetector(model)
    accept(compare(model, detector, pictures([(70, 100), (64, 90)]), detector=detector))
    with pytest.raises(ValueError, match=f"ONNX has no operator for .*NMS {method}: export with"):
        ExportableDetector(model, selection="onnx")
    ExportableDetector(model, selection="onnx", raw=True)


def test_what_is_in_the_padding_plays_no_part(method_cfg, spread_out, pictures):
    detector = ExportableDetector(spread_out(method_cfg(opts=FLAT)))
    images, sizes, originals = as_batch(pictures([(40, 50)]), 32)
    before = detector(images, sizes, originals)
    images[:, :, 40:] = 0
    images[:, :, :, 50:] = 17
    for a, b in zip(before, detector(images.float(), sizes, originals), strict=True):
        assert torch.equal(a, b)


def test_raw_boxes_and_scores_are_those_before_the_selection(method_cfg, spread_out, pictures):
    model = spread_out(method_cfg("retinanet_resobj", opts=FLAT))
    batch = as_batch(pictures([(64, 64)]), 32)
    scores, boxes = ExportableDetector(model, raw=True)(*batch)
    anchors = sum(9 * side**2 for side in (8, 4, 2, 1, 1))
    assert scores.shape == (1, anchors, 3) and boxes.shape == (1, anchors, 4)
    found, best, classes, _ = ExportableDetector(model)(*batch)
    ((row, number),) = (scores[0] == best[0, 0]).nonzero().tolist()
    assert classes[0, 0] == number
    height, width = batch[2][0].tolist()
    limit = torch.tensor([width, height] * 2)
    assert torch.allclose(found[0, 0], boxes[0, row].clamp(min=0).minimum(limit))


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="ResObjDenseDetector and GeneralizedRCNN, got Linear"):
        exportable(torch.nn.Linear(1, 1))


def test_images_of_a_batch_do_not_suppress_each_other():
    """By hand: twice the same two boxes and a third that is apart, in one of two classes."""
    box = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [50, 50, 60, 60]])
    boxes = torch.stack((box, box))
    scores = torch.tensor([[0.9, 0.8, ABSENT], [0.7, 0.8, 0.1]])
    classes = torch.tensor([[1, 1, 0], [0, 1, 1]])
    keep = keep_greedy(boxes, scores, classes, 2, 0.5, 10)
    assert keep.tolist() == [[True, False, False], [True, True, True]]
    decayed = suppressed_scores(
        boxes,
        scores,
        classes,
        suppression=Suppression(method="soft_linear", threshold=0.5),
        num_classes=2,
        min_score=0.1,
    )
    expected = torch.tensor([[0.9, 0.8 * 0.19, ABSENT], [0.7, 0.8, ABSENT]])
    torch.testing.assert_close(decayed, expected)
