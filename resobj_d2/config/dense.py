"""The configuration keys of the dense detector.

A sub-node of ``MODEL.DENSE`` belongs to one slot: its class's ``from_config`` reads it, and
``DenseStream.from_config`` the weights and initial scores of the losses.
"""

from __future__ import annotations

from fvcore.common.config import CfgNode

__all__ = [
    "add_box_loss_options",
    "add_dense",
    "add_objectness",
    "add_quality_options",
    "add_sampler_options",
]


def add_dense(cfg: CfgNode, node_type: type) -> None:
    """Used where MODEL.META_ARCHITECTURE is ResObjDenseDetector."""
    dense = cfg.MODEL.DENSE = node_type()
    # Names of the feature maps of the backbone, finest first.
    dense.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    dense.NUM_CLASSES = 80
    # Whether the anchors' stream exists; without it only the anchor-free one is left.
    dense.ANCHOR_BASED = True
    _add_tower(dense, node_type)
    _add_stream(dense, node_type)
    _add_anchor_free(dense, node_type)
    _add_inference(dense, node_type)


def _add_tower(dense: CfgNode, node_type: type) -> None:
    """What stands between the pyramid and the predictors of all streams."""
    dense.TOWER = node_type()
    dense.TOWER.NAME = "ConvTower"
    # 3x3 convolutions in front of the predictors, per task, shared by the levels.
    dense.TOWER.NUM_CONVS = 4
    dense.TOWER.CHANNELS = 256
    # "" or a name of detectron2.layers.get_norm, e.g. "GN".
    dense.TOWER.NORM = ""
    # SepConvTower: of its batch normalisation, torch's convention; short runs need 0.1.
    dense.TOWER.BN_MOMENTUM = 0.01


def _add_stream(node: CfgNode, node_type: type) -> None:
    """What one stream predicts and learns."""
    _add_structure(node, node_type)
    _add_losses(node, node_type)
    add_objectness(node, node_type)
    _add_quality(node, node_type)
    _add_fusion(node, node_type)


def _add_anchor_free(dense: CfgNode, node_type: type) -> None:
    """A second stream on the same towers, with the same keys as the first (FSAF).

    Zhu et al., "Feature Selective Anchor-Free Module for Single-Shot Object Detection".
    """
    free = dense.ANCHOR_FREE = node_type()
    free.ENABLED = False
    _add_stream(free, node_type)
    # One point per cell; the square of SCALE strides around it is the unit of its box.
    free.PRIORS.SCALES_PER_OCTAVE = 1
    free.PRIORS.ASPECT_RATIOS = [1.0]
    free.CODER.NAME = "LTRBCoder"
    free.ASSIGNER.NAME = "FSAFAssigner"
    free.CLS_LOSS.WEIGHT = 0.5
    free.BOX_LOSS.NAME = "NegativeLogIoULoss"
    free.BOX_LOSS.WEIGHT = 0.5
    free.NORMALIZER.NAME = "ForegroundCount"


def _add_structure(dense: CfgNode, node_type: type) -> None:
    dense.PRIORS = node_type()
    dense.PRIORS.NAME = "OctaveAnchors"
    # Side of the smallest square anchor of a level, in strides of that level.
    dense.PRIORS.SCALE = 4.0
    dense.PRIORS.SCALES_PER_OCTAVE = 3
    # height / width; SSDAnchors: a list for each level, longer to shorter side, above 1.
    dense.PRIORS.ASPECT_RATIOS = [0.5, 1.0, 2.0]
    # SSDAnchors: the size in pixels of each level's boxes, and one more.
    dense.PRIORS.MIN_SIZES = []
    # YOLOAnchors: for each level its [width, height] pairs in pixels.
    dense.PRIORS.SIZES = []
    # Position of the first cell's centre in strides, in [0, 1).
    dense.PRIORS.OFFSET = 0.0

    dense.PREDICTOR = node_type()
    # "SharedConv": one convolution for all levels; "SharedSepConv": one separable convolution;
    # "PerLevelConv": one for each.
    dense.PREDICTOR.NAME = "SharedConv"
    # 3 or 1
    dense.PREDICTOR.KERNEL_SIZE = 3

    dense.CODER = node_type()
    dense.CODER.NAME = "DeltaCoder"
    dense.CODER.WEIGHTS = [1.0, 1.0, 1.0, 1.0]

    dense.ASSIGNER = node_type()
    dense.ASSIGNER.NAME = "MaxIoUAssigner"
    dense.ASSIGNER.IOU_THRESHOLDS = [0.4, 0.5]
    # For the intervals below, between and above the thresholds: 1 foreground, 0 background,
    # -1 ignored.
    dense.ASSIGNER.IOU_LABELS = [0, -1, 1]
    dense.ASSIGNER.ALLOW_LOW_QUALITY = True
    # The keys below are FSAFAssigner's. "online": a box is learned on the level where its loss is
    # smallest; "heuristic": on one that its size chooses.
    dense.ASSIGNER.SELECTION = "online"
    # Sides of a box's effective and of its ignoring region, relative to the box.
    dense.ASSIGNER.EFFECTIVE_SCALE = 0.2
    dense.ASSIGNER.IGNORE_SCALE = 0.5
    # "heuristic": the level of a box of 224 pixels; 5 for P3-P7, 4 as in FPN.
    dense.ASSIGNER.CANONICAL_LEVEL = 5
    # A box's effective points on the levels not chosen: "other_classes" (negatives of all classes
    # but the box's), "background" or "ignore".
    dense.ASSIGNER.UNSELECTED = "other_classes"
    # YOLOAssigner: a background anchor whose predicted box overlaps an object more is ignored.
    dense.ASSIGNER.IGNORE_IOU = 0.7
    # YOLOAssigner: small boxes have up to twice the box loss; False for losses of overlap.
    dense.ASSIGNER.WEIGHS_BOXES = True

    dense.SAMPLER = node_type()
    dense.SAMPLER.NAME = "KeepAll"
    # Anchors per image (RandomSampler, IoUBalancedSampler, HardExampleSampler, OHEMSampler).
    dense.SAMPLER.SIZE = 256
    # Largest part of them that is foreground; OHEMSampler: 0 for no say.
    dense.SAMPLER.POSITIVE_FRACTION = 0.5
    # IoUBalancedSampler: the IoU below which anchors are background.
    dense.SAMPLER.NEGATIVE_IOU = 0.4
    add_sampler_options(dense.SAMPLER)

    # Stages after the first, a list of dicts; see resobj_d2.modeling.stages.StageOptions. Each
    # trains on the boxes that the stage before it predicts; {} is consistent optimisation.
    dense.STAGES = []
    # "last": class probabilities of the last stage with a class predictor of its own; "mean": of
    # all of these.
    dense.STAGE_SCORES = "last"


def add_sampler_options(sampler: CfgNode) -> None:
    # RandomSampler, IoUBalancedSampler: foreground evenly from the objects.
    sampler.INSTANCE_BALANCED = False
    # IoUBalancedSampler: bins over the IoUs from 0 to that below which anchors are background.
    sampler.NUM_BINS = 3
    # OHEMSampler: of the NMS over the anchors.
    sampler.NMS_THRESH = 0.5
    # HardNegativeRatio: background anchors per foreground anchor.
    sampler.NEGATIVE_RATIO = 3.0


def _add_losses(dense: CfgNode, node_type: type) -> None:
    dense.CLS_LOSS = node_type()
    dense.CLS_LOSS.NAME = "SigmoidFocalLoss"
    dense.CLS_LOSS.WEIGHT = 1.0
    dense.CLS_LOSS.FOCAL_ALPHA = 0.25
    dense.CLS_LOSS.FOCAL_GAMMA = 2.0
    # GHMCLoss
    dense.CLS_LOSS.GHM_BINS = 30
    dense.CLS_LOSS.GHM_MOMENTUM = 0.75
    # Score the class predictor starts with; 0 stands for 1/NUM_CLASSES, at most .5, which suits
    # a P(class | object) that is trained on foreground only.
    dense.CLS_LOSS.PRIOR_PROB = 0.01

    dense.BOX_LOSS = node_type()
    dense.BOX_LOSS.NAME = "SmoothL1Loss"
    dense.BOX_LOSS.WEIGHT = 1.0
    add_box_loss_options(dense.BOX_LOSS)

    dense.NORMALIZER = node_type()
    dense.NORMALIZER.NAME = "ForegroundEMA"
    dense.NORMALIZER.INITIAL = 100.0
    dense.NORMALIZER.MOMENTUM = 0.9


def add_box_loss_options(loss: CfgNode) -> None:
    # Where SmoothL1Loss bends.
    loss.BETA = 0.1
    # BalancedL1Loss
    loss.BALANCED_ALPHA = 0.5
    loss.BALANCED_GAMMA = 1.5
    loss.BALANCED_BETA = 1.0
    # mmdetection's way with BALANCED_BETA, whose slope jumps at 0.
    loss.MMDET_FORM = False
    # GHMRLoss, which wants a weight of about 10
    loss.GHM_MU = 0.02
    loss.GHM_BINS = 10
    loss.GHM_MOMENTUM = 0.7


def add_objectness(dense: CfgNode, node_type: type) -> None:
    """Residual Objectness; with it the class loss covers foreground anchors only."""
    dense.OBJECTNESS = node_type()
    dense.OBJECTNESS.ENABLED = False
    # T, the number of residual subnets; 0 is RetinaNet-Obj.
    dense.OBJECTNESS.STEPS = 2
    # What the residual subnets read: "objectness" (the objectness subnet's hidden feature),
    # "class" (the class tower), "chain" (each the hidden feature of the one before it).
    dense.OBJECTNESS.SOURCE = "objectness"
    # "all": residual losses train their own subnet alone; "objectness": they also train earlier
    # residual subnets; "none": they train everything.
    dense.OBJECTNESS.DETACH = "all"
    # Where the minimum positive score is taken: "image", "batch", "level", or "none" to train
    # every labelled anchor at every step.
    dense.OBJECTNESS.MIN_SCOPE = "image"
    # Anchors below it at training: "update" adds the residual all the same (as at inference),
    # "keep" leaves the objectness as it was.
    dense.OBJECTNESS.UNSELECTED = "update"
    # Initial objectness score; 0 stands for 1/NUM_CLASSES.
    dense.OBJECTNESS.PRIOR_PROB = 0.01
    # Width of the hidden convolutions of all subnets; 0 is the tower's width, as in the paper.
    dense.OBJECTNESS.HIDDEN_CHANNELS = 0
    # Hidden convolutions of each subnet.
    dense.OBJECTNESS.NUM_CONVS = 1
    # Those of the base's subnet alone; -1 for NUM_CONVS.
    dense.OBJECTNESS.BASE_CONVS = -1
    # Initial bias of the residual predictors.
    dense.OBJECTNESS.RESIDUAL_BIAS = 0.0
    # Factors of the base loss and of each step's loss.
    dense.OBJECTNESS.WEIGHT = 1.0
    dense.OBJECTNESS.RESIDUAL_WEIGHT = 1.0


def _add_quality(dense: CfgNode, node_type: type) -> None:
    """The predicted IoU of a box with its object, a factor of the score."""
    add_quality_options(dense, node_type)
    # The tower it reads: "cls" (RetinaNet-Conf) or "box" (IoU-aware RetinaNet).
    dense.QUALITY.READS = "cls"


def add_quality_options(node: CfgNode, node_type: type) -> None:
    quality = node.QUALITY = node_type()
    quality.ENABLED = False
    # ce, ce_w (also trains the background towards 0), l1, smooth_l1, l2 or gfocal.
    quality.LOSS = "ce"
    quality.WEIGHT = 1.0
    # Weight of the background in ce_w.
    quality.NEGATIVE_WEIGHT = 0.0001
    # Exponent of gfocal.
    quality.GAMMA = 2.0
    # Where smooth_l1 bends.
    quality.BETA = 0.11
    # The IoU is a constant for the loss; False: the loss moves the boxes too.
    quality.DETACH_TARGET = True
    # Exponent of the quality in the score; that of every other factor is 1 - ALPHA.
    quality.ALPHA = 0.4


def _add_fusion(dense: CfgNode, node_type: type) -> None:
    """How probabilities become a score."""
    dense.FUSION = node_type()
    # The score is prod_i p_i^e_i over [name, e_i]; factors not named have exponent 1, or with
    # QUALITY what QUALITY.ALPHA says.
    dense.FUSION.EXPONENTS = []
    # Candidates with p_i below the floor of [name, floor] are dropped.
    dense.FUSION.FLOORS = []


def _add_inference(dense: CfgNode, node_type: type) -> None:
    """How scores become detections. TEST.DETECTIONS_PER_IMAGE limits their number."""
    dense.POSTPROCESS = node_type()
    dense.POSTPROCESS.SCORE_THRESH = 0.05
    # Candidates per level in front of NMS.
    dense.POSTPROCESS.TOPK = 1000
    dense.POSTPROCESS.NMS_THRESH = 0.5
