"""Detections merged over sizes and mirror images."""

import pytest
import torch
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import nn
from torchvision.ops import batched_nms

from resobj_d2.modeling.postprocess import DensePostprocess
from resobj_d2.modeling.test_time_augmentation import AugmentedDetector, with_augmentation


class Bright(nn.Module):
    """Detects the bright rectangle of an image; the score grows with the image."""

    def __init__(self):
        super().__init__()
        self.postprocess = DensePostprocess()
        self.seen = []

    def forward(self, batched_inputs):
        (inputs,) = batched_inputs
        image = inputs["image"]
        self.seen.append(tuple(image.shape[1:]))
        y, x = torch.nonzero(image[0] > 127, as_tuple=True)
        box = torch.stack((x.min(), y.min(), x.max() + 1, y.max() + 1)).float()
        result = Instances((inputs["height"], inputs["width"]))
        scale = [inputs["width"] / image.shape[2], inputs["height"] / image.shape[1]] * 2
        result.pred_boxes = Boxes(box[None] * torch.tensor(scale))
        result.scores = torch.tensor([image.shape[1] / 1000])
        result.pred_classes = torch.tensor([3])
        result.cls_score = result.scores.sqrt()
        return [{"instances": result}]


@pytest.fixture
def picture():
    """An image of 64 x 96 with a rectangle at its left, of an original twice as large."""
    image = torch.zeros(3, 64, 96, dtype=torch.uint8)
    image[:, 8:40, 8:24] = 255
    return {"image": image, "height": 128, "width": 192}


def test_variants_are_resized_and_mirrored_and_their_boxes_brought_back(picture):
    model = Bright()
    detector = AugmentedDetector(model, min_sizes=[64, 128], max_size=400, flip=True)
    (output,) = detector([picture])
    found = output["instances"]
    assert model.seen == [(64, 96), (64, 96), (128, 192), (128, 192)]
    assert found.image_size == (128, 192)
    # NMS keeps the best of the four, one of the larger images.
    assert found.scores.tolist() == pytest.approx([0.128])
    assert found.cls_score.tolist() == pytest.approx([0.128**0.5])
    truth = Boxes(torch.tensor([[16.0, 16.0, 48.0, 80.0]]))
    assert pairwise_iou(found.pred_boxes, truth).item() > 0.9


def test_weighted_box_fusion_averages_the_variants(picture):
    detector = AugmentedDetector(
        Bright(), min_sizes=[64, 128], max_size=400, flip=True, merge="wbf"
    )
    (output,) = detector([picture])
    found = output["instances"]
    assert found.scores.tolist() == pytest.approx([(0.064 + 0.128) / 2])
    assert found.pred_classes.tolist() == [3] and not found.has("cls_score")
    truth = Boxes(torch.tensor([[16.0, 16.0, 48.0, 80.0]]))
    assert pairwise_iou(found.pred_boxes, truth).item() > 0.9


@pytest.mark.parametrize("threshold, count", [(0.0959, 1), (0.0961, 0)])
def test_what_is_fused_scores_above_the_threshold_too(picture, threshold, count):
    """.064 and .128, both twice, become .096."""
    model = Bright()
    model.postprocess = DensePostprocess(score_thresh=threshold)
    detector = AugmentedDetector(model, min_sizes=[64, 128], max_size=400, flip=True, merge="wbf")
    (output,) = detector([picture])
    assert len(output["instances"]) == count


def test_one_variant_of_the_same_size_is_suppressed_once_more(tiny_cfg, make_batch):
    """Its boxes have been clipped since the first NMS, and overlap otherwise."""
    torch.manual_seed(0)
    opts = ["MODEL.DENSE.POSTPROCESS.SCORE_THRESH", "0.0"]
    model = build_model(tiny_cfg(*opts)).eval()
    (inputs,) = make_batch([(96, 128, 2)])
    detector = AugmentedDetector(model, min_sizes=[96], max_size=400, flip=False)
    with torch.no_grad():
        expected = model([inputs])[0]["instances"]
    found = detector([inputs])[0]["instances"]
    assert len(expected) == 100
    keep = batched_nms(expected.pred_boxes.tensor, expected.scores, expected.pred_classes, 0.5)
    assert 20 < len(keep) < 100
    torch.testing.assert_close(found.scores, expected.scores[keep])
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor[keep])


def test_what_a_configuration_makes_of_a_model(tiny_cfg, tiny_rcnn):
    on = ["TEST.AUG.ENABLED", "True"]
    dense = build_model(tiny_cfg())
    assert with_augmentation(tiny_cfg(), dense) is dense
    made = with_augmentation(tiny_cfg(*on, "TEST.AUG_MERGE", "wbf"), dense)
    assert isinstance(made, AugmentedDetector) and made.model is dense and made.merge == "wbf"
    assert made.min_sizes[0] == 400 and made.flip
    rcnn = build_model(tiny_rcnn())
    assert isinstance(with_augmentation(tiny_rcnn(*on), rcnn), GeneralizedRCNNWithTTA)
    with pytest.raises(ValueError, match="TEST.AUG is for dense detectors"):
        with_augmentation(tiny_rcnn(*on, "MODEL.LOAD_PROPOSALS", "True"), rcnn)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"merge": "soft"}, "AUG_MERGE must be nms or wbf"),
        ({"min_sizes": []}, "MIN_SIZES must be positive"),
        ({"max_size": 10}, "at most MAX_SIZE"),
    ],
)
def test_bad_options_are_refused(options, message):
    options = {"min_sizes": [64], "max_size": 400, "flip": False, **options}
    with pytest.raises(ValueError, match=message):
        AugmentedDetector(Bright(), **options)
