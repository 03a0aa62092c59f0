"""Intervals against published tables and values computed by hand."""

import math

import pytest

from resobj_d2.study.statistics import compare, mean_interval, t_quantile


# Two-sided quantiles as printed in statistical tables.
@pytest.mark.parametrize(
    "freedom, level, printed",
    [
        (1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.95, 2.776), (5, 0.95, 2.571),
        (9, 0.95, 2.262), (10, 0.95, 2.228), (30, 0.95, 2.042), (120, 0.95, 1.980),
        (1, 0.9, 6.314), (4, 0.99, 4.604), (7, 0.99, 3.499), (20, 0.5, 0.687),
    ],
)  # fmt: skip
def test_quantiles_are_those_of_the_tables(freedom, level, printed):
    assert t_quantile(freedom, level) == pytest.approx(printed, abs=6e-4)


@pytest.mark.parametrize("freedom, level", [(0, 0.95), (3, 1.0), (3, 0.0)])
def test_quantiles_out_of_range_are_refused(freedom, level):
    with pytest.raises(ValueError, match="t_quantile needs"):
        t_quantile(freedom, level)


def test_interval_by_hand():
    # Mean 12; squares 4 + 0 + 4 = 8, variance 4, deviation 2; 4.3027 * 2 / sqrt(3) = 4.9683.
    interval = mean_interval([10.0, 12.0, 14.0])
    assert (interval.mean, interval.count) == (12.0, 3)
    assert interval.half_width == pytest.approx(4.9683, abs=1e-4)
    assert interval.low == pytest.approx(12 - 4.9683, abs=1e-4)


def test_too_few_values_have_no_interval():
    one = mean_interval([3.5])
    assert one.mean == 3.5 and math.isnan(one.half_width) and one.sign == "?"
    none = mean_interval([])
    assert math.isnan(none.mean) and none.count == 0 and none.sign == "?"


def test_pairing_finds_a_difference_that_means_hide():
    baseline = {1: 30.0, 2: 40.0, 3: 50.0}
    method = {1: 31.0, 2: 41.5, 3: 51.5, 9: 0.0}  # seed 9 has no partner
    both = compare(method, baseline)
    # Differences 1, 1.5, 1.5: mean 4/3, deviation sqrt(1/12) = .28868; 4.3027 * .28868 / sqrt(3).
    assert both.difference.mean == pytest.approx(4 / 3)
    assert both.difference.half_width == pytest.approx(0.71712, abs=1e-4)
    assert both.difference.sign == "+" and both.better == 3 and both.difference.count == 3
    # The means themselves could not be told apart.
    assert mean_interval([31.0, 41.5, 51.5]).low < mean_interval([30.0, 40.0, 50.0]).high


@pytest.mark.parametrize(
    "differences, sign",
    [((-1.0, -1.1, -0.9), "-"), ((-1.0, 1.0, 0.1), "?"), ((0.5, 0.5), "+"), ((0.0, 0.0), "?")],
)
def test_sign_needs_the_whole_interval(differences, sign):
    method = {seed: 20.0 + value for seed, value in enumerate(differences)}
    assert compare(method, dict.fromkeys(method, 20.0)).difference.sign == sign


@pytest.mark.parametrize(
    "differences, of_a_score, of_a_loss, better",
    [
        ((-1.0, -1.1, -0.9), "worse", "better", (0, 3)),
        ((1.0, 1.1, 0.9), "better", "worse", (3, 0)),
        ((-1.0, 1.0, 0.1), "undecided", "undecided", (2, 1)),
    ],
)
def test_of_a_loss_the_lower_one_is_better(differences, of_a_score, of_a_loss, better):
    method = {seed: 20.0 + value for seed, value in enumerate(differences)}
    baseline = dict.fromkeys(method, 20.0)
    found = [compare(method, baseline, lower_is_better=lower) for lower in (False, True)]
    assert [one.verdict for one in found] == [of_a_score, of_a_loss]
    assert tuple(one.better for one in found) == better
