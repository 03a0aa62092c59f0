"""What a detector with stages detects, and which weights come from a checkpoint."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform

from resobj_d2.checkpoint import ResObjCheckpointer

ALL_CANDIDATES = [
    "MODEL.DENSE.NUM_CLASSES", 1,
    "MODEL.DENSE.POSTPROCESS.SCORE_THRESH", 0.0,
    "MODEL.DENSE.POSTPROCESS.TOPK", 10**5,
    "MODEL.DENSE.POSTPROCESS.NMS_THRESH", 1.0,
    "TEST.DETECTIONS_PER_IMAGE", 10**5,
]  # fmt: skip
CASCADE = [{"CLS": "own", "TOWER": "own"}]


def build(tiny_cfg, stages, *opts):
    """A detector that keeps every anchor, with predictors whose outputs differ."""
    torch.manual_seed(0)
    model = build_model(tiny_cfg(*ALL_CANDIDATES, "MODEL.DENSE.STAGES", stages, *opts)).eval()
    with torch.no_grad():
        for stage in model.streams["anchors"].stages:
            for predictor, std in ((stage.cls, 2.0), (stage.box, 0.5)):
                if predictor is not None:
                    predictor.weight.normal_(std=std)
    return model


@pytest.fixture
def detect(observe):
    """A function: the raw output of the anchor stream, and the detections of the first image."""

    def call(model, batch):
        with torch.no_grad():
            seen = observe(model, batch)
        return seen.outputs["anchors"], seen.result[0]["instances"]

    return call


def decode(anchors, deltas):
    return Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)).apply_deltas(deltas, anchors)


def check(found, boxes, scores, size):
    """``found`` are all ``boxes``, clipped, best first, without those outside the picture."""
    order = scores.argsort(descending=True)
    boxes, scores = boxes[order].clamp(min=0, max=size), scores[order]
    inside = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    assert 0 < inside.sum() < len(boxes)
    torch.testing.assert_close(found.scores, scores[inside])
    torch.testing.assert_close(found.pred_boxes.tensor, boxes[inside], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    "stages, scored, moved",
    [
        ([{}], 0, [0, 1]),  # consistent: shared classes, boxes decoded twice
        (CASCADE, 1, [0, 1]),
        ([{"BOX": "none"}], 0, [0]),  # Table 3, 2/1
        ([{}, {"BOX": "none"}], 0, [0, 1]),  # 3/2
        ([{"BOX": "none"}, {"CLS": "none"}], 0, [0, 2]),
        ([{"BOX": "shared"}], 0, [0, 0]),
        (CASCADE * 2, 2, [0, 1, 2]),
    ],
)
def test_boxes_are_decoded_through_every_stage(tiny_cfg, make_batch, stages, scored, moved, detect):
    model = build(tiny_cfg, stages)
    output, found = detect(model, make_batch([(64, 64, 0)]))
    boxes = output.priors.boxes
    for i in moved:
        boxes = decode(boxes, output.stages[i].deltas[0])
    scores = torch.sigmoid(output.stages[scored].cls_logits[0, :, 0])
    check(found, boxes, scores, 64)


@pytest.mark.parametrize("own", [2, 3])
def test_mean_of_the_stages_scores(tiny_cfg, make_batch, detect, own):
    stages = [*CASCADE * (own - 1), {}]
    model = build(tiny_cfg, stages, "MODEL.DENSE.STAGE_SCORES", "mean")
    output, found = detect(model, make_batch([(64, 64, 0)]))
    boxes = output.priors.boxes
    for stage in output.stages:
        boxes = decode(boxes, stage.deltas[0])
    scores = [torch.sigmoid(stage.cls_logits[0, :, 0]) for stage in output.stages[:own]]
    check(found, boxes, torch.stack(scores).mean(dim=0), 64)


def test_detections_per_step_with_stages_and_quality(tiny_cfg, make_batch, observe):
    """Each residual step scores the same final boxes with its own objectness."""
    model = build(
        tiny_cfg,
        CASCADE,
        "MODEL.DENSE.OBJECTNESS.ENABLED", True,
        "MODEL.DENSE.QUALITY.ENABLED", True,
    )  # fmt: skip
    branches = model.streams["anchors"].branches
    for subnet in branches["objectness"].residuals:
        torch.nn.init.normal_(subnet.predictor.weight, std=0.5)
    torch.nn.init.normal_(branches["quality"].predictor.weight, std=0.1)
    batch = make_batch([(64, 64, 0)])
    seen = observe(model, batch, model.detections_per_step)
    steps, output = seen.result, seen.outputs["anchors"]
    boxes = decode(output.priors.boxes, output.stages[0].deltas[0])
    boxes = decode(boxes, output.stages[1].deltas[0])
    objectness = output.branches["objectness"]
    assert len(steps) == 3
    for t, step in enumerate(steps):
        factors = [
            torch.sigmoid(output.stages[1].cls_logits[0, :, 0]) ** 0.6,
            torch.sigmoid(objectness.logits[0] + objectness.residuals[:t, 0].sum(dim=0)) ** 0.6,
            torch.sigmoid(output.branches["quality"][0]) ** 0.4,
        ]
        check(step[0]["instances"], boxes, factors[0] * factors[1] * factors[2], 64)
    with torch.no_grad():
        last = model(batch)[0]["instances"]
    torch.testing.assert_close(steps[-1][0]["instances"].scores, last.scores)


def test_an_invalid_box_of_the_first_stage_is_replaced_by_its_anchor(tiny_cfg, make_batch, detect):
    model = build(tiny_cfg, [{}])
    with torch.no_grad():
        model.streams["anchors"].stages[0].box.bias.fill_(float("nan"))
    output, found = detect(model, make_batch([(64, 64, 0)]))
    boxes = decode(output.priors.boxes, output.stages[1].deltas[0])
    check(found, boxes, torch.sigmoid(output.stages[0].cls_logits[0, :, 0]), 64)


def test_objects_beyond_the_picture_and_one_class(tiny_cfg, make_batch):
    from detectron2.structures import Boxes

    model = build(tiny_cfg, CASCADE, "MODEL.DENSE.QUALITY.ENABLED", True).train()
    batch = make_batch([(64, 64, 2)], num_classes=1)
    batch[0]["instances"].gt_boxes = Boxes(
        torch.tensor([[-50.0, -50, 90, 30], [400, 400, 500, 500]])
    )
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_single_stage_checkpoint_starts_a_detector_with_stages(tiny_cfg, make_batch, tmp_path):
    """The first stage keeps its parameter names, so only the parts a method adds are new."""
    plain = build(tiny_cfg, [])
    ResObjCheckpointer(plain, str(tmp_path)).save("plain")
    gated = [{"CLS": "own", "TOWER": "gated"}]
    model = build(tiny_cfg, gated, "MODEL.DENSE.QUALITY.ENABLED", True)
    ResObjCheckpointer(model).load(str(tmp_path / "plain.pth"))
    old, new = plain.state_dict(), model.state_dict()
    assert all(torch.equal(new[name], value) for name, value in old.items())
    added = {".".join(name.split(".")[2:5]) for name in set(new) - set(old)}
    assert added == {
        "stages.1.cls", "stages.1.box", "stages.1.tower", "stages.1.gates",
        "stages.1.normalizer", "branches.quality.predictor",
    }  # fmt: skip
