"""GCond: the condensed nodes of a class give a network the gradient that the real ones give it, edges included.

    loss = sum_c n_c / max n * D(grad CE(f(A, X)_c, c), grad CE(f(A', X')_c, c))
    A'_ij = sigmoid((mlp([x'_i, x'_j]) + mlp([x'_j, x'_i])) / 2),  A'_ii = 0

D is 1 - cosine, output by output. An iteration takes a fresh network through its life: update the graph, train the
network on it for some steps, update again. Of 50 iterations the first 10 learn the mlp, the others X'.
Source: Jin et al., arXiv 2110.07580, algorithm 1; the defaults are the authors' configuration for Cora, 600 iterations.
"""

from kdzoo.card import Card
from kdzoo.graph.condenser import Init
from kdzoo.graph.evaluation import Evaluation
from kdzoo.graph.gradient_matching import GradientMatching

CARD = Card(
    title="Graph Condensation for Graph Neural Networks",
    arxiv="2110.07580",
    year=2022,
    family="graph",
    task="graph condensation",
    teacher="networks trained on the condensed graph",
    student="a condensed graph",
    data="a graph with some labelled nodes",
    code="https://github.com/ChandlerBang/GCond",
    tags=("graph condensation", "gradient matching"),
)


class GCond(GradientMatching):
    """Gradient matching of features and edges.

    Args:
        rate: Condensed nodes as a share of the labelled ones, in (0, 1].
        init: How the features start.
        outer: Updates of the graph in an iteration.
        inner: Steps of the network between two.
        lr_feat: Learning rate of the features.
        lr_adj: Learning rate of the edges' network.
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
        init: Init = "random",
        outer: int = 20,
        inner: int = 15,
        lr_feat: float = 1e-4,
        lr_adj: float = 1e-4,
        lr_net: float = 0.01,
        turns: tuple[int, int] = (10, 40),
        threshold: float = 0.05,
        network: str = "sgc",
        hidden: int = 256,
        layers: int = 2,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        super().__init__(
            rate, init, outer, inner, lr_feat, lr_adj, lr_net, turns, threshold, network, hidden, layers, evaluation,
        )  # fmt: skip
