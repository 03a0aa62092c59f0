"""The mapper against Detectron2's own with the same config and seed, and its errors."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as coco_mask

from resobj_d2.data.mapper import ImageErrorMapper, build_test_mapper, build_train_mapper


@pytest.fixture
def record(tmp_path):
    """60x80 pixels, two objects with masks and keypoints, one crowd, labels and proposals."""
    g = np.random.default_rng(3)
    path, labels = tmp_path / "x.png", tmp_path / "labels.png"
    Image.fromarray(g.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path)
    Image.fromarray(g.integers(0, 5, (60, 80), dtype=np.uint8)).save(labels)
    annotations = [_annotation(5.0, 8.0, 40.0, 30.0), _annotation(30.0, 20.0, 70.0, 55.0)]
    annotations.append({**_annotation(0.0, 0.0, 20.0, 20.0), "iscrowd": 1})
    return {
        "file_name": str(path), "height": 60, "width": 80, "image_id": 7, "dataset_name": "pets",
        "sem_seg_file_name": str(labels), "annotations": annotations,
        "proposal_boxes": np.float32([[1, 2, 30, 40], [5, 5, 60, 50]]),
        "proposal_objectness_logits": np.float32([2.0, 1.0]),
        "proposal_bbox_mode": BoxMode.XYXY_ABS,
    }  # fmt: skip


def _annotation(x1, y1, x2, y2):
    return {
        "bbox": [x1, y1, x2, y2], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 0,
        "segmentation": [[x1, y1, x2, y1, x2, y2]], "keypoints": [x1, y1, 2, x2, y2, 1],
    }  # fmt: skip


def assert_same(own, stock):
    assert own.keys() == stock.keys()
    for key in ("image", "sem_seg"):
        assert key not in stock or torch.equal(own[key], stock[key]), key
    for key in ("instances", "proposals"):
        if key in stock:
            assert_same_fields(own[key].get_fields(), stock[key].get_fields())


def assert_same_fields(own, stock):
    assert own.keys() == stock.keys()
    for name, value in stock.items():
        if name == "gt_masks" and hasattr(value, "polygons"):
            for mine, other in zip(own[name].polygons, value.polygons, strict=True):
                assert all(np.array_equal(x, y) for x, y in zip(mine, other, strict=True))
        else:
            assert torch.equal(*(getattr(x, "tensor", x) for x in (own[name], value))), name


@pytest.mark.parametrize(
    "opts",
    [
        [],
        ["INPUT.FORMAT", "RGB"],
        ["INPUT.FORMAT", "L"],
        ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "relative_range"],
        ["MODEL.MASK_ON", "True", "INPUT.CROP.ENABLED", "True", "INPUT.MASK_FORMAT", "bitmask"],
        ["MODEL.MASK_ON", "True", "INPUT.MASK_FORMAT", "bitmask"],
        ["MODEL.KEYPOINT_ON", "True"],
        ["MODEL.LOAD_PROPOSALS", "True"],
    ],
)
@pytest.mark.parametrize("is_train", [True, False])
def test_does_what_detectron2s_mapper_does(record, tiny_cfg, clean_catalogs, opts, is_train):
    MetadataCatalog.get("pets").set(keypoint_names=["a", "b"], keypoint_flip_map=[("a", "b")])
    if "INPUT.CROP.ENABLED" in opts:  # Detectron2 needs another package to crop polygons
        for annotation in record["annotations"]:
            polygons = coco_mask.frPyObjects(annotation["segmentation"], 60, 80)
            annotation["segmentation"] = coco_mask.merge(polygons)
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(40, 50, 60)", "INPUT.MIN_SIZE_TEST", "45"]
    cfg = tiny_cfg(*sizes, "DATASETS.TRAIN", "('pets',)", *opts)
    own = build_train_mapper(cfg) if is_train else build_test_mapper(cfg)
    stock = DatasetMapper(cfg, is_train)
    for seed in range(4):
        np.random.seed(seed)
        expected = stock(record)
        np.random.seed(seed)
        assert_same(own(record), expected)
    assert len(record["annotations"]) == 3  # the dataset's own record is not touched


def test_records_without_annotations_or_objects(record, tiny_cfg):
    cfg = tiny_cfg()
    empty = {**record, "annotations": []}
    assert len(build_train_mapper(cfg)(empty)["instances"]) == 0
    del record["annotations"]
    assert "instances" not in build_train_mapper(cfg)(record)


def test_labels_of_a_palette_are_its_numbers_and_16_bits_stay(record, tiny_cfg, tmp_path):
    labels = np.uint8([[0, 1], [2, 3]]).repeat(30, 0).repeat(40, 1)
    palette = Image.fromarray(labels)
    palette.putpalette([200, 0, 0] * 4)
    cfg = tiny_cfg("INPUT.MIN_SIZE_TEST", "30")
    for picture in (palette, Image.fromarray(labels), Image.fromarray(labels.astype(np.uint16))):
        picture.save(record["sem_seg_file_name"])
        mapped = build_test_mapper(cfg)(record)["sem_seg"]
        assert mapped.dtype == torch.int64 and mapped.tolist() == labels[::2, ::2].tolist()
    Image.fromarray(labels.astype(np.uint16) + 40000).save(record["sem_seg_file_name"])
    assert build_test_mapper(cfg)(record)["sem_seg"].max() == 40003
    Image.new("RGB", (80, 60)).save(record["sem_seg_file_name"])
    with pytest.raises(ValueError, match="labels.png: labels must be grey or a palette's, not RGB"):
        build_test_mapper(cfg)(record)


OWN = ["INPUT.EXPAND", "2.0", "INPUT.IOU_CROP", "True", "INPUT.PHOTOMETRIC", "True"]
JITTER = ["INPUT.SCALE_JITTER", "[0.1, 2.0]", "INPUT.MAX_SIZE_TRAIN", "40"]
CROP = ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE", "[0.3,0.3]"]


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 3000), (3000, 2)])
@pytest.mark.parametrize("opts", [[], OWN, JITTER, CROP])
def test_thin_pictures_are_used_or_refused_by_name(record, tiny_cfg, size, opts):
    """Never an error that names no picture; 3000x2 pixels at 400 would have a side of 0."""
    Image.new("RGB", size[::-1]).save(record["file_name"])
    record |= {"height": size[0], "width": size[1], "annotations": []}
    del record["sem_seg_file_name"]
    sizes = ["INPUT.MIN_SIZE_TRAIN", "(400,)", "INPUT.MAX_SIZE_TRAIN", "700", *opts]
    mapper = ImageErrorMapper(build_train_mapper(tiny_cfg(*sizes)))
    for seed in range(5):
        np.random.seed(seed)
        torch.manual_seed(seed)
        try:
            image = mapper(record)["image"]
        except OSError as error:
            assert f"'pets': image 7, {record['file_name']}, cannot be read" in str(error)
            assert f"{size[1]}x{size[0]} pixels cannot be resized" in str(error)
        else:
            assert min(image.shape) >= 1


def test_a_wrong_size_names_data_set_and_file(record, tiny_cfg):
    record["width"] = 81
    mapper = ImageErrorMapper(build_test_mapper(tiny_cfg()))
    with pytest.raises(OSError, match=f"'pets': image 7, {record['file_name']}, cannot be used"):
        mapper(record)
