"""The page of measurements names the commands that there are, and its Python runs."""

import json
import re

import pytest

from resobj_d2.analysis import errors, thresholds
from resobj_d2.cli.dispatch import ANALYZE
from tests.analysis import plain_loops

BOX = [100, 100, 100, 100]


@pytest.fixture(scope="module")
def page(repository):
    return (repository / "docs" / "measurements.md").read_text()


def test_the_commands_of_the_page_exist(page):
    named = set(re.findall(r"resobj-d2 analyze (\w+)", page))
    assert named <= {command.name for command in ANALYZE}
    rows = re.findall(r"^\| \[`(\w+)`\]\(#([\w-]+)\)", page, re.M)
    assert {name for name, _ in rows} == named - {"curves", "dump", "sweep"}
    others = re.findall(r"^\| \[`(\w+)`\]\((?!#)", page, re.M)
    assert {*others, *(name for name, _ in rows)} == {command.name for command in ANALYZE}
    headings = {x.lower().replace(" ", "-") for x in re.findall(r"^## (.*)$", page, re.M)}
    assert {anchor for _, anchor in rows} <= headings


def test_every_kind_of_error_is_explained(page):
    for kind in (*errors.KINDS, "FN"):
        assert re.search(rf"^\| {kind} \| ", page, re.M), kind
    assert thresholds.KEY in page


def test_the_python_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "annotations").mkdir()
    truth = plain_loops.content([(0, 0, BOX), (1, 0, BOX)])
    (tmp_path / "annotations" / "val.json").write_text(json.dumps(truth))
    found = plain_loops.results([(0, 0, BOX, 0.9), (1, 1, BOX, 0.8)])
    (tmp_path / "results.json").write_text(json.dumps(found))
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    names = {}
    exec(code, names)
    counts = {row["error"]: row["count"] for row in names["rows"]}
    assert counts["Cls"] == 1 and counts["FN"] == 1 and counts["Bkg"] == 0
