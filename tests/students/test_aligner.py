"""Features brought to another shape."""

import pytest
import torch
from torch import nn

from kdzoo.errors import UserError
from kdzoo.students.aligner import Aligner


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((4, 8, 8), (6, 8, 8)),
        ((4, 8, 8), (6, 4, 4)),
        ((4, 7, 7), (6, 4, 4)),
        ((4, 3, 5), (2, 7, 9)),
        ((4, 8, 3), (6, 4, 6)),
        ((4, 1, 1), (4, 5, 5)),
        ((17, 12), (17, 20)),
        ((12,), (20,)),
    ],
)
def test_shapes(student, teacher):
    aligner = Aligner(student, teacher)
    feature = torch.randn(3, *student, requires_grad=True)
    aligned = aligner(feature)
    assert aligned.shape == (3, *teacher)
    aligned.square().sum().backward()
    assert feature.grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in aligner.parameters())


def identity(aligner: Aligner) -> Aligner:
    nn.init.dirac_(aligner.map.weight)
    nn.init.zeros_(aligner.map.bias)
    return aligner


def test_size_is_averaged_down():
    feature = torch.rand(2, 3, 8, 8)
    expected = feature.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(identity(Aligner((3, 8, 8), (3, 4, 4)))(feature), expected)


def test_size_is_interpolated_up():
    row = torch.tensor([0.0, 1.0]).expand(1, 1, 2, 2)
    aligned = identity(Aligner((1, 2, 2), (1, 4, 4)))(row)
    torch.testing.assert_close(aligned[0, 0, 0], torch.tensor([0.0, 0.25, 0.75, 1.0]))


def test_each_side_has_its_own_direction():
    """Averaged where it is larger, interpolated where it is smaller: nothing is lost."""
    feature = torch.zeros(1, 1, 2, 8)
    feature[..., 1] = 8.0  # a column that plain interpolation at a stride of 4 would miss
    aligned = identity(Aligner((1, 2, 8), (1, 4, 2)))(feature)
    torch.testing.assert_close(aligned, torch.tensor([2.0, 0.0]).expand(1, 1, 4, 2))


@pytest.mark.parametrize(
    ("student", "teacher"), [((4, 8, 8), (16, 12)), ((17, 12), (10, 12)), ((12,), (4, 2, 2)), ((5, 6), (6,))]
)
def test_of_two_kinds(student, teacher):
    with pytest.raises(UserError, match=r"cannot be aligned to a teacher feature"):
        Aligner(student, teacher)
