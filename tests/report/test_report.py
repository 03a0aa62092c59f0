"""What a report says is what can be counted by hand, and names in it are text."""

import dataclasses
import json
import os
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from resobj_d2.analysis import thresholds
from resobj_d2.analysis.imbalance_tables import Imbalance
from resobj_d2.report import comparison_section, plots, sections
from resobj_d2.report import page as page_module
from resobj_d2.report.blocks import Table
from resobj_d2.report.command import main, write_report
from resobj_d2.report.imbalance_sections import imbalance_section
from resobj_d2.report.judge import SLIDER, judge
from resobj_d2.report.page import render
from resobj_d2.report.pictures import choose_images, load_pictures, with_boxes
from resobj_d2.report.score_sections import calibration_section, misalignment_section
from resobj_d2.report.subject import find_subjects
from resobj_d2.report.summary import _about_imbalance, _about_missed, summarise

from .conftest import CONTENT, HOSTILE, RESULTS


@pytest.fixture(scope="module")
def judgement(make_dump):
    return judge(find_subjects([make_dump(name="mine")])[0])


def at(judgement, score):
    counts = judgement.counts[-1]
    k = SLIDER.tolist().index(score)
    return int(counts.right[k]), int(counts.wrong[k])


def test_counts_by_hand(judgement):
    """Two of three objects are found; the detection in the crowd region is neither."""
    assert judgement.counts[-1].objects == 3
    assert at(judgement, 0.0) == (2, 2)
    assert at(judgement, 0.6) == (2, 1)  # a limit keeps the scores that equal it
    assert at(judgement, 0.61) == (1, 1)
    assert at(judgement, 0.91) == (0, 0)
    counts = judgement.counts[-1]
    assert judgement.best_score == 0.6 and judgement.limit.f1 == pytest.approx(4 / 6)
    assert np.isnan(counts.precision[0]) and counts.recall[40] == pytest.approx(2 / 3)


def test_the_best_limit_is_that_of_analyze_thresholds(make_dump, capsys):
    """Between two places of the slider: two of three are found at .485, with a wrong one at .48."""
    scores = (0.9, 0.4857, 0.4823, 0.481)
    results = [{**RESULTS[k], "score": s} for k, s in zip((0, 2, 4, 4), scores, strict=True)]
    folder = make_dump(results)
    one = judge(find_subjects([folder])[0])
    assert thresholds.main([str(folder)]) == 0
    rows = [
        [cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.split("\n")
    ]
    (printed,) = (row[3:7] for row in rows if row[1:2] == ["all"])
    assert printed == ["0.485", "100.0", "66.7", "80.0"]
    figures = {figure.name: figure.value for figure in summarise(one).figures}
    assert [figures[x] for x in ("best score limit", "precision there", "recall there")] == [
        "0.485", "100.0", "66.7",
    ]  # fmt: skip
    text = render([one], pictures=1)
    assert 'step="0.01" value="0.48"' in text
    assert "The slider starts at 0.48: the best score limit, 0.485, rounded down." in text
    other = dataclasses.replace(one, subject=dataclasses.replace(one.subject, name="other"))
    row = comparison_section.comparison_section([one, other]).blocks[1].rows[0]
    assert row["at score"] == "0.485" and row["precision"] == 100
    assert row["best F1"] == pytest.approx(80) and row["recall"] == pytest.approx(200 / 3)


def test_summary_names_what_costs_most(judgement):
    summary = summarise(judgement)
    figures = {figure.name: figure.value for figure in summary.figures}
    # Class 1: .9 right, .7 wrong, .6 right: precision 1 up to recall .5, then 2/3.
    average = (51 * 1 + 50 * 2 / 3) / 101
    assert figures["AP50"] == f"{100 * average / 2:.1f}"
    assert figures["best score limit"] == "0.60"
    text = {title: " ".join(items) for title, items in summary.columns}
    assert (
        "At a score of 0.60 or more, 67 % of its detections are right" in text["What it does well"]
    )
    assert "Loose boxes: 50.0 points of AP50 (1 detection " in text["What it loses most by"]
    # Areas 400 and 900 are small, 2000 is medium: the missed one.
    assert "AP is 0.0 on medium objects and" in text["What it loses most by"]
    assert "--confidence-threshold 0.60" in text["What to try"]
    # Without the wrong one of class 1 its AP is 1.
    background = 100 * (1 - average) / 2
    assert f"Detections of background: {background:.1f} points" in text["What it loses most by"]
    assert "then less background imbalance may help" in text["What to try"]
    share = f"background cost {background:.1f} of the {100 - 50 * average:.1f} points of AP50"
    assert share in _about_imbalance(judgement)


def test_dear_background_is_not_called_cheap(judgement, monkeypatch):
    """Also where three other kinds of errors are dearer."""
    for cost, cheap in ((5.0, False), (0.1, True)):
        kinds = [("Cls", 8.0, 4), ("Loc", 7.0, 4), ("Both", 6.0, 4), ("Bkg", cost, 4)]
        monkeypatch.setattr("resobj_d2.report.summary._ranked", lambda _, kinds=kinds: kinds)
        (advice,) = (
            items for title, items in summarise(judgement).columns if title == "What to try"
        )
        assert ("would win little" in " ".join(advice)) == cheap


def test_pictures_have_what_the_counts_have(make_dump):
    """A detection of the lowest score, and one just below a place of the slider."""
    results = [{**RESULTS[0], "score": 0.005}, {**RESULTS[2], "score": 0.299996}]
    one = judge(find_subjects([make_dump(results)])[0])
    plain = load_pictures([one], [0, 1], max_bytes=10**6)
    drawn, _ = with_boxes([one], [0, 1], plain, max_bytes=10**6)
    scores = [found[5] for picture in drawn for found in picture.boxes["runs"][0][-1]]
    assert scores[0] == 0.005 and 0.2999 <= scores[1] < 0.3
    assert at(one, 0.0) == (2, 0) and at(one, 0.3) == (0, 0)


def test_missed_objects_without_an_anchor_are_told(judgement):
    ious = np.array([0.9, 0.2, 0.8, np.nan])
    missed = np.array([False, True, False, False])
    last = dataclasses.replace(judgement.last, missed=missed)
    subject = dataclasses.replace(judgement.subject, anchor_ious=ious)
    known = dataclasses.replace(judgement, subject=subject, errors=[last])
    assert "1 of the 1 missed objects have no anchor" in _about_missed(known)
    subject = dataclasses.replace(subject, anchor_ious=np.full(4, 0.9))
    known = dataclasses.replace(judgement, subject=subject, errors=[last])
    assert "have a fitting anchor" in _about_missed(known)


def test_pictures_that_cost_most_come_first(judgement):
    # Picture 1 misses the only object of its class, picture 2 has no error, picture 3 a wrong one.
    assert choose_images([judgement], 2) == [0, 2]
    assert sorted(choose_images([judgement], 24)) == [0, 1, 2]
    assert choose_images([judgement], 0) == []


def test_pictures_are_scaled_until_they_fit(judgement):
    whole = load_pictures([judgement], [0, 1, 2], max_bytes=10**7)
    assert all(picture.source.startswith("data:image/jpeg;base64,") for picture in whole)
    drawn, left_out = with_boxes([judgement], [0, 1, 2], whole, max_bytes=10**6)
    boxes = drawn[1].boxes
    assert left_out == ""
    assert boxes["objects"] == [[10, 10, 30, 30, 0, 0], [40, 0, 24, 48, 0, 1]]
    right, ignored = 6, 7
    assert boxes["runs"] == [
        [[[44, 10, 10, 10, 0, 0.8, ignored, -1], [10, 10, 30, 29, 0, 0.6, right, 0]]]
    ]
    large = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), dtype=np.uint8)
    path = judgement.data.files[0]
    small = Image.open(path).copy()
    try:
        Image.fromarray(large).save(path)
        for limit in (600_000, 60_000):
            found = load_pictures([judgement], [0], max_bytes=limit)[0]
            assert 0 < len(found.source) <= limit
            assert found.width == 64  # boxes are in pixels of the dataset
    finally:
        small.save(path)


class _Text(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text, self.scripts = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def test_names_are_text_and_nothing_is_loaded(page):
    source = page.read_text(encoding="utf-8")
    assert HOSTILE not in source and "<b>.png" not in source
    parser = _Text()
    parser.feed(source)
    assert HOSTILE in "".join(parser.text)
    assert not [x for x in parser.tags if any(name.startswith("on") for name in x[1])]
    links = [a.get("src") or a.get("href") for t, a in parser.tags if t not in ("use", "a")]
    assert all(x.startswith("data:image/jpeg") for x in links if x)
    data = json.loads(re.search(r'id="data">(.*?)</script>', source, re.DOTALL)[1])
    assert data["classes"] == ["cat $x$", HOSTILE]
    ids = re.findall(r'\bid="([^"]+)"', source)
    assert len(ids) == len(set(ids))


def test_missing_pictures_and_several_runs(make_dump, tmp_path, capsys):
    first, second = make_dump(name="a"), make_dump(RESULTS[:2], name="a")
    for file in (second.parent / "images").iterdir():
        file.unlink()
    output = tmp_path / "new" / "page.html"
    assert main([str(second), str(first), "--output", str(output), "--pictures", "3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(output)
    text = output.read_text()
    assert text.count('class="none"') == 3 and "Side by side" in text
    assert f"Difference from {second.parent.name}/a in points" in text
    assert "Whether scores tell how well boxes fit" in text
    names = [f"{folder.parent.name}/a" for folder in (second, first)]
    assert all(f"<h3>{name}</h3>" in text for name in names)
    other = make_dump([], {**CONTENT, "images": CONTENT["images"][:2]}, name="b")
    with pytest.raises(ValueError, match="'b' was made on another dataset than 'a'"):
        write_report([first, other], output)


CROWD = {**CONTENT, "annotations": CONTENT["annotations"][3:]}
EMPTY = {**CONTENT, "annotations": []}
ONE_CLASS = {
    **CONTENT,
    "categories": CONTENT["categories"][:1],
    "annotations": [x for x in CONTENT["annotations"] if x["category_id"] == 1],
}


@pytest.mark.parametrize(
    "results, content, said",
    [
        ([], CONTENT, "None of its detections is right"),
        (RESULTS, CROWD, "no objects to find"),
        (RESULTS, EMPTY, "no objects to find"),
        ([x for x in RESULTS if x["category_id"] == 1], ONE_CLASS, "1 class: cat $x$"),
    ],
    ids=["no detections", "all crowd", "no objects", "one class"],
)
def test_little_data_gives_a_page_without_nan(make_dump, tmp_path, results, content, said):
    page = write_report([make_dump(results, content)], tmp_path / "page.html", pictures=1)
    text = page.read_text()
    assert said in text
    assert not re.search(r">\s*nan\b", text, re.IGNORECASE)


def test_results_of_any_toolkit_are_reported_with_their_data(make_dump, capsys):
    dump = make_dump()
    folder = dump.parent
    known = ["--data", str(folder / "truth.json"), "--images", str(folder / "images")]
    assert main([str(folder / "results.json"), *known]) == 0
    text = (folder / "report.html").read_text()
    whole = write_report([dump], folder / "dump.html").read_text()
    figures = [re.findall(r"<dd>(.*?)</dd>", x) for x in (text, whole)]
    assert figures[0] == figures[1] and text.count("data:image/jpeg") == 3
    with pytest.raises(ValueError, match="say with --data what the ground truth is"):
        main([str(folder / "results.json")])
    with pytest.raises(ValueError, match="leave out --data and --images"):
        main([str(dump), *known])


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not the folder of a run"):
        write_report([tmp_path], tmp_path / "page.html")
    with pytest.raises(FileNotFoundError, match="neither a folder of a run or dump"):
        write_report([tmp_path / "nothing"], tmp_path / "page.html")
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--pictures", "9999"])
    assert not list(tmp_path.iterdir())


def test_a_dump_of_another_data_set_is_not_reported(make_dump, tmp_path):
    folder = make_dump()  # of truth.json
    with pytest.raises(ValueError, match="is a dump of truth, not of typo"):
        find_subjects([folder], dataset="typo")
    with pytest.raises(ValueError, match="is a dump of truth, not of typo"):
        find_subjects([folder.parent], dataset="typo")
    assert find_subjects([folder.parent], dataset="truth")[0].dump is not None
    # The run was evaluated on another dataset before the dump was made.
    run = tmp_path / "run"
    shutil.copytree(folder, run / "dump")
    (run / "inference/other").mkdir(parents=True)
    results = run / "inference/other/coco_instances_results.json"
    results.write_text("[]")
    os.utime(results, (0, 0))
    (run / "config.yaml").write_text("VERSION: 2")
    assert find_subjects([run])[0].dump is not None
    with pytest.raises(ValueError, match="run has results on other: choose one with --dataset"):
        find_subjects([run], dataset="typo")


def test_a_dump_is_outdated_by_other_detections_not_by_a_copy(make_dump, tmp_path, capsys):
    run, folder = tmp_path / "run", make_dump()
    shutil.copytree(folder, run / "dump")
    results = run / "inference" / "truth" / "coco_instances_results.json"
    results.parent.mkdir(parents=True)
    shutil.copy(folder.parent / "results.json", results)
    os.utime(run / "dump" / "about.json", (0, 0))
    assert find_subjects([run])[0].dump is not None
    assert "warning" not in capsys.readouterr().out
    for other in (RESULTS[:-1], [{**RESULTS[0], "score": 0.4}, *RESULTS[1:]]):
        results.write_text(json.dumps(other))
        with pytest.raises(FileNotFoundError, match="no config.yaml"):  # it is the evaluation's
            find_subjects([run])
        told = f"warning: {run / 'dump'} has other detections than the last evaluation"
        assert told in capsys.readouterr().out


def test_plots_follow_the_page_and_do_not_read_formulas():
    series = {"a $x$": ([0.0, 1.0], [0.0, 1.0]), "b": ([0.0], [0.5])}
    first = plots.curves(series, x_label="x", y_label="y", marks={"b": (0.0, 0.5)})
    second = plots.curves(series, x_label="x", y_label="y")
    assert "a $x$" in first and "var(--series-1)" in first and "#0a0b" not in first
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', first))
    assert used and used <= ids[0]
    bars = plots.bars({"run": {"a": 1.5, "b": None}}, label="AP")
    assert ">1.5<" in bars and ">-<" in bars


@pytest.mark.parametrize("name", [r"a$\x$b", "_hidden", "$", r"\$x$"])
def test_any_name_can_be_plotted(name):
    points = ([0.0, 1.0], [0.0, 1.0])
    drawn = [
        plots.bars({name: {name: 1.0}, "c": {name: 2.0}}, label=name),
        plots.curves({name: points, "c": points}, x_label=name, y_label=name),
        plots.intervals({name: (1.0, 0.5, [1.0])}, label=name),
        plots.lines({name: {name: points, "c": points}}, x_label=name),
    ]
    # Of bars the series, the group and the axis; of the others as many, without a group.
    assert [svg.count(f">{name}<") + svg.count(f"> {name}<") for svg in drawn] == [3, 3, 2, 3]


def test_what_is_unknown_is_not_denied():
    """Nothing of a class is there to find: of its errors nobody knows."""
    unknown = [{"method": "b", "figure": "AP", "difference": None, "low": None, "high": None,
                "beyond chance": value} for value in (None, True, False)]  # fmt: skip
    found = SimpleNamespace(difference_table=lambda: unknown, error_table=lambda: [])
    table = comparison_section._table(found, "a")
    assert [row[-1] for row in table.cells] == ["-", "yes", "no"]


def test_a_border_of_an_interval_has_a_digit_that_is_not_0():
    shown = [comparison_section._border(x) for x in (-2.27, 0.04, -0.012, 0.0)]
    assert shown == ["-2.3", "+0.04", "-0.01", "+0.00"]


def repeated(rows, times):
    """Rows of a COCO json for so many copies of the images."""
    ids = ("id", "image_id")
    return [
        {key: value + 10 * copy if key in ids else value for key, value in row.items()}
        for copy in range(times)
        for row in rows
    ]


def test_two_runs_are_compared_in_words(make_dump):
    """The second lacks the detections of background, and the loose ones."""
    whole = {k: v if k == "categories" else repeated(v, 5) for k, v in CONTENT.items()}
    better = [x for x in RESULTS if x["score"] not in (0.7, 0.5)]
    folders = [
        make_dump(repeated(results, 5), whole, name=name, pictures=False)
        for results, name in ((RESULTS, "first"), (better, "second"))
    ]
    judgements = [judge(one) for one in find_subjects(folders)]
    text = comparison_section.comparison_section(judgements).blocks[0].text
    averages = [one.average() for one in judgements]
    costs = [{row["error"]: row["dAP"] for row in one.last.table()}["Loc"] for one in judgements]
    difference = averages[1] - averages[0]
    assert text.startswith(
        f"second has an AP of {averages[1]:.1f}, first one of {averages[0]:.1f}: a difference of "
        f"{difference:+.1f} points ("
    )
    (change,) = (b.groups("class")["cat $x$"] - a.groups("class")["cat $x$"]
                 for a, b in [judgements])  # fmt: skip
    assert f"; of the classes it is largest for cat $x$, {change:+.1f}. In points of AP50" in text
    assert f"loose boxes {costs[1] - costs[0]:+.1f}" in text
    # Of three objects both find two; of the first one's four detections that count two are right.
    assert text.endswith(
        "At its best score limit it has a precision of 100.0 % and a recall of 66.7 %; first has a "
        "precision of 66.7 % and a recall of 66.7 %."
    )


def test_of_few_images_no_chance_is_told(make_dump):
    """Drawing three images anew says nothing about others."""
    folders = [make_dump(name="first"), make_dump(RESULTS[:1], name="second")]
    judgements = [judge(one) for one in find_subjects(folders)]
    text, table = comparison_section.comparison_section(judgements).blocks[::2]
    assert "a difference of -" in text.text
    assert "chance" not in text.text and "largest for" not in text.text
    assert {row["beyond chance"] for row in table.rows} == {None}


def test_a_class_may_be_called_background(make_dump):
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "background"}]
    # A cat where the other class is, and a cat on nothing.
    results = [
        {"image_id": 1, "category_id": 1, "bbox": [36, 20, 20, 20], "score": 0.9},
        {"image_id": 3, "category_id": 1, "bbox": [5, 5, 20, 20], "score": 0.8},
        {"image_id": 2, "category_id": 1, "bbox": [10, 10, 30, 30], "score": 0.6},
    ]
    one = judge(find_subjects([make_dump(results, {**CONTENT, "categories": categories})])[0])
    tables = [block for block in sections._errors([one]).blocks if isinstance(block, Table)]
    assert tables[-1].caption.startswith("What is taken for what")
    assert tables[-1].cells == [["background", "cat", "1"]]


def crowded(make_dump, folder, *, images, objects, wrong):
    """A dump of pictures with many objects, each found, and many wrong detections."""
    boxes = [[2 * k % 50, 3 * k % 37, 10, 10] for k in range(objects)]
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in range(images)
        ],
        "categories": CONTENT["categories"],
        "annotations": [
            {"id": i * objects + k + 1, "image_id": i, "category_id": 1, "bbox": box, "area": 100}
            for i in range(images)
            for k, box in enumerate(boxes)
        ],
    }
    results = [
        {"image_id": i, "category_id": 1 + (k >= objects), "bbox": box, "score": 0.9 - k * 1e-4}
        for i in range(images)
        for k, box in enumerate(boxes + [[0.3, 0.7, 50.1, 40.9]] * wrong)
    ]
    return make_dump(results, content)


def test_boxes_that_do_not_fit_are_left_out_and_told(make_dump, tmp_path):
    """The right ones stay longest: else their objects would seem to be missed."""
    folder = crowded(make_dump, tmp_path, images=2, objects=30, wrong=150)
    judgements = [judge(find_subjects([folder])[0])]
    plain = load_pictures(judgements, [0, 1], max_bytes=10**7)
    drawn, text = with_boxes(judgements, [0, 1], plain, max_bytes=10**6)
    (found,), objects = drawn[0].boxes["runs"][0], drawn[0].boxes["objects"]
    assert len(objects) == 30 and sum(x[-1] >= 0 for x in found) == 30
    assert len(found) == 130 and text.startswith("Not drawn, for the size of this file: 100 boxes")
    small, text = with_boxes(judgements, [0, 1], plain, max_bytes=2000)
    assert sum(len(json.dumps(x.boxes, separators=(",", ":"))) for x in small) <= 2000
    (found,), objects = small[0].boxes["runs"][0], small[0].boxes["objects"]
    assert sorted(x[-1] for x in found if x[-1] >= 0) == list(range(len(objects)))
    assert f"first {len(objects)} objects" in text


def test_the_page_stays_small_whatever_the_run(make_dump, tmp_path, monkeypatch):
    """A limit that these pictures and boxes exceed, in place of 15 MB and thousands of them."""
    monkeypatch.setattr(page_module, "sections_of", lambda judgements: [])
    folder = crowded(make_dump, tmp_path, images=8, objects=100, wrong=60)
    judgements = [judge(one) for one in find_subjects([folder])]
    whole, rest = render(judgements), len(render(judgements, pictures=0).encode())
    assert "did not fit" not in whole
    monkeypatch.setattr(page_module, "_RESERVE", 20_000)
    for more, said in ((60_000, "Not drawn, for the size of this file"), (27_000, "did not fit")):
        monkeypatch.setattr(page_module, "_MOST_BYTES", rest + more)
        text = render(judgements)
        assert len(text.encode()) <= rest + more < len(whole.encode())
        assert said in text
    monkeypatch.setattr(page_module, "_MOST_BYTES", 10**4)
    with pytest.raises(ValueError, match="does not fit into 0 MB: report fewer runs at a time"):
        render(judgements)


def test_many_curves_of_a_training_have_fewer_points(judgement, tmp_path, monkeypatch):
    line = {f"loss_{k}": 1 / 3 for k in range(60)}
    lines = [json.dumps({"iteration": i, "total_loss": float(i), **line}) for i in range(500)]
    (tmp_path / "metrics.json").write_text("\n".join(lines))
    subject = dataclasses.replace(judgement.subject, folder=tmp_path)
    drawn = {}
    monkeypatch.setattr(plots, "curves", lambda series, **_: drawn.update(series) or "")
    blocks = sections._training([dataclasses.replace(judgement, subject=subject)]).blocks
    # 61 curves share 20,000 points: means of two.
    assert len(drawn) == 61 and len(blocks) == 3
    x, y = drawn["total_loss"]
    assert len(x) == 250 and (x[0], y[0]) == (1, 0.5)
    assert "A curve has 327 points at most" in blocks[-1].text


def test_runs_that_a_section_lacks_are_named(judgement, tmp_path):
    line = json.dumps({"iteration": 9, "total_loss": 1.0})
    (tmp_path / "metrics.json").write_text(line)
    trained = dataclasses.replace(
        judgement,
        subject=dataclasses.replace(judgement.subject, name="trained", folder=tmp_path, dump=None),
    )
    note = sections._training([judgement, trained]).blocks[-1]
    assert note.text.startswith("Not shown of mine: there is no metrics.json")
    note = misalignment_section([judgement, trained]).blocks[-1]
    assert note.text.startswith("Not shown of trained: there is no dump")
    data = judgement.data
    found = dataclasses.replace(data.detections, scores=data.detections.scores * 10)
    logits = dataclasses.replace(data, name="logits", detections=found)
    subject = dataclasses.replace(judgement.subject, name="logits", steps=[logits])
    other = dataclasses.replace(judgement, subject=subject)
    note = calibration_section([judgement, other]).blocks[-1]
    assert note.text == "Not shown of logits: there are no scores between 0 and 1."
    assert not sections._training([judgement]).blocks  # no section, no line


def test_precision_is_in_percent_in_table_and_plot(judgement):
    plot, table = calibration_section([judgement]).blocks[:2]
    (row,) = table.rows
    assert row["precision"] == 100 * 2 / 4 and 0 < row["mean score"] < 1
    assert ">40 %<" in plot.svg and ">0.4<" in plot.svg


def test_tables_show_what_does_not_exist_as_a_dash():
    table = Table(rows=[{"n": 1, "x": float("nan")}, {"n": 2, "x": 0.25}], caption="", limit=1)
    assert table.cells == [["1", "-"]] and table.numeric == [True, True]
    assert table.more == "... and 1 more"


def test_the_imbalance_of_a_run_is_shown_and_other_files_are_told(judgement, tmp_path):
    subject = dataclasses.replace(judgement.subject, folder=tmp_path)
    judgement = dataclasses.replace(judgement, subject=subject)
    assert imbalance_section([judgement]).blocks == []  # it was not measured
    whole = Imbalance(
        images=2,
        levels={("anchors", 0, 0): np.array([4, 400, 6])},
        shares={("anchors", "loss_cls"): np.array([[4, 1.0, 2.0], [6, 1.0, 1.0], [10, 2.0, 1.0]])},
    )
    tables = {"levels": whole.level_table(), "shares": whole.share_table()}
    file = tmp_path / "imbalance.json"
    file.write_text(json.dumps(tables))
    plot, shares, levels = imbalance_section([judgement]).blocks
    assert "loss_cls (anchors)" in plot.svg and ">50.0<" in plot.svg and ">25.0<" in plot.svg
    assert shares.cells[2] == ["anchors", "loss_cls", "easy negatives", "5.0", "50.0", "25.0"]
    assert levels.cells[0] == ["anchors", "0", "-1", "2.0", "200.0", "3.0", "100.0"]
    for wrong in ("[", "[]", '{"levels": [], "shares": [{"a": 1}]}'):
        file.write_text(wrong)
        with pytest.raises(ValueError, match="imbalance.json is not what"):
            imbalance_section([judgement])
