"""Graph reduction: a small graph by a reducer that trains nothing, judged as the condensed graphs of other methods are.

Random nodes, herding and k-center are what a condensation has to beat at the same number of nodes; partitions and
coarsening are the strong ones among the training-free. Any reducer of a plugin (entry points `kdzoo.reducers`) will do.
Source of the protocol: Jin et al., arXiv 2110.07580, section 5.1.
"""

from typing import Any

import torch
from torch import Tensor

from kdzoo.card import Card
from kdzoo.graph.condenser import Condenser
from kdzoo.graph.evaluation import Evaluation
from kdzoo.graph.reducers import Graph, make_reducer

CARD = Card(
    title="Training-free graph reduction: coresets, partitions, coarsening",
    arxiv="2110.07580",
    year=2022,
    family="graph",
    task="graph condensation",
    student="a condensed graph",
    data="a graph with some labelled nodes",
    tags=("graph condensation", "coreset", "baseline"),
)


class GraphReduction(Condenser):
    """Reduces a graph in the first iteration; there is nothing to do in any other.

    Args:
        reducer: The name of a reducer.
        rate: Nodes as a share of the labelled ones, in (0, 1].
        options: The reducer's own arguments.
        evaluation: How the graph is judged.
    """

    edges: Tensor
    weight: Tensor

    def __init__(
        self,
        reducer: str = "herding",
        rate: float = 0.5,
        options: dict[str, Any] | None = None,
        evaluation: Evaluation = Evaluation(),
    ) -> None:
        super().__init__(rate, "random", 0.0, evaluation)
        self.reducer = make_reducer(reducer, **(options or {}))

    def build(self, spec: dict[str, Any]) -> None:
        """Make an empty graph."""
        super().build(spec)
        self.register_buffer("edges", torch.zeros(0, 2, dtype=torch.long))
        self.register_buffer("weight", torch.zeros(0))

    def start(self) -> None:
        """Leave the graph empty: the first iteration fills it."""

    def distil_step(self) -> dict[str, Tensor]:
        """Reduce, once; the optimizer's step that follows has no gradient and only counts."""
        if self.trainer.global_step == 0:
            small = self.reducer.reduce(self.real, len(self.labels) / len(self.real["x"]))
            # The result may have any number of nodes and edges: the tensors take its size.
            self.x.data, self.labels.data, self.edges.data = small["x"], small["label"], small["edges"]
            self.weight.data = small.get("weight", self.weight[:0])
        return {"reduced": self.x.new_zeros(())}

    def final_graph(self) -> Graph:
        """The reduced graph."""
        graph = {"x": self.x.detach(), "edges": self.edges, "label": self.labels.detach()}
        return graph | ({"weight": self.weight} if len(self.weight) else {})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the sizes of what was reduced."""
        super().on_load_checkpoint(checkpoint)
        self.take_sizes(checkpoint["state_dict"])
