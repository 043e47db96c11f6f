"""Metrics of anomalies against a literal reading of their definitions."""

import numpy as np
import pytest
import torch

from kdzoo.metrics.anomalies import best_near, matthews, near, ranking, tolerant, tolerant_matthews


def case(seed, nodes=40, edges=45):
    random = np.random.default_rng(seed)
    pairs = random.integers(0, nodes, (edges, 2))
    both = torch.from_numpy(np.concatenate([pairs, pairs[:, ::-1]]))
    score = torch.from_numpy(random.integers(0, 12, nodes) / 12)  # with ties
    return both, score, torch.from_numpy(random.random(nodes) < 0.2)


def around(nodes, edges, hops):
    """The neighbourhood as FLASH's scripts gather it."""
    found = set(nodes)
    for _ in range(hops):
        found |= {end for pair in edges.tolist() for end in pair if set(pair) & found}
    return found


def flash(found, truth, edges, hops):
    """True and false positives and so on, node by node: (TP, FP, FN, TN)."""
    tp, fp, fn = found & truth, found - truth, truth - found
    tn = set(range(40)) - (truth | found)
    hit = tp | (fn & around(tp, edges, hops))
    return len(hit), len(fp - around(truth, edges, hops)), len(truth - hit), len(tn)


def literal_mcc(tp, fp, fn, tn):
    below = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    return (tp * tn - fp * fn) / below if below else 0.0


def members(mask):
    return set(mask.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("hops", [0, 1, 2])
def test_neighbourhoods(seed, hops):
    edges, score, attack = case(seed)
    assert members(near(attack, edges, hops)) == around(members(attack), edges, hops)
    for node, value in enumerate(best_near(score, attack, edges, hops).tolist()):
        inside = around({node}, edges, hops) & members(attack)
        assert value == max((float(score[other]) for other in inside), default=-torch.inf)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("hops", [0, 1, 2])
def test_matthews_is_that_of_the_counts(seed, hops):
    edges, score, attack = case(seed)
    for threshold in (0.2, 0.5, 0.8, 1.0):
        found = score > threshold
        strict = flash(members(found), members(attack), edges, 0)
        assert float(matthews(found, attack)) == pytest.approx(literal_mcc(*strict), abs=1e-6)
        counts = flash(members(found), members(attack), edges, hops)
        value = tolerant_matthews(found, attack, edges, hops)
        assert float(value) == pytest.approx(literal_mcc(*counts), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("hops", [0, 2])
def test_ranking_is_a_sum_over_thresholds(seed, hops):
    """Average precision as the sum of precision times the step of recall, AUC as the share of ordered pairs."""
    edges, score, attack = case(seed)
    values, truth = tolerant(score, attack, edges, hops)
    precise, last = 0.0, 0.0
    for threshold in values.unique().flip(0).tolist():
        tp, fp, fn, _ = flash(members(score >= threshold), members(attack), edges, hops)
        recall = tp / (tp + fn)
        precise += tp / max(1, tp + fp) * (recall - last)
        last = recall
    found = ranking(values, truth)
    assert float(found["ap"]) == pytest.approx(100 * precise, abs=1e-4)
    own, others = values[truth], values[~truth]
    pairs = (own[:, None] > others).double() + 0.5 * (own[:, None] == others)
    assert float(found["auc"]) == pytest.approx(100 * float(pairs.mean()), abs=1e-4)


def test_scores_that_differ_little_are_told_apart():
    score = torch.tensor([1 - 1e-15, 1 - 3e-15, 0.5, 1 - 2e-15], dtype=torch.double)
    assert ranking(score, torch.tensor([True, False, False, False]))["auc"] == 100


def test_one_kind_alone_has_no_ranking():
    assert ranking(torch.rand(3), torch.zeros(3, dtype=torch.bool)) == {}
    assert ranking(torch.rand(3), torch.ones(3, dtype=torch.bool)) == {}
    assert matthews(torch.zeros(3, dtype=torch.bool), torch.tensor([True, False, False])) == 0
