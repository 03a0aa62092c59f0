"""SSD's augmentations: what they do to pixels and boxes."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from resobj_d2.data.augmentation import ExpandCanvas, IoUCrop, PhotometricDistortion
from resobj_d2.data.mapper import PictureMapper, build_test_mapper, build_train_mapper


@pytest.fixture
def scene():
    """A grey picture of 60x80 with two boxes of their own colours."""
    image = np.full((60, 80, 3), 100, dtype=np.uint8)
    boxes = np.array([[10.0, 5.0, 30.0, 25.0], [50.0, 35.0, 70.0, 55.0]])
    colors = [(250, 20, 20), (20, 20, 250)]
    for (x1, y1, x2, y2), color in zip(boxes.astype(int), colors, strict=True):
        image[y1:y2, x1:x2] = color
    return image, boxes, colors


def draws(augmentation, scene, count=40):
    """Augmented inputs of successive seeds, image and boxes."""
    image, boxes, _ = scene
    for seed in range(count):
        torch.manual_seed(seed)
        aug = T.AugInput(image.copy(), boxes=boxes.copy())
        augmentation(aug)
        yield aug


def test_expand_moves_boxes_with_their_pixels(scene):
    _, boxes, colors = scene
    changed = 0
    for aug in draws(ExpandCanvas(max_ratio=3.0, fill=(1.0, 2.0, 3.0)), scene):
        height, width = aug.image.shape[:2]
        assert 60 <= height <= 180 and 80 <= width <= 240
        for (x1, y1, x2, y2), color in zip(aug.boxes.astype(int), colors, strict=True):
            assert (aug.image[y1:y2, x1:x2] == color).all()
        np.testing.assert_allclose(aug.boxes[:, 2:] - aug.boxes[:, :2], 20.0)
        if (height, width) != (60, 80):
            changed += 1
            outside = (aug.image == (1, 2, 3)).all(axis=-1)
            assert outside.sum() == height * width - 60 * 80
    assert 10 <= changed <= 30  # half the time


def test_crop_keeps_pixels_of_boxes_and_drops_those_with_centre_outside(scene):
    image, boxes, colors = scene
    cropped = dropped = 0
    for aug in draws(IoUCrop(), scene, count=80):
        height, width = aug.image.shape[:2]
        cropped += (height, width) != (60, 80)
        kept = 0
        for box, color in zip(aug.boxes, colors, strict=True):
            x1, y1, x2, y2 = box
            if (x2 - x1) * (y2 - y1) == 0:
                dropped += 1
                continue
            kept += 1
            inside = np.clip(box, 0, [width, height, width, height]).astype(int)
            x1, y1, x2, y2 = inside
            assert (aug.image[y1:y2, x1:x2] == color).all()
            # The centre is inside, so at least a quarter of the box is.
            assert (x2 - x1) * (y2 - y1) >= 100
        assert kept >= 1
    assert cropped > 40 and dropped > 5


def test_crop_leaves_pictures_without_boxes_alone(scene):
    image = scene[0]
    aug = T.AugInput(image.copy(), boxes=np.zeros((0, 4)))
    IoUCrop()(aug)
    assert np.array_equal(aug.image, image)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 40), (3, 50), (5, 5)])
def test_crop_of_tiny_pictures_is_never_empty(height, width):
    image = np.zeros((height, width, 3), dtype=np.uint8)
    box = np.array([[0.0, 0.0, width, height]])
    for seed in range(40):
        torch.manual_seed(seed)
        aug = T.AugInput(image, boxes=box)
        IoUCrop()(aug)
        assert min(aug.image.shape) >= 1


def test_distortion_changes_colours_not_boxes_and_repeats_with_the_seed(scene):
    image, boxes, _ = scene
    augmentation = PhotometricDistortion(image_format="BGR")
    first = list(draws(augmentation, scene, count=12))
    second = list(draws(augmentation, scene, count=12))
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.image, b.image)
        assert np.array_equal(a.boxes, boxes)
        assert a.image.dtype == np.uint8 and a.image.shape == image.shape
    assert sum(not np.array_equal(a.image, image) for a in first) >= 9


def test_distortion_knows_red_from_blue(scene):
    """The same draw on BGR and RGB pictures gives pictures that are each other's mirror."""
    image, _, _ = scene
    for seed in range(10):
        torch.manual_seed(seed)
        bgr = T.AugInput(image.copy())
        PhotometricDistortion(image_format="BGR")(bgr)
        torch.manual_seed(seed)
        rgb = T.AugInput(np.ascontiguousarray(image[..., ::-1]))
        PhotometricDistortion(image_format="RGB")(rgb)
        assert np.array_equal(bgr.image, rgb.image[..., ::-1])


@pytest.fixture
def record(scene, tmp_path):
    image, boxes, _ = scene
    path = tmp_path / "scene.png"
    Image.fromarray(image[..., ::-1]).save(path)
    annotations = [
        {"bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": i, "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    annotations.append(
        {"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 1}
    )
    return {
        "file_name": str(path), "height": 60, "width": 80, "image_id": 1, "annotations": annotations
    }  # fmt: skip


def test_mapper_without_augmentation_is_detectron2s(record, tiny_cfg):
    from detectron2.data import DatasetMapper

    cfg = tiny_cfg("INPUT.RANDOM_FLIP", "none")
    stock = DatasetMapper(cfg, True)(record)
    own = PictureMapper(
        is_train=True,
        augmentations=T.AugmentationList([T.ResizeShortestEdge(800, 1333)]).augs,
        image_format="BGR",
    )(record)
    assert torch.equal(stock["image"], own["image"])
    assert torch.equal(stock["instances"].gt_boxes.tensor, own["instances"].gt_boxes.tensor)
    assert torch.equal(stock["instances"].gt_classes, own["instances"].gt_classes)
    assert "annotations" in record  # the dataset's own record is not touched


def test_mapper_drops_boxes_that_were_cropped_away(record, tiny_cfg):
    mapper = build_train_mapper(
        tiny_cfg("INPUT.IOU_CROP", "True", "INPUT.PHOTOMETRIC", "True", "INPUT.EXPAND", "4.0")
    )
    counts = set()
    for seed in range(30):
        torch.manual_seed(seed)
        mapped = mapper(record)
        counts.add(len(mapped["instances"]))
        assert (mapped["instances"].gt_boxes.area() > 0).all()
    assert counts == {1, 2}


def test_mapper_of_a_record_without_objects(record, tiny_cfg):
    record["annotations"] = []
    mapped = build_train_mapper(tiny_cfg("INPUT.IOU_CROP", "True"))(record)
    assert len(mapped["instances"]) == 0


def test_fixed_size_stretches_images_and_boxes(record, tiny_cfg):
    cfg = tiny_cfg("INPUT.FIXED_SIZE", "[120, 40]", "INPUT.RANDOM_FLIP", "none")
    mapped = build_train_mapper(cfg)(record)
    assert mapped["image"].shape == (3, 120, 40)
    stock = build_train_mapper(
        tiny_cfg("INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", "(60,)")
    )
    # The image is 60 high and 80 wide: twice as high, half as wide.
    expected = stock(record)["instances"].gt_boxes.tensor * torch.tensor([0.5, 2.0, 0.5, 2.0])
    torch.testing.assert_close(mapped["instances"].gt_boxes.tensor, expected)
    tested = build_test_mapper(cfg)(record)
    assert tested["image"].shape == (3, 120, 40)
    assert (tested["height"], tested["width"]) == (60, 80)


def test_fixed_size_comes_after_ssds_augmentations(record, tiny_cfg):
    cfg = tiny_cfg("INPUT.FIXED_SIZE", "[32, 64]", "INPUT.EXPAND", "4.0", "INPUT.IOU_CROP", "True")
    for seed in range(10):
        torch.manual_seed(seed)
        assert build_train_mapper(cfg)(record)["image"].shape == (3, 32, 64)


def jittered(tiny_cfg, low, high):
    return tiny_cfg(
        "INPUT.SCALE_JITTER", [low, high],
        "INPUT.MAX_SIZE_TRAIN", 40,
        "INPUT.RANDOM_FLIP", "none",
    )  # fmt: skip


def test_jitter_below_one_shrinks_and_pads(record, tiny_cfg):
    mapped = build_train_mapper(jittered(tiny_cfg, 0.5, 0.5))(record)
    # 60x80 pixels into a square of 20: 15x20, top left in 40x40 pixels.
    assert mapped["image"].shape == (3, 40, 40)
    assert (mapped["image"][:, 15:] == 128).all() and (mapped["image"][:, :, 20:] == 128).all()
    assert not (mapped["image"][:, :15, :20] == 128).all()
    stock = build_train_mapper(
        tiny_cfg("INPUT.RANDOM_FLIP", "none", "INPUT.MIN_SIZE_TRAIN", "(60,)")
    )
    expected = stock(record)["instances"].gt_boxes.tensor * 0.25
    torch.testing.assert_close(mapped["instances"].gt_boxes.tensor, expected)


def test_jitter_above_one_crops_and_scales_vary(record, tiny_cfg):
    mapper = build_train_mapper(jittered(tiny_cfg, 0.2, 2.0))
    padded = set()
    for seed in range(8):
        np.random.seed(seed)
        image = mapper(record)["image"]
        assert image.shape == (3, 40, 40)
        padded.add(int((image == 128).all(dim=0).sum()))
    assert len(padded) > 4
    tested = build_test_mapper(jittered(tiny_cfg, 0.2, 2.0))(record)
    assert tested["image"].shape[1:] != (40, 40)  # evaluation sees whole images of one scale


@pytest.mark.parametrize(
    "opts, message",
    [
        (["INPUT.SCALE_JITTER", "[2.0, 0.1]"], "SCALE_JITTER must be"),
        (["INPUT.SCALE_JITTER", "[0.1, 2.0]", "INPUT.FIXED_SIZE", "[9, 9]"], "exclude each other"),
        (["INPUT.SCALE_JITTER", "[0.1, 2.0]", "MODEL.MASK_ON", "True"], "MODEL.MASK_ON"),
        (["INPUT.FIXED_SIZE", "[512]"], "FIXED_SIZE"),
        (["INPUT.FIXED_SIZE", "[512, 0]"], "FIXED_SIZE"),
        (["INPUT.EXPAND", "0.5"], "at least 1"),
        (["INPUT.PHOTOMETRIC", "True", "INPUT.FORMAT", "L"], "BGR or RGB"),
        (["INPUT.IOU_CROP", "True", "MODEL.MASK_ON", "True"], "MODEL.MASK_ON"),
    ],
)
def test_bad_options_are_refused(tiny_cfg, opts, message):
    with pytest.raises(ValueError, match=message):
        build_train_mapper(tiny_cfg(*opts))
