"""Scores against IoUs, by loops over the boxes of a dump."""

import json
import statistics

import numpy as np
import pytest
from PIL import Image

from resobj_d2.analysis.dump_file import load_dump
from resobj_d2.analysis.dump_writer import box_columns, write_dump
from resobj_d2.analysis.misalignment import (
    agreement_table,
    correlation_table,
    main,
    regression_table,
    score_table,
    scored_boxes,
)
from tests.analysis import plain_loops

COUNT = 150


def near(random, objects, scale):
    """Corners near objects, in float32."""
    boxes = np.array([x[2] for x in objects], dtype=float)[random.integers(0, len(objects), COUNT)]
    boxes[:, 2:] += boxes[:, :2]
    return (boxes + random.normal(0, scale, (COUNT, 4))).astype(np.float32)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Record and folder of a dump: two stages on anchors, proposals without a class, detections."""
    random = np.random.default_rng(0)
    objects = [
        (i, int(random.integers(0, 2)), [*random.integers(0, 200, 2).tolist(), 60, 40])
        for i in range(3)
        for _ in range(3)
    ]
    objects[4] = (*objects[4], "difficult")
    objects.append((0, 0, [0, 0, 300, 300], "crowd"))
    record = plain_loops.record(objects)
    folder = tmp_path_factory.mktemp("misalignment") / "dump"
    with write_dump(
        folder, record, {"num_steps": 0, "max_candidates": COUNT}, sources=["anchors", "rpn"]
    ) as writer:
        for image in range(3):
            own = [x for x in objects[:-1] if x[0] == image]
            for source in (0, 1):
                quality = random.random(COUNT).astype(np.float32)
                stage1 = near(random, own, 9)
                writer.add_candidates(
                    {
                        "image": np.full(COUNT, image, np.int32),
                        "source": np.full(COUNT, source, np.int8),
                        "level": np.zeros(COUNT, np.int8),
                        "class": np.full(COUNT, -1, np.int32)
                        if source
                        else random.integers(0, 2, COUNT).astype(np.int32),
                        "score": random.random(COUNT).astype(np.float32),
                        **box_columns(near(random, own, 6)),
                        **box_columns(near(random, own, 15), "prior_"),
                        **box_columns(
                            np.full_like(stage1, np.nan) if source else stage1, "stage1_"
                        ),
                        "prior_iou": random.random(COUNT).astype(np.float32),
                        "p_quality": np.full(COUNT, np.nan, np.float32) if source else quality,
                    }
                )
            boxes = near(random, own, 5)[:20]
            classes, scores = random.integers(0, 2, 20), random.random(20).round(1)
            writer.add_detections(image, boxes=boxes, classes=classes, scores=scores, factors={})
    return record, folder


def best_iou(dump, image, box, label):
    """Of a box in corners with an object of its class, difficult or not; any class for None."""
    best = 0.0
    o = dump.objects
    for row in range(len(o)):
        if o.image_index[row] != image or o.crowd[row] or label not in (None, -1, o.classes[row]):
            continue
        x0, y0, x1, y1 = o.boxes[row].tolist()
        a, b, c, d = map(float, box)
        best = max(best, plain_loops.iou([a, b, c - a, d - b], [x0, y0, x1 - x0, y1 - y0]))
    return best


def boxes_by_loops(dump):
    """(name, score, IoU, quality) of every box."""
    c, d = dump.candidates, dump.detections
    rows = []
    for i in range(len(c)):
        value = best_iou(dump, c.image_index[i], c.boxes[i], c.classes[i])
        name = f"{['anchors', 'rpn'][c.sources[i]]} before NMS"
        rows.append((name, float(c.scores[i]), value, float(c.factors["quality"][i])))
    for i in range(len(d)):
        value = best_iou(dump, d.image_index[i], d.boxes[i], d.classes[i])
        rows.append(("detections", float(d.scores[i]), value, float("nan")))
    return rows


@pytest.fixture(scope="module")
def dump(example):
    return load_dump(example[1])


@pytest.fixture(scope="module")
def loops(dump):
    return boxes_by_loops(dump)


def test_agreement_equals_counting(dump, loops):
    rows = agreement_table(scored_boxes(dump))
    assert len(rows) == 15
    for row in rows:
        own = [x for x in loops if x[0] == row["boxes"] and x[2] >= 0.5]
        t = row["threshold"]
        both = sum(s > t and v > t for _, s, v, _ in own)
        either = sum(s > t or v > t for _, s, v, _ in own)
        assert row["number"] == sum(x[0] == row["boxes"] for x in loops)
        assert row["on objects"] == len(own) > 10
        assert row["score above"] == sum(x[1] > t for x in own)
        assert row["IoU above"] == sum(x[2] > t for x in own)
        assert row["both"] == both and row["agree"] == pytest.approx(100 * both / either)


def ranks_by_loops(values):
    return [sum(y < x for y in values) + (sum(y == x for y in values) + 1) / 2 for x in values]


def test_correlations_equal_the_standard_librarys(dump, loops):
    rows = correlation_table(scored_boxes(dump))
    assert [(row["boxes"], row["value"]) for row in rows] == [
        ("anchors before NMS", "score"), ("anchors before NMS", "quality"),
        ("rpn before NMS", "score"), ("detections", "score"),
    ]  # fmt: skip
    for row in rows:
        own = [x for x in loops if x[0] == row["boxes"] and x[2] >= 0.5]
        x = [b[3] if row["value"] == "quality" else b[1] for b in own]
        y = [b[2] for b in own]
        assert row["number"] == len(own)
        assert row["pearson"] == pytest.approx(statistics.correlation(x, y), abs=1e-6)
        expected = statistics.correlation(ranks_by_loops(x), ranks_by_loops(y))
        assert row["spearman"] == pytest.approx(expected, abs=1e-6)


def test_scores_by_iou_equal_counting(dump, loops):
    rows = score_table(scored_boxes(dump), bins=4)
    assert len(rows) == 12
    for row in rows:
        own = [x for x in loops if x[0] == row["boxes"]]
        inside = [x[1] for x in own if row["from"] <= x[2] < row["to"]]
        assert row["number"] == len(inside)
        assert row["share"] == pytest.approx(100 * len(inside) / len(own))
        if inside:
            assert row["score"] == pytest.approx(np.mean(inside))
            assert row["deviation"] == pytest.approx(np.std(inside))
            assert row["high"] == pytest.approx(100 * np.mean([s > 0.5 for s in inside]))


def test_regression_equals_counting(dump):
    rows = regression_table(dump, bins=3)
    c = dump.candidates
    assert [(r["source"], r["stage"]) for r in rows[::3]] == [
        ("anchors", 1), ("anchors", 2), ("rpn", 2),
    ]  # fmt: skip
    for row in rows:
        source = ["anchors", "rpn"].index(row["source"])
        pairs = [
            (float(c.prior_ious[i]),
             best_iou(dump, c.image_index[i], c.stages[row["stage"] - 1][i], None))
            for i in range(len(c)) if c.sources[i] == source
        ]  # fmt: skip
        inside = [(a, b) for a, b in pairs if row["from"] <= a < row["to"]]
        assert row["number"] == len(inside) > 5
        assert row["IoU"] == pytest.approx(np.mean([b for _, b in inside]))
        assert row["deviation"] == pytest.approx(np.std([b for _, b in inside]))
        assert row["better"] == pytest.approx(100 * np.mean([b > a for a, b in inside]))


def test_command(example, tmp_path, capsys):
    picture, output = tmp_path / "m.png", tmp_path / "m.json"
    assert main([str(example[1]), "--plot", str(picture), "--json", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "| anchors before NMS | quality |" in printed and "IoU after regression" in printed
    assert np.asarray(Image.open(picture)).std() > 10
    tables = json.loads(output.read_text())
    assert {row["boxes"] for row in tables["scatter"]} == {row["boxes"] for row in tables["scores"]}


def test_detections_alone_or_nothing_is_a_result(tmp_path, capsys):
    folder = tmp_path / "dump"
    with write_dump(folder, plain_loops.record([]), {"num_steps": 0, "max_candidates": 0}):
        pass
    output = tmp_path / "m.json"
    assert main([str(folder), "--json", str(output), "--plot", str(tmp_path / "m.svg")]) == 0
    assert "has no candidates" in capsys.readouterr().out
    tables = json.loads(output.read_text())
    assert tables["regression"] == [] and tables["correlations"][0]["spearman"] is None
    assert {row["number"] for row in tables["scores"]} == {0}
    with pytest.raises(FileNotFoundError, match="analyze dump"):
        main([str(tmp_path / "absent")])


def test_a_box_on_a_difficult_object_is_on_an_object(tmp_path):
    folder = tmp_path / "dump"
    record = plain_loops.record([(0, 0, [0, 0, 10, 10], "difficult")])
    with write_dump(folder, record, {"num_steps": 0, "max_candidates": 0}) as writer:
        box, number, score = np.array([[0.0, 0, 10, 9]]), np.array([0]), np.array([0.5])
        writer.add_detections(0, boxes=box, classes=number, scores=score, factors={})
    (found,) = scored_boxes(load_dump(folder))
    assert found.ious.tolist() == [0.9]
