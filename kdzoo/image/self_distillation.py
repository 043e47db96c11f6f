"""Self-distillation of least squares: what a step is, where it leads, and how much ground truth it should see.

Pure functions. A step fits y^t = H(a_t y + (1 - a_t) y^(t-1)) with H = K (K + lambda I)^-1 and y^1 = H y. With the
eigenvectors V and eigenvalues d of K and A = d / (d + lambda), y^t = V A b_t V^T y: every step is a vector b_t.
Source: Borup and Andersen, arXiv 2102.13088, sections 3 and 4.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def gaussian_kernel(left: Tensor, right: Tensor, gamma: float) -> Tensor:
    """exp(-gamma |x - z|^2): [N, D] and [M, D] to [N, M], in (0, 1]."""
    distance = (left**2).sum(1)[:, None] + (right**2).sum(1) - 2 * left @ right.T
    return torch.exp(-gamma * distance.clamp(min=0))


def next_step(b: Tensor, eigenvalues: Tensor, penalty: float, weight: float) -> Tensor:
    """b_t = a_t + (1 - a_t) A b_(t-1), from b_1 = 1.

    Args:
        b: Of the step before, [N].
        eigenvalues: d of the kernel matrix, [N], at least 0.
        penalty: lambda > 0, the same in all steps.
        weight: a_t of the ground truth.
    """
    return weight + (1 - weight) * eigenvalues / (eigenvalues + penalty) * b


def limit(eigenvalues: Tensor, penalty: float, weight: float) -> Tensor:
    """The b after infinitely many steps with one weight in (0, 1]: that of ridge regression with lambda / a."""
    return (eigenvalues + penalty) / (eigenvalues + penalty / weight)


def dual_coefficients(b: Tensor, eigenvalues: Tensor, vectors: Tensor, penalty: float, target: Tensor) -> Tensor:
    """The c of the function k(x, X) c that a step has found.

    Args:
        b: Of the step, [N].
        eigenvalues: [N].
        vectors: V, [N, N], a column each.
        penalty: lambda.
        target: y, [N, C].

    Returns:
        [N, C].
    """
    return vectors @ ((b / (eigenvalues + penalty))[:, None] * (vectors.T @ target))


def best_weight(parts: Iterable[tuple[Tensor, Tensor, Tensor]]) -> float:
    """The weight a that brings a * first + (1 - a) * alone closest to the truth on held-out samples, of all ranks.

    A step that mixes ground truth and predictions is, for least squares, exactly this mix of two fits (algorithm 1).

    Args:
        parts: For each batch the truth, what the first model says, and what the model says that was fitted to the
            predictions of the step before alone; [B, C] each.

    Returns:
        <truth - alone, first - alone> / |first - alone|^2, which may lie outside [0, 1]; 1 where the two do not differ.
    """
    top = bottom = torch.zeros((), dtype=torch.float64)
    for truth, first, alone in parts:
        apart = (first - alone).double()
        top = top + ((truth - alone).double() * apart).sum().cpu()
        bottom = bottom + (apart**2).sum().cpu()
    if dist.is_available() and dist.is_initialized():
        shares: list[Tensor] = [torch.zeros(2)] * dist.get_world_size()
        dist.all_gather_object(shares, torch.stack([top, bottom]))
        top, bottom = torch.stack(shares).sum(0)
    return float(top / bottom) if bottom > 0 else 1.0
