"""GCond-X: gradient matching of a condensed graph without edges.

    loss = sum_c n_c / max n * D(grad CE(f(A, X)_c, c), grad CE(f(I, X')_c, c))

All that the edges say goes into the features: the real side gathers, the condensed one has the identity.
Source: Jin et al., arXiv 2110.07580, section 3.2, "a variant".
"""

from kdzoo.card import Card
from kdzoo.graph.condenser import Init
from kdzoo.graph.evaluation import Evaluation
from kdzoo.graph.gradient_matching import GradientMatching

CARD = Card(
    title="Graph Condensation for Graph Neural Networks (without edges)",
    arxiv="2110.07580",
    year=2022,
    family="graph",
    task="graph condensation",
    teacher="networks trained on the condensed graph",
    student="a condensed graph",
    data="a graph with some labelled nodes",
    code="https://github.com/ChandlerBang/GCond",
    tags=("graph condensation", "gradient matching", "without edges"),
)


class GCondX(GradientMatching):
    """Gradient matching of features.

    Args:
        rate: Condensed nodes as a share of the labelled ones, in (0, 1].
        init: How the features start.
        outer: Updates of the graph in an iteration.
        inner: Steps of the network between two.
        lr_feat: Learning rate of the features.
        lr_net: Learning rate of the network.
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
        lr_net: float = 0.01,
        network: str = "sgc",
        hidden: int = 256,
        layers: int = 2,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        super().__init__(
            rate, init, outer, inner, lr_feat, None, lr_net, (0, 1), 0.0, network, hidden, layers, evaluation,
        )  # fmt: skip
