"""The table of configs/README.md is the one listed by `resobj-d2 configs`."""

import pytest

from docs.generators.zoo import page, table


def test_the_page_is_up_to_date(repository):
    text = (repository / "configs/README.md").read_text()
    assert page(text) == text
    name = "retinanet_resobj_t2_R_50_FPN_600_1x"
    link = f"[{name}](COCO-Detection/{name}.yaml)"
    row = f"| {link} | ResObj, T = 2 | 35.4 | val | ResObj | paper | - |"
    assert row in text.splitlines() and row in table("COCO-Detection").splitlines()


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="must contain once, in this order"):
        page("# Configurations\n")
