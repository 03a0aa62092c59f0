"""The summary says nothing good where there is nothing, and what may be wrong with the files."""

import dataclasses
import json

import pytest

from resobj_d2.report.command import main, write_report
from resobj_d2.report.judge import judge
from resobj_d2.report.pictures import _name, load_pictures
from resobj_d2.report.subject import find_subjects
from resobj_d2.report.summary import _about_background, _about_loose, summarise

from .conftest import CONTENT, RESULTS


def columns(folder):
    summary = summarise(judge(find_subjects([folder])[0]))
    return {title: " ".join(items) for title, items in summary.columns}


def as_corners(box):
    x, y, width, height = box
    return [x, y, x + width, y + height]


def test_boxes_of_another_convention_are_told(make_dump):
    """Read as x, y, width, height none of the three finds anything."""
    wrong = [{**RESULTS[k], "bbox": as_corners(RESULTS[k]["bbox"])} for k in (0, 1, 4)]
    wrong[0]["bbox"] = [36, 20, 64, 48]  # reaches beyond its picture of 64 x 48
    text = columns(make_dump(wrong))
    first = text["What to check first"]
    assert "would fit as x0, y0, x1, y1" in first
    assert "An AP50 below 5 is often a matter of the files: boxes have to be x, y, width" in first
    assert text["What it does well"] == "None of its detections is right."
    everything = " ".join(text.values())
    for nonsense in ("best class", "not tight", "would win little", "For use", "Costing less"):
        assert nonsense not in everything


def test_right_boxes_are_not_questioned(make_dump):
    assert "What to check first" not in columns(make_dump())


def test_no_detections_are_told(make_dump):
    text = columns(make_dump([]))
    assert text["What to check first"] == "There are no detections."
    assert text["What it does well"] == "None of its detections is right: it has none."


def test_scores_above_one_give_no_limit_to_use(make_dump, tmp_path):
    folder = make_dump([{**x, "score": 100 * x["score"]} for x in RESULTS])
    text = columns(folder)
    assert text["What to check first"].startswith("Scores go from 50 to 90, not from 0 to 1")
    assert "--confidence-threshold" not in text["What to try"]
    page = write_report([folder], tmp_path / "page.html", pictures=1).read_text()
    assert "No override for <code>resobj-d2 predict</code>: PREDICT.SCORE_THRESH takes" in page
    assert 'value="1.00"' in page


def test_a_run_of_ours_is_not_told_about_files(make_dump):
    """Its boxes were written by the evaluation."""
    one = judge(find_subjects([make_dump(RESULTS[1:2])])[0])
    check = "What to check first"
    assert check in dict(summarise(one).columns)
    about = {"config": "VERSION: 2", "detections": ""}
    own = dataclasses.replace(one, subject=dataclasses.replace(one.subject, about=about))
    assert check not in dict(summarise(own).columns)


def test_pictures_that_cannot_be_read_are_told_once(make_dump, tmp_path, caplog, capsys):
    folder = make_dump().parent
    (folder / "images" / "one.png").unlink()
    (folder / "images" / "three.png").write_bytes(b"")
    page = write_report([folder / "dump"], tmp_path / "page.html").read_text()
    lines = (capsys.readouterr().out + caplog.text).splitlines()
    told = [line for line in lines if "cannot be read" in line]
    begins = f"2 of the 3 pictures shown cannot be read from {folder / 'images'}, the first: "
    assert len(told) == 1 and begins in told[0] and begins in page
    assert ".png: " in told[0]


def test_pictures_near_the_ground_truth_are_found(make_dump, caplog, capsys):
    """As `data check` finds them: in the folder "images" beside the json."""
    folder = make_dump().parent
    assert main([str(folder / "results.json"), "--data", str(folder / "truth.json")]) == 0
    assert (folder / "report.html").read_text().count("data:image/jpeg") == 3
    content = {
        **CONTENT,
        "images": [{**x, "file_name": f"no/{x['id']}"} for x in CONTENT["images"]],
    }
    (folder / "truth.json").write_text(json.dumps(content))
    assert main([str(folder / "results.json"), "--data", str(folder / "truth.json")]) == 0
    assert "3 of the 3 pictures shown cannot be read" in capsys.readouterr().out + caplog.text


@pytest.mark.parametrize("number", [1, 2])
def test_pictures_of_several_folders_are_counted(make_dump, tmp_path, number, caplog, capsys):
    names = ["a/one.png", "b/two.png", "b/three.png"]
    images = [{**x, "file_name": n} for x, n in zip(CONTENT["images"], names, strict=True)]
    folder = make_dump(content={**CONTENT, "images": images}, pictures=False)
    write_report([folder], tmp_path / "page.html", pictures=number)
    told = capsys.readouterr().out + caplog.text
    assert ("and 1 other folder, the first" in told) == (number == 2)


def test_another_step_is_advised_only_where_the_last_one_helped(make_dump):
    """Without the wrong detection of background, which costs 8.3 points of AP50."""
    plain, better = (
        find_subjects([make_dump(results, name="dump")])[0]
        for results in (RESULTS, [x for x in RESULTS if x["score"] != 0.7])
    )
    average = (51 * 1 + 50 * 2 / 3) / 101  # of the class that it is in, one of two
    gain = f"{100 * (1 - average) / 2:+.1f} points"
    assert gain == "+8.3 points"

    def advice(steps, num_steps=1, **about):
        about = {"num_steps": num_steps, **about}
        subject = dataclasses.replace(plain, steps=[x.data for x in steps], about=about)
        return _about_background(judge(subject))

    text = advice([plain, better])
    step = "(`MODEL.DENSE.OBJECTNESS.STEPS`; the last residual step changes AP50 by"
    assert f"by one more step {step} {gain}) or a longer training" in text
    assert "MODEL.RESOBJ_RPN.OBJECTNESS.STEPS" in advice([plain, better], sources=["rpn", "roi"])
    text = advice([better, plain])
    assert "a longer training (the last residual step changes AP50 by -8.3 points, so" in text
    assert "STEPS" not in text + advice([plain])  # nothing was measured
    assert "Residual Objectness (see" in advice([plain], num_steps=0)


def test_keys_are_those_of_the_detector(make_dump):
    one = judge(find_subjects([make_dump()])[0])
    assert "`MODEL.DENSE.BOX_LOSS.NAME GIoULoss`" in _about_loose(one)
    subject = dataclasses.replace(one.subject, about={"sources": {"rpn": 0, "roi": 1}})
    text = _about_loose(dataclasses.replace(one, subject=subject))
    assert "`MODEL.RESOBJ_ROI.BOX_LOSS.NAME GIoULoss`" in text and "MODEL.DENSE" not in text


def test_pictures_have_their_file_and_id(make_dump):
    one = judge(find_subjects([make_dump()])[0])
    shown = load_pictures([one], [0, 1], max_bytes=10**6)
    assert [picture.name for picture in shown] == ["one.png (1)", "two & <b>.png (2)"]
    assert _name("a/000012.jpg", 12) == "000012.jpg" and _name("7.jpg", 12) == "7.jpg (12)"
