from pathlib import Path

import pytest

from resobj_d2.process import agreeing, counted, did_you_mean, distinct_names, similar_names


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "image", "0 images"), (1, "image", "1 image"), (2, "dataset", "2 datasets"),
        (1, "box", "1 box"), (3, "box", "3 boxes"), (2, "crowd region", "2 crowd regions"),
        (5, "class", "5 classes"), (2, "category", "2 categories"), (2, "process", "2 processes"),
    ],
)  # fmt: skip
def test_counted(number, noun, text):
    assert counted(number, noun) == text


@pytest.mark.parametrize(
    ("paths", "names", "expected"),
    [
        (["a/x.yaml", "b/y.yaml"], ["x", "y"], ["x", "y"]),
        (["a/x.yaml", "b/x.yaml", "b/y.yaml"], ["x", "x", "y"], ["a/x", "b/x", "y"]),
        (["a/run/x.yaml", "b/run/x.yaml"], ["x", "x"], ["a/run/x", "b/run/x"]),
        (["a/x/dump", "b/x/dump"], ["x", "x"], ["a/x", "b/x"]),  # named after their run
        (["a/x.yaml", "a/x.yaml"], ["x", "x"], None),
    ],
)
def test_the_same_names_get_the_folders_in_which_they_differ(paths, names, expected):
    found = distinct_names([Path(path) for path in paths], names)
    if expected is None:
        assert found[1] == f"{found[0]} (2)" and found[0].endswith("/a/x")
    else:
        assert found == expected
    assert distinct_names([], []) == []


def test_similar_names_come_closest_first_and_else_in_their_order():
    assert similar_names("AP5", ["AP95", "AP50", "loss", "AP"]) == ["AP95", "AP50", "AP"]
    assert similar_names("AP5", ["AP50", "AP95", "loss"], most=1) == ["AP50"]
    assert similar_names("AP5", ["AP95"], cutoff=0.9) == []
    assert similar_names("cal", ["curves", "calibration"]) == ["calibration"]
    assert similar_names("c", ["calibration"]) == []


def test_a_verb_agrees_with_its_count():
    assert [agreeing(n, "repeat") for n in (0, 1, 2)] == ["repeat", "repeats", "repeat"]
    assert [agreeing(1, verb) for verb in ("are", "have", "reach")] == ["is", "has", "reaches"]


def test_did_you_mean():
    assert did_you_mean("trian", ["eval", "train"]) == ". Did you mean train?"
    assert did_you_mean("AP5", ["AP50", "AP95"]) == ". Did you mean AP50 or AP95?"
    assert did_you_mean("x", ["train"]) == ""
