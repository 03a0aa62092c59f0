"""Fixtures shared by all tests: a tiny detector's configuration and random batches."""

import logging
import os
import signal
from pathlib import Path

import pytest
import torch

# Tensors are small and cores few: more threads would only wait for each other.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))

# What a shell starts in the background ignores Ctrl-C, and so would all programs of the tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY_NETWORK = [
    "MODEL.DEVICE", "cpu",
    "MODEL.WEIGHTS", "",
    "MODEL.BACKBONE.NAME", "build_toy_pyramid",
]  # fmt: skip
# A detector of a few layers, the smallest that satisfies the contracts of its parts.
TINY = [
    *TINY_NETWORK,
    "MODEL.META_ARCHITECTURE", "ResObjDenseDetector",
    "MODEL.DENSE.TOWER.CHANNELS", "16",
    "MODEL.DENSE.TOWER.NUM_CONVS", "1",
    "MODEL.DENSE.NUM_CLASSES", "3",
]  # fmt: skip
# The same on Detectron2's thinnest ResNet with a pyramid, for tests in which the backbone matters.
RESNET = [
    "MODEL.BACKBONE.NAME", "build_retinanet_resnet_fpn_backbone",
    "MODEL.BACKBONE.FREEZE_AT", "0",
    "MODEL.RESNETS.DEPTH", "18",
    "MODEL.RESNETS.RES2_OUT_CHANNELS", "64",
    "MODEL.RESNETS.NORM", "GN",
    "MODEL.RESNETS.OUT_FEATURES", "['res3', 'res4', 'res5']",
    "MODEL.FPN.IN_FEATURES", "['res3', 'res4', 'res5']",
    "MODEL.FPN.OUT_CHANNELS", "32",
    "MODEL.DENSE.TOWER.CHANNELS", "32",
]  # fmt: skip


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data(repository) -> Path:
    """A folder of real data; tests that need it are skipped without.

    ``RESOBJ_TEST_DATA`` names it, otherwise it is ``../shared/data`` beside the repository.
    """
    path = Path(os.environ.get("RESOBJ_TEST_DATA") or repository.parent / "shared" / "data")
    if not path.is_dir():
        pytest.skip(f"needs the data folder {path} (RESOBJ_TEST_DATA)")
    return path


@pytest.fixture(scope="session")
def tiny_options() -> list[str]:
    """KEY VALUE overrides that make a detector of a few layers in this process."""
    import tests.toy_backbone  # noqa: F401 (registers it)

    return list(TINY)


@pytest.fixture(scope="session")
def warm_python():
    """Runs Python commands without the time that importing Detectron2 takes."""
    from tests.warm_python import WarmPython

    server = WarmPython()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_logging():
    """Each test finds logging as nobody has set it up, whatever ran before it."""
    _reset_logging()
    yield
    _reset_logging()


def _reset_logging():
    for name in ("resobj_d2", "detectron2", "fvcore", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
    logging.captureWarnings(False)


@pytest.fixture
def clean_catalogs():
    """Restores Detectron2's catalogs after a test that registers datasets."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = set(DatasetCatalog), set(MetadataCatalog)
    yield
    for catalog, names in zip((DatasetCatalog, MetadataCatalog), before, strict=True):
        for name in set(catalog) - names:
            catalog.remove(name)


@pytest.fixture(scope="session")
def tiny_cfg(tiny_options):
    """A function: overrides (KEY, VALUE, ...) to the config of that detector."""
    from detectron2.config import get_cfg

    from resobj_d2.config import add_resobj_config

    def build(*opts, tiny=tuple(tiny_options)):
        cfg = get_cfg()
        add_resobj_config(cfg)
        cfg.merge_from_list([*tiny, *map(str, opts)])
        return cfg

    return build


@pytest.fixture(scope="session")
def resnet_cfg(tiny_cfg):
    """The same on a small ResNet with a feature pyramid."""

    def build(*opts):
        return tiny_cfg(*RESNET, *opts)

    return build


@pytest.fixture(scope="session")
def tiny_resobj(tiny_cfg):
    """The same with Residual Objectness, T = 2 unless overridden."""

    def build(*opts):
        return tiny_cfg(
            "MODEL.DENSE.CLS_LOSS.NAME", "SigmoidCE",
            "MODEL.DENSE.CLS_LOSS.PRIOR_PROB", "0.0",
            "MODEL.DENSE.OBJECTNESS.ENABLED", "True",
            *opts,
        )  # fmt: skip

    return build


@pytest.fixture(scope="session")
def tiny_rcnn(tiny_cfg):
    """The same for Detectron2's Faster R-CNN with ``ResObjRPN``, which is off by default."""

    def build(*opts):
        return tiny_cfg(
            "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
            "MODEL.PROPOSAL_GENERATOR.NAME", "ResObjRPN",
            "MODEL.RPN.HEAD_NAME", "ResObjRPNHead",
            "MODEL.RPN.IN_FEATURES", "['p3', 'p4', 'p5', 'p6', 'p7']",
            "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "500",
            "MODEL.RPN.POST_NMS_TOPK_TRAIN", "100",
            "MODEL.RPN.POST_NMS_TOPK_TEST", "100",
            "MODEL.ANCHOR_GENERATOR.SIZES", "[[16], [32], [64], [128], [256]]",
            "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
            "MODEL.ROI_HEADS.IN_FEATURES", "['p3', 'p4', 'p5']",
            "MODEL.ROI_HEADS.NUM_CLASSES", "3",
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "32",
            "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
            "MODEL.ROI_BOX_HEAD.NUM_FC", "1",
            "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
            *opts,
            tiny=TINY_NETWORK,
        )  # fmt: skip

    return build


@pytest.fixture(scope="session")
def make_batch():
    """A function: [(height, width, number of boxes)] to Detectron2's training input.

    ``num_keypoints`` gives each object a mask (its whole box) and that many visible points in it.
    """
    from detectron2.structures import BitMasks, Boxes, Instances, Keypoints

    def add_shapes(instances, num_keypoints, g):
        boxes = instances.gt_boxes.tensor
        masks = torch.zeros(len(boxes), *instances.image_size, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        share = torch.rand(len(boxes), num_keypoints, 2, generator=g)
        points = boxes[:, None, :2] + share * (boxes[:, None, 2:] - boxes[:, None, :2])
        instances.gt_masks = BitMasks(masks)
        visible = torch.full((len(boxes), num_keypoints, 1), 2.0)
        instances.gt_keypoints = Keypoints(torch.cat((points, visible), dim=2))

    def build(shapes, num_classes=3, seed=0, num_keypoints=0):
        g = torch.Generator().manual_seed(seed)
        batch = []
        for i, (height, width, count) in enumerate(shapes):
            limit = torch.tensor([width, height])
            size = 8 + torch.rand(count, 2, generator=g) * (0.6 * limit - 8)
            corner = torch.rand(count, 2, generator=g) * (limit - size)
            instances = Instances((height, width))
            instances.gt_boxes = Boxes(torch.cat((corner, corner + size), dim=1))
            instances.gt_classes = torch.randint(num_classes, (count,), generator=g)
            if num_keypoints:
                add_shapes(instances, num_keypoints, g)
            image = torch.rand(3, height, width, generator=g) * 255
            batch.append(
                {
                    "image": image,
                    "instances": instances,
                    "height": height,
                    "width": width,
                    "image_id": i,
                }
            )
        return batch

    return build
