"""Losses between a student's and a teacher's features: pure functions, tensors in, a scalar out."""

from torch import Tensor
from torch.nn.functional import mse_loss


def hint(student_feature: Tensor, teacher_feature: Tensor) -> Tensor:
    """The hint loss of FitNets: the mean squared difference. Source: arXiv 1412.6550, eq. 3 (there a sum, halved).

    Args:
        student_feature: any shape, after the regressor.
        teacher_feature: the same shape.

    Returns:
        A scalar, at least 0.
    """
    return mse_loss(student_feature, teacher_feature)
