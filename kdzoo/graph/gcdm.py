"""GCDM: in every layer of a network the condensed nodes of a class lie, on average, where the real ones lie.

    loss = sum_l sum_c n_c / n * | mean h_l(A, X)_c - mean h_l(A', X')_c |^2

h_l are the outputs of the hidden layers, whose receptive field grows with l. An iteration takes a fresh network through
its life as gradient matching does, but no gradient is compared: no second derivatives, the cheap optimised method.
Source: Liu et al., arXiv 2206.13697. Toolkits differ in what the network learns between two updates: here it classifies
the condensed nodes. `lr_adj` None leaves the edges out.
"""

import torch
from torch import Tensor

from kdzoo.card import Card
from kdzoo.graph.condensation import Condensation
from kdzoo.graph.condenser import Init
from kdzoo.graph.evaluation import Evaluation
from kdzoo.graph.matrix import MatrixNetwork

CARD = Card(
    title="Graph Condensation via Receptive Field Distribution Matching",
    arxiv="2206.13697",
    year=2022,
    family="graph",
    task="graph condensation",
    teacher="networks trained on the condensed graph",
    student="a condensed graph",
    data="a graph with some labelled nodes",
    tags=("graph condensation", "distribution matching"),
)


def class_means(h: Tensor, label: Tensor, classes: Tensor) -> Tensor:
    """The mean of the nodes of each of `classes` [C]: [C, D] of embeddings [N, D] with labels int64 [N]."""
    return torch.stack([h[label == number].mean(0) for number in classes.tolist()])


class GCDM(Condensation):
    """Distribution matching of features, and of edges if asked for.

    Args:
        rate: Condensed nodes as a share of the labelled ones, in (0, 1].
        init: How the features start.
        outer: Updates of the graph in an iteration.
        inner: Steps of the network between two.
        lr_feat: Learning rate of the features.
        lr_adj: Learning rate of the edges' network; None: no edges.
        lr_net: Learning rate of the network.
        turns: Iterations that learn the edges, and the ones after them that learn the features.
        threshold: Edges that weigh less are left out of the result.
        network: `gcn` or `sgc`.
        hidden: Width of a GCN.
        layers: Layers of a GCN, hops of an SGC.
        evaluation: How the condensed graph is judged.
    """

    def __init__(
        self,
        rate: float = 0.5,
        init: Init = "k_center",
        outer: int = 5,
        inner: int = 10,
        lr_feat: float = 3e-4,
        lr_adj: float | None = 3e-4,
        lr_net: float = 0.01,
        turns: tuple[int, int] = (10, 20),
        threshold: float = 0.05,
        network: str = "gcn",
        hidden: int = 256,
        layers: int = 2,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        super().__init__(
            rate, init, outer, inner, lr_feat, lr_adj, lr_net, turns, threshold, network, hidden, layers, evaluation,
        )  # fmt: skip

    def distance(self, network: MatrixNetwork, matrix: Tensor | None) -> Tensor:
        """The distance of the classes' means, over layers and classes."""
        classes = self.labels.unique()
        shares = (self.labels[:, None] == classes).float().mean(0)  # [C]
        with torch.no_grad():
            real = network.embeddings(self.real_x, self.matrix)
        total = self.x.new_zeros(())
        for wanted, found in zip(real, network.embeddings(self.x, matrix), strict=True):
            difference = class_means(wanted, self.real["label"], classes) - class_means(found, self.labels, classes)
            total = total + (shares * difference.square().sum(1)).sum()
        return total
