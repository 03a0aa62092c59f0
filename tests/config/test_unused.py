"""A key that is set, but that nothing reads, is refused by name; a key that is read is not."""

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model

from resobj_d2.config import add_resobj_config, load_config
from resobj_d2.config.backbones import OWN_BACKBONES
from resobj_d2.config.defaults import all_keys
from resobj_d2.config.keys import value_of
from resobj_d2.config.unused import check_unused_keys, unused_keys
from resobj_d2.modeling import ResObjROIHeads
from tests import toy_backbone  # noqa: F401 (registers a backbone)

DENSE = ["MODEL.META_ARCHITECTURE", "ResObjDenseDetector"]
RESOBJ = ["MODEL.DENSE.OBJECTNESS.ENABLED", "True", "MODEL.DENSE.CLS_LOSS.NAME", "SigmoidCE"]


def config(*opts):
    cfg = get_cfg()
    add_resobj_config(cfg)
    cfg.merge_from_list([str(x) for x in opts])
    return cfg


def other_value(default):
    """Some value of the same type that is not the default."""
    if isinstance(default, bool):
        return not default
    if isinstance(default, (int, float)):
        return default + 1
    return default + "x" if isinstance(default, str) else [*default, 1]


def set_value(cfg, path, value):
    node, _, name = path.rpartition(".")
    (value_of(cfg, node) if node else cfg)[name] = value


def satisfy(cfg, conditions):
    """Give a model what the conditions ask for."""
    for condition in conditions:
        if condition.path:
            set_value(cfg, condition.path, condition.values[0])
        elif condition is OWN_BACKBONES:
            cfg.MODEL.BACKBONE.NAME = "build_toy_pyramid"
        elif str(condition).startswith("lengths in"):
            cfg.INPUT.MULTI_SCALE = [320]
        elif str(condition).startswith("a TEST.EVAL_PERIOD"):
            cfg.TEST.EVAL_PERIOD = 1
        else:
            cfg.MODEL.BACKBONE.NAME = str(condition).rpartition(" ")[2]


@pytest.mark.parametrize("key", list(all_keys()), ids=lambda key: key.path)
def test_every_key_is_refused_without_its_readers_and_accepted_with_each(key):
    for reader in key.readers:
        cfg = config()
        satisfy(cfg, reader.when)
        if value_of(cfg, key.path) == key.default:
            set_value(cfg, key.path, other_value(key.default))
        assert key.path not in unused_keys(cfg)
    nobody = config("MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.KEYPOINT_ON", "True")
    set_value(nobody, key.path, other_value(key.default))
    assert (key.path in unused_keys(nobody)) == all(reader.when for reader in key.readers)


class RecordingNode(CfgNode):
    """A configuration that remembers which of its values were read."""

    def __getitem__(self, name):
        value = super().__getitem__(name)
        if not isinstance(value, CfgNode):
            self.__dict__["read"].add(self.__dict__["path"] + name)
        return value


def recording(cfg, path="", read=None):
    read = set() if read is None else read
    node = RecordingNode()
    node.__dict__.update(path=path, read=read)
    for name, value in cfg.items():
        is_node = isinstance(value, CfgNode)
        node[name] = recording(value, f"{path}{name}.", read) if is_node else value
    return node


MODELS = {
    "retinanet": [*DENSE, "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone",
                  "MODEL.RESNETS.DEPTH", "18", "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
                  "MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']",
                  "MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']"],
    "resobj": [*DENSE, *RESOBJ, "MODEL.DENSE.STAGES", "[{'CLS': 'own', 'TOWER': 'own'}]"],
    "fsaf": [*DENSE, "MODEL.DENSE.ANCHOR_FREE.ENABLED", "True", "MODEL.DENSE.QUALITY.ENABLED",
             "True", "MODEL.DENSE.CLS_LOSS.NAME", "GHMCLoss"],
    "anchor_free": [*DENSE, "MODEL.DENSE.ANCHOR_FREE.ENABLED", "True",
                    "MODEL.DENSE.ANCHOR_BASED", "False"],
    "stock_retinanet": ["MODEL.META_ARCHITECTURE", "RetinaNet"],
    "darknet": [*DENSE, "MODEL.BACKBONE.NAME", "build_yolo_backbone", "MODEL.DENSE.TOWER.NAME",
                "YOLOTower", "MODEL.DENSE.IN_FEATURES", "['y3', 'y4', 'y5']",
                "MODEL.DENSE.PREDICTOR.NAME", "PerLevelConv"],
    "rcnn": [],
    "mask_and_keypoints": ["MODEL.MASK_ON", "True", "MODEL.KEYPOINT_ON", "True"],
    "cascade": ["MODEL.ROI_HEADS.NAME", "ResObjCascadeROIHeads",
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True",
                "MODEL.RESOBJ_ROI.QUALITY.ENABLED", "True"],
    "resobj_rcnn": ["MODEL.ROI_HEADS.NAME", "ResObjROIHeads",
                    "MODEL.PROPOSAL_GENERATOR.NAME", "ResObjRPN",
                    "MODEL.RPN.HEAD_NAME", "ResObjRPNHead",
                    "MODEL.RESOBJ_RPN.OBJECTNESS.ENABLED", "True",
                    "MODEL.RESOBJ_RPN.SAMPLER.NAME", "KeepAll"],
}  # fmt: skip


# Detectron2's RPN reads it for its own sampling, which KeepAll replaces.
READ_WITHOUT_EFFECT = {"resobj_rcnn": {"MODEL.RPN.POSITIVE_FRACTION"}}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_reads_is_what_the_keys_say(name, tiny_rcnn):
    cfg = tiny_rcnn(
        "MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "MODEL.RPN.HEAD_NAME", "StandardRPNHead",
        *MODELS[name],
    )  # fmt: skip
    watched = recording(cfg)
    build_model(watched)
    read = watched.__dict__["read"]
    for path in read - READ_WITHOUT_EFFECT.get(name, set()):
        # The other value must not change which parts there are.
        if path.endswith((".NAME", "_ON", "ENABLED", "_BASED", "META_ARCHITECTURE", "BOTTOM_UP")):
            continue
        changed = cfg.clone()
        set_value(changed, path, other_value(value_of(cfg, path)))
        assert path not in unused_keys(changed), f"{path} is read, but called unused"
    promised = {
        key.path
        for key in all_keys()
        if key.path.startswith("MODEL.")
        and any(
            not reader.missing(cfg) and OWN_BACKBONES not in reader.when for reader in key.readers
        )
    }
    assert promised <= read


def test_the_message_names_the_key_its_reader_and_what_is_there_instead(repository, tmp_path):
    yaml = tmp_path / "mine.yaml"
    base = repository / "configs/COCO-Detection/retinanet_fl_R_50_FPN_600_1x.yaml"
    yaml.write_text(f"_BASE_: {base}\nMODEL: {{DENSE: {{ASSIGNER: {{IGNORE_IOU: 0.5}}}}}}\n")
    with pytest.raises(ValueError) as caught:
        load_config(str(yaml), ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"])
    assert str(caught.value) == (
        "MODEL.DENSE.ASSIGNER.IGNORE_IOU is 0.5, but nothing in this model reads it: YOLOAssigner "
        "would, with MODEL.DENSE.ASSIGNER.NAME YOLOAssigner (it is MaxIoUAssigner). Its default "
        "is 0.7"
    )


@pytest.mark.parametrize(
    "opts, key",
    [
        (["MODEL.META_ARCHITECTURE", "ProposalNetwork", "VIS_PERIOD", 20], "VIS_PERIOD"),
        ([*DENSE, "MODEL.RETINANET.NUM_CLASSES", 3], "MODEL.RETINANET.NUM_CLASSES"),
        ([*DENSE, "MODEL.MASK_ON", True], "MODEL.MASK_ON"),
        (["MODEL.DENSE.QUALITY.ENABLED", True], "MODEL.DENSE.QUALITY.ENABLED"),
        (["MODEL.RESOBJ_ROI.QUALITY.ENABLED", True], "MODEL.RESOBJ_ROI.QUALITY.ENABLED"),
        (["MODEL.KEYPOINT_ON", True, "TEST.GIOU_EVAL", True], "TEST.GIOU_EVAL"),
        ([*DENSE, "INPUT.MULTI_SCALE_LAST", 5], "INPUT.MULTI_SCALE_LAST"),
        (
            [*DENSE, "MODEL.DENSE.QUALITY.ENABLED", True, "MODEL.DENSE.QUALITY.GAMMA", 1.5],
            "MODEL.DENSE.QUALITY.GAMMA",
        ),
    ],
)
def test_keys_that_used_to_be_ignored(opts, key):
    assert key in unused_keys(config(*opts))


def test_an_architecture_of_the_users_own_may_read_anything():
    cfg = config("MODEL.META_ARCHITECTURE", "MyDetector", "MODEL.DENSE.QUALITY.GAMMA", 1.5)
    assert not unused_keys(cfg)


@pytest.mark.parametrize(
    "opts",
    [
        # Detectron2's own files set keys of heads that a model lacks.
        ["MODEL.ROI_MASK_HEAD.NUM_CONV", 4, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 5],
        ["MODEL.META_ARCHITECTURE", "ProposalNetwork", "MODEL.ROI_HEADS.NUM_CLASSES", 7],
        # A schedule that has no steps, over a file that has.
        ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.STEPS", "(5,)"],
        # A backbone of one's own may build any other.
        [*DENSE, "MODEL.BACKBONE.NAME", "build_toy_pyramid", "MODEL.TIMM.NAME", "resnet10t",
         "MODEL.BIFPN.CHANNELS", 32, "MODEL.RESNETS.DEPTH", 18],
        # Heads that inherit from ours read what ours read.
        ["MODEL.ROI_HEADS.NAME", "HeadsOfMine", "MODEL.RESOBJ_ROI.QUALITY.ENABLED", True],
    ],
)  # fmt: skip
def test_what_may_be_read_is_not_refused(opts):
    if "HeadsOfMine" not in ROI_HEADS_REGISTRY:
        ROI_HEADS_REGISTRY.register(type("HeadsOfMine", (ResObjROIHeads,), {}))
    assert not unused_keys(config(*opts))


@pytest.mark.parametrize(
    "opts, message",
    [
        (
            ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbon"],
            "MODEL.BACKBONE.NAME is 'build_resnet_fpn_backbon', which does not exist. Did you mean",
        ),
        (
            ["MODEL.BACKBONE.NAME", "build_yolo_backbone", "MODEL.YOLO_PYRAMID.BOTTOM_UP", "dark"],
            "MODEL.YOLO_PYRAMID.BOTTOM_UP is 'dark', which does not exist. Choose one of",
        ),
        (
            [*DENSE, "MODEL.DENSE.CLS_LOSS.NAME", "SigmoidFocalLos"],
            "MODEL.DENSE.CLS_LOSS.NAME is 'SigmoidFocalLos', which does not exist. Did you mean "
            "SigmoidFocalLoss",
        ),
        ([*DENSE, "MODEL.DENSE.TOWER.NAME", "T"], "MODEL.DENSE.TOWER.NAME is 'T'"),
        (["MODEL.META_ARCHITECTURE", "RetinaNets"], "Did you mean RetinaNet?"),
        (["MODEL.PROPOSAL_GENERATOR.NAME", "RNP"], "Did you mean RPN?"),
        (["MODEL.ROI_HEADS.NAME", "StandardROIHead"], "Did you mean StandardROIHeads"),
        (
            ["MODEL.ROI_HEADS.NAME", "ResObjROIHeads", "MODEL.RESOBJ_ROI.SAMPLER.NAME", "OHEM"],
            "MODEL.RESOBJ_ROI.SAMPLER.NAME is 'OHEM'",
        ),
    ],
)
def test_a_misspelt_name_is_refused_with_its_key(opts, message):
    with pytest.raises(ValueError, match=message):
        check_unused_keys(config(*opts))


def test_names_of_parts_that_are_not_there_do_not_matter():
    check_unused_keys(config("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"))


RESOBJ_RPN = [
    "MODEL.PROPOSAL_GENERATOR.NAME", "ResObjRPN", "MODEL.RPN.HEAD_NAME", "ResObjRPNHead",
    "MODEL.RESOBJ_RPN.SAMPLER.NAME",
]  # fmt: skip
ROI_SAMPLER = ["MODEL.ROI_HEADS.NAME", "ResObjROIHeads", "MODEL.RESOBJ_ROI.SAMPLER.NAME"]


@pytest.mark.parametrize(
    "key, value, reading, ignoring",
    [
        (
            "MODEL.RPN.POSITIVE_FRACTION", 0.2,
            [[], [*RESOBJ_RPN, "RandomSampler"], [*RESOBJ_RPN, "OHEMSampler"], [*RESOBJ_RPN, ""]],
            [[*RESOBJ_RPN, "KeepAll"], [*RESOBJ_RPN, "HardNegativeRatio"]],
        ),
        ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 64, [[*RESOBJ_RPN, "KeepAll"]], []),
        (
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 64,
            [[], [*ROI_SAMPLER, "OHEMSampler"]], [[*ROI_SAMPLER, "KeepAll"]],
        ),
        (
            "MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.1,
            [[*ROI_SAMPLER, "IoUBalancedSampler"]], [[*ROI_SAMPLER, "HardNegativeRatio"]],
        ),
        (
            "MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.4,
            [[], [*ROI_SAMPLER, "", "MODEL.RESOBJ_ROI.NMS", "soft_linear"]],
            [
                [*ROI_SAMPLER, "", "MODEL.RESOBJ_ROI.NMS", "matrix"],
                [*ROI_SAMPLER, "", "MODEL.RESOBJ_ROI.NMS", "soft_gaussian"],
            ],
        ),
        (
            "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.1,
            [[], [*ROI_SAMPLER, ""]],
            [[*ROI_SAMPLER, "", "MODEL.RESOBJ_ROI.BOX_LOSS.NAME", "GIoULoss"]],
        ),
    ],
)  # fmt: skip
def test_detectron2s_keys_count_as_read_by_what_really_reads_them(key, value, reading, ignoring):
    for opts in reading:
        assert key not in unused_keys(config(*opts, key, value))
    for opts in ignoring:
        assert key in unused_keys(config(*opts, key, value))


@pytest.mark.parametrize(
    "opts, key, value",
    [
        (["INPUT.FIXED_SIZE", [512, 512]], "INPUT.MIN_SIZE_TRAIN", (640,)),
        (["INPUT.SCALE_JITTER", [0.1, 2.0]], "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"),
        (["INPUT.FIXED_SIZE", [512, 512]], "INPUT.MAX_SIZE_TEST", 1000),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"], "SOLVER.STEPS", (5,)),
        (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"], "SOLVER.GAMMA", 0.5),
        ([], "INPUT.CROP.SIZE", [0.5, 0.5]),
        ([], "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 10.0),
        ([], "TEST.PRECISE_BN.NUM_ITER", 20),
        ([], "DATALOADER.REPEAT_THRESHOLD", 0.1),
    ],
)
def test_a_key_of_another_mode_may_stand_in_a_file_but_not_on_the_command_line(opts, key, value):
    cfg = config(*opts, key, value)
    check_unused_keys(cfg)
    with pytest.raises(ValueError, match=f"^{key} is .* nothing in this model reads it"):
        check_unused_keys(cfg, given=[key])
