"""A run that ends anywhere and is resumed has the weights of one that went through, to the bit."""

import pytest
import torch
from detectron2.engine import HookBase

from resobj_d2.config import load_config
from resobj_d2.engine import Trainer

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
ITERATIONS = 7


class Fails(HookBase):
    """Ends the run within an iteration, as a defect does."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_step(self):
        if self.trainer.iter == self.iteration:
            raise ZeroDivisionError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture
def make_trainer(tiny_options, tmp_path, scenes, clean_catalogs):
    """A function: folder and overrides to a trainer of a tiny detector on 16 scenes."""
    entry = {"name": "tiny", "format": "scenes", "split": "train", "root": str(scenes),
             "image_size": 64, "num_train": 16, "num_val": 1}  # fmt: skip

    def build(folder, *opts):
        options = [
            "OUTPUT_DIR", tmp_path / folder,
            "DATASETS.REGISTER", [entry],
            "DATASETS.TRAIN", "('tiny',)",
            "DATASETS.TEST", "()",
            "DATALOADER.NUM_WORKERS", 0,
            "INPUT.MIN_SIZE_TRAIN", "(64,)",
            "MODEL.DENSE.NUM_CLASSES", 8,
            "SOLVER.IMS_PER_BATCH", 3,
            "SOLVER.MAX_ITER", ITERATIONS,
            "SOLVER.STEPS", "()",
            "SOLVER.BASE_LR", 0.001,
            "SOLVER.CHECKPOINT_PERIOD", 2,
        ]  # fmt: skip
        return Trainer(load_config("", [*tiny_options, *map(str, [*options, *opts])]))

    return build


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


def run_in_two_parts(make_trainer, folder, *opts, fails_at, workers=0):
    first = make_trainer(folder, *opts)
    first.register_hooks([Fails(fails_at)])
    with pytest.raises(ZeroDivisionError):
        first.train()
    second = make_trainer(folder, *opts, "DATALOADER.NUM_WORKERS", workers)
    second.resume_or_load(resume=True)
    second.train()
    return second


@pytest.mark.parametrize(("options", "seed"), [(EVERYTHING, -1), (OTHERS, 5)])
def test_resumed_equals_uninterrupted(make_trainer, tmp_path, options, seed):
    torch.manual_seed(3)  # from which SEED -1 draws
    whole = make_trainer("whole", *options, "SEED", seed)
    whole.train()
    torch.manual_seed(3)
    resumed = run_in_two_parts(make_trainer, "parts", *options, "SEED", seed, fails_at=5, workers=2)
    assert resumed.start_iter == 4 and resumed.seed == whole.seed
    assert_same(final(tmp_path, "whole"), final(tmp_path, "parts"))
    assert final(tmp_path, "whole")["trainer"]["seed"] == whole.seed


def test_drawn_seed_repeats_the_run(make_trainer, tmp_path):
    drawn = make_trainer("drawn")
    drawn.train()
    given = make_trainer("given", "SEED", drawn.seed)
    given.train()
    other = make_trainer("other", "SEED", drawn.seed + 1)
    other.train()
    assert_same(final(tmp_path, "drawn")["model"], final(tmp_path, "given")["model"])
    with pytest.raises(AssertionError, match=r"weight|bias"):
        assert_same(final(tmp_path, "drawn")["model"], final(tmp_path, "other")["model"])
