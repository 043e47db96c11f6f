import math

import pytest

from kdzoo.metrics.robust_scores import ars, lrs


def test_the_worked_example():
    """IOR = 0.20, HLR = 0.30: a = -0.05."""
    expected = (math.exp(-0.05) - math.exp(-1)) / (math.exp(1) - math.exp(-1))
    assert lrs(synthetic=60, random=40, synthetic_hard=50, real=80) == pytest.approx(100 * expected)


def test_the_ends():
    assert lrs(100, 0, 100, 100, weight=1) == pytest.approx(100)
    assert lrs(0, 100, 0, 100) == pytest.approx(0)
    assert ars((100, 0), (100, 0)) == pytest.approx(100)
    assert ars((0, 100), (0, 100)) == pytest.approx(0)


def test_weights_choose_their_part():
    assert ars((70, 60), (50, 10), weight=1) == pytest.approx(lrs(70, 60, 0, 0, weight=1))
    assert ars((70, 60), (50, 10), weight=0) == pytest.approx(lrs(50, 10, 0, 0, weight=1))
    assert lrs(70, 0, 40, 90, weight=0) == pytest.approx(lrs(0, 50, 0, 0, weight=1))


def test_better_sets_score_higher():
    assert lrs(60, 40, 50, 80) < lrs(61, 40, 50, 80) < lrs(61, 40, 51, 80) < lrs(61, 39, 51, 80)
    assert ars((60, 40), (50, 30)) < ars((61, 40), (50, 30)) < ars((61, 40), (51, 30)) < ars((61, 39), (51, 30))
