"""Losses of dense prediction: pure functions, tensors in, a scalar out. Half precision is compared in float32."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, kl_div, log_softmax


def channel_wise(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Channel-wise distillation: each channel is a distribution over the places of the map.

        T^2 / (B C) * sum over images and channels of KL(softmax(t / T) || softmax(s / T)), the softmax over H W

    No gradient is stopped here. Source: arXiv 2011.13256, eq. 4 and 5.

    Args:
        student: scores or features [B, C, H, W].
        teacher: the same shape.
        temperature: T > 0.

    Returns:
        A scalar, at least 0.
    """
    log_student, log_teacher = (
        log_softmax(_precise(map).flatten(2) / temperature, dim=2) for map in (student, teacher)
    )
    batch, channels = student.shape[:2]
    total = kl_div(log_student, log_teacher, reduction="sum", log_target=True)
    return temperature**2 * total / (batch * channels)


def pixel_cross_entropy(scores: Tensor, mask: Tensor, ignore: int) -> Tensor:
    """Cross-entropy, mean over the pixels that have a class; scores of a smaller map are interpolated first.

    Without any such pixel it is zero with a gradient of zeros.

    Args:
        scores: [B, C, h, w].
        mask: int64 [B, H, W], 0 ... C - 1, or `ignore`.
        ignore: the id of pixels that do not count.

    Returns:
        A scalar, at least 0.
    """
    if scores.shape[2:] != mask.shape[1:]:
        scores = interpolate(scores, mask.shape[1:], mode="bilinear")
    total = cross_entropy(_precise(scores), mask, ignore_index=ignore, reduction="sum")
    return total / (mask != ignore).sum().clamp(min=1)


def _precise(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
