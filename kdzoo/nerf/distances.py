"""What volume distillation measures: distances of whole batches, and the points where they count."""

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Norm = Literal["norm_l2", "norm_l1", "mean_l2"]


def distance(student: Tensor, teacher: Tensor, norm: Norm = "norm_l2") -> Tensor:
    """How far two tensors are apart, over the global batch.

    `norm_l2` is the Frobenius norm of the difference, not squared and not averaged: its gradient has length one however
    small the difference, and it grows with the root of the number of points. Over several processes it is the norm of
    all their differences together; each process's gradient is scaled so that the mean over processes is right.

    Args:
        student: any shape.
        teacher: the same; no gradient goes there.
        norm: `norm_l2`, `norm_l1` (sum of absolute differences) or `mean_l2` (mean of squares).
    """
    difference = (student.float() - teacher.detach().float()).flatten()
    if norm == "mean_l2":
        return difference.square().sum() / max(1, difference.numel())
    order = 2 if norm == "norm_l2" else 1
    own = torch.linalg.vector_norm(difference, order)
    world = dist.get_world_size() if dist.is_initialized() else 1
    if world == 1:
        return own
    others = [torch.zeros_like(own) for _ in range(world)]
    dist.all_gather(others, own.detach())
    others[dist.get_rank()] = own
    whole = torch.linalg.vector_norm(torch.stack(others), order)
    return whole.detach() + world * (whole - whole.detach())


def heaviest(weights: Tensor, ray: Tensor, rays: int, share: float, opacity: Tensor, least: float = 0.5) -> Tensor:
    """Choose the points of each ray that matter most to its pixel: floor(share * n) + 1 of its n points.

    Args:
        weights: [P] in [0, 1], what each point adds to its ray.
        ray: int64 [P], ascending.
        rays: number of rays.
        share: in [0, 1).
        opacity: [rays]; rays below `least` keep no point.
        least: of the opacity.

    Returns:
        bool [P].
    """
    counts = torch.bincount(ray, minlength=rays)
    starts = counts.cumsum(0) - counts
    order = (ray.double() + (1 - weights.double().clamp(0, 1)) / 2).argsort()  # ray by ray, the heaviest first
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    kept = (share * counts.double()).floor().long() + 1
    return (rank - starts[ray] < kept[ray]) & (opacity[ray] >= least)
