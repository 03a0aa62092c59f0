"""Scenes as imbalanced as COCO: few small objects of look-alike classes among many distractors."""

import hashlib
import itertools
import json

import numpy as np
import pytest

from resobj_d2.data.entries import parse_entry
from resobj_d2.data.open_entry import open_entry
from resobj_d2.data.scenes.dataset import ensure_scenes
from resobj_d2.data.scenes.look_alikes import LOOK_ALIKES
from resobj_d2.data.scenes.render import render_scene
from resobj_d2.data.scenes.shapes import CLASS_NAMES, draw_mask
from resobj_d2.data.scenes.style import SceneStyle

HARD = SceneStyle(max_objects=5, max_diameter=40, look_alikes=True, distractors=30)
FEW = {"image_size": 128, "num_train": 3, "num_val": 1}


def hashes(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_equal_options_give_equal_files(tmp_path):
    for name in ("a", "b"):
        ensure_scenes(tmp_path / name, style=HARD, **FEW)
    assert hashes(tmp_path / "a" / "scenes") == hashes(tmp_path / "b" / "scenes")
    meta = json.loads((tmp_path / "a" / "scenes" / "meta.json").read_text())
    assert meta["max_objects"] == 5 and meta["look_alikes"] is True


def test_scenes_of_other_options_are_refused_both_ways(tmp_path):
    ensure_scenes(tmp_path, **FEW)
    # Sets that were written before there were these options stay usable.
    meta = json.loads((tmp_path / "scenes" / "meta.json").read_text())
    assert set(meta) == {"version", "image_size", "num_train", "num_val", "seed"}
    with pytest.raises(FileExistsError, match="max_objects=0 there, max_objects=5 asked for"):
        ensure_scenes(tmp_path, style=HARD, **FEW)
    ensure_scenes(tmp_path, name="hard", style=HARD, **FEW)
    with pytest.raises(FileExistsError, match="look_alikes=True there, look_alikes=False asked"):
        ensure_scenes(tmp_path, name="hard", **FEW)


@pytest.fixture(scope="module")
def scenes():
    return [render_scene(192, np.random.default_rng(seed), HARD) for seed in range(60)]


def test_objects_are_few_and_small(scenes):
    counts = np.bincount([len(scene.objects) for scene in scenes], minlength=6)
    assert len(counts) == 6 and counts.min() >= 3  # each of 0 to 5, about ten times
    sides = [max(one.box[2:]) for scene in scenes for one in scene.objects]
    # The stretch of an outline is at most sqrt(1.18).
    assert max(sides) <= 40 * 1.18**0.5 + 2
    assert len({one.category for scene in scenes for one in scene.objects}) > 15


def test_distractors_are_as_many_as_asked():
    def edges(distractors):
        style = SceneStyle(max_objects=1, distractors=distractors)
        pictures = [
            render_scene(96, np.random.default_rng(seed), style).image.astype(int)
            for seed in range(12)
        ]
        return np.mean([np.abs(np.diff(picture, axis=0)).mean() for picture in pictures])

    assert edges(60) > 1.3 * edges(0)


def test_look_alikes_share_colours_and_differ_in_outline():
    assert len(LOOK_ALIKES) == 20 and {family for family, _ in LOOK_ALIKES.values()} == set(
        CLASS_NAMES
    )
    assert [HARD.family(k) for k in (0, 1, 2, 3)] == [0, 0, 0, 1]
    rng = np.random.default_rng(0)
    masks = {}
    for name, (_, outline) in LOOK_ALIKES.items():
        mask = draw_mask(outline(rng), np.eye(2) * 30.0) > 0.5
        margin = (100 - mask.shape[0]) // 2
        masks[name] = np.pad(mask, margin)
    for one, other in itertools.combinations(masks, 2):
        first, second = masks[one], masks[other]
        overlap = (first & second).sum() / (first | second).sum()
        assert overlap < 0.93, (one, other, overlap)


def test_the_entry_of_a_configuration(tmp_path):
    raw = {
        "name": "hard", "format": "scenes", "split": "val", "root": str(tmp_path),
        "look_alikes": True, "max_objects": 5, "max_diameter": 40, "distractors": 30, **FEW,
    }  # fmt: skip
    record = open_entry(parse_entry(raw, "here")).read()
    assert record.class_names == list(LOOK_ALIKES)
    assert len(record.images) == 1 and record.images.widths[0] == 128


@pytest.mark.parametrize(
    "style, message",
    [
        ({"max_objects": -1}, "max_objects must be a whole number in 0..100, got -1"),
        ({"distractors": 2.5}, "distractors must be a whole number in 0..1000, got 2.5"),
        ({"distractors": 10**9}, "distractors must be a whole number in 0..1000"),
        ({"max_diameter": 9}, "max_diameter must be 0, or from 16 to the image_size of 128, got 9"),
        ({"max_diameter": 500}, "got 500"),
        ({"look_alikes": "yes"}, "look_alikes must be true or false, got 'yes'"),
    ],
)
def test_options_out_of_range(tmp_path, style, message):
    with pytest.raises(ValueError) as error:
        ensure_scenes(tmp_path, style=SceneStyle(**style), **FEW)
    assert message in str(error.value)
