"""Score fusion, and the path from candidates to detections."""

import pytest
import torch
from detectron2.modeling import build_model

from resobj_d2.modeling import DensePostprocess, ScoreFusion
from resobj_d2.modeling.postprocess import to_instances
from resobj_d2.structures import Candidates

CLS = torch.tensor([[0.5, 0.2], [0.9, 0.1]])
OBJ = torch.tensor([0.4, 0.8])


def test_fusion_by_hand():
    factors = {"cls": CLS, "objectness": OBJ}
    assert torch.equal(ScoreFusion()({"cls": CLS}), CLS)
    torch.testing.assert_close(ScoreFusion()(factors), torch.tensor([[0.2, 0.08], [0.72, 0.08]]))
    powers = ScoreFusion(exponents={"cls": 0.6, "objectness": 0.4})(factors)
    assert powers[1, 0].item() == pytest.approx(0.9**0.6 * 0.8**0.4)
    floored = ScoreFusion(exponents={"objectness": 0.0}, floors={"objectness": 0.5})(factors)
    torch.testing.assert_close(floored, torch.tensor([[0.0, 0.0], [0.9, 0.1]]))


def test_fusion_refuses_an_unknown_factor(tiny_cfg):
    with pytest.raises(ValueError, match="FUSION.EXPONENTS.*iou.*cls"):
        build_model(tiny_cfg("MODEL.DENSE.FUSION.EXPONENTS", "[['iou', 0.5]]"))


def postprocess(**options):
    return DensePostprocess(**{"score_thresh": 0.1, "topk": 3, "max_detections": 10} | options)


def test_suppress_is_per_class_and_keeps_factors():
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 10, 10], [1, 0, 10, 10], [20, 20, 30, 30]])
    candidates = Candidates(
        boxes=boxes,
        classes=torch.tensor([0, 0, 1, 0]),
        scores=torch.tensor([0.9, 0.8, 0.7, 0.6]),
        factors={"cls": torch.ones(4), "objectness": torch.tensor([0.9, 0.8, 0.7, 0.6])},
        levels=torch.tensor([0, 1, 2, 3]),
        rows=torch.tensor([7, 8, 9, 30]),
    )
    left = postprocess().suppress(candidates)
    assert left.levels.tolist() == [0, 2, 3]
    assert left.rows.tolist() == [7, 9, 30]
    found = to_instances(left, (40, 40))
    assert found.image_size == (40, 40)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6])
    assert found.pred_classes.tolist() == [0, 1, 0]
    assert torch.equal(found.objectness_score, found.scores)
    assert len(postprocess(max_detections=2).suppress(candidates).scores) == 2


@pytest.fixture
def scored(tiny_resobj, make_batch, observe):
    """A stream with objectness, quality and two stages, and its predictions for two images."""
    torch.manual_seed(0)
    model = build_model(
        tiny_resobj(
            "MODEL.DENSE.QUALITY.ENABLED", True,
            "MODEL.DENSE.STAGES", "[{'CLS': 'own'}]",
            "MODEL.DENSE.STAGE_SCORES", "mean",
            "MODEL.DENSE.FUSION.FLOORS", "[['objectness', 0.1]]",
        )
    )  # fmt: skip
    stream = model.streams["anchors"]
    with torch.no_grad():
        for parameter in stream.parameters():
            if parameter.dim() == 4:
                parameter.normal_(std=0.5)
        batch = make_batch([(96, 128, 0), (128, 100, 0)])
        # In training mode, since only then every step is predicted separately.
        return stream, observe(model, batch).outputs["anchors"]


@pytest.mark.parametrize("step", [None, 0, 1])
def test_candidates_are_the_best_fused_scores_of_each_level(scored, step):
    """Against plain torch: ScoreFusion and the coder on predictions per anchor."""
    stream, output = scored
    first, second = output.stages
    found = stream.candidates(output, step, score_thresh=0.01, topk=7)
    for image, candidates in enumerate(found):
        factors = {
            "cls": (first.cls_logits[image].sigmoid() + second.cls_logits[image].sigmoid()) / 2
        }
        for name, branch in stream.branches.items():
            factors[name] = branch.probability(output.branches[name], step)[image]
        assert set(factors) == {"cls", "objectness", "quality"}
        scores = stream.fusion(factors)
        boxes = stream.coder.decode(second.anchors[image], second.deltas[image])
        start, total = 0, 0
        for level, size in enumerate(output.priors.anchors_per_level):
            own = candidates.take((candidates.levels == level).nonzero()[:, 0])
            values, index = scores[start : start + size].flatten().sort(descending=True)
            index = index[: int((values > 0.01).sum())][:7]
            anchor, cls = index // 3 + start, index % 3
            torch.testing.assert_close(own.scores, scores[anchor, cls])
            assert torch.equal(own.classes, cls)
            torch.testing.assert_close(own.boxes, boxes[anchor])
            torch.testing.assert_close(own.factors["cls"], factors["cls"][anchor, cls])
            torch.testing.assert_close(own.factors["objectness"], factors["objectness"][anchor])
            assert (own.factors["objectness"] >= 0.1).all()
            start, total = start + size, total + len(index)
        assert len(candidates.scores) == total > 10
        assert (candidates.scores.diff() <= 0).all()


def test_every_candidate_knows_its_level(scored):
    stream, output = scored
    stream.fusion = ScoreFusion()  # no floors
    per_level = torch.tensor(output.priors.anchors_per_level)
    for found in stream.candidates(output, score_thresh=-1.0, topk=10**6):
        assert torch.equal(found.levels.bincount(), 3 * per_level)


@pytest.mark.parametrize("ranked_by", [None, 0])
def test_candidates_have_the_objectness_after_every_step(scored, ranked_by):
    """Anchors are identified by their boxes."""
    stream, output = scored
    branch, objectness = stream.branches["objectness"], output.branches["objectness"]
    last = output.stages[-1]
    boxes = stream.coder.decode(last.anchors, last.deltas)
    for image, found in enumerate(stream.candidates(output, ranked_by, score_thresh=0.01, topk=7)):
        rows = (found.boxes[:, None] - boxes[image]).abs().sum(dim=2).argmin(dim=1)
        assert len(rows.unique()) > 5
        values = []
        for t in range(3):
            values.append(branch.probability(objectness, t)[image, rows])
            torch.testing.assert_close(found.factors[f"objectness_step{t}"], values[t])
        assert (values[0] - values[1]).abs().max() > 0.1 < (values[1] - values[2]).abs().max()


def test_plain_detections_have_no_steps(tiny_resobj, make_batch):
    model = build_model(tiny_resobj("MODEL.DENSE.POSTPROCESS.SCORE_THRESH", 0.0)).eval()
    batch = make_batch([(64, 64, 0)])
    with torch.no_grad():
        alone, last = model(batch)[0], model.detections_per_step(batch)[-1][0]
    names = {f"objectness_step{t}_score" for t in range(3)}
    assert names & set(alone["instances"].get_fields()) == set()
    assert names <= set(last["instances"].get_fields())
    instances = last["instances"]
    steps = [instances.get(name) for name in sorted(names)]
    torch.testing.assert_close(steps[2], instances.objectness_score)
    assert not torch.equal(steps[0], steps[2])


def test_streams_share_one_suppression(scored):
    stream, output = scored
    process = postprocess(score_thresh=0.05, topk=50, max_detections=20)
    alone = process([(stream, output)])
    together = process([(stream, output)] * 2)  # the second of each pair is suppressed
    for a, b in zip(alone, together, strict=True):
        assert len(a.scores) == 20
        assert torch.equal(a.boxes, b.boxes) and torch.equal(a.scores, b.scores)
        assert torch.equal(a.factors["quality"], b.factors["quality"])


def test_coder_unknown_to_the_operator_decodes_the_boxes(scored, monkeypatch):
    stream, output = scored
    expected = stream.candidates(output, score_thresh=0.05, topk=20)
    monkeypatch.setattr(type(stream.coder), "delta_options", None)
    for a, b in zip(stream.candidates(output, score_thresh=0.05, topk=20), expected, strict=True):
        assert torch.equal(a.scores, b.scores)
        torch.testing.assert_close(a.boxes, b.boxes)


def test_negative_exponent_is_refused():
    with pytest.raises(ValueError, match="EXPONENTS must be at least 0"):
        ScoreFusion(exponents={"cls": -0.5})


def test_detections_per_step_end_with_the_detections(tiny_resobj, make_batch):
    torch.manual_seed(0)
    model = build_model(tiny_resobj("MODEL.DENSE.POSTPROCESS.SCORE_THRESH", 0.0)).eval()
    for subnet in model.streams["anchors"].branches["objectness"].residuals:
        torch.nn.init.normal_(subnet.predictor.weight, std=1.0)
    batch = make_batch([(96, 96, 0), (64, 96, 0)])
    steps = model.detections_per_step(batch)
    assert len(steps) == 3 and all(len(step) == 2 for step in steps)
    with torch.no_grad():
        last = model(batch)
    for a, b in zip(steps[-1], last, strict=True):
        # One convolution for the sum of the steps rounds differently from one per step.
        torch.testing.assert_close(a["instances"].scores, b["instances"].scores)
    assert not torch.equal(steps[0][0]["instances"].scores, steps[-1][0]["instances"].scores)
