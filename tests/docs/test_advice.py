"""What is advised rests on the records: the tables of the README and of docs/methods.md."""

import pytest
import yaml

from docs.generators.advice import page, table
from resobj_d2.study.results import append_result
from tests.docs.test_studies_tables import result


@pytest.mark.parametrize(
    "kind, file",
    [("recommended", "README.md"), ("when", "docs/methods.md"), ("claims", "docs/results.md")],
)
def test_the_pages_are_up_to_date(repository, kind, file):
    text = (repository / file).read_text()
    assert page(text, kind) == text


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "s.yaml").write_text(
        "seeds: [1, 2]\ndatasets: {cells: }\nmethods: {fl: , sure: x.yaml, unsure: x.yaml, new: }\n"
    )
    values = {"fl": (40.0, 42.0), "sure": (42.0, 44.2), "unsure": (45.0, 42.0)}
    for method, both in values.items():
        for seed, value in zip((1, 2), both, strict=True):
            append_result(tmp_path / "results" / "s.jsonl", result(method, seed, value))
    return tmp_path


def advice(folder, **source):
    file = folder / "advice.yaml"
    line = {"where": "here", "use": "this", "evidence": [source]}
    file.write_text(yaml.safe_dump({"when": [line]}))
    return table("when", advice=file, folder=folder).splitlines()[-1]


def test_a_line_has_mean_difference_and_interval(folder):
    # Differences 2 and 2.2, mean 2.1; t of one degree of freedom is 12.706, so +- 12.706 * .1.
    line = advice(folder, study="s", data="cells", method="sure")
    assert line == "| here | this | cells: AP 43.1, +2.1 (+0.8 to +3.4, 2 seeds) against `fl` |"


def test_a_difference_that_may_be_chance_says_so(folder):
    assert "2 seeds) against `fl`, may be chance" in advice(
        folder, study="s", data="cells", method="unsure"
    )


def test_a_method_without_records_and_one_that_is_not_there(folder):
    assert "cells: not run yet" in advice(folder, study="s", data="cells", method="new")
    with pytest.raises(ValueError, match=r"s.yaml has no method other"):
        advice(folder, study="s", data="cells", method="other")


def test_a_paper_is_named_as_one(folder):
    line = advice(folder, paper="COCO-Detection/retinanet_resobj_t2_R_50_FPN_600_1x.yaml")
    assert "35.4 on COCO val in the paper (ResObj)" in line
    with pytest.raises(ValueError, match="no figure of"):
        advice(folder, paper="small/scenes_retinanet_fl.yaml")


COCO = "COCO-Detection/retinanet_"
RESOBJ, FOCAL = (f"{COCO}{name}_R_50_FPN_600_1x.yaml" for name in ("resobj_t2", "fl"))


def claim(folder, seen, paper=RESOBJ, against=FOCAL):
    file = folder / "claims.yaml"
    line = {"claim": "this", "paper": paper, "against": against, "seen": [seen]}
    file.write_text(yaml.safe_dump({"claims": [line]}))
    return table("claims", advice=file, folder=folder).splitlines()[-1]


def test_a_claim_says_what_the_paper_prints_and_whether_it_appeared(folder):
    line = claim(folder, {"study": "s", "data": "cells", "method": "sure"})
    promised = "+1.2: 35.4 against 34.2 on val (ResObj)"
    assert line == f"| this | {promised} | cells: +2.1 (+0.8 to +3.4, 2 seeds), **appeared** |"


def test_a_difference_on_the_other_side_is_the_opposite(folder):
    line = claim(folder, {"study": "s", "data": "cells", "method": "fl", "against": "sure"})
    assert line.endswith("cells: -2.1 (-3.4 to -0.8, 2 seeds), opposite |")


def test_a_loss_that_is_promised_appears_as_one(folder):
    seen = {"study": "s", "data": "cells", "method": "fl", "against": "sure"}
    line = claim(folder, seen, paper=FOCAL, against=RESOBJ)
    assert "-1.2: 34.2 against 35.4" in line and line.endswith("2 seeds), **appeared** |")


CE = COCO + "ce_R_50_FPN_600_1x.yaml"  # 30.2, so that ResObj promises 5.2


def test_an_interval_below_what_the_paper_prints_says_so(folder):
    line = claim(folder, {"study": "s", "data": "cells", "method": "sure"}, against=CE)
    assert line.endswith("**appeared**, less than promised |")
    seen = {"study": "s", "data": "cells", "method": "fl", "against": "sure"}
    line = claim(folder, seen, paper=CE, against=RESOBJ)
    assert line.endswith("(-3.4 to -0.8, 2 seeds), **appeared**, less than promised |")


def test_a_claim_of_nothing_and_a_method_against_itself_are_refused(folder):
    with pytest.raises(ValueError, match="different figures"):
        claim(folder, {"study": "s", "data": "cells", "method": "sure"}, against=RESOBJ)
    with pytest.raises(ValueError, match="s.yaml: fl is compared with itself"):
        claim(folder, {"study": "s", "data": "cells", "method": "fl"})


def test_a_source_may_have_a_name(folder):
    line = claim(folder, {"study": "s", "data": "cells", "method": "sure", "name": "elsewhere"})
    assert "| elsewhere: +2.1 (" in line


@pytest.mark.parametrize(
    "other, verdict",
    [
        ((41.0, 42.1), "on every seed, may be chance"),
        ((45.0, 41.0), "not shown"),
        ((41.0, None), "one seed shows nothing"),
        ((None, None), "not run yet"),
    ],
)
def test_what_does_not_appear_says_how_far_it_came(folder, other, verdict):
    for seed, value in zip((1, 2), other, strict=True):
        if value is not None:
            append_result(folder / "results" / "s.jsonl", result("new", seed, value))
    line = claim(folder, {"study": "s", "data": "cells", "method": "new"})
    assert line.endswith(f"{verdict} |")
