"""What every configuration of the detector must hold."""

import copy
from dataclasses import fields, replace

import pytest
import torch
from detectron2.modeling import build_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from resobj_d2.structures import GroundTruth, LevelMaps, StagePrediction, StreamOutput

METHODS = {
    "fl": [],
    "ce": ["MODEL.DENSE.CLS_LOSS.FOCAL_GAMMA", 0.0, "MODEL.DENSE.CLS_LOSS.FOCAL_ALPHA", 0.5],
    "resobj": ["MODEL.DENSE.OBJECTNESS.ENABLED", True, "MODEL.DENSE.CLS_LOSS.NAME", "SigmoidCE"],
}
METHODS["resobj_level_keep"] = METHODS["resobj"] + [
    "MODEL.DENSE.OBJECTNESS.MIN_SCOPE", "level",
    "MODEL.DENSE.OBJECTNESS.UNSELECTED", "keep",
    "MODEL.DENSE.OBJECTNESS.DETACH", "none",
    "MODEL.DENSE.OBJECTNESS.SOURCE", "chain",
]  # fmt: skip
METHODS["consistent_conf"] = [
    "MODEL.DENSE.STAGES", [{}],
    "MODEL.DENSE.QUALITY.ENABLED", True,
]  # fmt: skip
METHODS["resobj_gated_iou"] = METHODS["resobj"] + [
    "MODEL.DENSE.STAGES", [{"CLS": "own", "TOWER": "gated", "NORMALIZER": "own"}, {"BOX": "none"}],
    "MODEL.DENSE.STAGE_SCORES", "mean",
    "MODEL.DENSE.QUALITY.ENABLED", True,
    "MODEL.DENSE.QUALITY.READS", "box",
    "MODEL.DENSE.QUALITY.LOSS", "ce_w",
    "MODEL.DENSE.QUALITY.DETACH_TARGET", False,
]  # fmt: skip
METHODS["ghm"] = ["MODEL.DENSE.CLS_LOSS.NAME", "GHMCLoss", "MODEL.DENSE.BOX_LOSS.NAME", "GHMRLoss"]
METHODS["ohem_1to3_giou"] = [
    "MODEL.DENSE.SAMPLER.NAME", "OHEMSampler",
    "MODEL.DENSE.SAMPLER.SIZE", 32,
    "MODEL.DENSE.SAMPLER.POSITIVE_FRACTION", 0.25,
    "MODEL.DENSE.BOX_LOSS.NAME", "GIoULoss",
]  # fmt: skip
METHODS["hard_negatives_resobj"] = METHODS["resobj"] + [
    "MODEL.DENSE.SAMPLER.NAME", "HardNegativeRatio",
    "MODEL.DENSE.BOX_LOSS.NAME", "IoULoss",
]  # fmt: skip
METHODS["iou_balanced_consistent"] = [
    "MODEL.DENSE.SAMPLER.NAME", "IoUBalancedSampler",
    "MODEL.DENSE.STAGES", [{}],
    "MODEL.DENSE.BOX_LOSS.NAME", "BalancedL1Loss",
    "MODEL.DENSE.BOX_LOSS.MMDET_FORM", True,
]  # fmt: skip
METHODS["ssd_consistent"] = [
    "MODEL.BACKBONE.NAME", "build_ssd_extras_backbone",
    "MODEL.SSD_EXTRAS.BOTTOM_UP", "build_resnet_backbone",
    "MODEL.SSD_EXTRAS.IN_FEATURES", ["res3", "res4", "res5"],
    "MODEL.SSD_EXTRAS.CHANNELS", [16],
    "MODEL.SSD_EXTRAS.LAST_KERNEL", 3,
    "MODEL.DENSE.IN_FEATURES", ["s1", "s2", "s3", "s4"],
    "MODEL.DENSE.TOWER.NAME", "NoTower",
    "MODEL.DENSE.PREDICTOR.NAME", "PerLevelConv",
    "MODEL.DENSE.PRIORS.NAME", "SSDAnchors",
    "MODEL.DENSE.PRIORS.MIN_SIZES", [10, 20, 30, 50, 70],
    "MODEL.DENSE.PRIORS.ASPECT_RATIOS", [[2], [2, 3], [2, 3], [2]],
    "MODEL.DENSE.ASSIGNER.NAME", "BestAnchorAssigner",
    "MODEL.DENSE.ASSIGNER.IOU_THRESHOLDS", [0.5],
    "MODEL.DENSE.ASSIGNER.IOU_LABELS", [0, 1],
    "MODEL.DENSE.SAMPLER.NAME", "HardNegativeRatio",
    "MODEL.DENSE.CLS_LOSS.NAME", "SoftmaxCE",
    "MODEL.DENSE.CLS_LOSS.PRIOR_PROB", 0.5,
    "MODEL.DENSE.STAGES", [{"NORMALIZER": "own", "ALLOW_LOW_QUALITY": True}],
]  # fmt: skip
METHODS["yolov3_resobj"] = METHODS["resobj"] + [
    "MODEL.BACKBONE.NAME", "build_yolo_backbone",
    "MODEL.DARKNET.STEM_CHANNELS", 4,
    "MODEL.DARKNET.BLOCKS", [1, 1, 1, 1, 1],
    "MODEL.YOLO_PYRAMID.CHANNELS", [8, 12, 16],
    "MODEL.DENSE.IN_FEATURES", ["y3", "y4", "y5"],
    "MODEL.DENSE.TOWER.NAME", "YOLOTower",
    "MODEL.DENSE.PREDICTOR.NAME", "PerLevelConv",
    "MODEL.DENSE.PREDICTOR.KERNEL_SIZE", 1,
    "MODEL.DENSE.PRIORS.NAME", "YOLOAnchors",
    "MODEL.DENSE.PRIORS.OFFSET", 0.5,
    "MODEL.DENSE.PRIORS.SIZES", [[[10, 13], [16, 30]], [[30, 61]], [[116, 90], [62, 45]]],
    "MODEL.DENSE.CODER.NAME", "YOLOCoder",
    "MODEL.DENSE.ASSIGNER.NAME", "YOLOAssigner",
    "MODEL.DENSE.BOX_LOSS.NAME", "YOLOBoxLoss",
    "MODEL.DENSE.OBJECTNESS.BASE_CONVS", 0,
]  # fmt: skip
METHODS["efficientdet_everything"] = METHODS["resobj"] + [
    "MODEL.BACKBONE.NAME", "build_bifpn_backbone",
    "MODEL.BIFPN.BOTTOM_UP", "build_resnet_backbone",
    "MODEL.BIFPN.IN_FEATURES", ["res3", "res4", "res5"],
    "MODEL.BIFPN.CHANNELS", 32,
    "MODEL.BIFPN.NUM_LAYERS", 1,
    "MODEL.DENSE.TOWER.NAME", "SepConvTower",
    "MODEL.DENSE.PREDICTOR.NAME", "SharedSepConv",
    "MODEL.DENSE.PRIORS.OFFSET", 0.5,
    "MODEL.DENSE.STAGES", [{}],
    "MODEL.DENSE.QUALITY.ENABLED", True,
]  # fmt: skip


@pytest.fixture(params=METHODS)
def model(request, tiny_cfg):
    torch.manual_seed(0)
    return build_model(tiny_cfg(*METHODS[request.param]))


@pytest.mark.parametrize("counts", [(0, 0), (3, 0)])
def test_losses_are_finite_and_every_parameter_has_a_gradient(model, make_batch, counts):
    batch = make_batch([(96, 96, n) for n in counts])
    losses = model(batch)
    assert all(torch.isfinite(v) and v.requires_grad for v in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient"
        assert torch.isfinite(parameter.grad).all(), name


def mapped(output, convert):
    """The output of a stream with every tensor converted."""

    def maps(found):
        return found and LevelMaps([convert(x) for x in found.levels], found.channels)

    def branch(found):
        if isinstance(found, torch.Tensor):
            return convert(found)
        return replace(found, **{f.name: convert(getattr(found, f.name)) for f in fields(found)})

    return StreamOutput(
        priors=replace(output.priors, boxes=convert(output.priors.boxes)),
        stages=[
            StagePrediction(anchors=convert(s.anchors), cls=maps(s.cls), box=maps(s.box))
            for s in output.stages
        ],
        branches={name: branch(found) for name, found in output.branches.items()},
    )


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
    """Refuses what would make a GPU's host wait."""

    forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        by_mask = any(i is not None and i.dtype == torch.bool for i in indices)
        if name in self.forbidden or by_mask:
            raise AssertionError(f"{name} on the loss path makes the host wait")
        return func(*args, **(kwargs or {}))


def test_loss_path_never_waits_for_the_device(model, make_batch):
    batch = make_batch([(96, 96, 3), (96, 96, 0)])
    outputs = model.predict(model._preprocess(batch))
    truth = model._ground_truth(batch)
    with NoHostSynchronisation():
        losses = model._losses(outputs, truth)
        total = sum(losses.values())
        heads = [p for n, p in model.named_parameters() if n.startswith("streams")]
        torch.autograd.grad(total, heads, allow_unused=True)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoHostSynchronisation():
        total.item()  # the guard works


class NoHostCopy(TorchDispatchMode):
    """Refuses copies from the host to the device, which CPU tensors cannot show."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = [a for a in args if isinstance(a, torch.Tensor) and a.dim() > 0]
        if isinstance(result, torch.Tensor) and result.device.type == "cuda":
            moved = [a for a in inputs if a.device.type == "cpu"]
            if moved and func.overloadpacket.__name__ in ("_to_copy", "copy_", "copy"):
                raise AssertionError(f"{func} copies from the host")
        return result


def test_loss_path_copies_nothing_from_the_host(model, make_batch):
    """On fake CUDA tensors, which need no GPU: the same code, devices and all (no backward)."""
    outputs = model.predict(model._preprocess(make_batch([(96, 96, 3), (96, 96, 0)])))
    truth = model._ground_truth(make_batch([(96, 96, 3), (96, 96, 0)]))
    stream = copy.deepcopy(model.streams["anchors"])
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:

        def on_gpu(x):
            fake = mode.from_tensor(x.detach()).to("cuda")
            return fake.requires_grad_(x.requires_grad)

        output = mapped(outputs["anchors"], on_gpu)
        for module in stream.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, on_gpu(buffer))
        truth = GroundTruth(on_gpu(truth.boxes), on_gpu(truth.classes), truth.counts)
        with NoHostCopy():
            losses, _ = stream.losses(output, truth)
            assert all(v.device.type == "cuda" for v in losses.values())
            with pytest.raises(AssertionError, match="copies from the host"):
                torch.ones(3).to("cuda")  # the guard works


def test_sampler_that_drops_anchors_silences_every_loss(model, make_batch):
    class Nothing:
        needs_loss = False

        def __call__(self, targets, *, anchors, difficulty):
            return torch.zeros_like(targets.valid)

    stream = model.streams["anchors"]
    stream.sampler = Nothing()
    losses = model(make_batch([(96, 96, 3)]))
    assert all(v.item() == 0 for v in losses.values())


@pytest.mark.parametrize("number, named", [(3, r"2\.\.3"), (-1, r"-1\.\.2")])
def test_class_number_that_the_model_lacks_is_refused(model, make_batch, number, named):
    batch = make_batch([(96, 96, 2)], num_classes=3)
    batch[0]["instances"].gt_classes = torch.tensor([2, number])
    batch[0]["file_name"] = "cell.png"
    with pytest.raises(ValueError, match=rf"cell.png has class numbers {named},.*NUM_CLASSES is 3"):
        model(batch)


def test_losses_are_float32_under_autocast(model, make_batch):
    batch = make_batch([(96, 96, 3)])
    fresh = copy.deepcopy(model)  # normalisers and GHM's counts go on with every loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model.predict(model._preprocess(batch))
        stages = outputs["anchors"].stages
        assert all(stage.cls_logits.dtype == torch.bfloat16 for stage in stages)
        losses = model._losses(outputs, model._ground_truth(batch))
    assert all(v.dtype == torch.float32 for v in losses.values())
    # The same predictions in float32 outside autocast: the arithmetic must not be coarser.
    floats = {"anchors": mapped(outputs["anchors"], torch.Tensor.float)}
    exact = fresh._losses(floats, model._ground_truth(batch))
    for name, value in exact.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5), name
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_box_outside_every_anchor_changes_nothing(model, make_batch):
    from detectron2.structures import Boxes

    batch = make_batch([(96, 96, 1)])
    batch[0]["instances"].gt_boxes = Boxes(torch.tensor([[9000.0, 9000.0, 9001.0, 9001.0]]))
    losses = model(batch)
    assert model.statistics["num_foreground"].item() == 0
    assert all(torch.isfinite(v) for v in losses.values())


def test_training_without_instances_is_refused(model, make_batch):
    batch = make_batch([(96, 96, 1)])
    del batch[0]["instances"]
    with pytest.raises(ValueError, match="instances"):
        model(batch)


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
