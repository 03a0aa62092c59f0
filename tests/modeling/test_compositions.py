"""Combinations of the dense detector's parts, chosen to cover every pair of values."""

import re
from itertools import combinations, product

import pytest
import torch
from detectron2.modeling import build_model

from docs.generators.compatibility import REFUSALS, axes, cover, main, overrides, page, pairs
from resobj_d2.losses import CLS_LOSS_REGISTRY, SigmoidCE

VALUES = {axis: list(values) for axis, values in axes().items()}
ROWS = cover(VALUES, [refusal.values for refusal in REFUSALS])


def name(row):
    return " / ".join(row.values())


def build(cfg):
    """The detector on a toy pyramid instead of ResNet's."""
    if cfg.MODEL.BACKBONE.NAME == "build_retinanet_resnet_fpn_backbone":
        cfg.MODEL.BACKBONE.NAME = "build_toy_pyramid"
    cfg.MODEL.BFP.PYRAMID = "build_toy_pyramid"
    torch.manual_seed(0)
    return build_model(cfg)


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_combination_trains_and_evaluates(row, tiny_cfg, make_batch):
    model = build(tiny_cfg(*overrides(row), "MODEL.DENSE.POSTPROCESS.SCORE_THRESH", 0.0))
    batch = make_batch([(64, 64, 3), (48, 64, 0)])
    losses = model(batch)
    for key, loss in losses.items():
        assert torch.isfinite(loss), key
        assert loss.requires_grad, key
        # Initially no box may be close enough to an object to train the last stage.
        assert loss > 0 or "_stage1" in key or "quality" in key, key
    sum(losses.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{key} has no gradient"
        assert torch.isfinite(parameter.grad).all(), key
    model.eval()
    with torch.no_grad():
        results = model(batch)
    for result in results:
        found = result["instances"]
        assert len(found) > 0
        assert torch.isfinite(found.pred_boxes.tensor).all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()


def matching(refusal):
    """Complete rows with the refused combination, for two choices of the other axes."""
    others = [r.values for r in REFUSALS if r is not refusal]
    for reverse in (False, True):
        row = dict(refusal.values)
        for axis, values in VALUES.items():
            if axis not in row:  # with a value that is refused for no other reason
                tried = ({**row, axis: x} for x in sorted(values, reverse=reverse))
                row = next(x for x in tried if not any(o.items() <= x.items() for o in others))
        yield row


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda r: name(r.values))
def test_listed_combination_is_refused_for_the_listed_reason(refusal, tiny_cfg):
    for row in matching(refusal):
        with pytest.raises(ValueError, match=re.escape(refusal.reason)):
            build(tiny_cfg(*overrides(row)))


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda r: name(r.values))
def test_refusal_needs_each_of_its_values(refusal, tiny_cfg):
    """With another value on any of its axes it builds: the list is no longer than necessary."""
    row = next(matching(refusal))
    for axis in refusal.values:
        others = [{**row, axis: value} for value in VALUES[axis]]
        others = [o for o in others if not any(r.values.items() <= o.items() for r in REFUSALS)]
        assert others
        for other in others:
            build(tiny_cfg(*overrides(other)))


def test_every_allowed_pair_occurs():
    every = {
        frozenset(((a, x), (b, y)))
        for a, b in combinations(VALUES, 2)
        for x, y in product(VALUES[a], VALUES[b])
    }
    mentioned = {pair for refusal in REFUSALS for pair in pairs(refusal.values)}
    assert mentioned <= every
    # A pair that is refused only together with a third value occurs with another one.
    refused = {frozenset(r.values.items()) for r in REFUSALS if len(r.values) == 2}
    assert set().union(*(pairs(row) for row in ROWS)) == every - refused


def test_cover_by_hand():
    # The 2 x 3 values of the two largest axes need six rows; the third axis fits into them.
    rows = cover({"a": ["0", "1"], "b": ["x", "y", "z"], "c": ["u", "v"]})
    assert len(rows) == 6
    assert {(r["a"], r["b"]) for r in rows} == set(product("01", "xyz"))
    assert {(r["a"], r["c"]) for r in rows} == set(product("01", "uv"))
    assert {(r["b"], r["c"]) for r in rows} == set(product("xyz", "uv"))


@pytest.mark.parametrize("sizes", [(2,), (3, 4), (2, 2, 2, 2), (5, 1, 3, 2, 4)])
def test_cover_has_every_pair(sizes):
    values = {f"axis {i}": [f"{i}.{j}" for j in range(n)] for i, n in enumerate(sizes)}
    rows = cover(values)
    for a, b in combinations(values, 2):
        assert {(r[a], r[b]) for r in rows} == set(product(values[a], values[b]))
    assert all(list(r) == list(values) for r in rows)


def test_cover_omits_forbidden_combinations():
    values = {"a": "01", "b": "01", "c": "01"}
    # (a 0, b 0) is forbidden with either c, so no row has it; (a 1, b 1) must come with c 1.
    forbidden = [
        {"a": "0", "b": "0", "c": "0"},
        {"a": "0", "b": "0", "c": "1"},
        {"a": "1", "b": "1", "c": "0"},
    ]
    rows = cover(values, forbidden)
    assert not any(bad.items() <= row.items() for bad in forbidden for row in rows)
    assert {(r["a"], r["b"]) for r in rows} == {("0", "1"), ("1", "0"), ("1", "1")}
    assert {(r["a"], r["c"]) for r in rows} == set(product("01", "01"))
    assert {(r["b"], r["c"]) for r in rows} == set(product("01", "01"))


@pytest.fixture
def registered_loss():
    """A user's own class loss, registered during a test."""

    class UsersLoss(SigmoidCE):
        pass

    CLS_LOSS_REGISTRY.register(UsersLoss)
    yield UsersLoss.__name__
    del CLS_LOSS_REGISTRY._obj_map[UsersLoss.__name__]


def test_registered_entries_are_included(registered_loss):
    assert registered_loss not in VALUES["CLS_LOSS"]
    assert registered_loss in axes()["CLS_LOSS"]
    assert f"| CLS_LOSS | {registered_loss} |" in page()


def test_committed_page_is_current(repository):
    """To update it: python -m docs.generators.compatibility --write docs/compatibility.md"""
    assert (repository / "docs/compatibility.md").read_text() == page()


def test_page_by_hand(tmp_path, capsys):
    assert main(["--write", str(tmp_path / "page.md")]) == 0
    text = (tmp_path / "page.md").read_text()
    assert main([]) == 0
    assert capsys.readouterr().out == text
    rows = {
        tuple(cells[1:3]): cells[3:-1]
        for line in text.splitlines()
        if line.startswith("| ") and (cells := [cell.strip() for cell in line.split("|")])
    }
    assert len(rows) == 1 + sum(map(len, VALUES.values()))
    header = rows[("axis", "value")]
    assert header == list(VALUES)
    ghm = dict(zip(header, rows[("CLS_LOSS", "GHMCLoss")], strict=True))
    assert ghm["CLS_LOSS"] == ""
    assert ghm["BOX_LOSS"] == "all"
    refused = "all but HardExampleSampler in 1, HardNegativeRatio in 2, OHEMSampler in 3"
    assert ghm["SAMPLER"] == refused
    assert "\n3. OBJECTNESS off, CLS_LOSS GHMCLoss, SAMPLER OHEMSampler: " in text
