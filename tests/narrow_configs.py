"""The complete configurations on thin networks, for tests that run every detector."""

import functools
import json
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

import tests.toy_backbone  # noqa: F401 (registers it)
from resobj_d2.config import add_resobj_config, class_counts
from resobj_d2.config.backbones import backbone_chain
from resobj_d2.config.zoo import zoo_entries

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
COMPLETE = [CONFIGS / entry.name for entry in zoo_entries()]


@functools.cache
def read_once(path):
    cfg = get_cfg()
    add_resobj_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    return cfg


def read(path):
    return read_once(path).clone()


def narrow(cfg):
    """The same method on a thin network: what the yaml chooses stays, widths shrink."""
    cfg.MODEL.RESNETS.DEPTH = 50
    # Group normalisation has groups of 32 channels.
    for key in ("STEM_OUT_CHANNELS", "WIDTH_PER_GROUP", "RES2_OUT_CHANNELS"):
        cfg.MODEL.RESNETS[key] = 32
    if cfg.MODEL.RESNETS.NUM_GROUPS > 1:
        cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 2, 16
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.DENSE.TOWER.CHANNELS = 32
    cfg.TEST.DETECTIONS_PER_IMAGE = 20
    # An untrained network proposes as much as it may.
    for key in ("POST_NMS_TOPK_TRAIN", "POST_NMS_TOPK_TEST"):
        cfg.MODEL.RPN[key] = 60
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32
    cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = (32,)
    if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        cfg.MODEL.RESNETS.NORM = "GN"  # frozen normalisation of random layers normalises nothing
    if cfg.MODEL.DENSE.PRIORS.NAME == "SSDAnchors":
        narrow_ssd(cfg)
    cfg.MODEL.DARKNET.STEM_CHANNELS = 4
    cfg.MODEL.YOLO_PYRAMID.CHANNELS = [8, 16, 32]
    small = cfg.MODEL.TIMM.NAME.endswith("lite0")
    cfg.MODEL.TIMM.NAME = "resnet10t" if small else "tf_efficientnet_b0"
    cfg.MODEL.TIMM.PRETRAINED = False
    cfg.MODEL.TIMM.WEIGHTS = ""  # of an optional package
    cfg.MODEL.TIMM.DROP_PATH_RATE = 0.0
    cfg.MODEL.BIFPN.CHANNELS = 32
    cfg.MODEL.BIFPN.NUM_LAYERS = 1
    if cfg.MODEL.BACKBONE.NAME == "build_bifpn_backbone":
        cfg.MODEL.DENSE.TOWER.NUM_CONVS = 1
    return cfg


def narrow_ssd(cfg):
    """Four levels on the ResNet: seven ask for 512 pixels, and VGG16 has one width."""
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM = "GN"
    if cfg.MODEL.SSD_EXTRAS.BOTTOM_UP != "build_timm_backbone":
        cfg.MODEL.SSD_EXTRAS.BOTTOM_UP = "build_resnet_backbone"
        cfg.MODEL.SSD_EXTRAS.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.SSD_EXTRAS.CHANNELS = [32]
    cfg.MODEL.DENSE.IN_FEATURES = cfg.MODEL.DENSE.IN_FEATURES[:4]
    for key, levels in (("MIN_SIZES", 5), ("ASPECT_RATIOS", 4)):
        cfg.MODEL.DENSE.PRIORS[key] = cfg.MODEL.DENSE.PRIORS[key][:levels]


def build_narrow(path, make_batch, shapes, opts=()):
    """The config of a yaml, its narrow detector with random weights, and a batch for it."""
    cfg = narrow(read(path))
    cfg.merge_from_list(list(opts))
    if "build_timm_backbone" in backbone_chain(cfg):
        pytest.importorskip("timm", reason="EfficientNet comes from the optional package timm")
    torch.manual_seed(0)
    model = build_model(cfg)
    (num_classes,) = class_counts(cfg).values()
    points = cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    batch = make_batch(shapes, num_classes=num_classes, num_keypoints=points)
    if cfg.MODEL.LOAD_PROPOSALS:
        add_proposals(batch)
    return cfg, model, batch


def accept_everything(model):
    """An untrained network may find nothing otherwise."""
    if hasattr(model, "postprocess"):
        model.postprocess.score_thresh = 0.0
    else:
        predictors = model.roi_heads.box_predictor
        for predictor in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
            predictor.test_score_thresh = 0.0
    return model.eval()


def add_proposals(batch):
    """What a file of proposals would give: the objects, moved a little, and the whole image."""
    for x in batch:
        height, width = x["image"].shape[1:]
        whole = torch.tensor([[0.0, 0.0, width, height]])
        proposals = x["proposals"] = Instances((height, width))
        objects = x["instances"].gt_boxes.tensor
        proposals.proposal_boxes = Boxes(torch.cat((objects + 1, objects.flip(0), whole)))
        proposals.objectness_logits = torch.zeros(len(proposals.proposal_boxes))


def distinct():
    """One yaml for each detector: those that differ in schedule or depth narrow to the same."""
    found = {}
    for path in COMPLETE:
        cfg = narrow(read(path))
        found.setdefault(json.dumps(cfg.MODEL, sort_keys=True), path)
    return list(found.values())
