"""The tables of docs/results.md are those of the records in studies/results/."""

import pytest

from docs.generators.studies import page, tables
from resobj_d2.study.fingerprint import key_of
from resobj_d2.study.plan import read_plan
from resobj_d2.study.results import DONE, Result


def test_the_page_is_up_to_date(repository):
    text = (repository / "docs/results.md").read_text()
    assert page(text) == text


def result(method, seed, value, finished="2025-01-01T00:00:00Z"):
    decides = {"method": method, "seed": seed, "finished": finished}
    return Result(
        key=key_of(decides), study="s", dataset="cells", method=method, seed=seed, status=DONE,
        metric="bbox/AP", decides=decides, results={"bbox/AP": value}, seconds=120.0,
        finished=finished,
    )  # fmt: skip


def test_means_differences_and_what_is_missing(tmp_path):
    (tmp_path / "s.yaml").write_text(
        "seeds: [1, 2]\ndatasets: {cells: }\nmethods: {fl: , other: x.yaml, once: {seeds: 1}}\n"
    )
    results = [
        result("fl", 1, 40.0),
        result("fl", 2, 42.0),
        result("other", 1, 41.0),
        result("other", 2, 10.0),
        result("other", 2, 43.0, finished="2025-01-02T00:00:00Z"),  # it was measured again
        result("removed", 1, 99.0),
    ]
    text = tables(read_plan(tmp_path / "s.yaml"), results)
    assert "4 of 5 runs." in text and "removed" not in text
    cells = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    rows = {row[1].strip(): [cell.strip() for cell in row[2:]] for row in cells}
    assert rows["fl"][:2] == ["2", "41.00"]
    assert rows["other"][:2] == ["2", "42.00"] and rows["other"][3] == "+1.00"
    assert "- other is better than fl: +1.00 (+1.00 to +1.00)" in text


def test_a_study_without_records_says_so(tmp_path):
    (tmp_path / "s.yaml").write_text("seeds: 1\ndatasets: {cells: }\nmethods: {fl: }\n")
    assert "0 of 1 runs." in tables(read_plan(tmp_path / "s.yaml"), [])


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="must contain once, in this order"):
        page("# Results\n")
