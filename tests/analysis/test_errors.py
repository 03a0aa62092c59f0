"""Errors by kind, against loops over boxes, COCO's own numbers, the paper's tool, and by hand."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from resobj_d2.analysis.confusions import confusion_matrix, confusion_table
from resobj_d2.analysis.dump import dump_detections
from resobj_d2.analysis.errors import KINDS, analyze_errors, main
from resobj_d2.analysis.evaluation_set import EvaluationSet
from resobj_d2.analysis.matching import match, overlapping_pairs
from resobj_d2.analysis.precision import IOU_THRESHOLDS, mean_precision, precision_by_threshold
from resobj_d2.analysis.source import RESULTS
from tests.analysis import plain_loops

BOX = [100, 100, 100, 100]
FAR = [300, 300, 50, 50]


def gains(data):
    return {row["error"]: row for row in analyze_errors(data).table()}


@pytest.mark.parametrize("seed", range(6))
def test_matches_and_precision_equal_plain_loops(seed):
    data = plain_loops.random_set(seed)
    pairs = overlapping_pairs(data, 0.5)
    for threshold in (0.5, 0.65, 0.9):
        matches = match(data, pairs, threshold)
        expected = np.full(len(data.detections), -1)
        for _, found in plain_loops.match(data, threshold):
            for x in found:
                expected[x["row"]] = -1 if x["object"] is None else x["object"]["row"]
        assert matches.objects.tolist() == expected.tolist()
        values = precision_by_threshold(data, thresholds=(threshold,))[0]
        expected = [np.nan if ap is None else ap for ap in plain_loops.precisions(data, threshold)]
        assert values == pytest.approx(expected, nan_ok=True)
    assert (matches.objects >= 0).any() and matches.ignored.any()


@pytest.mark.parametrize("seed", range(6))
def test_errors_equal_plain_loops(seed):
    data = plain_loops.random_set(seed, images=20)
    analysis = analyze_errors(data)
    counts, aps = plain_loops.errors(data)
    assert {row["error"]: row["count"] for row in analysis.table()} == counts
    assert all(counts.values()), "the example has every kind of error"
    for kind, after in {"base": analysis.precision, **analysis.fixed}.items():
        expected = [np.nan if ap is None else ap for ap in aps[kind]]
        assert after == pytest.approx(expected, nan_ok=True), kind


@pytest.mark.parametrize("seed", range(4))
def test_confusions_equal_plain_loops(seed):
    data = plain_loops.random_set(seed, images=20)
    counts = confusion_matrix(data, confidence=0.2)
    assert counts.tolist() == plain_loops.confusions(data, 0.2, 0.5).tolist()
    assert np.tril(counts[:-1, :-1], -1).sum() + np.triu(counts[:-1, :-1], 1).sum()
    assert counts[0, -1] and counts[-1, 0]


def test_precision_equals_cocos_on_real_data(real, coco_example):
    expected = json.loads((coco_example / "expected_stats.json").read_text())["bbox"]
    values = precision_by_threshold(real)
    assert mean_precision(values) == pytest.approx(100 * expected[0], abs=1e-6)
    assert mean_precision(values[0]) == pytest.approx(100 * expected[1], abs=1e-6)
    assert mean_precision(values[5]) == pytest.approx(100 * expected[2], abs=1e-6)
    assert len(values) == len(IOU_THRESHOLDS)


def test_errors_equal_plain_loops_on_real_data(real):
    analysis = analyze_errors(real)
    counts, aps = plain_loops.errors(real)
    assert {row["error"]: row["count"] for row in analysis.table()} == counts
    for kind, after in analysis.fixed.items():
        expected = [np.nan if ap is None else ap for ap in aps[kind]]
        assert after == pytest.approx(expected, nan_ok=True), kind


@pytest.mark.parametrize(
    "kind, detection",
    [
        ("Cls", (0, 1, BOX, 0.8)),
        ("Loc", (0, 0, [100, 100, 100, 40], 0.8)),
        ("Both", (0, 1, [100, 100, 100, 40], 0.8)),
        ("Bkg", (0, 0, FAR, 0.8)),
    ],
)
def test_one_error_by_hand(kind, detection):
    """A wrong detection before the right one of another object: precision 1/2 at all recalls."""
    objects = [(0, 0, BOX), (1, 0, BOX)]
    data = plain_loops.evaluation_set(objects, [detection, (1, 0, BOX, 0.5)], classes=2)
    rows = gains(data)
    assert {name for name in KINDS if rows[name]["count"]} == {kind} | (
        {"Miss"} if kind in ("Both", "Bkg") else set()
    )
    # Class a: recall 1/2 is reached, at precision 1/2 or, where b is claimed, 1: 51 of 101 levels.
    base = 51 / 101 * (1 if detection[1] else 0.5)
    after = {"Cls": 1, "Loc": 1, "Both": base, "Bkg": 51 / 101}[kind]
    assert rows[kind]["dAP"] == pytest.approx(100 * (after - base))
    assert rows["FP"]["count"] == 1 and rows["FN"]["count"] == 1


def test_duplicates_by_hand():
    """Two right, but a duplicate between them: precision 1 up to recall 1/2, then 2/3."""
    objects = [(0, 0, BOX), (1, 0, BOX)]
    found = [(0, 0, BOX, 0.9), (0, 0, [100, 100, 100, 90], 0.8), (1, 0, BOX, 0.7)]
    rows = gains(plain_loops.evaluation_set(objects, found))
    assert rows["Dupe"]["count"] == 1 and rows["FP"]["count"] == 1
    assert rows["Dupe"]["dAP"] == pytest.approx(100 * (1 - (51 + 50 * 2 / 3) / 101))
    assert rows["FN"]["count"] == 0 and rows["FN"]["dAP"] == 0


def test_one_object_is_saved_once_and_by_the_best():
    objects = [(0, 0, BOX)]
    loose = [100, 100, 100, 40]
    rows = gains(plain_loops.evaluation_set(objects, [(0, 0, loose, 0.4), (0, 0, loose, 0.9)]))
    assert rows["Loc"]["count"] == 2 and rows["Miss"]["count"] == 0
    assert rows["Loc"]["dAP"] == pytest.approx(100)  # the second one vanishes


def test_what_lies_on_crowds_and_difficult_objects_is_no_error():
    objects = [(0, 0, BOX, "crowd"), (0, 0, FAR, "difficult"), (0, 0, [0, 0, 50, 50])]
    found = [
        (0, 0, [110, 110, 20, 20], 0.9), (0, 0, [150, 150, 20, 20], 0.8), (0, 0, FAR, 0.7),
        (0, 0, FAR, 0.6),
    ]  # fmt: skip
    rows = gains(plain_loops.evaluation_set(objects, found))
    # The difficult object takes one detection; the second is on nothing that counts.
    assert {name: row["count"] for name, row in rows.items() if row["count"]} == {
        "Bkg": 1, "Miss": 1, "FP": 1, "FN": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    "objects, found",
    [
        ([], []),
        ([], [(0, 0, BOX, 0.5)]),
        ([(0, 0, BOX)], []),
        ([(0, 0, BOX, "crowd")], [(0, 0, BOX, 0.5), (0, 1, BOX, 0.5)]),
        ([(0, 0, BOX, "difficult"), (1, 1, BOX, "crowd")], []),
    ],
)
def test_nothing_to_judge_is_a_result(objects, found):
    data = plain_loops.evaluation_set(objects, found)
    analysis = analyze_errors(data)
    tables = [analysis.table(), analysis.class_table(), confusion_table(data)]
    text = json.dumps([*tables, analysis.count_table()], allow_nan=False)
    assert "NaN" not in text
    expected = 0.0 if any(len(o) == 3 for o in objects) else None
    assert mean_precision(analysis.precision) == expected
    # What is there to find is all missed, and nothing else is wrong.
    lost = {"Miss": 100.0, "FN": 100.0} if expected == 0 else {}
    assert {row["error"]: row["dAP"] for row in tables[0]} == {
        row["error"]: lost.get(row["error"], expected) for row in tables[0]
    }


def test_one_class():
    data = plain_loops.evaluation_set([(0, 0, BOX)], [(0, 0, BOX, 0.1)], classes=1)
    assert mean_precision(analyze_errors(data).precision) == pytest.approx(100)
    assert confusion_table(data, confidence=0.1) == [{"object": "a", "detection": "a", "count": 1}]
    assert confusion_table(data, confidence=0.2)[0]["detection"] == "background"


def test_impossible_thresholds_are_refused():
    data = plain_loops.evaluation_set([], [])
    for threshold, background in ((0.1, 0.1), (1.1, 0.1), (0.5, 0.0)):
        with pytest.raises(ValueError, match="IoU for background must be above 0"):
            analyze_errors(data, threshold=threshold, background=background)


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"image_id": 9}, "x has image_id 9, which dataset 'the dataset' .* does not have"),
        ({"category_id": 3}, "x has category_id 3, which"),
        ({"score": float("nan")}, "x: detection 0 .* a score of NaN"),
        ({"bbox": [1, 2, 3]}, "x: detection 0: "),
        ({"bbox": ["1", 2, 3, 4]}, "x: detection 0: "),
        ({"image_id": [1]}, "x: detection 0: "),
        ({"bbox": [1, 2, -3, 4]}, "x: detection 0 .* negative size"),
    ],
)
def test_results_that_cannot_be_judged_are_refused(entry, message, tmp_path):
    result = {"image_id": 0, "category_id": 10, "bbox": BOX, "score": 0.5, **entry}
    record = plain_loops.record([(0, 0, BOX)])
    with pytest.raises(ValueError, match=message):
        EvaluationSet.of(record, [result], name="x")


@pytest.fixture
def files(tmp_path):
    """A results json and its ground truth."""
    data = [(0, 0, BOX), (0, 1, FAR), (1, 0, BOX)]
    truth = plain_loops.content(data)
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    results = plain_loops.results([(0, 0, BOX, 0.9), (1, 1, BOX, 0.8)])
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_command(files, capsys):
    output = files / "errors.json"
    arguments = [str(files / "results.json"), "--data", str(files / "truth.json")]
    assert main([*arguments, "--json", str(output)]) == 0
    printed = capsys.readouterr().out
    # Class a has one of two objects, b none: (51 / 101 + 0) / 2.
    assert "results: 3 objects and 2 detections on 2 images; AP at IoU 0.5: 25.2" in printed
    assert "| Cls     |       1 |" in printed
    assert "| a          | b" in printed.replace("| a        |", "| a          |")
    tables = json.loads(output.read_text())
    assert tables["AP"] == pytest.approx(100 * 51 / 202)
    assert [row["class"] for row in tables["classes"]] == ["a", "b"]


@pytest.fixture
def run(files, clean_catalogs):
    """The folder of a run that was evaluated on two datasets."""
    entries = [
        {"name": name, "json": str(files / "truth.json"), "images": str(files)}
        for name in ("first_val", "second_val")
    ]
    for number in range(2):
        Image.new("RGB", (400, 400)).save(files / f"{number}.png")
    folder = files / "run"
    for name in ("first_val", "second_val"):
        (folder / "inference" / name).mkdir(parents=True)
    results = (files / "results.json").read_text()
    (folder / "inference" / "first_val" / RESULTS).write_text(results)
    (folder / "inference" / "second_val" / RESULTS).write_text("[]")
    model = {"META_ARCHITECTURE": "ResObjDenseDetector", "DENSE": {"NUM_CLASSES": 2}}
    datasets = {"REGISTER": entries, "TRAIN": [], "TEST": ["first_val", "second_val"]}
    content = {"VERSION": 2, "MODEL": model, "DATASETS": datasets}
    (folder / "config.yaml").write_text(json.dumps(content))
    return folder


def test_command_on_a_runs_folder(run, capsys):
    assert main([str(run), "--dataset", "first_val"]) == 0
    assert "run: 3 objects and 2 detections on 2 images" in capsys.readouterr().out
    assert main([str(run), "--dataset", "second_val"]) == 0
    assert "run: 3 objects and 0 detections on 2 images" in capsys.readouterr().out
    with pytest.raises(ValueError, match="results on first_val, second_val: choose one with"):
        main([str(run)])


def test_of_a_run_the_analysed_dataset_alone_has_to_be_there(run, files, clean_catalogs, capsys):
    config = json.loads((run / "config.yaml").read_text())
    first, second = config["DATASETS"]["REGISTER"]
    gone = {**second, "json": str(files / "gone.json")}
    entries = [{**first, "name": "third_val"}, gone, {**gone, "name": "third_train"}]
    config["DATASETS"].update(
        REGISTER=entries, TRAIN=["third_train"], TEST=["third_val", gone["name"]]
    )
    (run / "config.yaml").write_text(json.dumps(config))
    (run / "inference" / "first_val").rename(run / "inference" / "third_val")
    assert main([str(run), "--dataset", "third_val"]) == 0
    assert "run: 3 objects and 2 detections on 2 images" in capsys.readouterr().out


def test_a_dump_gives_the_same(files, run, capsys):
    dump_detections(
        plain_loops.record([(0, 0, BOX), (0, 1, FAR), (1, 0, BOX)]),
        files / "results.json",
        files / "made",
    )
    main([str(files / "made")])
    from_dump = capsys.readouterr().out
    main([str(run), "--dataset", "first_val"])
    assert from_dump.replace("made", "run") == capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        (["--data", "truth.json"], "a dump, which has its own ground truth: leave out --data"),
        (["--images", "."], "a dump, which has its own ground truth: leave out --data"),
        (["--dataset", "typo"], "is a dump of .+, not of typo"),
    ],
)
def test_options_that_a_dump_has_no_use_for_are_refused(
    files, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(files)
    truth = plain_loops.record([(0, 0, BOX), (0, 1, FAR), (1, 0, BOX)])
    dump_detections(truth, files / "results.json", tmp_path / "made")
    dataset = json.loads((tmp_path / "made/about.json").read_text())["dataset"]
    with pytest.raises(ValueError, match=message):
        main([str(tmp_path / "made"), *options])
    assert main([str(tmp_path / "made"), "--dataset", dataset]) == 0


def test_options_that_choose_nothing_are_refused(files, run):
    results, truth = str(files / "results.json"), str(files / "truth.json")
    with pytest.raises(ValueError, match="is one dataset: leave out --dataset"):
        main([results, "--data", truth, "--dataset", "first_val"])
    with pytest.raises(ValueError, match="--images goes with --data"):
        main([str(run), "--dataset", "first_val", "--images", "."])


def test_a_run_whose_config_cannot_be_used_takes_other_data(run, files, capsys):
    (run / "config.yaml").write_text('{"VERSION": 2, "MODEL": {"DENSE": {"NO_SUCH_KEY": 1}}}')
    with pytest.raises(ValueError, match="NO_SUCH_KEY.* --data says where the ground truth is"):
        main([str(run), "--dataset", "first_val"])
    assert main([str(run), "--dataset", "first_val", "--data", str(files / "truth.json")]) == 0
    assert "3 objects and 2 detections" in capsys.readouterr().out


def test_a_class_may_be_called_background():
    data = plain_loops.evaluation_set([(0, 1, BOX)], [(0, 0, BOX, 0.9), (0, 0, FAR, 0.8)])
    data = dataclasses.replace(data, class_names=["cat", "background"])
    counts = {(row["object"], row["detection"]): row["count"] for row in confusion_table(data)}
    assert counts == {("background", "cat"): 1, ("(background)", "cat"): 1}


def test_a_run_that_was_not_evaluated_is_told_how(run):
    for file in run.rglob(RESULTS):
        file.unlink()
    with pytest.raises(
        FileNotFoundError, match="has no results: evaluate it first, with resobj-d2"
    ):
        main([str(run)])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["results.json"], "say with --data what the ground truth is"),
        (["nothing.json"], "is neither a folder of a run or dump nor a results json"),
        (["truth.json", "--data", "truth.json"], "holds no list: a COCO results json is a list"),
        (["."], "is not the folder of a run: it has no config.yaml"),
        (["results.json", "--data", "results.json"], "Is it a results file?"),
    ],
)
def test_wrong_sources_are_refused(files, monkeypatch, arguments, message):
    monkeypatch.chdir(files)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(arguments)


@pytest.mark.parametrize("seed", range(3))
def test_errors_equal_those_of_the_papers_tool(seed):
    """tidecv differs for ignored regions, equal scores, and classes without objects.

    And for classes of whose objects none is left, which stay at 0 there, and where both a Cls and a
    Loc error are about the same object: there it repairs the one with the higher score alone, even
    if just the other kind is corrected.
    """
    tidecv = pytest.importorskip("tidecv")
    data = plain_loops.random_set(seed, images=20, crowd=False, ties=False)
    expected_truth, expected_found = tidecv.Data("truth"), tidecv.Data("found")
    for row in range(len(data.image_ids)):  # otherwise images without objects do not count
        expected_truth.add_image(row, str(row))
    g, d = data.objects, data.detections
    for image, label, box in zip(g.images, g.classes, g.boxes, strict=True):
        expected_truth.add_ground_truth(int(image), int(label), box.tolist())
    for image, label, box, score in zip(d.images, d.classes, d.boxes, d.scores, strict=True):
        expected_found.add_detection(int(image), int(label), float(score), box.tolist())
    run = tidecv.TIDE().evaluate(expected_truth, expected_found, mode=tidecv.TIDE.BOX)
    counts = {kind.short_name: count for kind, count in run.count_errors().items()}
    analysis = analyze_errors(data)
    rows = {row["error"]: row for row in analysis.table()}
    assert counts == {kind: rows[kind]["count"] for kind in KINDS}
    with_objects = [k for k in range(data.num_classes) if data.positives()[k]]
    about = [analysis.targets[analysis.kinds == KINDS.index(kind)] for kind in ("Cls", "Loc")]
    contested = data.objects.classes[np.intersect1d(*about)]
    for kind, after in analysis.fixed.items():
        if kind in ("FP", "FN"):
            continue
        error = next(e for e in run.error_dict if e.short_name == kind)
        fixed = run.fix_errors(lambda e, error=error: isinstance(e, error))
        for k in with_objects:
            theirs = fixed.objs[k].get_ap()
            if kind in ("Cls", "Loc") and k in contested:
                assert 100 * after[k] > theirs - 1e-9
            elif kind == "Miss" and analysis.missed[data.objects.classes == k].all():
                assert (after[k], theirs) == (1, 0)
            else:
                assert 100 * after[k] == pytest.approx(theirs), (kind, k)
