"""`EdgeNetwork`: the edges of a condensed graph as a function of its features; and when they are learned."""

from itertools import pairwise

import torch
from torch import Tensor, nn


class EdgeNetwork(nn.Module):
    """An MLP that weighs every pair of nodes: A_ij = sigmoid((mlp([x_i, x_j]) + mlp([x_j, x_i])) / 2), A_ii = 0.

    Its norms use the statistics of all pairs, in training and outside alike, as the authors' code does. Source: arXiv
    2110.07580, eq. 7.

    Args:
        features: F.
        hidden: Width.
        layers: Linear layers, 2 or more.
    """

    def __init__(self, features: int, hidden: int = 128, layers: int = 3) -> None:
        super().__init__()
        sizes = [2 * features, *[hidden] * (layers - 1)]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden, track_running_stats=False) for _ in self.layers)
        self.last = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features [n, F] to a symmetric adjacency [n, n] in (0, 1) with a diagonal of zeros."""
        size = len(x)
        if size == 1:
            return x.new_zeros(1, 1)
        # [x_i, x_j] W is x_i W_1 + x_j W_2: no pair is ever written out.
        first: nn.Linear = self.layers[0]  # type: ignore[assignment]
        left, right = first.weight.chunk(2, 1)
        h = ((x @ left.T)[:, None] + (x @ right.T)[None] + first.bias).flatten(0, 1)  # [n * n, hidden]
        for number, norm in enumerate(self.norms):
            h = norm(h if number == 0 else self.layers[number](h)).relu()
        score = self.last(h).view(size, size)
        adjacency = ((score + score.T) / 2).sigmoid()
        return adjacency * (1 - torch.eye(size, device=x.device))


def learns_edges(iteration: int, edges: int, features: int) -> bool:
    """Whether an iteration updates the edges: the first `edges` of every `edges + features` do, the others do not."""
    return iteration % (edges + features) < edges


def without_weak(adjacency: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """The edges [E, 2] of an adjacency [n, n] that weigh `threshold` or more, and their weights [E]."""
    edges = ((adjacency >= threshold) & (adjacency > 0)).nonzero()
    return edges, adjacency[edges[:, 0], edges[:, 1]]
