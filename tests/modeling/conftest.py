"""Fixtures that several tests of detectors share."""

import pytest


@pytest.fixture
def yolo_cfg(tiny_cfg, repository):
    """A function: overrides to the config of a tiny YOLOv3."""

    def build(*opts):
        cfg = tiny_cfg()
        cfg.merge_from_file(str(repository / "configs/methods/yolov3.yaml"))
        cfg.merge_from_list(
            [
                "MODEL.DARKNET.STEM_CHANNELS", 4,
                "MODEL.DARKNET.BLOCKS", [1, 1, 1, 1, 1],
                "MODEL.YOLO_PYRAMID.CHANNELS", [8, 12, 16],
                *opts,
            ]
        )  # fmt: skip
        return cfg

    return build
