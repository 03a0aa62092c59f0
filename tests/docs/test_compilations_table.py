"""The table of docs/training.md: graphs and compilations of every detector."""

from docs.generators.compilations import NAME
from docs.generators.export_parity import DETECTORS

# As the page explains; all others once.
MORE = {
    "everything together": ("4", "4"),
    "Residual Objectness on EfficientNet-Lite0": ("6", "6"),
    "Faster R-CNN, ResObj": ("1", "8"),
}


def rows_of(page):
    lines = page.partition(f"<!-- begin: {NAME} -->")[2].partition("<!-- end")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells if row[0] in DETECTORS}


def test_every_detector_has_one_graph_that_is_compiled_once(repository):
    rows = rows_of((repository / "docs/training.md").read_text())
    assert list(rows) == list(DETECTORS)
    for title, row in rows.items():
        maps, losses = MORE.get(title, ("1", "1"))
        assert row == ["1", maps, "1", losses]
