"""Thresholds and calibration, against loops over detections and by hand."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from resobj_d2.analysis import calibration, thresholds
from resobj_d2.analysis.binning import bin_of
from resobj_d2.analysis.calibration import calibration_table, class_calibration_table
from resobj_d2.analysis.thresholds import (
    Limit,
    best_limit,
    score_curves,
    shown_score,
    threshold_override,
    threshold_table,
)
from tests.analysis import plain_loops

BOX, FAR = [100, 100, 100, 100], [300, 300, 50, 50]


def judged(data, threshold=0.5):
    """(class, score, correct) of every detection that counts, by loops."""
    return [
        (x["class"], x["score"], x["object"] is not None)
        for _, found in plain_loops.match(data, threshold)
        for x in found
        if not x["ignored"]
    ]


@pytest.mark.parametrize("seed", range(3))
def test_curves_equal_counting_at_every_threshold(seed):
    data = plain_loops.random_set(seed)
    points = judged(data)
    objects = [
        o for x, _ in plain_loops.match(data, 0.5) for o in x if not o["ignored"]
    ]  # fmt: skip
    for number, curve in enumerate(score_curves(data), -1):
        own = [p for p in points if number in (-1, p[0])]
        to_find = sum(number in (-1, o["class"]) for o in objects)
        assert curve.objects == to_find
        assert curve.scores.tolist() == sorted({p[1] for p in own}, reverse=True)
        for i, threshold in enumerate(curve.scores):
            kept = [p for p in own if p[1] >= threshold]
            hits = sum(p[2] for p in kept)
            assert curve.precision[i] == pytest.approx(hits / len(kept))
            assert curve.recall[i] == pytest.approx(hits / to_find if to_find else 0)
            total = curve.precision[i] + curve.recall[i]
            f1 = 2 * curve.precision[i] * curve.recall[i] / total if total else 0
            assert curve.f1[i] == pytest.approx(f1)


@pytest.fixture
def example():
    """Right, right, wrong, right of four objects of class a; class b is claimed in vain."""
    objects = [(i, 0, BOX) for i in range(4)]
    found = [
        (0, 0, BOX, 0.9), (1, 0, BOX, 0.8), (1, 0, FAR, 0.7), (2, 0, BOX, 0.6), (0, 1, BOX, 0.5),
    ]  # fmt: skip
    return plain_loops.evaluation_set(objects, found, images=4)


def row_of_a(data, **wish):
    rows = threshold_table(score_curves(data), **wish)
    return [rows[1][name] for name in ("threshold", "precision", "recall", "F1", "reached")]


def test_choices_by_hand(example):
    # F1 at the four scores: 2/5, 4/6, 4/7, 6/8.
    assert row_of_a(example) == pytest.approx([0.6, 75, 75, 75, True])
    assert row_of_a(example, precision=0.9) == pytest.approx([0.8, 100, 50, 200 / 3, True])
    assert row_of_a(example, recall=0.5) == pytest.approx([0.8, 100, 50, 200 / 3, True])
    assert row_of_a(example, recall=0.7) == pytest.approx([0.6, 75, 75, 75, True])
    assert row_of_a(example, recall=0.8) == pytest.approx([0.6, 75, 75, 75, False])


def test_override_has_a_number_for_every_class(example):
    rows = threshold_table(score_curves(example))
    assert rows[2] == {
        "class": "b", "objects": 0, "threshold": None, "precision": None, "recall": None,
        "F1": None, "reached": None,
    }  # fmt: skip
    assert threshold_override(rows) == ["PREDICT.SCORE_THRESH", "[0.6, 0.6]"]
    nothing = threshold_table(score_curves(plain_loops.evaluation_set([], [])))
    assert threshold_override(nothing) is None


def test_a_class_may_be_called_all():
    data = plain_loops.evaluation_set([(0, 0, BOX)], [(0, 0, BOX, 0.5)])
    data = dataclasses.replace(data, class_names=["all", "(all)"])
    names = [curve.name for curve in score_curves(data)]
    assert names == ["((all))", "all", "(all)"]
    assert [row["class"] for row in class_calibration_table(data)] == names


@pytest.mark.parametrize(
    "scores, limit",
    [
        ([0.1234567], 0.123),
        ([0.571], 0.571),
        ([0.5709999999999], 0.570),
        ([0.1234567, 0.1231], 0.1234),  # three digits would let the wrong one pass
        ([0.00042, 0.0001], 0.0004),
        ([97.53, 20.0], 97.53),
        ([-2.3456], -2.346),
        ([1e30, 1.0], 1e30),
    ],
)
def test_thresholds_are_rounded_down_as_long_as_nothing_else_passes(scores, limit):
    """The first detection is right, the others are wrong."""
    found = [(0, 0, BOX if k == 0 else FAR, score) for k, score in enumerate(scores)]
    curve = score_curves(plain_loops.evaluation_set([(0, 0, BOX)], found))[0]
    best = best_limit(curve)
    assert best == Limit(score=limit, precision=1, recall=1, f1=1)
    assert best.score <= scores[0] and float(shown_score(limit)) == limit
    assert best_limit(score_curves(plain_loops.evaluation_set([(0, 0, BOX)], []))[0]) is None


def test_scores_are_shown_with_all_their_digits():
    shown = [shown_score(x) for x in (0.6, 0.485, 0.12345, None)]
    assert shown == ["0.60", "0.485", "0.12345", "-"]
    assert shown_score(0.5, digits=3) == "0.500"


def files(folder, objects, found):
    (folder / "truth.json").write_text(json.dumps(plain_loops.content(objects)))
    (folder / "results.json").write_text(json.dumps(plain_loops.results(found)))
    return [str(folder / "results.json"), "--data", str(folder / "truth.json")]


def test_thresholds_command(tmp_path, capsys):
    arguments = files(tmp_path, [(0, 0, BOX), (0, 1, FAR)], [(0, 0, BOX, 0.75), (0, 1, BOX, 0.5)])
    picture, output = tmp_path / "curves.png", tmp_path / "out.json"
    command = [*arguments, "--precision", ".9", "--plot", str(picture), "--json", str(output)]
    assert thresholds.main(command) == 0
    printed = capsys.readouterr().out
    assert '  PREDICT.SCORE_THRESH "[0.75, 0.5]"' in printed
    row = "| b       |         1 | 0.500       |         0.0 |      0.0 |   0.0 | no        |"
    assert row in printed
    assert len(np.unique(np.asarray(Image.open(picture)))) > 20
    tables = json.loads(output.read_text())
    assert tables["overrides"] == ["PREDICT.SCORE_THRESH", "[0.75, 0.5]"]
    assert {row["class"] for row in tables["curves"]} == {"all", "a", "b"}


@pytest.mark.parametrize(
    "options, message",
    [
        (["--plot", "x.xyz"], "the ending must be .png, .svg or .pdf"),
        (["--precision", "90"], "must be above 0 and at most 1, got 90"),
        (["--precision", ".9", "--recall", ".9"], "not allowed with argument"),
    ],
)
def test_wrong_options_are_refused(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        thresholds.main([*files(tmp_path, [(0, 0, BOX)], []), *options])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(3))
def test_calibration_equals_plain_loops(seed):
    data = plain_loops.random_set(seed)
    points = judged(data)
    total, bins = 0.0, calibration_table(data, bins=5)
    for i, row in enumerate(bins):
        own = [p for p in points if i / 5 <= p[1] < (i + 1) / 5 or (i == 4 and p[1] == 1)]
        assert row["detections"] == len(own)
        assert row["score"] == pytest.approx(np.mean([p[1] for p in own]))
        assert row["precision"] == pytest.approx(100 * np.mean([p[2] for p in own]))
        total += len(own) / len(points) * abs(100 * row["score"] - row["precision"])
    classes = class_calibration_table(data, bins=5)
    assert classes[0]["ECE"] == pytest.approx(total)
    assert classes[0]["detections"] == len(points) == sum(row["detections"] for row in classes[1:])


def test_calibration_by_hand():
    """Of four detections with a score of 0.75 three are right: the scores are probabilities."""
    objects = [(i, 0, BOX) for i in range(3)]
    found = [(i, 0, BOX, 0.75) for i in range(4)]
    data = plain_loops.evaluation_set(objects, found)
    assert class_calibration_table(data)[0]["ECE"] == pytest.approx(0)
    assert class_calibration_table(data, lowest=0.8)[0]["ECE"] is None
    assert calibration_table(data)[7]["precision"] == 75
    wrong = plain_loops.evaluation_set(objects, [(i, 1, BOX, 1.0) for i in range(4)])
    assert class_calibration_table(wrong)[2]["ECE"] == 100
    with pytest.raises(ValueError, match="scores from 1.5 to 1.5: only those between 0 and 1"):
        calibration_table(plain_loops.evaluation_set(objects, [(0, 0, BOX, 1.5)]))


@pytest.mark.parametrize("bins", [3, 10, 100])
def test_a_score_on_a_border_belongs_to_the_bin_that_begins_there(bins):
    """Also where score times bins is less than the whole number that it should be."""
    assert int(0.29 * 100) == 28
    scores = [i / bins for i in range(bins + 1)]
    found = [(0, 0, BOX, score) for score in scores]
    rows = calibration_table(plain_loops.evaluation_set([(0, 0, BOX)], found), bins=bins)
    assert [row["detections"] for row in rows] == [1] * (bins - 1) + [2]
    assert [row["score"] for row in rows[:-1]] == [row["from"] for row in rows[:-1]]
    for kind in (np.float32, np.float64):
        places = bin_of(np.array(scores, kind), bins)
        assert places.tolist() == [*range(bins), bins - 1]
    with pytest.raises(ValueError, match="NaN among the values"):
        bin_of(np.array([0.5, np.nan]), bins)


def test_a_curve_at_other_scores_equals_counting():
    data = plain_loops.random_set(3)
    points, grid = judged(data), np.array([2.0, 1.0, 0.8, 0.5, 0.5, 0.31, 0.0, -1.0])
    for number, curve in enumerate(score_curves(data), -1):
        own = [p for p in points if number in (-1, p[0])]
        found = curve.at(grid)
        assert found.right.tolist() == [sum(p[2] for p in own if p[1] >= t) for t in grid]
        assert found.wrong.tolist() == [sum(not p[2] for p in own if p[1] >= t) for t in grid]
        assert found.objects == curve.objects and np.isnan(found.precision[0])
    nothing = score_curves(plain_loops.evaluation_set([(0, 0, BOX)], []))[0].at(grid)
    assert nothing.best() is None and not nothing.right.any() and not nothing.f1.any()


def test_calibration_command_on_real_data(real_persons, shared_data, tmp_path, capsys):
    folder = shared_data / "coco_eval" / "mmpose_person4"
    source = [str(folder / "test_coco_det_AP_H_56.json"), "--data", str(folder / "test_coco.json")]
    assert calibration.main([*source, "--json", str(tmp_path / "out.json")]) == 0
    tables = json.loads((tmp_path / "out.json").read_text())
    assert tables["classes"] == class_calibration_table(real_persons)
    assert tables["classes"][0]["detections"] == len(judged(real_persons))
    assert "| person" in capsys.readouterr().out
