"""AP of groups, against COCO's own numbers and loops over boxes."""

import json

import numpy as np
import pytest

from resobj_d2.analysis.breakdown import (
    CROWDING,
    OVERLAPS,
    SHAPES,
    breakdown_table,
    main,
    object_overlaps,
)
from resobj_d2.analysis.precision import IOU_THRESHOLDS
from tests.analysis import plain_loops


def by_group(data, by):
    return {row["group"]: row for row in breakdown_table(data) if row["by"] == by}


def mean(values):
    values = [value for value in values if value is not None]
    return 100 * float(np.mean(values)) if values else None


def expected_row(data, **groups):
    """AP, AP50 and AR in percent by loops."""
    tables = [plain_loops.precisions(data, t, **groups) for t in IOU_THRESHOLDS]
    recalls = []
    for threshold in IOU_THRESHOLDS:
        images = plain_loops.match(data, threshold, **groups)
        for number in range(data.num_classes):
            own = [o for x, _ in images for o in x if o["class"] == number and not o["ignored"]]
            recalls.append(sum(o["used"] for o in own) / len(own) if own else None)
    return {
        "AP": mean([value for table in tables for value in table]),
        "AP50": mean(tables[0]),
        "AR": mean(recalls),
    }


def assert_row(row, expected):
    for name, value in expected.items():
        assert row[name] == (None if value is None else pytest.approx(value)), name


def test_sizes_and_ious_equal_cocos_on_real_data(real, coco_example):
    stats = json.loads((coco_example / "expected_stats.json").read_text())["bbox"]
    rows = breakdown_table(real)
    assert [rows[0][name] for name in ("AP", "AP50", "AP75")] == pytest.approx(
        [100 * x for x in stats[:3]], abs=1e-6
    )
    sizes = [row for row in rows if row["by"] == "size"]
    assert [row["AP"] for row in sizes] == pytest.approx([100 * x for x in stats[3:6]], abs=1e-6)
    # COCO's AR, too, of the whole set and of the sizes.
    recalls = [row["AR"] for row in (rows[0], *sizes)]
    assert recalls == pytest.approx([100 * x for x in stats[8:12]], abs=1e-6)
    classes = [row for row in rows if row["by"] == "class" and row["AP"] is not None]
    assert np.mean([row["AP"] for row in classes]) == pytest.approx(100 * stats[0], abs=1e-6)
    ious = [row for row in rows if row["by"] == "IoU"]
    assert np.mean([row["AP"] for row in ious]) == pytest.approx(100 * stats[0], abs=1e-6)
    assert ious[0]["AP"] == pytest.approx(100 * stats[1], abs=1e-6)


@pytest.mark.parametrize("seed", range(2))
def test_shapes_equal_plain_loops(seed):
    data = plain_loops.random_set(seed, images=24)
    rows = by_group(data, "shape")
    for group, (low, high) in SHAPES.items():
        groups = {}
        for key, boxes in (("ignored", data.objects.boxes), ("outside", data.detections.boxes)):
            shapes = [w / h for _, _, w, h in boxes.tolist()]
            groups[key] = {row for row, s in enumerate(shapes) if s < low or s > high}
        assert_row(rows[group], expected_row(data, **groups))
    assert all(row["objects"] for row in rows.values())


@pytest.mark.parametrize("seed", range(2))
def test_crowding_equals_plain_loops(seed):
    data = plain_loops.random_set(seed)
    rows = by_group(data, "objects in the image")
    real = ~data.objects.ignored
    counts = [int((data.objects.images[real] == i).sum()) for i in range(len(data.image_ids))]
    for group, (low, high) in CROWDING.items():
        kept = [i for i, count in enumerate(counts) if low <= count <= high]
        ignored = {row for row, i in enumerate(data.objects.images) if i not in kept}
        # Detections in other images are not judged, whatever they find.
        few = plain_loops.only_images(data, kept)
        assert_row(rows[group], expected_row(few))
        assert rows[group]["objects"] == int(real.sum()) - len(ignored & set(np.flatnonzero(real)))


def test_overlaps_by_hand():
    objects = [
        (0, 0, [0, 0, 10, 10]), (0, 0, [5, 0, 10, 10]), (0, 1, [0, 0, 10, 10]),
        (0, 0, [4, 0, 10, 10], "crowd"), (1, 0, [0, 0, 10, 10]),
    ]  # fmt: skip
    data = plain_loops.evaluation_set(objects, [(0, 0, [0, 0, 10, 10], 0.9)])
    assert object_overlaps(data).tolist() == pytest.approx([1 / 3, 1 / 3, 0, 0, 0])
    rows = by_group(data, "overlap")
    assert list(rows) == list(OVERLAPS)
    assert [row["objects"] for row in rows.values()] == [2, 0, 2]
    # One of the two that overlap is found at every IoU, and none of those that do not.
    assert [row["AR"] for row in rows.values()] == [0.0, None, 50.0]
    assert {row["AP"] for row in rows.values()} == {None}


@pytest.mark.parametrize(
    "objects, found",
    [([], []), ([], [(0, 0, [1, 1, 9, 9], 0.5)]), ([(0, 0, [1, 1, 9, 9], "crowd")], [])],
)
def test_nothing_to_judge_is_a_result(objects, found):
    rows = breakdown_table(plain_loops.evaluation_set(objects, found))
    assert {row["AP"] for row in rows} == {None} == {row["AR"] for row in rows}
    json.dumps(rows, allow_nan=False)


def test_command(tmp_path, capsys):
    (tmp_path / "truth.json").write_text(json.dumps(plain_loops.content([(0, 0, [0, 0, 40, 40])])))
    found = plain_loops.results([(0, 0, [0, 0, 40, 40], 0.5)])
    (tmp_path / "results.json").write_text(json.dumps(found))
    arguments = [str(tmp_path / "results.json"), "--data", str(tmp_path / "truth.json")]
    assert main([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "| size                 | medium     |         1 | 100.0 |" in printed
    assert "| b       |         0 |" in printed
    rows = json.loads((tmp_path / "out.json").read_text())["breakdown"]
    assert rows == breakdown_table(
        plain_loops.evaluation_set([(0, 0, [0, 0, 40, 40])], [(0, 0, [0, 0, 40, 40], 0.5)])
    )
