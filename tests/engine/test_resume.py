"""A run that ends anywhere and is resumed has the weights of one that went through, to the bit."""

import json

import pytest
import torch
from detectron2.engine import HookBase

# What has a state of its own, or draws.
EVERYTHING = [
    "SOLVER.EMA_DECAY", "0.9",
    "MODEL.DENSE.CLS_LOSS.NAME", "GHMCLoss",
    "MODEL.DENSE.BOX_LOSS.NAME", "GHMRLoss",
    "INPUT.MULTI_SCALE", "[64, 96]",
    "INPUT.MULTI_SCALE_PERIOD", "2",
    "INPUT.PHOTOMETRIC", "True",
    "INPUT.EXPAND", "2.0",
    "INPUT.IOU_CROP", "True",
]  # fmt: skip
OTHERS = [  # the normaliser's mean, anchors drawn at random, plain augmentations
    "MODEL.DENSE.NORMALIZER.NAME", "ForegroundEMA",
    "MODEL.DENSE.SAMPLER.NAME", "RandomSampler",
    "INPUT.MIN_SIZE_TRAIN", "(48, 64, 80)",
]  # fmt: skip


PRECISE_BN = [  # which measures on images of an order of its own
    "MODEL.DENSE.TOWER.NAME", "SepConvTower",
    "TEST.PRECISE_BN.ENABLED", "True",
    "TEST.PRECISE_BN.NUM_ITER", "2",
    "TEST.EVAL_PERIOD", "2",
]  # fmt: skip


class Fails(HookBase):
    """Ends the run within an iteration, as a defect does."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            raise ZeroDivisionError


def final(tmp_path, folder):
    return torch.load(tmp_path / folder / "model_final.pth", weights_only=True)


def assert_same(first, second, path=""):
    """To the bit, the optimiser's state among it."""
    assert type(first) is type(second), path
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), path
    elif isinstance(first, dict):
        assert list(first) == list(second), path
        for key, value in first.items():
            assert_same(value, second[key], f"{path}/{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), path
        for i, pair in enumerate(zip(first, second, strict=True)):
            assert_same(*pair, f"{path}/{i}")
    else:
        assert first == second, path


def run_in_two_parts(scenes_trainer, folder, *opts, fails_at, workers=0):
    first = scenes_trainer(folder, *opts)
    first.register_hooks([Fails(fails_at)])
    with pytest.raises(ZeroDivisionError):
        first.train()
    second = scenes_trainer(folder, *opts, "DATALOADER.NUM_WORKERS", workers)
    second.resume_or_load(resume=True)
    second.train()
    return second


@pytest.mark.parametrize(("options", "seed"), [(EVERYTHING, -1), (OTHERS, 5), (PRECISE_BN, 2)])
def test_resumed_equals_uninterrupted(scenes_trainer, tmp_path, options, seed):
    torch.manual_seed(3)  # from which SEED -1 draws
    whole = scenes_trainer("whole", *options, "SEED", seed)
    whole.train()
    torch.manual_seed(3)
    resumed = run_in_two_parts(
        scenes_trainer, "parts", *options, "SEED", seed, fails_at=5, workers=2
    )
    assert resumed.start_iter == 4 and resumed.seed == whole.seed
    assert_same(final(tmp_path, "whole"), final(tmp_path, "parts"))
    assert final(tmp_path, "whole")["trainer"]["seed"] == whole.seed


def test_drawn_seed_repeats_the_run(scenes_trainer, tmp_path):
    drawn = scenes_trainer("drawn")
    drawn.train()
    given = scenes_trainer("given", "SEED", drawn.seed)
    given.train()
    other = scenes_trainer("other", "SEED", drawn.seed + 1)
    other.train()
    assert_same(final(tmp_path, "drawn")["model"], final(tmp_path, "given")["model"])
    with pytest.raises(AssertionError, match=r"weight|bias"):
        assert_same(final(tmp_path, "drawn")["model"], final(tmp_path, "other")["model"])


def test_finished_run_is_evaluated_again_at_its_end(scenes_trainer, tmp_path):
    options = ["SOLVER.MAX_ITER", 2, "DATASETS.TEST", "('tiny_val',)", "SEED", 1]
    scenes_trainer("run", *options).train()
    again = scenes_trainer("run", *options)
    again.resume_or_load(resume=True)
    again.train()
    lines = (tmp_path / "run" / "metrics.json").read_text().splitlines()
    evaluated = [line["iteration"] for line in map(json.loads, lines) if "bbox/AP" in line]
    assert evaluated == [2, 2]
