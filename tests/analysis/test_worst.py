"""The cost of single errors, against correcting each of them, and the pictures of the worst."""

import json

import numpy as np
import pytest
from PIL import Image

from resobj_d2.analysis.error_costs import error_costs
from resobj_d2.analysis.errors import analyze_errors
from resobj_d2.analysis.worst import draw_image, main
from tests.analysis import plain_loops

BOX, FAR = [100, 100, 100, 100], [300, 300, 50, 50]


def area(points, positives):
    """Under the precision of each true positive, of (score, correct)."""
    total = hits = 0
    for number, (_, correct) in enumerate(sorted(points, key=lambda p: -p[0]), 1):
        hits += correct
        total += hits / number if correct else 0
    return total / positives


@pytest.mark.parametrize("seed", range(2))
def test_costs_equal_correcting_each_error(seed):
    data = plain_loops.random_set(seed, ties=False)
    costs = error_costs(analyze_errors(data))
    images = plain_loops.match(data, 0.5)
    counts = data.positives()
    classes = int((counts > 0).sum())
    found = [x for _, detections in images for x in detections if not x["ignored"]]
    missed = [o for objects, _ in images for o in objects if not (o["used"] or o["ignored"])]
    for number in np.flatnonzero(counts):
        own = [x for x in found if x["class"] == number]
        points = [(x["score"], x["object"] is not None) for x in own]
        before = area(points, counts[number])
        for i, x in enumerate(own):
            without = area(points[:i] + points[i + 1 :], counts[number])
            expected = 0 if points[i][1] else 100 * (without - before) / classes
            assert costs.detections[x["row"]] == pytest.approx(expected)
        gain = 100 * (area([*points, (9, True)], counts[number]) - before) / classes
        for o in missed:
            if o["class"] == number:
                assert costs.objects[o["row"]] == pytest.approx(gain)
    assert np.count_nonzero(costs.objects) == len(missed) > 0
    table = costs.image_table()
    total = costs.detections.sum() + costs.objects.sum()
    assert sum(row["cost"] for row in table) == pytest.approx(total)
    assert sum(row["missed"] for row in table) == len(missed)
    errors = costs.error_table()
    assert sum(row["cost"] for row in errors) == pytest.approx(total)
    assert [row["cost"] for row in errors] == sorted((r["cost"] for r in errors), reverse=True)


def test_tables_by_hand():
    """Wrong, then right, and one of two objects missed: AP is (1/2) / 2."""
    objects = [(0, 0, BOX), (1, 0, BOX)]
    data = plain_loops.evaluation_set(objects, [(0, 0, FAR, 0.9), (0, 0, BOX, 0.8)])
    costs = error_costs(analyze_errors(data))
    assert [row.pop("file") for row in costs.error_table()] == ["1.png", "0.png"]
    first, second = costs.error_table()
    # Found first: 1 + 2/3 instead of 1/2, of two. Without the false positive: 1 instead of 1/2.
    assert (first["image"], first["error"], first["score"]) == (1, "Miss", None)
    assert first["cost"] == pytest.approx(100 * (1 + 2 / 3 - 1 / 2) / 2)
    assert (second["image"], second["error"], second["score"]) == (0, "Bkg", 0.9)
    assert second["cost"] == pytest.approx(25) and second["box"] == FAR
    worst, better = costs.image_table()
    assert worst["image"] == 1 and worst["missed"] == 1 and worst["worst"] == "Miss"
    assert better["image"] == 0 and better["false positives"] == 1 and better["worst"] == "Bkg"
    assert costs.image_table(1) == [worst]


@pytest.mark.parametrize(
    "objects, found", [([], []), ([], [(0, 0, BOX, 0.5)]), ([(0, 0, BOX, "crowd")], [])]
)
def test_nothing_to_lose_has_no_rows(objects, found):
    costs = error_costs(analyze_errors(plain_loops.evaluation_set(objects, found)))
    assert costs.image_table() == [] == costs.error_table()


def test_errors_have_their_colours():
    objects = [(0, 0, BOX), (0, 1, FAR)]
    data = plain_loops.evaluation_set(objects, [(0, 0, BOX, 0.9), (0, 0, [9, 9, 40, 40], 0.95)])
    costs = error_costs(analyze_errors(data))
    drawn = np.asarray(draw_image(costs, 0, np.zeros((400, 400, 3), np.uint8), side=400))
    left, right = drawn[:, :410], drawn[:, 410:]

    def has(picture, color):
        return bool((picture == color).all(axis=-1).any())

    assert has(left, (60, 200, 90)) and has(left, (255, 60, 60))
    assert has(right, (60, 200, 90)) and has(right, (255, 82, 82))
    assert not has(left, (255, 82, 82)) and not has(right, (255, 60, 60))


def test_command(tmp_path, capsys):
    objects = [(0, 0, BOX), (1, 0, BOX)]
    (tmp_path / "truth.json").write_text(json.dumps(plain_loops.content(objects)))
    found = [(0, 0, FAR, 0.9), (0, 0, BOX, 0.8)]
    (tmp_path / "results.json").write_text(json.dumps(plain_loops.results(found)))
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (400, 400)).save(tmp_path / "pictures" / "1.png")
    arguments = [
        str(tmp_path / "results.json"), "--data", str(tmp_path / "truth.json"),
        "--images", str(tmp_path / "pictures"), "--output", str(tmp_path / "drawn"),
    ]  # fmt: skip
    assert main(arguments) == 1  # one picture is missing
    captured = capsys.readouterr()
    assert "|       1 |         1 |        1 |                 0 | Miss" in captured.out
    assert "1 could not be read, the first:" in captured.err and "0.png" in captured.err
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["001_1.png"]
    Image.new("RGB", (400, 400)).save(tmp_path / "pictures" / "0.png")
    assert main([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    assert len(list((tmp_path / "drawn").iterdir())) == 2
    assert set(json.loads((tmp_path / "out.json").read_text())) == {"images", "errors"}
    assert "| 1.png  |       1 |" in capsys.readouterr().out


def test_pictures_do_not_mix_with_other_files(tmp_path, capsys):
    """Those of an earlier call go, and nothing else."""
    content = plain_loops.content([(0, 0, BOX)])
    content["images"][0]["file_name"] = "a b.jpg"
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text("[]")
    Image.new("RGB", (400, 400)).save(tmp_path / "a b.jpg")
    source = [str(tmp_path / "results.json"), "--data", str(tmp_path / "truth.json")]
    for _ in range(2):
        assert main([*source, "--output", str(tmp_path)]) == 0
        folder = tmp_path / "worst"
        assert [path.name for path in folder.iterdir()] == ["001_a_b.png"]
        assert f"{folder} has 1 picture\n" in capsys.readouterr().out
        (folder / "001_a_b.png").rename(folder / "007_old.png")
    assert len(list(tmp_path.iterdir())) == 4
