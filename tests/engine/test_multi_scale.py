"""Training at changing sizes: what a batch becomes, and which size when."""

import pytest
import torch
from detectron2.engine.train_loop import TrainerBase
from detectron2.structures import Boxes, Instances
from torch import nn

from resobj_d2.engine import MultiScale
from resobj_d2.engine.multi_scale import resize_inputs


def example(height, width, box=(10.0, 20.0, 30.0, 40.0), dtype=torch.uint8):
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor([box]))
    instances.gt_classes = torch.tensor([2])
    image = torch.full((3, height, width), 7).to(dtype)
    return {"image": image, "instances": instances, "height": 500, "width": 400, "image_id": 3}


def test_longer_side_gets_the_length_and_boxes_follow():
    inputs = example(100, 50)
    (resized,) = resize_inputs([inputs], 40)
    assert resized["image"].shape == (3, 40, 20) and resized["image"].dtype == torch.uint8
    assert (resized["image"] == 7).all()
    assert resized["instances"].image_size == (40, 20)
    assert resized["instances"].gt_boxes.tensor.tolist() == [[4.0, 8.0, 12.0, 16.0]]
    assert resized["instances"].gt_classes.tolist() == [2]
    assert (resized["height"], resized["width"], resized["image_id"]) == (500, 400, 3)
    # The input is as it was: datasets that are kept in memory must not shrink.
    assert inputs["image"].shape == (3, 100, 50)
    assert inputs["instances"].gt_boxes.tensor.tolist() == [[10.0, 20.0, 30.0, 40.0]]


def test_shapes_of_a_batch_may_differ_and_odd_ones_round():
    resized = resize_inputs([example(64, 64), example(37, 64)], 32)
    assert [tuple(x["image"].shape[1:]) for x in resized] == [(32, 32), (18, 32)]
    # 37 * 32 / 64 = 18.5 rounds to 18: boxes follow the pixels there are.
    assert resized[1]["instances"].gt_boxes.tensor[0, 3].item() == pytest.approx(40 * 18 / 37)


def test_sides_are_rounded_and_at_least_a_pixel():
    # 35 * 32 / 60 = 18.7 and 1 * 32 / 100 = .3
    resized = resize_inputs([example(60, 35), example(1, 100)], 32)
    assert [tuple(x["image"].shape[1:]) for x in resized] == [(32, 19), (1, 32)]


def test_a_smaller_picture_has_the_means_of_its_pixels():
    """A quarter of the columns is white; sampling every fourth would find all or none."""
    inputs = example(64, 64)
    inputs["image"].zero_()[..., ::4] = 255
    (resized,) = resize_inputs([inputs], 16)
    assert (resized["image"][..., 2:-2] == 64).all()


def test_image_without_objects_and_of_that_size():
    inputs = example(32, 64, dtype=torch.float32)
    inputs["instances"] = inputs["instances"][[]]
    (resized,) = resize_inputs([inputs], 32)
    assert len(resized["instances"]) == 0 and resized["instances"].image_size == (16, 32)
    assert resized["image"].dtype == torch.float32
    (same,) = resize_inputs([inputs], 64)
    assert torch.equal(same["image"], inputs["image"])


class Sizes(nn.Module):
    """Notes the longer sides that it is called with."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.resized = []

    def forward(self, batch):
        self.resized.append(max(batch[0]["image"].shape))
        return {}


class Loop(TrainerBase):
    def __init__(self):
        super().__init__()
        self.model = Sizes()

    def run_step(self):
        self.model.train()
        self.model([example(64, 48)])
        self.model.eval()
        self.model([example(64, 48)])


def sizes_of(hook, start, end):
    """Longer sides at training and at evaluation, per iteration."""
    loop = Loop()
    loop.register_hooks([hook])
    loop.train(start, end)
    resized = loop.model.resized
    loop.model.train()
    loop.model([example(64, 48)])
    assert resized.pop() == 64  # the hook is gone
    return resized[::2], resized[1::2]


def test_sizes_change_every_few_iterations_and_resume():
    def hook(seed=5):
        return MultiScale(sizes=[32, 64, 96, 128], period=10, seed=seed)

    resized, evaluated = sizes_of(hook(), 0, 200)
    assert set(resized) == {32, 64, 96, 128}
    assert all(len(set(resized[i : i + 10])) == 1 for i in range(0, 200, 10))
    assert set(evaluated) == {64}
    # A resumed run, and another process, choose the same.
    assert sizes_of(hook(), 73, 120)[0] == resized[73:120]
    assert sizes_of(hook(seed=6), 0, 200)[0] != resized


def test_last_iterations_have_the_largest_size():
    """Darknet's last 200: statistics of batch normalisation are of one size at the end."""
    hook = MultiScale(sizes=[128, 32, 64], period=10, seed=5, last=25)
    resized = sizes_of(hook, 0, 100)[0]
    assert set(resized[75:]) == {128}
    assert resized[:75] == sizes_of(MultiScale(sizes=[128, 32, 64], period=10, seed=5), 0, 75)[0]
    assert sizes_of(hook, 80, 100)[0] == resized[80:]


@pytest.mark.parametrize(
    "sizes, period, last",
    [([], 10, 0), ([0], 10, 0), ([320.5], 10, 0), ([320], 0, 0), ([320], 10, -1)],
)
def test_bad_options_are_refused(sizes, period, last):
    with pytest.raises(ValueError, match="MULTI_SCALE"):
        MultiScale(sizes=sizes, period=period, seed=0, last=last)


@pytest.mark.parametrize("key", ["MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS"])
def test_what_would_not_move_with_the_images_is_refused(tiny_cfg, key):
    with pytest.raises(ValueError, match=f"MULTI_SCALE.*{key}"):
        MultiScale.from_config(tiny_cfg("INPUT.MULTI_SCALE", [320], key, True))


def test_built_from_config(tiny_cfg):
    assert MultiScale.from_config(tiny_cfg()) is None
    cfg = tiny_cfg("INPUT.MULTI_SCALE", [320, 608], "INPUT.MULTI_SCALE_PERIOD", 3, "SEED", 4)
    cfg.INPUT.MULTI_SCALE_LAST = 7
    hook = MultiScale.from_config(cfg)
    assert (hook.sizes, hook.period, hook.seed, hook.last) == ([320, 608], 3, 4, 7)
    unseeded = MultiScale.from_config(tiny_cfg("INPUT.MULTI_SCALE", [320], "SEED", -1))
    assert unseeded.seed >= 0
