"""Detectors of torchvision, and state dicts of others, give the same predictions here."""

import re

import pytest
import torch
from detectron2.modeling import build_model
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from resobj_d2.checkpoint import CheckpointError, ResObjCheckpointer
from resobj_d2.checkpoint.other_toolkits import convert_other_toolkit
from resobj_d2.matching.ssd_priors import ssd_anchors
from tests.modeling.conftest import method_cfg  # noqa: F401 (a fixture)

RESNET18 = (
    "MODEL.BACKBONE.FREEZE_AT", "0",
    "MODEL.RESNETS.DEPTH", "18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.RESNETS.STRIDE_IN_1X1", "False",
)  # fmt: skip
RETINANET = (
    *RESNET18,
    "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']",
    "MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']",
    "MODEL.DENSE.TOWER.CHANNELS", "256",
    "MODEL.DENSE.TOWER.NUM_CONVS", "4",
)  # fmt: skip
EFFDET = (
    "MODEL.TIMM.NAME", "efficientnet_b0",
    "MODEL.TIMM.PRETRAINED", "False",
    "MODEL.DENSE.IN_FEATURES", "['p3', 'p4', 'p5', 'p6', 'p7']",
    "MODEL.BIFPN.IN_FEATURES", "['c3', 'c4', 'c5']",
    "MODEL.BIFPN.CHANNELS", "8",
    "MODEL.DENSE.TOWER.CHANNELS", "8",
)  # fmt: skip
# Ratio by ratio to size by size.
ORDER = [ratio * 3 + size for size in range(3) for ratio in range(3)]


def spread(module):
    """Weights and statistics that make every channel distinguishable."""
    g = torch.Generator().manual_seed(0)
    for name, x in module.state_dict().items():
        if x.is_floating_point():
            own = torch.rand(x.shape, generator=g) if "var" in name else torch.randn(
                x.shape, generator=g
            )  # fmt: skip
            x.copy_(own + 0.5 if "var" in name else own / max(x[0].numel(), 16) ** 0.5)
    return module.eval().requires_grad_(False)


class TorchvisionRetinaNet(torch.nn.Module):
    """Its backbone and head, without its anchors and losses. Four classes, of which 0 is none."""

    def __init__(self):
        super().__init__()
        self.backbone = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, trainable_layers=5,
            returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(512, 256),
        )  # fmt: skip
        self.head = RetinaNetHead(256, 9, 4)


@pytest.fixture(scope="module")
def theirs():
    return spread(TorchvisionRetinaNet())


def load(model, weights, tmp_path, **options):
    path = tmp_path / "other.pth"
    torch.save({"model": weights}, path)
    ResObjCheckpointer(model, **options).load(str(path))
    return model.eval()


def by_cell(levels):
    return torch.cat([x.flatten(2).unflatten(1, (9, -1)).permute(0, 3, 1, 2) for x in levels], 1)


def as_mmdetection(state):
    """The same network under mmdetection's names, which has no channel of the background."""
    names = {
        r"backbone\.body\.": "backbone.",
        r"backbone\.fpn\.inner_blocks\.(\d)\.0\.": r"neck.lateral_convs.\1.conv.",
        r"backbone\.fpn\.layer_blocks\.(\d)\.0\.": r"neck.fpn_convs.\1.conv.",
        r"backbone\.fpn\.extra_blocks\.p6\.": "neck.fpn_convs.3.conv.",
        r"backbone\.fpn\.extra_blocks\.p7\.": "neck.fpn_convs.4.conv.",
        r"head\.classification_head\.conv\.(\d)\.0\.": r"bbox_head.cls_convs.\1.conv.",
        r"head\.regression_head\.conv\.(\d)\.0\.": r"bbox_head.reg_convs.\1.conv.",
        r"head\.classification_head\.cls_logits\.": "bbox_head.retina_cls.",
        r"head\.regression_head\.bbox_reg\.": "bbox_head.retina_reg.",
    }
    result = {}
    for name, value in state.items():
        for pattern, new in names.items():
            name = re.sub(f"^{pattern}", new, name)
        if name.startswith("bbox_head.retina_cls."):
            value = value.unflatten(0, (9, 4))[:, 1:].flatten(0, 1)
        result[name] = value
    return result


@pytest.mark.parametrize("toolkit", ["torchvision", "mmdetection"])
def test_retinanet(toolkit, theirs, tiny_cfg, tmp_path):
    state = theirs.state_dict()
    state = as_mmdetection(state) if toolkit == "mmdetection" else state
    model = load(build_model(tiny_cfg(*RETINANET)), state, tmp_path, strict=True)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = theirs.backbone(image)
        ours = model.backbone(image)
        for a, b in zip(features.values(), ours.values(), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
        expected = theirs.head(list(features.values()))
        tower = model.tower(list(ours.values()))
        stage = model.streams["anchors"].stages[0]
        logits = by_cell(stage.cls.maps(tower.cls).levels)
        deltas = by_cell(stage.box.maps(tower.box).levels)
    by_anchor = {k: v.unflatten(1, (-1, 9))[:, :, ORDER] for k, v in expected.items()}
    torch.testing.assert_close(logits, by_anchor["cls_logits"][..., 1:], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(deltas, by_anchor["bbox_regression"], rtol=1e-3, atol=1e-3)
    assert logits.std() > 1e-3


def test_faster_rcnn_of_torchvision(tiny_rcnn, tmp_path):
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    theirs = spread(FasterRCNN(backbone, num_classes=4))
    cfg = tiny_rcnn(
        *RESNET18,
        "MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone",
        "MODEL.RESNETS.OUT_FEATURES", "['res2', 'res3', 'res4', 'res5']",
        "MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']",
        "MODEL.RPN.IN_FEATURES", "['p2', 'p3', 'p4', 'p5', 'p6']",
        "MODEL.ROI_HEADS.IN_FEATURES", "['p2', 'p3', 'p4', 'p5']",
        "MODEL.ROI_BOX_HEAD.NUM_FC", "2",
        "MODEL.ROI_BOX_HEAD.FC_DIM", "1024",
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "7",
    )  # fmt: skip
    model = load(build_model(cfg), theirs.state_dict(), tmp_path, strict=True)
    g = torch.Generator().manual_seed(1)
    image, pooled = torch.randn(1, 3, 64, 64, generator=g), torch.randn(5, 256, 7, 7, generator=g)
    with torch.no_grad():
        expected = theirs.rpn.head(list(theirs.backbone(image).values()))
        found = model.proposal_generator.rpn_head(list(model.backbone(image).values()))
        for a, b in zip(expected, found, strict=True):
            for x, y in zip(a, b, strict=True):
                torch.testing.assert_close(y, x, rtol=1e-3, atol=1e-3)
        scores, deltas = theirs.roi_heads.box_predictor(theirs.roi_heads.box_head(pooled))
        own = model.roi_heads.box_predictor(model.roi_heads.box_head(pooled))
    torch.testing.assert_close(own[0], scores[:, [1, 2, 3, 0]], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(own[1], deltas[:, 4:], rtol=1e-3, atol=1e-3)


def test_vgg16_of_ssd_pytorch():
    """Its list ``vgg`` counts pooling and ReLU as torchvision does; fc6 and fc7 are 31 and 33."""
    convolutions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28, 31, 33)
    weights = {
        f"vgg.{i}.{kind}": torch.tensor(float(i))
        for i in convolutions
        for kind in ("weight", "bias")
    }
    weights |= {"L2Norm.weight": torch.tensor(20.0), "loc.0.weight": torch.tensor(0.0)}
    own = {"backbone.bottom_up.fc.0.weight": 0}
    what, converted = convert_other_toolkit(weights, own)
    expected = {
        f"backbone.bottom_up.features.{i}.{kind}": float(i)
        for i in convolutions[:-2]
        for kind in ("weight", "bias")
    }
    for i, kind in ((0, "weight"), (0, "bias"), (2, "weight"), (2, "bias")):
        expected[f"backbone.bottom_up.fc.{i}.{kind}"] = 31.0 + i
    expected["backbone.bottom_up.norm.weight"] = 20.0
    assert what == "the VGG16 of ssd.pytorch"
    assert {name: float(x) for name, x in converted.items()} == expected


def test_a_retinanet_of_other_anchors_is_refused(theirs, tiny_cfg, tmp_path):
    state = dict(theirs.state_dict())
    name = "head.classification_head.cls_logits.weight"
    state[name] = state[name][:-4]
    with pytest.raises(CheckpointError, match="torchvision's RetinaNet, but of .*32 outputs"):
        load(build_model(tiny_cfg(*RETINANET)), state, tmp_path)


def test_torchvisions_second_retinanet_is_refused(theirs, tiny_cfg, tmp_path):
    """Its head has GroupNorm beside each convolution."""
    norm = "head.classification_head.conv.0.1.weight"
    state = {**theirs.state_dict(), norm: torch.ones(256)}
    with pytest.raises(CheckpointError, match=norm):
        load(build_model(tiny_cfg(*RETINANET)), state, tmp_path)


def test_a_tensor_that_such_a_model_does_not_have_is_told(theirs, tiny_cfg, tmp_path):
    state = {**theirs.state_dict(), "head.centerness.weight": torch.zeros(1)}
    with pytest.raises(CheckpointError, match="1 of its tensors .* the first is head.centerness"):
        load(build_model(tiny_cfg(*RETINANET)), state, tmp_path)


@pytest.mark.parametrize("strict", [False, True])
def test_an_unknown_layout_says_which_are_known(strict, tiny_cfg, tmp_path):
    weights = {"detector.block.weight": torch.zeros(3), "detector.block.bias": torch.zeros(3)}
    message = "none of the checkpoint's 2 names, such as detector.block.bias, .* Known are .*torchv"
    with pytest.raises(CheckpointError, match=message):
        load(build_model(tiny_cfg()), weights, tmp_path, strict=strict)


def test_ssd300_of_torchvision(tiny_cfg, tmp_path, repository):
    """What SSD's levels have in common: the VGG16, two extra levels and four predictors."""
    from torchvision.models.detection import ssd300_vgg16

    with torch.device("meta"):  # random numbers for a VGG16 take seconds
        theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=4)
    theirs = spread(theirs.to_empty(device="cpu"))
    cfg = tiny_cfg("MODEL.DEVICE", "meta")
    cfg.merge_from_file(str(repository / "configs/methods/ssd.yaml"))
    cfg.merge_from_list(
        [
            "MODEL.SSD_EXTRAS.BOTTOM_UP", "build_ssd_vgg16_backbone",
            "MODEL.SSD_EXTRAS.IN_FEATURES", ["conv4_3", "fc7"],
            "MODEL.SSD_EXTRAS.CHANNELS", [512, 256],
            "MODEL.SSD_EXTRAS.LAST_KERNEL", 3,
            "MODEL.DENSE.IN_FEATURES", ["s1", "s2", "s3", "s4"],
            "MODEL.DENSE.PRIORS.MIN_SIZES", [21, 45, 99, 153, 207],
            "MODEL.DENSE.PRIORS.ASPECT_RATIOS", [[2], [2, 3], [2, 3], [2, 3]],
        ]
    )  # fmt: skip
    with torch.device("meta"):
        model = build_model(cfg).eval()
    what, weights = convert_other_toolkit(theirs.state_dict(), model.state_dict())
    assert what.startswith("torchvision's SSD300; its two coarsest levels")
    model.to_empty(device="cpu").load_state_dict(weights)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    x = theirs.backbone.features(image)
    features = [theirs.backbone.scale_weight.view(1, -1, 1, 1) * torch.nn.functional.normalize(x)]
    for block in theirs.backbone.extra[:3]:
        x = block(x)
        features.append(x)
    stage = model.streams["anchors"].stages[0]
    with torch.no_grad():
        ours = list(model.backbone(image).values())
        logits, deltas = stage.cls.maps(ours).levels, stage.box.maps(ours).levels
    head = theirs.head
    for i, (a, b) in enumerate(zip(features, ours, strict=True)):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-4)
        expected = head.classification_head.module_list[i](a).unflatten(1, (-1, 4)).roll(-1, 2)
        torch.testing.assert_close(logits[i], expected.flatten(1, 2), rtol=1e-3, atol=1e-3)
        expected = head.regression_head.module_list[i](a)
        torch.testing.assert_close(deltas[i], expected, rtol=1e-3, atol=1e-3)
    assert logits[3].std() > 1e-3
    sizes = {"min_sizes": [21, 45, 99, 153, 207], "aspect_ratios": [[2], [2, 3], [2, 3], [2, 3]]}
    for own, other in zip(ssd_anchors(**sizes), ssd300_anchors()._wh_pairs, strict=False):
        torch.testing.assert_close(torch.tensor(own), 300 * other)


def ssd300_anchors():
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

    ratios = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
    return DefaultBoxGenerator(ratios, scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05])


def effdet_state(own, *, with_biases):
    """The names of effdet's EfficientDet for the weights of a model here, by its own description:
    eight nodes a layer, p6 to p4 on the way down and p3 to p7 on the way up."""
    nodes = {"down.2": 0, "down.1": 1, "down.0": 2} | {f"up.{i}": 3 + i for i in range(5)}
    # (way, lateral): the node that it leads to and the offset of its input there.
    laterals = {("down", 0): (2, 1), ("down", 1): (1, 2)} | {
        ("up", i): (3 + i, i) for i in (0, 1, 2)
    }
    layers = {"conv.0": "conv.conv_dw", "conv.1": "conv.conv_pw", "norm": "conv.bn"}
    result = {}
    for name, x in own.items():
        head, kind = name.rsplit(".", 1)
        if name.startswith("backbone.bottom_up.model."):
            new = name.replace("backbone.bottom_up.model.", "backbone.")
        elif found := re.fullmatch(r"backbone\.coarse\.(\d)", head):
            new = f"fpn.resample.3.conv.{('conv', 'bn')[int(found[1])]}.{kind}"
        elif found := re.fullmatch(r"backbone\.layers\.(\d)\.(\w+)_laterals\.(\d)\.(\d)", head):
            node, offset = laterals[found[2], int(found[3])]
            layer = ("conv", "bn")[int(found[4])]
            new = f"fpn.cell.{found[1]}.fnode.{node}.combine.resample.{offset}.conv.{layer}.{kind}"
        elif found := re.fullmatch(r"backbone\.layers\.(\d)\.((?:up|down)\.\d)\.(.*)", head):
            place = f"fpn.cell.{found[1]}.fnode.{nodes[found[2]]}."
            part = layers.get(found[3])
            new = place + (f"after_combine.{part}.{kind}" if part else "combine.edge_weights")
        elif found := re.fullmatch(r"tower\.(cls|box)\.(convs|norms)\.(\d)\.(\d)", head):
            net = {"cls": "class_net", "box": "box_net"}[found[1]]
            a, b = found[3], found[4]
            conv = ("conv_dw", "conv_pw")[int(b)] if found[2] == "convs" else ""
            new = (
                f"{net}." + (f"conv_rep.{a}.{conv}" if conv else f"bn_rep.{a}.{b}.bn") + f".{kind}"
            )
        else:
            found = re.fullmatch(r"streams\.anchors\.stages\.0\.(cls|box)\.conv\.(\d)", head)
            net = {"cls": "class_net", "box": "box_net"}[found[1]]
            new = f"{net}.predict.{('conv_dw', 'conv_pw')[int(found[2])]}.{kind}"
            if found[2] == "1":  # of each size the square anchor first
                x = x.unflatten(0, (3, 3, -1))[:, [1, 0, 2]]
                x = x[:, :, [1, 0, 3, 2]] if found[1] == "box" else x  # y first
                x = x.flatten(0, 2)
        redundant = kind == "bias" and "predict" not in new and ".conv" in new and "bn" not in new
        if with_biases or not redundant or new.startswith("backbone."):
            result[new] = x
    return result


@pytest.mark.parametrize("with_biases", [True, False])
def test_efficientdet_of_effdet(with_biases, method_cfg, tmp_path):  # noqa: F811
    """Weights under its names come back under those that they had."""
    timm = ("MODEL.BIFPN.BOTTOM_UP", "build_timm_backbone")
    pytest.importorskip("timm")
    cfg = method_cfg("efficientdet", opts=(*EFFDET, *timm))
    model = spread(build_model(cfg))
    state = {k: v.clone() for k, v in model.state_dict().items() if "num_batches" not in k}
    theirs = effdet_state(state, with_biases=with_biases)
    for x in model.state_dict().values():
        x.zero_()
    load(model, theirs, tmp_path, strict=True)
    for name, x in model.state_dict().items():
        if "num_batches" in name:
            continue
        lost = not with_biases and name.endswith(".bias") and not x.any()
        assert torch.equal(x, torch.zeros_like(x) if lost else state[name]), name
    assert len(theirs) == len(state) or not with_biases


def test_of_effdets_90_ids_of_coco_80_are_taken():
    weights = {
        "fpn.cell.0.fnode.0.after_combine.conv.conv_dw.weight": torch.zeros(1),
        "class_net.predict.conv_pw.bias": torch.arange(1.0, 91).repeat(9),
    }
    name = "streams.anchors.stages.0.cls.conv.1.bias"
    own = {"backbone.layers.0.down.0.conv.0.weight": torch.zeros(1), name: torch.zeros(720)}
    what, converted = convert_other_toolkit(weights, own)
    ids = converted[name].view(9, 80)
    assert what.startswith("effdet's EfficientDet; its anchors") and (ids == ids[0]).all()
    assert ids[0, [0, 10, 11, 79]].tolist() == [1, 11, 13, 90]  # there is no 12


def test_of_torchvisions_91_classes_of_coco_80_are_taken():
    """They have the background, class 0, and COCO's ids, as here the rows say themselves."""
    cls, box = "roi_heads.box_predictor.cls_score.bias", "roi_heads.box_predictor.bbox_pred.bias"
    ids = torch.arange(91.0)
    used = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    weights = {"roi_heads.box_predictor.cls_score.weight": torch.zeros(91, 1), cls: ids}
    weights |= {
        "rpn.head.bbox_pred.weight": torch.zeros(12, 1, 1, 1),
        box: ids.repeat_interleave(4),
    }
    own = {"proposal_generator.rpn_head.anchor_deltas.weight": torch.zeros(12, 1, 1, 1)}
    rcnn = own | {cls: torch.zeros(81), box: torch.zeros(320)}
    _, converted = convert_other_toolkit(weights, rcnn)
    assert converted[cls].tolist() == [*used, 0]  # background last
    assert converted[box].tolist() == [i for i in used for _ in range(4)]
    _, converted = convert_other_toolkit(
        weights, own | {cls: torch.zeros(91), box: torch.zeros(360)}
    )
    assert converted[cls].tolist() == [*range(1, 91), 0] and len(converted[box]) == 360

    name = "streams.anchors.stages.0.cls.bias"
    bias = {"head.classification_head.cls_logits.weight": torch.zeros(819, 1, 3, 3)}
    bias |= {"head.classification_head.cls_logits.bias": ids.repeat(9)}
    _, converted = convert_other_toolkit(bias, {name: torch.zeros(720)})
    assert (converted[name].view(9, 80) == torch.tensor(used).float()).all()

    name = "streams.anchors.stages.0.cls.levels.0.bias"
    bias = {"backbone.scale_weight": torch.zeros(512)}
    bias |= {"head.classification_head.module_list.0.bias": ids.repeat(4)}
    own = {"backbone.bottom_up.fc.0.weight": torch.zeros(1), name: torch.zeros(324)}
    _, converted = convert_other_toolkit(bias, own)
    assert (converted[name].view(4, 81) == torch.tensor([*used, 0]).float()).all()
