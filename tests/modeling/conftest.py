"""Fixtures shared by tests of detectors."""

from dataclasses import dataclass, field

import pytest
import torch

from resobj_d2.structures import GroundTruth, StreamOutput, Targets

TOY_TRUNK = {"BOTTOM_UP": "build_toy_backbone", "IN_FEATURES": "['res3', 'res4', 'res5']"}
# Overrides that make a shipped method small, by its backbone; all other choices are the yaml's.
THIN = {
    "build_toy_pyramid": {},
    "build_balanced_fpn_backbone": {"BFP.PYRAMID": "build_toy_pyramid"},
    "build_bifpn_backbone": {
        **{f"BIFPN.{key}": value for key, value in TOY_TRUNK.items()},
        "BIFPN.CHANNELS": "16",
        "BIFPN.NUM_LAYERS": "1",
        "DENSE.TOWER.CHANNELS": "16",
        "DENSE.TOWER.NUM_CONVS": "1",
    },
    "build_fpn_backbone": {
        **{"ANY_FPN.BOTTOM_UP": "build_toy_backbone", "FPN.IN_FEATURES": TOY_TRUNK["IN_FEATURES"]},
        # Groups of 32 channels.
        **{"FPN.OUT_CHANNELS": "32", "DENSE.TOWER.CHANNELS": "32"},
    },
    "build_ssd_extras_backbone": {
        **{f"SSD_EXTRAS.{key}": value for key, value in TOY_TRUNK.items()},
        "SSD_EXTRAS.CHANNELS": "[8]",
        "SSD_EXTRAS.LAST_KERNEL": "3",
        "DENSE.IN_FEATURES": "['s1', 's2', 's3', 's4']",
        "DENSE.PRIORS.MIN_SIZES": "[10, 20, 30, 50, 70]",
        "DENSE.PRIORS.ASPECT_RATIOS": "[[2], [2, 3], [2, 3], [2]]",
    },
    "build_yolo_backbone": {
        "DARKNET.STEM_CHANNELS": "4",
        "DARKNET.BLOCKS": "[1, 1, 1, 1, 1]",
        "YOLO_PYRAMID.CHANNELS": "[8, 12, 16]",
    },
}


@pytest.fixture(scope="session")
def method_cfg(tiny_cfg, repository):
    """A function: names of ``configs/methods`` and overrides to the config of a small detector."""

    def build(*methods, opts=()):
        cfg = tiny_cfg()
        for name in methods:
            cfg.merge_from_file(str(repository / f"configs/methods/{name}.yaml"))
        for key, value in THIN[cfg.MODEL.BACKBONE.NAME].items():
            cfg.merge_from_list([f"MODEL.{key}", value])
        cfg.merge_from_list([str(x) for x in opts])
        return cfg

    return build


@pytest.fixture(scope="session")
def yolo_cfg(method_cfg):
    """A function: overrides to the config of a tiny YOLOv3."""
    return lambda *opts: method_cfg("yolov3", opts=opts)


@dataclass
class Observed:
    """What happened when a detector processed a batch.

    Attributes:
        result: the returned losses or detections.
        outputs: by stream, everything that it predicted.
        targets: by stream, per stage the assigner's targets, before sampling.
        difficulty: by stream, per stage the difficulty that its sampler ranked by, or None.
        kept: by stream, per stage the anchors that its sampler kept.
    """

    result: dict | list
    outputs: dict[str, StreamOutput] = field(default_factory=dict)
    targets: dict[str, list[Targets]] = field(default_factory=dict)
    difficulty: dict[str, list] = field(default_factory=dict)
    kept: dict[str, list[torch.Tensor]] = field(default_factory=dict)


class _Noting:
    """A sampler that records its arguments."""

    def __init__(self, sampler):
        self.sampler = sampler
        self.targets, self.difficulty, self.kept = [], [], []

    def __getattr__(self, name):
        return getattr(self.sampler, name)

    def __call__(self, targets, *, anchors, difficulty):
        mask = self.sampler(targets, anchors=anchors, difficulty=difficulty)
        self.targets.append(targets)
        self.difficulty.append(difficulty)
        self.kept.append(mask)
        return mask


@pytest.fixture(scope="session")
def observe():
    """A function: calls a dense detector with a batch and returns what happened.

    ``method`` is a bound method of the model to call instead of the model.
    """

    def call(model, batch, method=None):
        found = Observed(result={})
        handles, samplers = [], {}
        for name, stream in model.streams.items():

            def note(module, inputs, output, name=name):
                found.outputs[name] = output

            handles.append(stream.register_forward_hook(note))
            samplers[name] = stream.sampler
            stream.sampler = _Noting(stream.sampler)
        try:
            found.result = (method or model)(batch)
        finally:
            for handle in handles:
                handle.remove()
            for name, stream in model.streams.items():
                found.targets[name] = stream.sampler.targets
                found.difficulty[name] = stream.sampler.difficulty
                found.kept[name] = stream.sampler.kept
                stream.sampler = samplers[name]
        return found

    return call


@pytest.fixture(scope="session")
def predict(observe):
    """A function: the predictions of one stream for a batch, by default the anchor-based one."""

    def call(model, batch, stream="anchors"):
        return observe(model, batch).outputs[stream]

    return call


@pytest.fixture(scope="session")
def truth_of():
    """A function: the ground truth of a batch."""

    def build(batch):
        instances = [x["instances"] for x in batch]
        return GroundTruth.from_lists(
            [x.gt_boxes.tensor for x in instances], [x.gt_classes for x in instances]
        )

    return build
