"""What a predictor takes and gives, against the model called directly."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools import mask as coco_mask

from resobj_d2.inference import ImageError, Predictor
from resobj_d2.modeling.test_time_augmentation import AugmentedDetector


def directly(cfg, model, path):
    """Detectron2's mapper and the model."""
    with torch.no_grad():
        return model([DatasetMapper(cfg, False)({"file_name": str(path)})])[0]["instances"]


def assert_equal(detections, expected):
    assert detections.image_size == expected.image_size
    assert set(detections.get_fields()) == set(expected.get_fields())
    for name, value in expected.get_fields().items():
        value = value.tensor if isinstance(value, Boxes) else value
        own = detections.get(name)
        assert torch.equal(own.tensor if isinstance(own, Boxes) else own, value), name


@pytest.fixture
def rgb(photos):
    """The pixels of ``a.png``, (60, 80, 3)."""
    return np.array(Image.open(photos / "a.png"))


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_every_kind_of_image_gives_what_the_model_returns(resobj, photos, rgb, image_format):
    cfg, model = resobj
    cfg.INPUT.FORMAT = image_format
    predictor = Predictor(cfg, model)
    path = photos / "a.png"
    expected = directly(cfg, model, path)
    assert len(expected) > 5 and expected.image_size == (60, 80)
    alpha = np.dstack((rgb, np.full((60, 80), 9, np.uint8)))
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    bgr = rgb[..., ::-1]
    for image, channels in [
        (path, None),
        (str(path), None),
        (Image.open(path), None),
        (Image.open(path), "BGR"),  # files and Pillow images know better
        (rgb, "RGB"),
        (bgr, "BGR"),
        (alpha, "RGB"),
        (np.dstack((bgr, alpha[..., 3])), "BGR"),
        (tensor, "RGB"),
        (tensor.flip(0), "BGR"),
        (np.asfortranarray(rgb), "RGB"),
    ]:
        assert_equal(predictor(image, channels=channels), expected)
    swapped = predictor(rgb, channels="BGR")
    assert swapped.scores.tolist() != expected.scores.tolist()


def test_grey(resobj, photos):
    cfg, model = resobj
    predictor = Predictor(cfg, model)
    expected = directly(cfg, model, photos / "c.png")
    grey = np.array(Image.open(photos / "c.png"))
    assert grey.shape == (64, 64)
    for image in (grey, grey[:, :, None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        assert_equal(predictor(image), expected)


def test_detections_are_on_the_cpu_in_pixels_of_the_image(resobj, photos):
    detections = Predictor(*resobj)(photos / "b.jpg")
    assert detections.image_size == (150, 90)
    boxes = detections.pred_boxes.tensor
    assert boxes.device.type == "cpu" and detections.scores.device.type == "cpu"
    assert (boxes[:, 2].max(), boxes[:, 3].max()) == (90, 150) and boxes.min() == 0
    assert (detections.scores.diff() <= 0).all()


def test_pillow_images_are_turned_as_their_exif_data_say(resobj, photos, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photos / "a.png").save(tmp_path / "turned.png", exif=exif)
    predictor = Predictor(*resobj)
    expected = predictor(tmp_path / "turned.png")
    assert expected.image_size == (80, 60)
    assert_equal(predictor(Image.open(tmp_path / "turned.png")), expected)


def test_lists_of_anything(resobj, photos, rgb):
    predictor = Predictor(*resobj)
    expected = [
        predictor(photos / "b.jpg"),
        predictor(photos / "a.png"),
        predictor(photos / "d.png"),
    ]
    images = [photos / "b.jpg", rgb, Image.open(photos / "d.png")]
    for several in (images, tuple(images), iter(images)):
        results = predictor(several, channels="RGB")
        assert isinstance(results, list) and len(results) == 3
        for detections, one in zip(results, expected, strict=True):
            assert_equal(detections, one)
    assert predictor([]) == []
    (alone,) = predictor([photos / "a.png"])
    assert_equal(alone, expected[1])


def test_batches_have_the_stated_size(resobj, photos, monkeypatch):
    cfg, model = resobj
    sizes = []
    forward = type(model).forward

    def count(self, batch):
        sizes.append(len(batch))
        return forward(self, batch)

    monkeypatch.setattr(type(model), "forward", count)
    paths = sorted(photos.iterdir())
    results = Predictor(cfg, model, batch_size=2)(paths)
    assert sizes == [2, 2, 1]
    mapper = DatasetMapper(cfg, False)
    with torch.no_grad():
        first = model([mapper({"file_name": str(path)}) for path in paths[:2]])
    for detections, output in zip(results[:2], first, strict=True):
        assert_equal(detections, output["instances"])
    assert [d.image_size for d in results] == [(60, 80), (150, 90), (64, 64), (64, 72), (200, 200)]
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Predictor(cfg, model, batch_size=0)


def test_images_are_read_batch_by_batch(resobj, photos):
    """A generator of many images is not read ahead."""
    read = []

    def images():
        for path in sorted(photos.iterdir()):
            read.append(path.name)
            yield path if path.name != "c.png" else photos / "absent.png"

    with pytest.raises(ImageError, match="absent.png: there is no such file"):
        Predictor(*resobj, batch_size=1)(images())
    assert read == ["a.png", "b.jpg", "c.png"]


def test_steps(resobj, photos, rgb):
    cfg, model = resobj
    predictor = Predictor(cfg, model, batch_size=2)
    mapper = DatasetMapper(cfg, False)
    expected = model.detections_per_step([mapper({"file_name": str(photos / "a.png")})])
    steps = predictor.per_step(rgb, channels="RGB")
    assert len(steps) == 3 == predictor.num_steps + 1
    for detections, (output,) in zip(steps, expected, strict=True):
        assert_equal(detections, output["instances"])
    several = predictor.per_step([rgb, rgb, rgb], channels="RGB")
    assert [len(x) for x in several] == [3, 3, 3]
    assert_equal(several[2][0], steps[0])  # alone in its batch
    image, same = predictor.detect(photos / "a.png")
    assert np.array_equal(image, rgb)
    assert_equal(same[1], steps[1])
    last = predictor.to_dicts(steps)[-1][0]
    objectness = [last["factors"][f"objectness_step{t}"] for t in range(3)]
    assert last["factors"]["objectness"] == pytest.approx(objectness[2])
    assert last["score"] == pytest.approx(last["factors"]["cls"] * objectness[2], rel=1e-5)


def test_no_steps_without_residual_objectness(tiny_cfg, test_size, random_model, photos):
    cfg = tiny_cfg(*test_size, "DATASETS.TEST", "()")
    predictor = Predictor(cfg, random_model(cfg))
    (only,) = predictor.per_step(photos / "a.png")
    assert_equal(only, predictor(photos / "a.png"))
    assert predictor.to_dicts(only)[0]["factors"] == {}  # the score is the class's alone


@pytest.mark.parametrize(
    "image, options, message",
    [
        (np.zeros((4, 4, 3), np.uint8), {}, 'does not tell red from blue: say channels="RGB"'),
        (np.zeros((4, 4, 4), np.uint8), {}, "does not tell red from blue"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), {}, "does not tell red from blue"),
        (np.zeros((4, 4), np.uint8), {"channels": "rgb"}, 'must be "RGB" or "BGR", got \'rgb\''),
        (np.zeros((4, 4, 3)), {"channels": "RGB"}, r"float64, expected uint8 .*\(255 \* image\)"),
        (torch.zeros(3, 4, 4), {"channels": "RGB"}, r"float32, expected uint8 .*\(255 \* image\)"),
        (np.zeros((4, 4), np.uint16), {}, r"uint16, expected uint8 .*image >> 8"),
        (np.zeros((4, 4), bool), {}, r"bool, expected uint8 .*255 \* image"),
        (np.zeros((4, 4), np.int64), {}, r"int64, expected uint8 .*image.astype"),
        (np.zeros((3, 4, 5), np.uint8), {}, r"\(3, 4, 5\), expected .*transpose\(1, 2, 0\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), {}, r"\(2, 4, 5, 3\), .* as a list: list\(images\)"),
        (np.zeros((4, 5, 2), np.uint8), {}, r"\(4, 5, 2\), expected \(height, width, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), {}, r"\(0, 5, 3\) and no pixels"),
        (torch.zeros(4, 5, 3, dtype=torch.uint8)[:, None], {}, "expected .3, height, width. as"),
        (torch.zeros(5, 6, 3, dtype=torch.uint8), {}, "expected .3, height, width. as"),
        (Image.new("F", (4, 4)), {}, "floating-point pixels have no defined white"),
        ("absent.png", {}, "absent.png: there is no such file"),
    ],
)
def test_images_that_cannot_be_used_are_refused_in_one_line(resobj, image, options, message):
    predictor = Predictor(*resobj)
    with pytest.raises(ImageError, match=message) as error:
        predictor(image, **options)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(("the image", "absent.png", "channels"))
    good = np.zeros((40, 40), np.uint8)
    with pytest.raises(ImageError, match=message) as error:
        predictor([good, good, image], **options)
    assert str(error.value).startswith(("images[2]", "absent.png", "channels"))


def test_what_is_no_image(resobj):
    predictor = Predictor(*resobj)
    for wrong in (3, b"bytes", None, {"image": 1}):
        with pytest.raises(TypeError, match=f"list of them, got {type(wrong).__name__}"):
            predictor(wrong)
    with pytest.raises(TypeError, match=r"images\[1\] is a int, not a path"):
        predictor([np.zeros((40, 40), np.uint8), 3])


def test_a_picture_too_narrow_for_the_model_is_named(resobj, tmp_path):
    Image.new("RGB", (3000, 2)).save(tmp_path / "line.png")
    with pytest.raises(ImageError, match="line.png: 3000x2 pixels cannot be resized"):
        Predictor(*resobj)(tmp_path / "line.png")
    with pytest.raises(ImageError, match=r"images\[0\]: 3000x2 pixels"):
        Predictor(*resobj)([np.zeros((2, 3000), np.uint8)])


def test_dicts_by_hand(resobj):
    detections = Instances((4, 6))
    detections.pred_boxes = Boxes(torch.tensor([[0.5, 1.0, 2.5, 3.0], [1.0, 0.0, 6.0, 4.0]]))
    detections.scores = torch.tensor([0.75, 0.25])
    detections.pred_classes = torch.tensor([2, 0])
    detections.cls_score = torch.tensor([1.0, 0.5])
    detections.objectness_score = torch.tensor([0.75, 0.5])
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, 1:3, 2:5] = True
    detections.pred_masks = masks
    detections.pred_keypoints = torch.tensor([[[1.0, 2.0, 0.5]], [[3.0, 0.0, 1.0]]])
    predictor = Predictor(*resobj)
    first, second = predictor.to_dicts(detections)
    mask = first.pop("mask")
    assert np.array_equal(coco_mask.decode(mask), masks[0].numpy())
    assert first == {
        "box": [0.5, 1.0, 2.5, 3.0],
        "score": 0.75,
        "class_index": 2,
        "class_name": "cow",
        "factors": {"cls": 1.0, "objectness": 0.75},
        "keypoints": [[1.0, 2.0, 0.5]],
    }
    assert coco_mask.area(second["mask"]) == 0 and second["class_name"] == "cat"
    nested = predictor.to_dicts([[detections], [detections[1:]]])
    assert nested == [[predictor.to_dicts(detections)], [[second]]]
    assert json.loads(json.dumps(nested)) == nested
    assert predictor.to_dicts(detections[:0]) == [] == predictor.to_dicts([])


def test_scores_of_each_class_decide_what_is_given(resobj, photos):
    cfg, model = resobj
    path = photos / "a.png"
    everything = Predictor(cfg, model)(path)
    middle = [everything.scores[everything.pred_classes == k].median().item() for k in range(3)]
    cfg.PREDICT.SCORE_THRESH = middle
    kept = Predictor(cfg, model)(path)
    expected = [
        i
        for i, (score, k) in enumerate(
            zip(everything.scores.tolist(), everything.pred_classes.tolist(), strict=True)
        )
        if score >= middle[k]
    ]
    assert 0 < len(expected) < len(everything)
    assert_equal(kept, everything[expected])
    assert all(len(step) < len(everything) for step in Predictor(cfg, model).per_step(path))
    cfg.PREDICT.SCORE_THRESH = [max(middle)]
    assert_equal(Predictor(cfg, model)(path), everything[everything.scores >= max(middle)])


@pytest.mark.parametrize(
    "value, message",
    [([0.5, 0.5], "has 2 scores for 3 classes: give one for each"), ([1.5], "from 0 to 1")],
)
def test_wrong_scores_of_classes_are_refused(resobj, value, message):
    cfg, model = resobj
    cfg.PREDICT.SCORE_THRESH = value
    with pytest.raises(ValueError, match=f"PREDICT.SCORE_THRESH .*{message}"):
        Predictor(cfg, model)


def test_test_time_augmentation_is_used(resobj, photos):
    cfg, model = resobj
    cfg.merge_from_list(["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(48, 96)"])
    predictor = Predictor(cfg, model)
    assert predictor.num_steps == 0  # its scores are the last step's
    path = photos / "a.png"
    inputs = DatasetMapper(cfg, False)({"file_name": str(path), "height": 60, "width": 80})
    expected = AugmentedDetector(model, min_sizes=[48, 96], max_size=4000, flip=True)([inputs])
    found = predictor(path)
    assert_equal(found, expected[0]["instances"])
    assert len(found) > 5 and not torch.equal(found.scores, directly(cfg, model, path).scores)
