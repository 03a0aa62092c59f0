"""What was probably not meant is told, by every command in the same way."""

import json

import numpy as np
import pytest

from resobj_d2.analysis import breakdown, calibration, compare, dump, errors, thresholds, worst
from resobj_d2.analysis.doubts import are_probabilities, doubts
from resobj_d2.analysis.thresholds import score_curves, threshold_override, threshold_table
from tests.analysis import plain_loops

BOX, FAR = [100, 100, 100, 100], [300, 300, 50, 50]
SCALE = "Scores go from 50 to 97, not from 0 to 1"
CORNERS = "Boxes reach beyond their pictures and would fit as x0, y0, x1, y1"
PARTS = "Boxes have no number above 0.7, as if they were parts of the picture's sides"
NONE = "There are no detections."
COMMANDS = (errors, breakdown, thresholds, worst, compare)


def found_of(kind):
    """Pictures have 400 x 400 pixels; the second box ends at 650 if read as x, y, w, h."""
    return {
        "percent": [(0, 0, BOX, 97), (1, 0, BOX, 50)],
        "corners": [(0, 0, [100, 100, 200, 200], 0.9), (1, 0, [300, 300, 350, 350], 0.8)],
        "parts": [(0, 0, [0.25, 0.25, 0.25, 0.25], 0.9), (1, 0, [0.7, 0.7, 0.3, 0.3], 0.8)],
        "none": [],
        "few": [(1, 0, FAR, 0.8)],
        "twice": [(0, 0, BOX, 0.9), (0, 0, BOX, 0.9), (1, 0, FAR, 0.8), (1, 0, FAR, 0.7)],
        "right": [(0, 0, BOX, 0.9), (1, 0, FAR, 0.8)],
    }[kind]


@pytest.mark.parametrize(
    "kind, told",
    [("percent", SCALE), ("corners", CORNERS), ("parts", PARTS), ("none", NONE), ("right", "")],
)
def test_each_kind_is_told_once(kind, told):
    data = plain_loops.evaluation_set([(0, 0, BOX), (1, 0, FAR)], found_of(kind))
    sentences = doubts(data)
    assert len(sentences) == bool(told) and "".join(sentences).startswith(told)


def test_large_boxes_are_no_corners():
    """They reach beyond the picture, but end where they begin if read as corners."""
    large = [(k, 0, [200, 200, 150 if k else 390, 390], 0.5) for k in range(4)]
    assert doubts(plain_loops.evaluation_set([(3, 0, BOX)], large)) == []
    assert are_probabilities(np.array([0.0, 1.0])) and not are_probabilities(np.array([-0.1]))


def test_a_single_box_in_pixels_is_enough():
    """A detector that puts some boxes on the first pixel is not doubted."""
    found = [(0, 0, [0, 0, 1, 1], 0.9), (1, 0, FAR, 0.8)]
    assert doubts(plain_loops.evaluation_set([(1, 0, FAR)], found)) == []


def test_pictures_without_detections_are_told_where_they_are_most():
    objects = [(k, 0, BOX) for k in range(4)]
    none_of_three = "3 of 4 pictures with objects have no detections at all"
    (told,) = doubts(plain_loops.evaluation_set(objects, found_of("few"), images=9))
    assert told.startswith(none_of_three)
    half = [*found_of("few"), (2, 0, BOX, 0.8)]
    assert doubts(plain_loops.evaluation_set(objects, half, images=9)) == []
    (told,) = doubts(plain_loops.evaluation_set([(3, 0, BOX)], half, images=9))
    assert told.startswith("1 of 1 picture with objects has no detections at all")


def test_repeated_detections_are_told():
    (told,) = doubts(plain_loops.evaluation_set([(0, 0, BOX), (1, 0, FAR)], found_of("twice")))
    assert told.startswith("2 of 4 detections repeat another one of the same picture, class and")
    other_class = [(0, 0, BOX, 0.9), (0, 1, BOX, 0.9), (1, 0, BOX, 0.9)]
    assert doubts(plain_loops.evaluation_set([(0, 0, BOX), (1, 0, FAR)], other_class)) == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda module: module.__name__)
@pytest.mark.parametrize("kind, told", [("percent", SCALE), ("none", NONE)])
def test_every_command_tells(command, kind, told, tmp_path, caplog, capsys):
    objects = [(0, 0, BOX), (1, 0, FAR)]
    (tmp_path / "truth.json").write_text(json.dumps(plain_loops.content(objects)))
    (tmp_path / "results.json").write_text(json.dumps(plain_loops.results(found_of(kind))))
    source = [str(tmp_path / "results.json")] * (2 if command is compare else 1)
    assert command.main([*source, "--data", str(tmp_path / "truth.json")]) == 0
    printed = capsys.readouterr().out
    assert f"results: {told}" in printed + caplog.text and "nan" not in printed.lower()


def test_a_dump_of_them_tells_too(tmp_path, caplog, capsys):
    (tmp_path / "truth.json").write_text(json.dumps(plain_loops.content([(1, 0, BOX)])))
    (tmp_path / "results.json").write_text(json.dumps(plain_loops.results(found_of("percent"))))
    files = ["--data", str(tmp_path / "truth.json"), "--images", str(tmp_path)]
    source = ["--detections", str(tmp_path / "results.json"), "--output", str(tmp_path / "made")]
    assert dump.main([*files, *source]) == 0
    assert SCALE in capsys.readouterr().out + caplog.text


@pytest.mark.parametrize(
    "objects, kind, why",
    [
        ([(1, 0, BOX)], "percent", "PREDICT.SCORE_THRESH takes scores from 0 to 1"),
        ([(1, 0, BOX)], "none", "there are no detections that count"),
        ([], "right", "there are no objects to find"),
    ],
)
def test_no_override_that_prediction_refuses(objects, kind, why, tmp_path, capsys):
    content = plain_loops.content(objects, images=2)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(plain_loops.results(found_of(kind))))
    arguments = [str(tmp_path / "results.json"), "--data", str(tmp_path / "truth.json")]
    assert thresholds.main([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith(f"\nNo override for resobj-d2 predict: {why}\n")
    assert json.loads((tmp_path / "out.json").read_text())["overrides"] is None
    data = plain_loops.evaluation_set(objects, found_of(kind), images=2)
    assert threshold_override(threshold_table(score_curves(data))) is None


def test_calibration_without_detections_has_no_numbers(tmp_path, capsys):
    (tmp_path / "truth.json").write_text(json.dumps(plain_loops.content([(0, 0, BOX)])))
    (tmp_path / "results.json").write_text("[]")
    arguments = [str(tmp_path / "results.json"), "--data", str(tmp_path / "truth.json")]
    assert calibration.main(arguments) == 0
    assert "| all     |            0 |       - |           - |     - |" in capsys.readouterr().out
