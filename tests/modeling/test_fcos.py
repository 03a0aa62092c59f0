"""FCOS as slots against torchvision's with the same weights: predictions, losses, detections."""

import pytest
import torch
from detectron2.modeling import build_model
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList

SIZE = (128, 256)
WIDTH = 32  # of GroupNorm with 32 groups


class Pyramid(torch.nn.Module):
    """Gives torchvision's detector the maps of ours."""

    out_channels = WIDTH

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, image):
        return self.backbone(image)


@pytest.fixture(scope="module")
def pair(method_cfg):
    """Our detector and torchvision's with its weights."""
    options = {
        "PRIORS.OFFSET": 0.0,  # torchvision's points are the cells' corners
        "POSTPROCESS.SCORE_THRESH": 0.2,
        "BOX_LOSS.WEIGHED_BY": "none",  # by centre-ness in the authors' code only
    }
    opts = [x for key, value in options.items() for x in (f"MODEL.DENSE.{key}", value)]
    torch.manual_seed(0)
    ours = build_model(method_cfg("fcos", opts=opts))
    theirs = FCOS(
        Pyramid(ours.backbone),
        num_classes=3,
        anchor_generator=AnchorGenerator(tuple((8 * 2**i,) for i in range(5)), ((1.0,),) * 5),
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
    )
    stream = ours.streams["anchors"]
    with torch.no_grad():
        for name, parameter in ours.named_parameters():  # far from the initial values
            if not name.startswith("backbone"):
                parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.dim() > 1 else 0.5))
    for part, conv in (("classification", "cls"), ("regression", "box")):
        head = getattr(theirs.head, f"{part}_head")
        head.conv = torch.nn.Sequential(*ours.tower.get_submodule(conv).children())
    (stage,) = stream.stages
    for theirs_last, ours_last in (
        (theirs.head.classification_head.cls_logits, stage.cls),
        (theirs.head.regression_head.bbox_reg, stage.box),
        (theirs.head.regression_head.bbox_ctrness, stream.branches["quality"].predictor),
    ):
        theirs_last.load_state_dict(ours_last.state_dict())
    return ours, theirs


def run(theirs, maps, images):
    """torchvision's predictions and anchors for our feature maps."""
    features = list(maps.values())
    anchors = theirs.anchor_generator(
        ImageList(images, [tuple(x.shape[1:]) for x in images]), features
    )
    return theirs.head(features), anchors, [x.shape[2] * x.shape[3] for x in features]


@pytest.fixture(scope="module")
def seen(pair):
    """Both detectors' predictions for one batch of two images."""
    ours, theirs = pair
    images = torch.randn(2, 3, *SIZE)
    maps = ours.backbone(images)
    ours_out = ours.streams["anchors"](ours.tower([maps[f] for f in ours.in_features]))
    return ours_out, *run(theirs, maps, images)


def test_points_and_predictions_are_equal(pair, seen):
    stream = pair[0].streams["anchors"]
    ours, theirs, anchors, _ = seen
    assert torch.equal(ours.priors.boxes, anchors[0])
    (stage,) = ours.stages
    torch.testing.assert_close(stage.cls_logits, theirs["cls_logits"])
    torch.testing.assert_close(ours.branches["quality"], theirs["bbox_ctrness"].squeeze(-1))
    decoded = stream._boxes(stage, ours.priors)
    expected = pair[1].box_coder.decode(theirs["bbox_regression"], torch.stack(anchors))
    torch.testing.assert_close(decoded, expected)


def test_losses_are_equal(pair, seen, make_batch, truth_of):
    ours, theirs = pair
    output, predictions, anchors, counts = seen
    batch = make_batch([(*SIZE, 5), (*SIZE, 0)])
    # One object large enough for a coarse level.
    batch[0]["instances"].gt_boxes.tensor[0] = torch.tensor([3.0, 2.0, 225.0, 120.0])
    losses, statistics = ours.streams["anchors"].losses(output, truth_of(batch))
    targets = [
        {"boxes": x["instances"].gt_boxes.tensor, "labels": x["instances"].gt_classes}
        for x in batch
    ]
    expected = theirs.compute_loss(targets, predictions, anchors, counts)
    assert statistics["num_foreground"] > 5
    names = {
        "loss_cls": "classification",
        "loss_box_reg": "bbox_regression",
        "loss_quality": "bbox_ctrness",
    }
    assert set(losses) == set(names)
    for name, other in names.items():
        torch.testing.assert_close(losses[name], expected[other], rtol=1e-5, atol=1e-6)


def test_detections_are_equal(pair, seen):
    ours, theirs = pair
    output, predictions, anchors, counts = seen
    found = ours.postprocess([(ours.streams["anchors"], output)])
    split = {name: list(x.split(counts, dim=1)) for name, x in predictions.items()}
    expected = theirs.postprocess_detections(
        split, [list(x.split(counts)) for x in anchors], [(10**6, 10**6)] * 2
    )
    for a, b in zip(found, expected, strict=True):
        assert len(b["scores"]) > 20
        torch.testing.assert_close(a.scores, b["scores"])
        assert torch.equal(a.classes, b["labels"])
        inside = a.boxes.clamp(min=0)  # torchvision clips before NMS
        torch.testing.assert_close(inside, b["boxes"])
