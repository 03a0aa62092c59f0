"""Detectron2's own models with the operators: equal labels and losses, on that instance only."""

import copy
import io
import logging
import pickle

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes, Instances, RotatedBoxes, pairwise_iou
from detectron2.utils.events import EventStorage
from torch.nn.parallel import DistributedDataParallel

import resobj_d2
from resobj_d2 import ops
from resobj_d2.acceleration import FusedMatcher, accelerated_parts

RCNN = [
    "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
    "MODEL.ANCHOR_GENERATOR.SIZES", "[[32], [64], [128], [256], [512]]",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[0.5, 1.0, 2.0]]",
    "MODEL.RPN.IN_FEATURES", "['p3', 'p4', 'p5', 'p6', 'p7']",
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "64",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "100",
    "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES", "['p3', 'p4', 'p5', 'p6']",
    "MODEL.ROI_HEADS.NUM_CLASSES", "3",
    "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC", "1",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "7",
]  # fmt: skip
RETINANET = [
    "MODEL.META_ARCHITECTURE", "RetinaNet",
    "MODEL.RETINANET.NUM_CLASSES", "3",
    "MODEL.RETINANET.NUM_CONVS", "1",
    "MODEL.ANCHOR_GENERATOR.SIZES",
    "[[32, 40, 50], [64, 80, 101], [128, 161, 203], [256, 322, 406], [512, 645, 812]]",
]  # fmt: skip
OPTIONS = {"RetinaNet": RETINANET, "GeneralizedRCNN": RCNN}
PARTS = {"RetinaNet": "", "GeneralizedRCNN": "proposal_generator"}


@pytest.fixture
def build(tiny_cfg):
    """A function: name and overrides to a small model of Detectron2 in training mode."""

    def build(name, *options):
        torch.manual_seed(0)
        return build_model(tiny_cfg(*OPTIONS[name], *options))

    return build


@pytest.fixture
def batch(make_batch):
    """A crowded image, an empty one, one with boxes that overlap no anchor, one with ties."""
    batch = make_batch([(128, 160, 60), (160, 128, 0), (140, 150, 3), (128, 128, 4)])
    outside = batch[2]["instances"]
    outside.gt_boxes.tensor[0] = torch.tensor([5000.0, 5000.0, 5050.0, 5060.0])
    outside.gt_boxes.tensor[1] = torch.tensor([30.0, 30.0, 30.0, 60.0])  # without area
    tied = batch[3]["instances"]
    tied.gt_boxes.tensor[1] = tied.gt_boxes.tensor[0]
    tied.gt_boxes.tensor[2] = torch.tensor([-16.0, -16.0, 16.0, 16.0])  # an anchor of RetinaNet
    return batch


@pytest.fixture(params=list(OPTIONS))
def model(request, build):
    return build(request.param)


def label(model, batch):
    """What the model's own method returns for the batch, after seeding: labels and boxes."""
    part = model.proposal_generator if hasattr(model, "proposal_generator") else model
    shapes = [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
    anchors = part.anchor_generator([torch.zeros(1, 1, *shape) for shape in shapes])
    instances = [x["instances"] for x in batch]
    torch.manual_seed(1)
    method = getattr(part, "label_anchors", None) or part.label_and_sample_anchors
    return method(anchors, instances)


def step(model, batch, seed=0):
    """Losses and gradients of one training step."""
    torch.manual_seed(seed)
    model.zero_grad()
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def assert_identical(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


def test_labels_and_boxes_are_bit_identical(model, batch):
    expected = label(model, batch)
    labels, boxes = label(resobj_d2.accelerate(model), batch)
    for ours, theirs in zip([*labels, *boxes], [*expected[0], *expected[1]], strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_a_box_without_overlap_makes_everything_positive_as_in_detectron2(build, batch):
    model = resobj_d2.accelerate(build("RetinaNet"))
    labels, _ = label(model, batch)
    assert (labels[1] == 3).all()
    assert (labels[2] < 3).all()
    assert (labels[0] == 3).any()


def test_losses_are_bit_identical(model, batch):
    other = resobj_d2.accelerate(copy.deepcopy(model))
    # Run once before: while torch profiles fvcore's scripted focal loss, its last bits differ.
    step(copy.deepcopy(model), batch)
    for seed in range(2):
        assert_identical(step(other, batch, seed)[0], step(model, batch, seed)[0])


def test_training_steps_are_equal(model, batch):
    """Losses and gradients over steps that change weights, sampling and the normaliser."""
    other = resobj_d2.accelerate(copy.deepcopy(model))
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-4) for m in (model, other)]
    for seed in range(3):
        losses, gradients = step(model, batch, seed)
        other_losses, other_gradients = step(other, batch, seed)
        for name, loss in losses.items():
            torch.testing.assert_close(other_losses[name], loss, rtol=1e-5, atol=0)
        assert other_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            scale = gradient.abs().max()
            assert (other_gradients[name] - gradient).abs().max() <= 1e-4 * scale, name
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("kind", ["smooth_l1", "giou"])
@pytest.mark.parametrize("name", list(OPTIONS))
def test_losses_on_request_are_equal_to_rounding(build, batch, name, kind):
    node = "RETINANET" if name == "RetinaNet" else "RPN"
    model = build(name, f"MODEL.{node}.BBOX_REG_LOSS_TYPE", kind)
    other = resobj_d2.accelerate(copy.deepcopy(model), losses=True)
    for seed in range(2):  # RetinaNet's normaliser changes
        losses, gradients = step(model, batch, seed)
        other_losses, other_gradients = step(other, batch, seed)
        assert other_losses.keys() == losses.keys()
        for loss in losses:
            assert other_losses[loss].item() == pytest.approx(losses[loss].item(), rel=2e-6), loss
        for parameter, gradient in gradients.items():
            torch.testing.assert_close(
                other_gradients[parameter], gradient, rtol=1e-3, atol=1e-4, msg=parameter
            )


@pytest.mark.parametrize("name", list(OPTIONS))
def test_losses_of_a_batch_without_objects(build, make_batch, name):
    model = build(name)
    other = resobj_d2.accelerate(copy.deepcopy(model), losses=True)
    empty = make_batch([(96, 96, 0), (64, 96, 0)])
    losses, other_losses = step(model, empty)[0], step(other, empty)[0]
    assert other_losses.keys() == losses.keys()
    for loss in losses:
        assert other_losses[loss].item() == pytest.approx(losses[loss].item(), rel=2e-6), loss


@pytest.mark.parametrize("name", list(OPTIONS))
def test_logs_what_it_did_and_undoes_it(build, caplog, name):
    caplog.set_level(logging.INFO)
    model = build(name)
    module = model.get_submodule(PARTS[name])
    module_class, keys = type(module), list(model.state_dict())
    assert resobj_d2.accelerate(model) is model
    assert accelerated_parts(model) == {PARTS[name]: ["labels"]}
    own = [x.getMessage() for x in caplog.records if x.name.startswith("resobj_d2")]
    assert own == [f"labels of {PARTS[name] or 'the model'} ({module_class.__name__}) accelerated"]
    assert isinstance(module, module_class)
    assert isinstance(module.anchor_matcher, FusedMatcher)
    assert list(model.state_dict()) == keys
    # Again, with losses too: not a subclass of a subclass.
    resobj_d2.accelerate(model, losses=True)
    assert accelerated_parts(model) == {PARTS[name]: ["labels", "losses"]}
    assert resobj_d2.restore(model) is model
    assert type(module) is module_class
    assert type(module.anchor_matcher) is Matcher
    assert (
        module.anchor_matcher.thresholds
        == build(name).get_submodule(PARTS[name]).anchor_matcher.thresholds
    )
    assert accelerated_parts(model) == {}


def test_warns_if_there_are_no_kernels(build, caplog, monkeypatch):
    status = {"cpu": "native", "cuda": "not built", "build": {}}
    monkeypatch.setattr(ops, "native_status", lambda: status)
    resobj_d2.accelerate(build("RetinaNet"))
    assert not caplog.messages
    status["cpu"] = "built from other sources"
    resobj_d2.accelerate(build("RetinaNet"))
    (message,) = caplog.messages
    assert message.startswith("the model is on cpu, whose kernels are not in use (built from other")


def test_other_instances_are_not_touched(build):
    first, second = build("RetinaNet"), build("RetinaNet")
    method = RetinaNet.label_anchors
    resobj_d2.accelerate(first)
    assert type(second) is RetinaNet and RetinaNet.label_anchors is method
    assert type(second.anchor_matcher) is Matcher


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_torch_save],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("losses", [False, True])
def test_copies_are_accelerated_too(model, batch, duplicate, losses):
    resobj_d2.accelerate(model, losses=losses)
    twin = duplicate(model)
    assert accelerated_parts(twin) == accelerated_parts(model) != {}
    assert_identical(step(twin, batch)[0], step(model, batch)[0])
    # A copy is an independent model.
    assert accelerated_parts(resobj_d2.restore(twin)) == {}
    assert accelerated_parts(model) != {}


def test_state_dicts_are_exchanged_with_the_plain_model(model, build):
    plain = copy.deepcopy(model)
    resobj_d2.accelerate(model)
    assert_identical(dict(model.state_dict()), dict(plain.state_dict()))
    assert plain.load_state_dict(model.state_dict()).missing_keys == []
    assert model.load_state_dict(plain.state_dict()).unexpected_keys == []


@pytest.mark.parametrize("wrapped_first", [False, True])
def test_with_distributed_data_parallel(build, batch, tmp_path, wrapped_first):
    model = build("RetinaNet")
    expected = step(copy.deepcopy(model), batch)[0]
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        if wrapped_first:
            wrapped = resobj_d2.accelerate(DistributedDataParallel(model))
        else:
            wrapped = DistributedDataParallel(resobj_d2.accelerate(model))
        assert accelerated_parts(wrapped) == {"module": ["labels"]}
        assert_identical(step(wrapped, batch)[0], expected)
    finally:
        torch.distributed.destroy_process_group()


def test_detections_do_not_change(model, batch):
    model.eval()
    with torch.no_grad():
        expected = model(batch)
        found = resobj_d2.accelerate(model, losses=True)(batch)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours["instances"].scores, theirs["instances"].scores)
        assert torch.equal(
            ours["instances"].pred_boxes.tensor, theirs["instances"].pred_boxes.tensor
        )


class Special(RetinaNet):
    """A user's class that keeps Detectron2's labels but has its own losses."""

    def losses(self, *args):
        return {name: 2 * loss for name, loss in super().losses(*args).items()}


def test_subclasses_keep_what_they_override(build, batch, caplog):
    model = build("RetinaNet")
    model.__class__ = Special
    expected = step(copy.deepcopy(model), batch)[0]
    resobj_d2.accelerate(model, losses=True)
    assert accelerated_parts(model) == {"": ["labels"]}
    assert "losses of the model (Special) not accelerated" in caplog.text
    assert_identical(step(pickle.loads(pickle.dumps(model)), batch)[0], expected)


def test_unknown_models_are_left_alone_with_a_warning(caplog):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert resobj_d2.accelerate(model) is model
    assert "nothing in Sequential was accelerated" in caplog.text
    assert accelerated_parts(model) == {}


class OwnMatcher(Matcher):
    """A matcher with a rule unknown to the operator."""


@pytest.mark.parametrize(
    "matcher, reason",
    [
        (OwnMatcher([0.5], [0, 1]), "its matcher is a OwnMatcher, not a Matcher"),
        (Matcher([0.5], [1, 0]), "the first of labels must be 0 or -1, got 1"),
        (Matcher([0.5 + i / 50 for i in range(17)], [0] * 17 + [1]), "at most 16, got 17"),
    ],
)
def test_matchers_it_cannot_replace_are_kept(build, caplog, matcher, reason):
    model = build("RetinaNet")
    model.anchor_matcher = matcher
    resobj_d2.accelerate(model)
    assert type(model) is RetinaNet and model.anchor_matcher is matcher
    assert reason in caplog.text


def test_a_matcher_set_afterwards_is_used(build, batch):
    model = resobj_d2.accelerate(build("RetinaNet"))
    model.anchor_matcher = Matcher([0.3], [0, 1], allow_low_quality_matches=False)
    plain = build("RetinaNet")
    plain.anchor_matcher = model.anchor_matcher
    for ours, theirs in zip(label(model, batch)[0], label(plain, batch)[0], strict=True):
        assert torch.equal(ours, theirs)


def test_anchors_outside_the_image(build, batch):
    """The RPN's legacy option to ignore anchors that cross the border."""
    model = build("GeneralizedRCNN", "MODEL.RPN.BOUNDARY_THRESH", 0)
    expected = label(model, batch)[0]
    labels = label(resobj_d2.accelerate(model), batch)[0]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(labels, expected, strict=True))


def test_rotated_boxes_are_labelled_by_detectron2(build):
    """An RPN with rotated anchors labels them by their own IoU."""
    model = resobj_d2.accelerate(build("GeneralizedRCNN")).proposal_generator
    instances = Instances((64, 64))
    instances.gt_boxes = RotatedBoxes(torch.tensor([[20.0, 20.0, 30.0, 10.0, 45.0]]))
    assert not model.can_match([instances], [Boxes(torch.zeros(1, 4))])


# The matcher by itself.


def random_boxes(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 60, (count, 2), generator=generator).float()
    return Boxes(torch.cat((corner, corner + 4 + corner.flip(0) / 2), dim=1))


RULES = [
    ([0.4, 0.5], [0, -1, 1], True),
    ([0.5], [0, 1], False),
    ([0.3, 0.3, 0.7], [-1, 0, -1, 1], True),
]


@pytest.mark.parametrize("thresholds, labels, low_quality", RULES)
@pytest.mark.parametrize("shared", [True, False])
def test_matcher_from_boxes_equals_matcher_from_the_matrix(thresholds, labels, low_quality, shared):
    theirs = Matcher(thresholds, labels, low_quality)
    ours = FusedMatcher(thresholds, labels, low_quality)
    gt_boxes = [random_boxes(count, seed=count) for count in (3, 0, 40, 1)]
    anchors = [random_boxes(500, seed=100 if shared else 100 + i) for i in range(4)]
    results = ours.match_boxes(gt_boxes, anchors[0] if shared else anchors)
    assert len(results) == 4
    for gt, boxes, (matches, match_labels) in zip(gt_boxes, anchors, results, strict=True):
        matrix = pairwise_iou(gt, boxes)
        for expected in (theirs(matrix), ours(matrix)):
            assert torch.equal(matches, expected[0]) and matches.dtype == expected[0].dtype
            assert torch.equal(match_labels, expected[1])
            assert match_labels.dtype == expected[1].dtype


def test_matcher_without_images_or_boxes():
    matcher = FusedMatcher([0.5], [0, 1])
    assert matcher.match_boxes([], random_boxes(3, seed=0)) == []
    ((matches, labels),) = matcher.match_boxes([random_boxes(2, seed=0)], random_boxes(0, seed=0))
    assert matches.shape == labels.shape == (0,)


def test_accelerate_is_available_at_the_root():
    from resobj_d2 import acceleration

    assert resobj_d2.accelerate is acceleration.accelerate
    assert resobj_d2.restore is acceleration.restore
    with pytest.raises(AttributeError, match="no attribute 'accelerated'"):
        resobj_d2.accelerated  # noqa: B018
