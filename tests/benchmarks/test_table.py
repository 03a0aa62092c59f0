"""The Markdown tables, and that the docs page shows the committed results."""

import json

import pytest

from benchmarks import table
from benchmarks.case import all_cases

FOUND = {"ratio": 40.4, "p10": 38.0, "p90": 44.4, "noisy": False}


def row(**changes):
    fields = {
        "id": "M1", "size": "100 x 5", "peer": "Detectron2", "threads": 1, "malloc": "warm",
        "ours_ms": 0.5, "peer_ms": 1234.5, "comparison": FOUND, "target": 20.0,
        "verdict": "pass", "peak_mb": 2.5, "peer_peak_mb": 230.0, "peak_limit_mb": 4,
        "roofline": 0.125, "cuda": {}, "metrics": {}, "limits": {}, "missing": "", "error": "",
    }  # fmt: skip
    return {**fields, **changes}


def results(*rows, **machine):
    about = {"device": "cpu", "cpu": "A Processor", "cores": 2, "instructions": "avx2",
             "torch": "2.10", "git": "abc", **machine}  # fmt: skip
    rates = {"1": {"read": 20e9, "fill": 10e9}}
    return {"machine": about, "settings": {"threads": [1, 2]}, "bandwidth": rates, "rows": rows}


def cells(text, start):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_with_both_thread_counts():
    second = row(threads=2, comparison={**FOUND, "ratio": 30.0}, verdict="close")
    text = table.render([results(row(), second)])
    assert text.startswith("### A Processor")
    assert "memory with 1 thread in GB/s: read 20, fill 10" in text
    assert cells(text, "case")[5:7] == ["1 thread", "2 threads"]
    assert cells(text, "M1") == [
        "M1 match anchors", "100 x 5", "Detectron2", "1234", "0.5", "40.4x (38 to 44.4) pass",
        "30x (38 to 44.4) close", "20x", "230 → 2.5 (at most 4)", "12 %", "not measured",
    ]  # fmt: skip


def test_limited_instructions_have_a_table_of_their_own_after_the_processors():
    limited = results(row(comparison={**FOUND, "ratio": 15.0}), title="A Processor, avx2 only")
    text = table.render([limited, results(row())])
    first, second = text.split("### A Processor, avx2 only")
    assert first.startswith("### A Processor\n")
    assert cells(second, "M1")[5] == "15x (38 to 44.4) pass"
    assert "40.4x" in table.excerpt([limited, results(row(size="201600 x 50"))])


def test_a_processor_without_the_best_instructions_is_titled_so_and_before_limited_ones():
    native = results(row(size="201600 x 50"), title="A Processor, avx2")
    limited = results(row(), title="A Processor, avx2 only")
    text = table.render([limited, native])
    assert [line for line in text.splitlines() if line.startswith("###")] == [
        "### A Processor, avx2",
        "### A Processor, avx2 only",
    ]
    excerpt = table.excerpt([limited, native])
    assert excerpt.startswith("A Processor, avx2, one thread:") and "40.4x" in excerpt


def test_gpu_results_fill_a_column_and_have_their_own_table():
    on_gpu = row(
        comparison={**FOUND, "ratio": 15.0}, ours_ms=0.01, peer_ms=0.15,
        cuda={"cold_ms": 0.02, "peer_cold_ms": 0.2, "graph_ms": 0.005, "launches": 3,
              "peer_launches": 40, "waits": 0, "peer_waits": 2, "peer_no_graph": "it waits"},
    )  # fmt: skip
    gpu = results(on_gpu, device="cuda", gpu="Some GPU")
    text = table.render([results(row(), row(size="else")), gpu])
    first, second = text.split("### Some GPU")
    assert cells(first, "case")[-1] == "Some GPU"
    assert cells(first, "M1 match anchors | 100 x 5")[-1] == "15x (38 to 44.4) pass"
    assert cells(first, "M1 match anchors | else")[-1] == "not measured"
    found = dict(zip(cells(second, "case"), cells(second, "M1"), strict=True))
    assert found["cold L2"] == "10x"
    assert found["as a graph, ms"] == "no graph → 0.005"
    assert found["launches"] == "40 → 3"
    assert found["waits"] == "2 → 0"


def test_the_line_of_a_gpu_says_how_it_was_launched():
    cuda = {"cold_ms": 0.02, "peer_cold_ms": 0.2, "graph_ms": 0.005, "waits": 0, "peer_waits": 2}
    line = table.one_line(row(cuda=cuda))
    assert line.endswith("| cold L2 10x | as a graph no graph → 0.005 ms | waits 2 → 0")
    assert "graph" not in table.one_line(row())


def test_a_gpu_has_no_settings_of_the_allocator():
    gpu = results(row(), device="cuda", gpu="Some GPU")
    first, _ = table.render([results(row(malloc="default")), gpu]).split("### Some GPU")
    assert cells(first, "M1 match anchors | 100 x 5, default malloc")[-1].startswith("40.4x")


def test_without_results_it_says_so():
    assert table.render([]) == table.NO_RESULTS


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"error": "wrong", "comparison": None}, "FAILED"),
        ({"missing": "no module", "comparison": None}, "not installed"),
        ({"comparison": {**FOUND, "noisy": True}}, "40.4x (38 to 44.4) pass, noisy"),
        ({"comparison": {**FOUND, "noisy": True}, "verdict": "noisy"}, "40.4x (38 to 44.4) noisy"),
        ({"peer": "", "comparison": None}, "-"),
    ],
)
def test_ratio(changes, words):
    assert table.ratio(row(**changes)) == words


def test_default_malloc_has_its_own_row():
    text = table.render([results(row(), row(malloc="default"))])
    assert cells(text, "M1 match anchors | 100 x 5, default malloc")[2] == "Detectron2"


def test_metrics_are_listed_below():
    measured = row(metrics={"share": 0.74}, limits={"share": 1.5})
    assert "- M1 match anchors, 100 x 5: share 0.74 (at most 1.5)" in table.render(
        [results(measured)]
    )


def test_tables_are_put_between_the_marks_of_their_command():
    begin, end = "<!-- begin: make it -->", "<!-- end: make it -->"
    page = f"before\n{begin}\nold\n{end}\nafter\n"
    new = table.replace_between_marks(page, "new", "make it")
    assert new == f"before\n{begin}\n\nnew\n\n{end}\nafter\n"
    assert table.replace_between_marks(new, "new", "make it") == new
    for broken in ("no marks", end + begin, page + begin):
        with pytest.raises(ValueError, match="must contain once"):
            table.replace_between_marks(broken, "new", "make it")


def test_excerpt_has_selected_rows_for_one_thread():
    chosen = row(size="201600 x 50")
    rows = [row(), chosen, row(size="201600 x 50", malloc="default"), row(threads=2)]
    text = table.excerpt([results(*rows)])
    assert text.startswith("A Processor, one thread:\n")
    assert text.splitlines()[4:] == [
        "| match anchors, 201600 x 50 | Detectron2 | 1234 → 0.5 | 40.4x | 230 → 2.5 |"
    ]
    assert table.excerpt([]) == table.NO_RESULTS


def test_every_row_of_the_excerpt_is_measured():
    measured = {(case.key, peer) for case in all_cases() for peer in case.peers}
    assert set(table.EXCERPT) <= measured


def test_command_writes_the_page(tmp_path):
    file, page = tmp_path / "a.json", tmp_path / "page.md"
    file.write_text(json.dumps(results(row())))
    page.write_text(f"<!-- begin: {table.FULL} --><!-- end: {table.FULL} -->")
    assert table.main([str(file), "--write", str(page)]) == 0
    assert "| M1 match anchors |" in page.read_text()


def test_every_id_has_a_title():
    assert {case.id for case in all_cases()} <= set(table.TITLES)


@pytest.mark.parametrize(
    ("page", "options"), [("docs/benchmarks.md", []), ("README.md", ["--excerpt"])]
)
def test_pages_show_the_committed_results(repository, capsys, page, options):
    text = (repository / page).read_text()
    assert table.main(options) == 0
    printed = capsys.readouterr().out.rstrip("\n")
    assert table.replace_between_marks(text, printed, " ".join([table.FULL, *options])) == text
