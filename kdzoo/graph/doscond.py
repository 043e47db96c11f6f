"""DosCond: gradient matching at the start of networks alone; none of them is ever trained.

    loss = sum_c n_c / max n * D(grad CE(f(A, X)_c, c), grad CE(f(A', X')_c, c)) at fresh weights

A', X', D and the turns are those of GCond, for classification of nodes. The authors' form for classification of whole
graphs, with Bernoulli edges, is not this one.
Source: Jin et al., arXiv 2206.07746, section 3.1 (one-step matching); the authors' node code is GCond's with one step.
"""

from kdzoo.card import Card
from kdzoo.graph.condenser import Init
from kdzoo.graph.evaluation import Evaluation
from kdzoo.graph.gradient_matching import GradientMatching

CARD = Card(
    title="Condensing Graphs via One-Step Gradient Matching",
    arxiv="2206.07746",
    year=2022,
    family="graph",
    task="graph condensation",
    teacher="networks trained on the condensed graph",
    student="a condensed graph",
    data="a graph with some labelled nodes",
    code="https://github.com/amazon-science/doscond",
    tags=("graph condensation", "gradient matching", "one step"),
)


class DosCond(GradientMatching):
    """One-step gradient matching.

    Args:
        rate: Condensed nodes as a share of the labelled ones, in (0, 1].
        init: How the features start.
        outer: Updates of the graph in an iteration, all at the same fresh weights.
        lr_feat: Learning rate of the features.
        lr_adj: Learning rate of the edges' network; None: no edges.
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
        outer: int = 1,
        lr_feat: float = 1e-4,
        lr_adj: float | None = 1e-4,
        turns: tuple[int, int] = (10, 40),
        threshold: float = 0.05,
        network: str = "sgc",
        hidden: int = 256,
        layers: int = 2,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        super().__init__(
            rate, init, outer, 0, lr_feat, lr_adj, 0.0, turns, threshold, network, hidden, layers, evaluation,
        )  # fmt: skip
