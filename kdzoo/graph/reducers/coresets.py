"""Labelled nodes that stand for their class, with the edges among them; nothing is trained.

What a node is like is what it gathers: A_n^hops X (`kdzoo.graph.matrix`). Source of the baselines: arXiv 2110.07580,
section 5.1, whose authors take the outputs of a network trained on the whole graph instead.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kdzoo.errors import UserError
from kdzoo.graph.matrix import matrix_of, propagate
from kdzoo.graph.reducers import Graph, Reducer, budget, induced, shares
from kdzoo.selection import herding, k_center


class Coreset(Reducer):
    """Chooses nodes, label by label; a subclass has the `choice`.

    Args:
        hops: How far a node gathers; 0 for its own features.
    """

    choice: Callable[[Tensor, int], Tensor]

    def __init__(self, hops: int = 2) -> None:
        if hops < 0:
            raise UserError(f"{type(self).__name__}: hops={hops} must not be negative.")
        self.hops = hops

    def reduce(self, graph: Graph, rate: float) -> Graph:
        """Choose, and cut the graph out."""
        features = propagate(matrix_of(graph) if self.hops else None, graph["x"], self.hops)
        chosen = []
        for label, count in shares(graph["label"], budget(graph, rate)).items():
            if count:
                nodes = (graph["label"] == label).nonzero()[:, 0]
                chosen.append(nodes[type(self).choice(features[nodes], count).to(nodes.device)])
        return induced(graph, torch.cat(chosen).sort().values)


class Herding(Coreset):
    """Nodes whose mean stays closest to that of their label."""

    choice = staticmethod(herding)


class KCenter(Coreset):
    """Always the node that is farthest from all that were chosen."""

    choice = staticmethod(k_center)
