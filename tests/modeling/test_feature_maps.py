"""Feature maps that the backbone does not have are told with the key that names them."""

import pytest
from detectron2.config import get_cfg

from resobj_d2.command import is_users_mistake
from resobj_d2.config import add_resobj_config
from resobj_d2.engine import Trainer
from resobj_d2.inference.detector import build_detector

FPN = ["MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone"]


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_resobj_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    return cfg


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["MODEL.META_ARCHITECTURE", "RetinaNet"],
            r"^MODEL.RETINANET.IN_FEATURES lists \['p3', .*, but build_resnet_backbone has "
            r"\['res4'\]: ",
        ),
        (["MODEL.RPN.IN_FEATURES", ["p2"]], r"^MODEL.RPN.IN_FEATURES lists \['p2'\], but build_re"),
        (
            ["MODEL.META_ARCHITECTURE", "ProposalNetwork", "MODEL.RPN.IN_FEATURES", ["res4", "x"]],
            r"^MODEL.RPN.IN_FEATURES lists \['x'\], but",
        ),
        (["MODEL.ROI_HEADS.IN_FEATURES", ["p3"]], r"^MODEL.ROI_HEADS.IN_FEATURES lists \['p3'\]"),
        (
            [*FPN, "MODEL.FPN.IN_FEATURES", ["res3", "res4"]],
            r"^MODEL.FPN.IN_FEATURES lists 'res3', .*: MODEL.RESNETS.OUT_FEATURES is \['res4'\]",
        ),
    ],
)
@pytest.mark.parametrize("build", [build_detector, Trainer.build_model])
def test_missing_feature_maps(cfg, build, options, message):
    cfg.merge_from_list(options)
    with pytest.raises(ValueError, match=message) as error:
        build(cfg)
    assert is_users_mistake(error.value) and "\n" not in str(error.value)


def test_other_names_that_are_not_known_stay_as_they_are(cfg):
    cfg.MODEL.ROI_HEADS.NAME = "NoSuchHeads"
    with pytest.raises(KeyError, match="NoSuchHeads"):
        build_detector(cfg)
