"""The conformance suite that kdzoo runs on its own methods, and what is this method's own."""

import torch

from kdzoo.testing import check_method
from kdzoo_example.example import teacher_divergence


def test_conforms():
    check_method("example")


def test_the_teachers_own_logits_cost_nothing():
    logits = torch.randn(8, 10)
    assert teacher_divergence(logits, logits).abs() < 1e-6
    assert teacher_divergence(torch.randn(8, 10), logits) > 0
