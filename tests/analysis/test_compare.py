"""Comparisons: resampled figures against an evaluation of repeated images, and by hand."""

import dataclasses
import json

import numpy as np
import pytest

from resobj_d2.analysis.bootstrap import ResampledErrors, ResampledPrecision
from resobj_d2.analysis.compare import CHANCE, Method, compare, main
from resobj_d2.analysis.precision import IOU_THRESHOLDS
from tests.analysis import plain_loops

BOX, FAR = [100, 100, 100, 100], [300, 300, 50, 50]


def repeated(data, weights):
    """The set with each image as often as its weight says."""
    copies = [row for row, count in enumerate(weights) for _ in range(int(count))]

    def table(old):
        parts = []
        for new, row in enumerate(copies):
            rows = np.flatnonzero(old.images == row)
            parts.append(dataclasses.replace(old.take(rows), images=np.full(len(rows), new)))
        columns = {
            f.name: np.concatenate([getattr(part, f.name) for part in parts])
            for f in dataclasses.fields(old)
        }
        return type(old)(**columns)

    return dataclasses.replace(
        data,
        image_ids=list(range(len(copies))),
        objects=table(data.objects),
        detections=table(data.detections),
    )


def mean(values):
    values = [v for v in values if v is not None and not np.isnan(v)]
    return np.mean(values) if values else np.nan


@pytest.mark.parametrize("seed", range(2))
def test_weights_equal_repeated_images(seed):
    data = plain_loops.random_set(seed, ties=False)
    random = np.random.default_rng(seed)
    resampled, errors = ResampledPrecision(data), ResampledErrors(data)
    for weights in (np.ones(12), random.integers(0, 4, 12).astype(float)):
        copies = repeated(data, weights)
        values = resampled(weights)
        for t in (0, 4, 9):
            expected = plain_loops.precisions(copies, IOU_THRESHOLDS[t])
            expected = [np.nan if ap is None else ap for ap in expected]
            assert values[t] == pytest.approx(expected, nan_ok=True)
        _, aps = plain_loops.errors(copies)
        gains = [mean(aps[kind]) - mean(aps["base"]) for kind in errors.kinds]
        assert errors(weights) == pytest.approx(gains)
        assert np.count_nonzero(gains) > 5
    assert np.isnan(resampled(np.zeros(12))).all() and np.isnan(errors(np.zeros(12))).all()


def method(name, *found, objects, **more):
    return Method(name=name, runs=[plain_loops.evaluation_set(objects, f, **more) for f in found])


OBJECTS = [(i, 0, BOX) for i in range(6)]
ALL = [(i, 0, BOX, 0.9 - i / 10) for i in range(6)]


def test_intervals_equal_those_of_repeated_images():
    objects = [*OBJECTS, (0, 1, FAR), (3, 1, FAR)]
    worse = [(0, 0, FAR, 0.95), *ALL[:4], (5, 1, BOX, 0.42), (0, 1, FAR, 0.3)]
    methods = [
        method("a", worse, objects=objects), method("b", [*ALL, (3, 1, FAR, 0.2)], objects=objects)
    ]  # fmt: skip
    found = compare(methods, samples=25, coverage=0.8, seed=3)
    random = np.random.default_rng(3)
    differences = []
    for _ in range(25):
        weights = np.bincount(random.integers(0, 6, 6), minlength=6)
        aps = []
        for m in methods:
            aps.append(mean(plain_loops.precisions(repeated(m.runs[0], weights), 0.5)))
        differences.append(100 * (aps[1] - aps[0]))
    row = next(r for r in found.difference_table() if r["figure"] == "AP50")
    assert [row["low"], row["high"]] == pytest.approx(np.percentile(differences, [10, 90]).tolist())
    assert row["higher"] == pytest.approx(100 * np.mean(np.array(differences) > 0))
    whole = [mean(plain_loops.precisions(m.runs[0], 0.5)) for m in methods]
    assert row["difference"] == pytest.approx(100 * (whole[1] - whole[0]))
    assert len(set(np.round(differences, 6))) > 10


def test_equal_runs_and_opposite_ones():
    equal = compare([method(n, ALL, objects=OBJECTS) for n in "ab"], samples=20)
    for row in equal.difference_table():
        assert [row[k] for k in ("difference", "low", "high", "higher")] == [0, 0, 0, 0]
        assert row["beyond chance"] is False
    opposite = compare(
        [method("a", [], objects=OBJECTS), method("b", ALL, objects=OBJECTS)], samples=20
    )
    for row in opposite.difference_table():
        assert [row[k] for k in ("difference", "low", "high")] == pytest.approx([100] * 3)
        assert row["beyond chance"] is True and row["method"] == "b"
    kinds = {row["error"]: row for row in opposite.error_table()}
    assert kinds["Bkg"]["difference"] == 0
    assert [row["class"] for row in opposite.class_table()] == ["a", "b"]
    assert opposite.class_table()[1]["difference"] is None  # no objects


@pytest.mark.parametrize("border, certain", [(-0.004, False), (-0.006, True)])
def test_an_interval_that_is_printed_with_0_does_not_leave_it_out(border, certain):
    data = plain_loops.random_set(0, images=8)
    methods = [Method(name="a", runs=[data]), Method(name="b", runs=[data])]
    found = compare(methods, samples=10)
    sampled = np.stack(
        [np.zeros_like(found.sampled_figures[0]), np.full_like(found.sampled_figures[0], border)]
    )
    rows = dataclasses.replace(found, sampled_figures=sampled).difference_table()
    assert [row["beyond chance"] for row in rows] == [certain] * 3
    assert all(row["high"] == pytest.approx(border) for row in rows)


def test_seeds_have_a_mean_and_a_spread():
    half = ALL[:3]  # recall 1/2: 51 of 101 levels
    seeds = method("b", ALL, half, objects=OBJECTS)
    found = compare([method("a", half, objects=OBJECTS), seeds], samples=40)
    first, second = found.run_table()
    assert first["runs"] == 1 and first["AP"] == pytest.approx(5100 / 101)
    assert first["AP spread"] is None
    values = [100, 5100 / 101]
    assert second["AP"] == pytest.approx(np.mean(values))
    assert second["AP spread"] == pytest.approx(np.std(values, ddof=1))


def test_intervals_are_about_the_images_alone():
    """With several seeds every draw has the mean over them, not seeds that are drawn anew."""
    first, worse, better = ALL[:3], ALL[:2], ALL
    runs = [worse, better]
    both = compare(
        [method("a", first, objects=OBJECTS), method("b", *runs, objects=OBJECTS)], samples=10
    )
    apart = [
        compare([method("a", first, objects=OBJECTS), method("b", r, objects=OBJECTS)], samples=10)
        for r in runs
    ]
    for name in ("sampled_figures", "sampled_errors"):
        values = [getattr(one, name) for one in apart]
        assert getattr(both, name)[0] == pytest.approx(values[0][0])
        assert getattr(both, name)[1] == pytest.approx(np.mean(values, axis=0)[1])
    assert len(set(both.sampled_figures[1, :, 0])) > 3


def test_few_images_have_no_interval():
    found = compare([method(n, ALL[:1], objects=OBJECTS[:1]) for n in "ab"], samples=5)
    for row in [*found.difference_table(), *found.error_table(), *found.class_table()]:
        assert row["low"] is row["high"] is row["higher"] is row["beyond chance"] is None
    assert found.difference_table()[0]["difference"] == 0


def test_classes_in_few_images_have_no_interval():
    objects = [*OBJECTS, (0, 1, FAR)]
    found = compare([method(n, ALL, objects=objects) for n in "ab"], samples=5)
    of_a, of_b = found.class_table()
    assert of_a["low"] == 0 and of_b["low"] is None and of_b["difference"] == 0


@pytest.mark.parametrize("objects", [[], [(0, 0, BOX, "crowd")]])
def test_nothing_to_find_is_a_result(objects):
    found = compare([method(n, ALL, objects=objects) for n in "ab"], samples=3)
    tables = [found.run_table(), found.difference_table(), found.error_table()]
    json.dumps([*tables, found.class_table()], allow_nan=False)
    assert found.run_table()[0]["AP"] is None and tables[1][0]["difference"] is None


def test_wrong_methods_are_refused():
    one = method("a", ALL, objects=OBJECTS)
    with pytest.raises(ValueError, match="nothing to compare: name two runs or more"):
        compare([one])
    with pytest.raises(ValueError, match="'made' and 'made' are of different datasets"):
        compare([one, method("b", ALL, objects=OBJECTS[1:])])


def test_command(tmp_path, capsys):
    (tmp_path / "truth.json").write_text(json.dumps(plain_loops.content(OBJECTS)))
    for name, found in (("fl_0", ALL[:3]), ("fl_1", ALL[:4]), ("obj", ALL)):
        (tmp_path / f"{name}.json").write_text(json.dumps(plain_loops.results(found)))
    seeds = f"{tmp_path / 'fl_0.json'},{tmp_path / 'fl_1.json'}"
    arguments = [seeds, str(tmp_path / "obj.json"), "--data", str(tmp_path / "truth.json")]
    output = tmp_path / "out.json"
    assert main([*arguments, "--samples", "20", "--json", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "| fl       |      2 |" in printed and "Against fl, with 95% intervals" in printed
    assert printed.rstrip().endswith(CHANCE) and "beyond chance" in printed
    tables = json.loads(output.read_text())
    assert [row["method"] for row in tables["methods"]] == ["fl", "obj"]
    assert tables["differences"][0]["difference"] == pytest.approx(100 - 100 * (51 + 67) / 2 / 101)
