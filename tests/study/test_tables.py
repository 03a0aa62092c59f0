"""What is said of results that are made by hand."""

from resobj_d2.study.fingerprint import key_of
from resobj_d2.study.page import write_page
from resobj_d2.study.results import Result
from resobj_d2.study.tables import conclusion, summarise, table_rows


def results(metric, values):
    """A result of each method and seed."""
    return [
        Result(
            key=key_of({"method": method, "seed": seed}), study="s", dataset="d", method=method,
            seed=seed, status="done", metric=metric, decides={"seed": seed},
            results={metric: value},
        )
        for method, own in values.items()
        for seed, value in enumerate(own)
    ]  # fmt: skip


VALUES = {"base": [2.0, 3.0, 4.0], "low": [1.5, 2.4, 3.4], "high": [2.5, 3.6, 4.6]}


def test_the_lower_loss_is_called_better(tmp_path):
    found = results("validation/total_loss", VALUES)
    rows = summarise(found, baseline="base", methods=list(VALUES))
    first, second = conclusion(rows, "base")
    assert first.startswith("low is better than base: -0.57")
    assert second.startswith("high is worse than base: +0.57")
    cells = {row["method"]: row for row in table_rows(rows, "loss")}
    assert cells["low"]["better on"] == "3 of 3 seeds" and cells["low"]["sign"] == "-"
    assert cells["high"]["better on"] == "0 of 3 seeds"
    page = write_page(
        tmp_path / "page.html", name="s", baseline="base", rows=rows, results=found
    ).read_text()
    better, worse = page.index("Better than base"), page.index("Worse than base")
    assert better < page.index(first) < worse < page.index(second)


def test_of_a_score_it_is_the_other_way_round():
    rows = summarise(results("bbox/AP", VALUES), baseline="base", methods=list(VALUES))
    assert [text.partition(":")[0] for text in conclusion(rows, "base")] == [
        "low is worse than base", "high is better than base",
    ]  # fmt: skip


def test_many_notes_are_counted(tmp_path):
    found = results("bbox/AP", {"base": [1.0]})
    rows = summarise(found, baseline="base", methods=["base"])
    notes = [f"note {number} of many" for number in range(23)]
    page = write_page(
        tmp_path / "page.html", name="s", baseline="base", rows=rows, results=found, notes=notes
    ).read_text()
    assert page.count("of many</p>") == 20 and "of many</h3>" not in page
    assert "... and 3 more" in page


def test_one_seed_is_in_the_singular():
    rows = summarise(results("bbox/AP", {"a": [1.0], "b": [2.0]}), baseline="a", methods=["a", "b"])
    assert table_rows(rows, "AP")[1]["better on"] == "1 of 1 seed"
