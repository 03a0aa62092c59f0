"""What must hold for every configuration of the detector."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from resobj_d2.structures import GroundTruth
from tests.modeling.stage_inputs import mapped

# Names in configs/methods, plus options that no shipped file uses.
METHODS = {
    "fl": ([], {}),
    "ce": (["retinanet_ce"], {}),
    "resobj": (["retinanet_resobj"], {}),
    "resobj_level_keep": (
        ["retinanet_resobj"],
        {
            "OBJECTNESS.MIN_SCOPE": "level",
            "OBJECTNESS.UNSELECTED": "keep",
            "OBJECTNESS.DETACH": "none",
            "OBJECTNESS.SOURCE": "chain",
        },
    ),
    "consistent_conf": (["retinanet_consistent", "retinanet_conf"], {}),
    "resobj_gated_iou": (
        ["retinanet_resobj", "retinanet_iou_aware"],
        {
            "STAGES": [{"CLS": "own", "TOWER": "gated", "NORMALIZER": "own"}, {"BOX": "none"}],
            "STAGE_SCORES": "mean",
            "QUALITY.LOSS": "ce_w",
            "QUALITY.DETACH_TARGET": False,
        },
    ),
    "ghm": (["retinanet_ghm"], {}),
    "ohem_1to3_giou": (["retinanet_ohem_1to3", "retinanet_giou"], {"SAMPLER.SIZE": 32}),
    "hard_negatives_resobj": (
        ["retinanet_resobj", "retinanet_hard_negatives", "retinanet_iou"],
        {},
    ),
    "iou_balanced_consistent": (
        ["retinanet_iou_balanced", "retinanet_consistent", "balanced_l1"],
        {"BOX_LOSS.MMDET_FORM": True},
    ),
    "ssd_consistent": (
        ["ssd", "ssd_consistent"],
        {"STAGES": [{"NORMALIZER": "own", "ALLOW_LOW_QUALITY": True}]},
    ),
    "yolov3_resobj": (["yolov3"], {"OBJECTNESS.STEPS": 2}),
    "fcos_resobj": (["fcos", "retinanet_resobj"], {}),
    "gfl": (["gfl"], {}),
    "tood": (["tood"], {}),
    "paa": (["paa"], {}),
    "efficientdet_everything": (["efficientdet", "retinanet_resobj_consistent_conf"], {}),
}


@pytest.fixture
def make_model(method_cfg):
    """A function: the name of a method to its detector, with the stateful normaliser."""

    def build(name):
        files, options = METHODS[name]
        options = {**options, "NORMALIZER.NAME": "ForegroundEMA"}
        opts = [x for key, value in options.items() for x in (f"MODEL.DENSE.{key}", value)]
        torch.manual_seed(0)
        return build_model(method_cfg(*files, opts=opts))

    return build


@pytest.fixture(params=METHODS)
def model(request, make_model):
    return make_model(request.param)


@pytest.fixture
def plain(make_model):
    """A plain detector, for behaviour that does not depend on the method."""
    return make_model("fl")


@pytest.mark.parametrize("counts", [(0, 0), (3, 0)])
def test_losses_are_finite_and_every_parameter_has_a_gradient(model, make_batch, counts):
    batch = make_batch([(96, 96, n) for n in counts])
    losses = model(batch)
    assert all(torch.isfinite(v) and v.requires_grad for v in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert torch.isfinite(parameter.grad).all(), name


def test_normaliser_moves_once_per_training_forward_and_is_saved(model, make_batch):
    stages = range(len(model.streams["anchors"].stages))
    names = [f"streams.anchors.stages.{i}.normalizer.mean" for i in stages]
    assert [k for k in model.state_dict() if k.endswith("normalizer.mean")] == names
    batch = make_batch([(96, 96, 3), (96, 96, 1)])
    assert all(model.state_dict()[name].item() == 100.0 for name in names)
    model(batch)
    for evaluate in (False, True):
        if evaluate:
            model.eval()
            with torch.no_grad():
                model(batch)
        for i, name in enumerate(names):
            suffix = f"_stage{i}" if i else ""
            count = model.statistics[f"num_foreground{suffix}"].item() * len(batch)
            assert count > 0
            assert model.state_dict()[name].item() == pytest.approx(90.0 + 0.1 * count)


class NoHostSynchronisation(TorchDispatchMode):
    """Raises on operations that make the host wait for a GPU."""

    forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        if name in self.forbidden or by_mask:
            raise AssertionError(f"{name} on the loss path makes the host wait")
        return func(*args, **(kwargs or {}))


def test_loss_path_never_waits_for_the_device(model, make_batch, predict, truth_of):
    batch = make_batch([(96, 96, 3), (96, 96, 0)])
    output, truth = predict(model, batch), truth_of(batch)
    with NoHostSynchronisation():
        losses, _ = model.streams["anchors"].losses(output, truth)
        total = sum(losses.values())
        heads = [p for n, p in model.named_parameters() if n.startswith("streams")]
        torch.autograd.grad(total, heads, allow_unused=True)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoHostSynchronisation():
        total.item()  # the check works


class NoHostCopy(TorchDispatchMode):
    """Raises on copies from the host to the device, which CPU tensors cannot show."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = [a for a in args if isinstance(a, torch.Tensor) and a.dim() > 0]
        if isinstance(result, torch.Tensor) and result.device.type == "cuda":
            moved = [a for a in inputs if a.device.type == "cpu"]
            if moved and func.overloadpacket.__name__ in ("_to_copy", "copy_", "copy"):
                raise AssertionError(f"{func} copies from the host")
        return result


def test_loss_path_copies_nothing_from_the_host(model, make_batch, predict, truth_of):
    """On fake CUDA tensors, which need no GPU: the same code with CUDA devices (no backward)."""
    batch = make_batch([(96, 96, 3), (96, 96, 0)])
    raw, truth = predict(model, batch), truth_of(batch)
    stream = copy.deepcopy(model.streams["anchors"])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:

        def on_gpu(x):
            fake = mode.from_tensor(x.detach()).to("cuda")
            return fake.requires_grad_(x.requires_grad)

        output = mapped(raw, on_gpu)
        for module in stream.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, on_gpu(buffer))
        truth = GroundTruth(on_gpu(truth.boxes), on_gpu(truth.classes), truth.counts)
        with NoHostCopy():
            losses, _ = stream.losses(output, truth)
            assert all(v.device.type == "cuda" for v in losses.values())
            with pytest.raises(AssertionError, match="copies from the host"):
                torch.ones(3).to("cuda")  # the check works


def test_dropped_anchors_have_no_loss(model, make_batch):
    class Nothing:
        needs_loss = False

        def __call__(self, targets, *, anchors, difficulty):
            return torch.zeros_like(targets.valid)

    stream = model.streams["anchors"]
    stream.sampler = Nothing()
    losses = model(make_batch([(96, 96, 3)]))
    assert all(v.item() == 0 for v in losses.values())


@pytest.mark.parametrize("number, named", [(3, r"2\.\.3"), (-1, r"-1\.\.2")])
def test_class_number_out_of_range_is_refused(plain, make_batch, number, named):
    batch = make_batch([(96, 96, 2)], num_classes=3)
    batch[0]["instances"].gt_classes = torch.tensor([2, number])
    batch[0]["file_name"] = "cell.png"
    with pytest.raises(ValueError, match=rf"cell.png has class numbers {named},.*NUM_CLASSES is 3"):
        plain(batch)


def test_losses_are_float32_under_autocast(model, make_batch, observe, truth_of):
    batch = make_batch([(96, 96, 3)])
    fresh = copy.deepcopy(model)  # every loss updates normalisers and GHM's counts
    torch.manual_seed(1)  # for the samplers
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = observe(model, batch)
    output, losses = seen.outputs["anchors"], seen.result
    assert all(stage.cls_logits.dtype == torch.bfloat16 for stage in output.stages)
    assert all(v.dtype == torch.float32 for v in losses.values())
    # The same predictions in float32 outside autocast: the loss must be as accurate.
    floats = mapped(output, torch.Tensor.float)
    torch.manual_seed(1)
    exact, _ = fresh.streams["anchors"].losses(floats, truth_of(batch))
    for name, value in exact.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_box_without_anchor_overlap_changes_nothing(model, make_batch):
    from detectron2.structures import Boxes

    batch = make_batch([(96, 96, 1)])
    batch[0]["instances"].gt_boxes = Boxes(torch.tensor([[9000.0, 9000.0, 9001.0, 9001.0]]))
    losses = model(batch)
    assert model.statistics["num_foreground"].item() == 0
    assert all(torch.isfinite(v) for v in losses.values())


def test_training_without_instances_is_refused(plain, make_batch):
    batch = make_batch([(96, 96, 1)])
    del batch[0]["instances"]
    with pytest.raises(ValueError, match="instances"):
        plain(batch)


def test_non_finite_predictions_give_no_detections_and_no_crash(model, make_batch):
    model.eval()
    with torch.no_grad():
        for stage in model.streams["anchors"].stages:
            if stage.box is not None:
                for parameter in stage.box.parameters():
                    parameter.fill_(float("nan"))
        model.postprocess.score_thresh = 0.0
        (result,) = model(make_batch([(96, 96, 0)]))
    assert len(result["instances"]) == 0


def test_unknown_feature_map_is_refused(tiny_cfg):
    with pytest.raises(ValueError, match="IN_FEATURES.*p9.*p3"):
        build_model(tiny_cfg("MODEL.DENSE.IN_FEATURES", ["p3", "p9"]))


def test_shared_batch_norm_is_refused(tiny_cfg):
    with pytest.raises(ValueError, match="TOWER.NORM=BN"):
        build_model(tiny_cfg("MODEL.DENSE.TOWER.NORM", "BN"))
