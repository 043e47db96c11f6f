import math

import numpy as np
import pytest
from scipy import stats

from kdzoo.proof.criteria import compare, evaluate, interval

SEEDS = [0, 1, 2]


def recorded(left, right, **criterion):
    arms = {"kd": {"values": {"acc": left}}, "ce": {"values": {"acc": right}}}
    return {"arms": arms, "seeds": list(range(len(left))), "criteria": [{"metric": "acc", "left": "kd", **criterion}]}


def judge(left, right, **criterion):
    return evaluate(recorded(left, right, **criterion))[0]


def test_interval_with_the_quantile_of_the_tables():
    # t(0.975; 2 degrees of freedom) = 4.302653, standard deviation of 1, 2, 3 is 1
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == pytest.approx(2)
    assert found.lower == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert found.upper == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)


def test_compare_is_the_paired_t_interval_of_scipy():
    rng = np.random.default_rng(0)
    left, right = rng.normal(3, 1, 7), rng.normal(0, 1, 7)
    expected = stats.ttest_rel(left, right).confidence_interval(0.95)
    found = compare(recorded(list(left), list(right))["arms"], {"metric": "acc", "left": "kd", "minus": "ce"})
    assert (found.lower, found.upper) == pytest.approx((expected.low, expected.high))


def test_difference_passes():
    row = judge([84.0, 85.0, 86.0], [80.0, 81.1, 81.9], minus="ce", at_least=3.0)
    assert row["value"] == pytest.approx(4.0)
    assert 0 < row["bound95"] < 4.0
    assert row["passed"] is True


def test_difference_below_its_bound_is_not_reached():
    assert judge([82.0, 83.0, 84.0], [80.0, 81.1, 81.9], minus="ce", at_least=3.0)["passed"] is False


def test_difference_that_may_be_zero_is_not_reached():
    row = judge([81.0, 82.0, 83.0], [80.0, 80.0, 80.0], minus="ce", at_least=1.5)
    assert row["value"] == pytest.approx(2.0)
    assert row["bound95"] == pytest.approx(-0.484138, abs=1e-6)
    assert row["passed"] is False


def test_pairing_removes_what_seeds_share():
    left, right = [70.0, 80.0, 90.0], [66.9, 77.0, 87.1]
    assert judge(left, right, minus="ce", at_least=3.0)["passed"] is True


@pytest.mark.parametrize(("bound", "passed"), [(-0.5, True), (-0.05, False)])
def test_non_inferiority(bound, passed):
    # differences -0.1, 0, 0.1: half width 0.248
    assert judge([79.9, 80.0, 80.1], [80.0] * 3, minus="ce", at_least=bound)["passed"] is passed


@pytest.mark.parametrize(("bound", "passed"), [(-3.0, True), (-5.0, False), (0.5, True)])
def test_at_most_mirrors_at_least(bound, passed):
    row = judge([1.0, 1.1, 0.9], [5.0, 5.0, 5.0], minus="ce", at_most=bound)
    assert row["passed"] is passed
    assert row["bound95"] == pytest.approx(-4 + 0.248414, abs=1e-5)


def test_at_most_with_an_interval_over_zero_is_not_reached():
    assert judge([4.0, 5.0, 3.0], [5.0, 5.0, 5.0], minus="ce", at_most=-0.5)["passed"] is False


@pytest.mark.parametrize(
    ("criterion", "passed"),
    [
        ({"at_most": 1.3}, True),  # not much slower: the whole interval below 1.3
        ({"at_most": 1.15}, False),  # the mean is below, the interval is not
        ({"at_most": 0.9}, False),
        ({"at_least": 0.9}, True),
        ({"at_least": 1.05}, False),  # reached by the mean, but 1 is in the interval
    ],
)
def test_ratio(criterion, passed):
    row = judge([1.05, 1.1, 1.15], [1.0] * 3, ratio_to="ce", **criterion)  # 1.1 +- 0.124
    assert row["value"] == pytest.approx(1.1)
    assert row["passed"] is passed


def test_ratio_of_two():
    assert judge([20.0, 21.0, 22.0], [10.0, 10.0, 10.0], ratio_to="ce", at_least=2.0)["passed"] is True
    assert judge([20.0, 21.0, 22.0], [0.0, 10.0, 10.0], ratio_to="ce", at_least=2.0)["passed"] is False


def test_one_seed_is_not_judged():
    row = judge([84.0], [80.0], minus="ce", at_least=3.0)
    assert row["value"] == 4.0
    assert row["bound95"] is None
    assert row["passed"] is None


def test_a_run_that_diverged_does_not_pass():
    row = judge([84.0, None, 86.0], [80.0, 81.0, 82.0], minus="ce", at_least=3.0)
    assert (row["value"], row["passed"]) == (None, False)


def test_evaluate_can_be_repeated():
    first = recorded([84.0, 85.0, 86.0], [80.0, 81.1, 81.9], minus="ce", at_least=3.0)
    judged = {**first, "criteria": evaluate(first)}
    assert evaluate(judged) == judged["criteria"]
