"""`Condensation`: what methods share that learn features, and edges if any, while a network is trained on the way."""

from typing import Any

import torch
from torch import Tensor, nn

from kdzoo.errors import UserError
from kdzoo.graph.condenser import Condenser, Init
from kdzoo.graph.evaluation import Evaluation
from kdzoo.graph.matrix import MatrixNetwork, normalise, propagate
from kdzoo.graph.reducers import Graph
from kdzoo.graph.structure import EdgeNetwork, learns_edges, without_weak


class Condensation(Condenser):
    """Takes a fresh network through its life in every iteration: update the graph, train the network on it, and again.

    A subclass implements `distance`, and `train_loss` where the network does not learn the labels. Edges and features
    take turns: all updates of an iteration are of one of them.

    Args:
        rate: Condensed nodes as a share of the labelled ones, in (0, 1].
        init: How the features start.
        outer: Updates of the graph in an iteration.
        inner: Steps of the network between two.
        lr_feat: Learning rate of the features.
        lr_adj: Learning rate of the edges' network; None: there are no edges.
        lr_net: Learning rate of the network.
        turns: Iterations that learn the edges, and the ones after them that learn the features.
        threshold: Edges that weigh less are left out of the result.
        network: `gcn` or `sgc`.
        hidden: Width of a GCN.
        layers: Layers of a GCN, hops of an SGC.
        evaluation: How the condensed graph is judged.
    """

    structure: EdgeNetwork | None
    given: tuple[Tensor, Tensor | None, Tensor]

    def __init__(
        self,
        rate: float,
        init: Init,
        outer: int,
        inner: int,
        lr_feat: float,
        lr_adj: float | None,
        lr_net: float,
        turns: tuple[int, int],
        threshold: float,
        network: str,
        hidden: int,
        layers: int,
        evaluation: Evaluation,
    ) -> None:
        super().__init__(rate, init, lr_feat, evaluation)
        if outer < 1 or inner < 0 or min(turns) < 0 or sum(turns) < 1:
            raise UserError(
                f"{type(self).__name__}: outer={outer} must be 1 or more, inner={inner} and turns={list(turns)} 0 or "
                "more, and one of the turns above 0."
            )
        self.outer, self.inner_steps, self.lr_adj, self.lr_net = outer, inner, lr_adj, lr_net
        self.turns, self.threshold = turns, threshold
        self.shape = (network, hidden, layers)

    def build(self, spec: dict[str, Any]) -> None:
        """Make the condensed nodes, and what makes their edges."""
        super().build(spec)
        MatrixNetwork(self.shape[0], spec["features"], spec["classes"], *self.shape[1:])  # complain now
        self.structure = None if self.lr_adj is None else EdgeNetwork(spec["features"])

    def configure_optimizers(self) -> Any:
        """Adam on the features and on the edges' network: what has no gradient in an iteration is left alone."""
        groups: list[dict[str, Any]] = [{"params": [self.x], "lr": self.lr_feat}]
        if self.structure is not None:
            groups.append({"params": list(self.structure.parameters()), "lr": self.lr_adj})
        return torch.optim.Adam(groups)

    def study(self) -> None:
        """Put down what networks see of the real graph: `given`, features, matrix and labels.

        An SGC is linear up to the labels' loss: what the labelled nodes gather, once, is all that it sees.
        """
        self.given = self.real_x, self.matrix, self.real["label"]
        if self.shape[0] == "sgc":
            known = self.real["label"] >= 0
            gathered = propagate(self.matrix, self.real["x"], self.shape[2])[known]
            self.given = gathered, None, self.real["label"][known]

    # ---------------------------------------------------------------------------------------------- an iteration

    def distil_step(self) -> dict[str, Tensor]:
        """Take a fresh network through its life."""
        network = self.fresh_network(*self.shape)
        adam = torch.optim.Adam(network.parameters(), lr=self.lr_net)
        graph: Any = self.optimizers().optimizer  # type: ignore[union-attr]
        edges_turn = self.structure is not None and learns_edges(self.trainer.global_step, *self.turns)
        learned = list(self.structure.parameters()) if edges_turn and self.structure is not None else [self.x]
        total = self.x.new_zeros(())
        for number in range(self.outer):
            if number > 0:
                graph.step()  # the last update is the Trainer's
            matrix = self.condensed_matrix()
            if number > 0:
                self.train_network(network, adam, None if matrix is None else matrix.detach())
            distance = self.distance(network, matrix)
            self.backward_to(distance, learned)
            total = total + distance.detach()
        return {"distance": total / (self.outer * len(self.labels.unique()))}

    def distance(self, network: MatrixNetwork, matrix: Tensor | None) -> Tensor:
        """What is to shrink, differentiable in `x` and in the condensed graph's normalised adjacency `matrix`."""
        raise NotImplementedError

    def train_loss(self, network: MatrixNetwork, matrix: Tensor | None) -> Tensor:
        """What the network learns between two updates, on the condensed graph as it is."""
        return nn.functional.cross_entropy(network(self.x.detach(), matrix), self.labels)

    def train_network(self, network: MatrixNetwork, adam: torch.optim.Optimizer, matrix: Tensor | None) -> None:
        """Train the network on the condensed graph as it is, with its `matrix` (no gradient goes into it)."""
        for _ in range(self.inner_steps):
            loss = self.train_loss(network, matrix)
            adam.zero_grad()
            loss.backward()
            adam.step()

    def condensed_matrix(self) -> Tensor | None:
        """The condensed graph's normalised adjacency, [n, n]; None for the identity."""
        return None if self.structure is None else normalise(self.structure(self.x))

    def final_graph(self) -> Graph:
        """The condensed graph without its weak edges."""
        graph = super().final_graph()
        if self.structure is not None and len(self.x):
            with torch.no_grad():
                graph["edges"], graph["weight"] = without_weak(self.structure(self.x), self.threshold)
        return graph
