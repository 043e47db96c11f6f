"""Losses on features."""

import pytest
import torch

from kdzoo.losses.features import hint


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3, 4), (2, 3)])
def test_hint_against_a_loop(shape):
    student, teacher = torch.randn(2, *shape, dtype=torch.float64)
    total = 0.0
    for s, t in zip(student.flatten().tolist(), teacher.flatten().tolist()):
        total += (s - t) ** 2
    assert hint(student, teacher).item() == pytest.approx(total / student.numel(), rel=1e-12)


def test_hint_gradient():
    student, teacher = torch.randn(2, 2, 3, 2, dtype=torch.float64)
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(hint(student, teacher), student)
    torch.testing.assert_close(gradient, 2 * (student.detach() - teacher) / student.numel())
    assert hint(teacher, teacher).item() == 0.0


def test_shapes_must_agree():
    with pytest.warns(UserWarning, match="target size .* is different to the input size"):  # torch would broadcast
        hint(torch.zeros(2, 3, 1, 1), torch.zeros(2, 3, 4, 4))
