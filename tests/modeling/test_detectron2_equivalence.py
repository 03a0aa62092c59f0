"""With every extension off the detector is Detectron2's RetinaNet."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from resobj_d2.checkpoint import ResObjCheckpointer
from resobj_d2.modeling.suppression import Suppression

SHAPES = [(128, 160, 6), (160, 128, 0), (140, 150, 3)]


@pytest.fixture(params=["", "GN"])
def pair(request, resnet_cfg, tmp_path):
    """Detectron2's RetinaNet, and ours with its weights, loaded from a file in its layout."""
    cfg = resnet_cfg("MODEL.DENSE.TOWER.NORM", repr(request.param))
    cfg.MODEL.DENSE.TOWER.NUM_CONVS = 2
    cfg.MODEL.RETINANET.NUM_CONVS = 2
    cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.DENSE.NUM_CLASSES
    cfg.MODEL.RETINANET.NORM = request.param
    sizes = [[x * 2 ** (i / 3) for i in range(3)] for x in (32, 64, 128, 256, 512)]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = sizes
    ours = build_model(cfg)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    torch.manual_seed(0)
    theirs = build_model(cfg)
    with torch.no_grad():
        # Spread out enough for detections, but not so far that scores saturate into ties.
        for conv in (theirs.head.cls_score, theirs.head.bbox_pred):
            conv.weight.normal_(std=0.3)
        theirs.head.cls_score.bias.fill_(-2.0)
    path = tmp_path / "retinanet.pth"
    torch.save({"model": theirs.state_dict()}, path)
    ResObjCheckpointer(ours, strict=True).load(str(path))
    return ours, theirs


def test_losses_are_equal_over_iterations(pair, make_batch):
    ours, theirs = pair
    with EventStorage():
        for seed in range(3):  # the normaliser changes
            batch = make_batch(SHAPES, seed=seed)
            a, b = ours(batch), theirs(batch)
            assert set(a) == set(b) == {"loss_cls", "loss_box_reg"}
            for name in b:
                assert a[name].item() == pytest.approx(b[name].item(), rel=1e-5)


def test_gradients_are_equal(pair, make_batch):
    ours, theirs = pair
    batch = make_batch(SHAPES)
    with EventStorage():
        sum(ours(batch).values()).backward()
        sum(theirs(batch).values()).backward()
    ours_of = dict(ours.named_parameters())
    for name, parameter in theirs.backbone.named_parameters():
        torch.testing.assert_close(
            ours_of[f"backbone.{name}"].grad, parameter.grad, rtol=1e-3, atol=1e-4
        )


def detections_of_both(ours, theirs, batch):
    with torch.no_grad():
        pairs = zip(ours(batch), theirs(batch), strict=True)
    return [(a["instances"], b["instances"]) for a, b in pairs]


def test_detections_are_equal(pair, make_batch):
    ours, theirs = (m.eval() for m in pair)
    batch = make_batch(SHAPES)
    batch[0]["height"] *= 2  # to test rescaling to the output size
    for x, y in detections_of_both(ours, theirs, batch):
        assert len(y) > 20
        assert x.image_size == y.image_size
        torch.testing.assert_close(x.scores, y.scores)
        torch.testing.assert_close(x.pred_boxes.tensor, y.pred_boxes.tensor)
        assert torch.equal(x.pred_classes, y.pred_classes)


def test_the_same_candidates_reach_suppression(pair, make_batch):
    """Without NMS and limit all are returned: by default RetinaNet's best 1000 per level."""
    ours, theirs = (m.eval() for m in pair)
    stage = ours.streams["anchors"].stages[0]
    with torch.no_grad():  # scores far above the threshold, boxes inside the picture
        for cls, box in ((theirs.head.cls_score, theirs.head.bbox_pred), (stage.cls, stage.box)):
            cls.bias.zero_()
            box.weight.mul_(0.01)
    ours.postprocess.suppression = Suppression(threshold=1.0)
    ours.postprocess.max_detections = 10**5
    theirs.test_nms_thresh, theirs.max_detections_per_image = 1.0, 10**5
    for x, y in detections_of_both(ours, theirs, make_batch(SHAPES)):
        assert len(y) > 2000  # the limit applies on the two finest levels
        assert len(x) == len(y)
        torch.testing.assert_close(x.scores, y.scores)


def test_pictures_of_the_training_are_equal(pair, make_batch):
    batch = make_batch(SHAPES)
    batch[0]["height"] *= 2  # of the file, not of what the detector sees
    pictures = []
    for model in pair:
        model.vis_period, model.input_format = 4, "RGB"
        np.random.seed(0)  # colours of boxes
        with EventStorage(8) as storage:
            model(batch)
        pictures += storage._vis_data
    (name, ours, iteration), (their_name, theirs, their_iteration) = pictures
    assert (name, iteration) == (their_name, their_iteration)
    assert ours.shape == theirs.shape == (3, 256, 160)
    assert np.array_equal(ours, theirs)
