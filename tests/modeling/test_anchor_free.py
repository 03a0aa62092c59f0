"""FSAF's anchor-free stream, in addition to the anchor-based one and instead of it."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import pairwise_iou
from torch.nn import functional as F

from resobj_d2.structures import Candidates

FSAF = ["MODEL.DENSE.ANCHOR_FREE.ENABLED", "True"]
ALONE = [*FSAF, "MODEL.DENSE.ANCHOR_BASED", "False"]


def build(tiny_cfg, *opts):
    torch.manual_seed(0)
    return build_model(tiny_cfg(*opts))


def test_losses_carry_the_streams_name_and_train_everything(tiny_cfg, make_batch):
    model = build(tiny_cfg, *FSAF)
    batch = make_batch([(96, 96, 3), (96, 96, 0)])
    losses = model(batch)
    assert set(losses) == {
        "loss_cls", "loss_box_reg", "loss_cls_anchor_free", "loss_box_reg_anchor_free"
    }  # fmt: skip
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.statistics["num_foreground_anchor_free"] > 0
    assert losses["loss_box_reg_anchor_free"] > 0


def test_it_does_not_change_the_anchor_based_stream(tiny_cfg, make_batch):
    alone, joined = build(tiny_cfg), build(tiny_cfg, *FSAF)
    joined.load_state_dict(alone.state_dict(), strict=False)
    batch = make_batch([(96, 96, 3)])
    a, b = alone(batch), joined(batch)
    for name, loss in a.items():
        assert torch.equal(loss, b[name])


def test_both_streams_share_one_nms(tiny_cfg, make_batch, observe):
    model = build(tiny_cfg, *FSAF, "MODEL.DENSE.POSTPROCESS.SCORE_THRESH", "0.0").eval()
    with torch.no_grad():
        outputs = observe(model, make_batch([(96, 96, 2)])).outputs
        (merged,) = model.postprocess([(s, outputs[name]) for name, s in model.streams.items()])
        parts = [
            s.candidates(outputs[name], score_thresh=0.0, topk=1000)[0]
            for name, s in model.streams.items()
        ]
    # One point per cell versus nine anchors, on the same maps.
    sizes = {name: sum(out.priors.anchors_per_level) for name, out in outputs.items()}
    assert sizes["anchors"] == 9 * sizes["anchor_free"]
    boxes = {tuple(box) for part in parts for box in part.boxes.tolist()}
    assert {tuple(box) for box in merged.boxes.tolist()} <= boxes
    for part in parts:
        assert any(box in part.boxes.tolist() for box in merged.boxes.tolist())


def test_missing_factors_are_one():
    def candidates(**factors):
        boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
        number = torch.zeros(1, dtype=torch.int64)
        factors = {name: torch.tensor([value]) for name, value in factors.items()}
        score = torch.tensor([0.5])
        return Candidates(
            boxes=boxes, classes=number, scores=score, factors=factors, levels=number, rows=number
        )

    merged = Candidates.cat([candidates(cls=0.5, objectness=0.25), candidates(cls=0.75)])
    assert merged.factors["cls"].tolist() == [0.5, 0.75]
    assert merged.factors["objectness"].tolist() == [0.25, 1.0]


@pytest.mark.slow
def test_alone_it_learns_to_detect_a_box(tiny_cfg, make_batch):
    """A few steps on one picture: both losses fall, and the box is found in the right place."""
    model = build(tiny_cfg, *ALONE)
    assert list(model.streams) == ["anchor_free"]
    batch = make_batch([(96, 96, 1)])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    history = []
    for _ in range(100):
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({k: v.item() for k, v in losses.items()})
    for name in history[0]:
        assert history[-1][name] < 0.6 * history[0][name]
    found = model.eval()(batch)[0]["instances"]
    target = batch[0]["instances"]
    assert found.pred_classes[0] == target.gt_classes[0]
    assert pairwise_iou(found.pred_boxes[0], target.gt_boxes).item() > 0.5


def test_box_predictor_starts_with_a_positive_relu_input(tiny_cfg):
    model = build(tiny_cfg, *FSAF)
    assert (model.streams["anchor_free"].stages[0].box.bias == 0.1).all()
    assert (model.streams["anchors"].stages[0].box.bias == 0.0).all()


def test_second_stage_starts_at_the_boxes_of_the_first(tiny_cfg, make_batch, predict):
    """For LTRBCoder deltas of 0 or .1 would be a box of no, or a fifth of, the size."""
    model = build(tiny_cfg, *ALONE, "MODEL.DENSE.ANCHOR_FREE.STAGES", "[{}]")
    stream = model.streams["anchor_free"]
    batch = make_batch([(96, 96, 1)])
    with torch.no_grad():
        torch.nn.init.zeros_(stream.stages[1].box.weight)
        first, second = predict(model, batch, "anchor_free").stages
    decode = stream.coder.decode
    torch.testing.assert_close(second.anchors, decode(first.anchors, first.deltas))
    torch.testing.assert_close(decode(second.anchors, second.deltas), second.anchors)


@pytest.fixture
def large_box(make_batch):
    """A batch with one box around (48, 48), a point of two levels."""
    batch = make_batch([(96, 96, 1)])
    batch[0]["instances"].gt_boxes.tensor[:] = torch.tensor([10.0, 10.0, 86.0, 86.0])
    return batch


def test_excluded_class_gets_no_gradient(tiny_cfg, large_box, observe):
    """Effective points on levels not chosen are not trained for their box's class."""
    model = build(tiny_cfg, *FSAF)
    seen = observe(model, large_box)
    (prediction,) = seen.outputs["anchor_free"].stages
    (targets,) = seen.targets["anchor_free"]
    prediction.cls_logits.retain_grad()
    seen.result["loss_cls_anchor_free"].backward()
    image, row = torch.nonzero(targets.excluded_class >= 0)[0].tolist()
    assert targets.labels[image, row] == targets.num_classes
    gradient = prediction.cls_logits.grad[image, row]
    excluded = targets.excluded_class[image, row]
    assert gradient[excluded] == 0
    assert gradient.count_nonzero() == len(gradient) - 1


@pytest.mark.parametrize("number", [0, 2])
def test_objectness_does_not_learn_that_the_excluded_class_is_background(
    tiny_cfg, large_box, observe, number
):
    """Points excluded for their box's class are unlabelled for the objectness too."""
    objectness = ["MODEL.DENSE.ANCHOR_FREE.OBJECTNESS.ENABLED", "True"]
    model = build(tiny_cfg, *FSAF, *objectness)
    large_box[0]["instances"].gt_classes[:] = number
    seen = observe(model, large_box)
    (targets,) = seen.targets["anchor_free"]
    excluded = targets.excluded_class >= 0
    assert excluded.any()
    assert targets.background.any()
    logits = seen.outputs["anchor_free"].branches["objectness"].logits
    logits.retain_grad()
    seen.result["loss_objectness_anchor_free"].backward()
    assert (logits.grad[excluded] == 0).all()
    assert (logits.grad[targets.background] != 0).all()


def test_excluded_class_does_not_count_in_the_difficulty(tiny_cfg, large_box, observe):
    options = ["SAMPLER.NAME", "HardNegativeRatio", "CLS_LOSS.NAME", "SigmoidCE"]
    options = [x if i % 2 else f"MODEL.DENSE.ANCHOR_FREE.{x}" for i, x in enumerate(options)]
    model = build(tiny_cfg, *FSAF, *options)
    seen = observe(model, large_box)
    (stage,), (targets,) = seen.outputs["anchor_free"].stages, seen.targets["anchor_free"]
    image, row = torch.nonzero(targets.excluded_class >= 0)[0].tolist()
    assert targets.labels[image, row] == targets.num_classes
    others = torch.arange(3) != targets.excluded_class[image, row]
    expected = F.softplus(stage.cls_logits[image, row][others]).sum()
    (difficulty,) = seen.difficulty["anchor_free"]
    torch.testing.assert_close(difficulty[image, row], expected)


def test_works_with_objectness_on_the_anchors(tiny_resobj, make_batch):
    model = build(tiny_resobj, *FSAF)
    batch = make_batch([(96, 96, 2)])
    sum(model(batch).values()).backward()
    model.eval()
    with torch.no_grad():
        assert len(model.detections_per_step(batch)) == 3


def test_a_detector_without_streams_is_refused(tiny_cfg):
    with pytest.raises(ValueError, match="ANCHOR_BASED or ANCHOR_FREE"):
        build(tiny_cfg, "MODEL.DENSE.ANCHOR_BASED", "False")
