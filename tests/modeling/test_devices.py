"""Whole detectors give on a GPU what they give on the CPU, with the same weights; labelling and
losses can be captured in a CUDA graph.

Without a GPU the same code runs on a copy of the detector whose weights differ by rounding, which
shows that the tolerances leave room for another order of summation and for nothing else.
"""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from benchmarks.cuda import capture
from resobj_d2.structures import GroundTruth
from tests.modeling.stage_inputs import mapped
from tests.narrow_configs import CONFIGS, accept_everything, build_narrow, distinct

ROUNDING = 3e-7  # relative; several times that of float32
NEAR_PIXELS = 0.1
NEAR_SCORE = 1e-2  # relative
on_gpu = (
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
)
DETECTION = CONFIGS / "COCO-Detection"
HERE = [
    DETECTION / "retinanet_resobj_t2_R_50_FPN_600_1x.yaml",
    DETECTION / "faster_rcnn_resobj_t2_R_50_FPN_800_1x.yaml",
]
# Finding the distinct ones takes seconds.
THERE = distinct() if torch.cuda.is_available() else HERE
CASES = [
    *(pytest.param(path, "cpu", id=f"cpu-{path.stem}") for path in HERE),
    *(pytest.param(path, "cuda", id=f"cuda-{path.stem}", marks=on_gpu) for path in THERE),
]


@pytest.fixture
def same_arithmetic(monkeypatch):
    """Convolutions in full precision, and the same random choice of samples on every device."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def on_the_cpu(draw):
        return lambda *size, device="cpu", **options: draw(*size, **options).to(device)

    for name in ("rand", "randperm"):
        monkeypatch.setattr(torch, name, on_the_cpu(getattr(torch, name)))


def copy_to(device, model):
    """The same detector there; on the CPU with weights rounded differently."""
    copied = copy.deepcopy(model).to(device)
    if device == "cpu":
        g = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for weight in copied.parameters():
                weight *= 1 + ROUNDING * torch.randn(weight.shape, generator=g)
    return copied


def make_decided(model):
    """Layers that begin near zero get weights of the usual size; else all scores are ties."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)) and 0 < layer.weight.std() < 0.02:
                layer.weight *= layer.weight[0].numel() ** -0.5 / layer.weight.std()


def train(model, batch):
    torch.manual_seed(1)
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    learned = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([grad.double().norm() for grad in learned]).norm()
    return {name: loss.item() for name, loss in losses.items()}, norm.item()


def detect(model, batch):
    with torch.no_grad():
        return [x["instances"].to("cpu") for x in accept_everything(model)(batch)]


def share_found(wanted, found):
    """The share of detections that have a near partner of the same class."""
    boxes, others = wanted.pred_boxes.tensor[:, None], found.pred_boxes.tensor[None]
    near = (boxes - others).abs().amax(dim=2) < NEAR_PIXELS
    near &= (wanted.scores[:, None] - found.scores).abs() <= NEAR_SCORE * found.scores
    near &= wanted.pred_classes[:, None] == found.pred_classes
    return near.any(dim=1).float().mean().item()


@pytest.mark.parametrize("path, device", CASES)
def test_a_detector_agrees_with_the_cpu(path, device, make_batch, same_arithmetic):
    shapes = [(128, 128, 3), (128, 128, 0)]
    # Frozen normalisation of random layers would make all scores 0 or 1.
    _, model, batch = build_narrow(path, make_batch, shapes, ["MODEL.RESNETS.NORM", "GN"])
    make_decided(model)
    other = copy_to(device, model)
    expected, norm = train(model, batch)
    losses, other_norm = train(other, batch)
    assert losses == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert other_norm == pytest.approx(norm, rel=2e-2)  # slopes jump where a ReLU begins
    # Running statistics of normalisation layers differ by rounding from here on.
    for wanted, found in zip(detect(model, batch), detect(other, batch), strict=True):
        assert len(wanted) == len(found)
        if len(wanted) == 0:  # YOLOv3's running statistics are those of an untrained network
            continue
        assert min(share_found(wanted, found), share_found(found, wanted)) >= 0.98


@pytest.fixture
def detached(predict, truth_of):
    """A function: a model and a batch to a stream, its predictions as leaves, and the truth."""

    def make(model, batch):
        name = list(model.streams)[-1]
        output = predict(model, batch, name)
        output = mapped(output, lambda x: x.detach().requires_grad_(x.requires_grad))
        truth, device = truth_of(batch), model.device
        truth = GroundTruth(truth.boxes.to(device), truth.classes.to(device), truth.counts)
        return model.streams[name], output, truth

    return make


def predicted(output):
    """Its tensors that carry gradients."""
    found = []
    mapped(output, lambda x: found.append(x) or x)
    return [x for x in found if x.requires_grad]


# Without state: the running means of others change with every call.
GRAPHS = ["retinanet_resobj", "retinanet_giou", "retinanet_conf", "fsaf", "yolov3", "ssd"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
@pytest.mark.parametrize("method", GRAPHS)
def test_labelling_and_losses_are_captured_in_a_cuda_graph(
    method, device, method_cfg, make_batch, detached
):
    """Replayed on new predictions and boxes, the graph gives what the same calls give."""
    cfg = method_cfg(method, opts=["MODEL.DENSE.NORMALIZER.NAME", "ForegroundCount"])
    torch.manual_seed(0)
    model = build_model(cfg).to(device)
    shapes = [(96, 96, 3), (96, 96, 2)]
    stream, output, truth = detached(model, make_batch(shapes))
    _, other, new_truth = detached(model, make_batch(shapes, seed=1))

    def call(output=output, truth=truth):
        fresh = mapped(output, lambda x: x)  # without the copies that it keeps of its maps
        losses, _ = stream.losses(fresh, truth)
        inputs = predicted(output)
        gradients = torch.autograd.grad(sum(losses.values()), inputs, allow_unused=True)
        return [*losses.values(), *(x for x in gradients if x is not None)]

    replay, reason = capture(call) if device == "cuda" else (call, "")
    assert replay is not None, reason
    before = [x.clone() for x in replay()]
    with torch.no_grad():
        for x, new in zip(predicted(output), predicted(other), strict=True):
            x.copy_(new)
        truth.boxes.copy_(new_truth.boxes)
        truth.classes.copy_(new_truth.classes)
    expected, found = call(other, new_truth), replay()
    assert not any(torch.equal(a, b) for a, b in zip(before[:2], found, strict=False))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
