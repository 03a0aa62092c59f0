"""Run-length masks are what pycocotools makes of them, and what it would be harmed by is none."""

import numpy as np
import pytest
from pycocotools import mask as coco

from resobj_d2.data.masks import mended_mask, read_mask


@pytest.mark.parametrize("seed", range(10))
def test_compressed_runs_of_real_masks_are_accepted(seed):
    draw = np.random.default_rng(seed)
    height, width = draw.integers(1, 200, 2)
    bitmap = (draw.random((height, width)) < draw.random()).astype(np.uint8)
    if seed == 0:
        bitmap[:] = 0
    rle = coco.encode(np.asfortranarray(bitmap))
    given = {"size": [int(height), int(width)], "counts": rle["counts"].decode()}
    assert read_mask(given, (width, height)) == given
    runs = np.flatnonzero(np.diff(np.concatenate([[0], bitmap.T.ravel(), [2]])))
    counts = np.diff(np.concatenate([[0], runs])).tolist()
    listed = read_mask({"size": [int(height), int(width)], "counts": counts}, (width, height))
    assert np.array_equal(coco.decode(listed), bitmap)


GOOD = coco.encode(np.asfortranarray(np.eye(8, dtype=np.uint8)))["counts"].decode()


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ([8, 9], GOOD),  # of another size
        ([8], GOOD),
        (None, GOOD),
        ([8, 8], GOOD + "1"),  # one run more than there are pixels
        ([8, 8], GOOD[:-1]),
        ([8, 8], "oooooooooooooo3"),  # a run beyond everything
        ([8, 8], "\x00\xff"),
        ([8, 8], "ü"),
        ([8, 8], ""),
        ([8, 8], [10, 10]),
        ([8, 8], [-1, 65]),
        ([8, 8], [64.5]),
        ([8, 8], ["64"]),
        ([8, 8], None),
        ([8, 8], {"a": 1}),
    ],
)
def test_runs_that_do_not_add_up_are_no_mask(size, counts):
    assert read_mask({"size": size, "counts": counts}, (8, 8)) is None


def test_runs_beyond_32_bits_are_no_mask():
    side = 10**9
    assert read_mask({"size": [side, side], "counts": [0, side * side]}, (side, side)) is None


SQUARE = [1, 1, 9, 1, 9, 9]


@pytest.mark.parametrize(
    ("segmentation", "kind"),
    [
        ([SQUARE], ""),
        (SQUARE, ""),
        ([[[1, 1], [9, 1], [9, 9]]], ""),  # points as pairs
        ([[1, 1], [9, 1], [9, 9]], ""),
        ([{"x": 1, "y": 1}, {"x": 9, "y": 1}, {"y": 9, "x": 9}], ""),
        ([[{"x": 1, "y": 1}, {"x": "9", "y": 1}, {"x": 9, "y": 9}]], "text_number"),
        ([list(map(str, SQUARE))], "text_number"),
        (["1", "1", 9, "1.0", 9, 9], "text_number"),
        ([[["1", "1"], ["9", "1"], [9, 9]]], "text_number"),
        ([[1, 2], SQUARE], "mask_part"),
        ([SQUARE, ["a"] * 6], "mask_part"),
    ],
)
def test_polygons_are_read_in_every_writing(segmentation, kind):
    mask, found, _ = mended_mask(segmentation, None)
    assert [polygon.tolist() for polygon in mask] == [SQUARE] and found == kind


@pytest.mark.parametrize(
    "segmentation",
    [
        [["a"] * 6],
        [[1, 2, float("nan"), 4, 5, 6]],
        [[1, 2, 3, 4]],
        [{"x": 1, "y": 2}],
        5,
        "[[1]]",
        [{"x": 1, "z": 2}] * 3,
        [{"x": [1], "y": 2}] * 3,
        [{"x": None, "y": 2}] * 3,
    ],
)
def test_polygons_that_are_none(segmentation):
    assert mended_mask(segmentation, None)[:2] == (None, "mask")


@pytest.mark.parametrize(
    ("size", "counts"),
    [([8, 8], [2.0, 3.0, 59.0]), ([8, 8], ["2", "3", 59]), (["8", 8.0], [2, 3, 59])],
)
def test_runs_are_read_as_numbers(size, counts):
    mask, kind, _ = mended_mask({"size": size, "counts": counts}, (8, 8))
    assert kind == "text_number"
    assert np.flatnonzero(coco.decode(mask).T.ravel()).tolist() == [2, 3, 4]  # by columns


def test_text_of_chance_is_no_mask_or_adds_up():
    """pycocotools writes where the runs say; so no text may pass whose runs are not the picture."""
    draw = np.random.default_rng(0)
    passed = 0
    for _ in range(3000):
        counts = "".join(map(chr, draw.integers(48, 112, draw.integers(1, 6))))
        rle = read_mask({"size": [4, 4], "counts": counts}, (4, 4))
        if rle is not None:
            passed += 1
            assert coco.decode(rle).shape == (4, 4)
    assert passed < 300
