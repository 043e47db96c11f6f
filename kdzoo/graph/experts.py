"""Expert trajectories of node classifiers: networks trained on the whole graph, their parameters kept now and then."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdzoo.datamodules.augment import hash32
from kdzoo.errors import UserError
from kdzoo.graph.matrix import MatrixNetwork
from kdzoo.graph.reducers import Graph
from kdzoo.teachers import sources
from kdzoo.trajectories import experts as trajectories
from kdzoo.trajectories.flat import flatten

# Raise it when a change of kdzoo makes the same settings train other experts.
RECIPE_VERSION = 1
Pacing = Literal["linear", "root", "geom"]


@dataclass(frozen=True)
class Experts:
    """How experts are trained: all labelled nodes in every epoch, without dropout.

    Args:
        count: How many there are.
        epochs: Steps on the whole graph.
        every: Epochs between two snapshots.
        optimizer: `sgd` or `adam`.
        lr: Learning rate.
        momentum: Of SGD.
        weight_decay: L2 penalty.
        easy: Share of the labelled nodes, the easiest, that the training begins with; 1: all from the start.
        grown: Epoch from which on all are used.
        pacing: How the share grows until then.
        seed: Of all experts; that of the run has no part in them.
    """

    count: int = 200
    epochs: int = 2500
    every: int = 10
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.4
    momentum: float = 0.0
    weight_decay: float = 0.0
    easy: float = 1.0
    grown: int = 1500
    pacing: Pacing = "geom"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.count, self.epochs, self.every, self.grown) < 1 or self.lr <= 0 or not 0 < self.easy <= 1:
            raise UserError(
                "Experts need a positive lr, easy in (0, 1], and count, epochs, every and grown of 1 or more."
            )
        if self.epochs % self.every:
            raise UserError(f"Experts of {self.epochs} epochs have no snapshot at the end, every {self.every}.")

    @property
    def last(self) -> int:
        """The number of the last snapshot."""
        return self.epochs // self.every


def difficulty(graph: Graph) -> Tensor:
    """How mixed the classes around each node are: the entropy of the known labels of itself and its neighbours, [N].

    Source: arXiv 2402.05011, eq. 3; its authors ask the labels of all nodes, those of the test too. Here only labels of
    the training part count, and a node without a labelled neighbour is an easy one.
    """
    label, edges = graph["label"], graph["edges"]
    nodes = torch.arange(len(label), device=label.device)
    at, by = torch.cat([edges[:, 1], nodes]), torch.cat([edges[:, 0], nodes])
    known = label[by] >= 0
    counts = torch.zeros(len(label), max(1, int(label.max()) + 1), device=label.device)
    counts.index_put_((at[known], label[by[known]]), torch.ones((), device=label.device), accumulate=True)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return torch.special.entr(share).sum(1)


def share_of_nodes(how: Experts, epoch: int) -> float:
    """The share of the labelled nodes, easiest first, that an epoch uses: `easy` at first, 1 from `grown` on."""
    done = min(1.0, epoch / how.grown)
    if how.pacing == "linear":
        return how.easy + (1 - how.easy) * done
    if how.pacing == "root":
        return math.sqrt(how.easy**2 + (1 - how.easy**2) * done)
    return float(how.easy ** (1 - done))


def trajectory(
    network: MatrixNetwork, x: Tensor, matrix: Tensor | None, label: Tensor, order: Tensor, how: Experts
) -> Iterator[np.ndarray]:
    """Train a network on the whole graph.

    Args:
        network: The expert.
        x: Features [N, F], which may be sparse.
        matrix: The normalised adjacency.
        label: int64 [N].
        order: Numbers of the labelled nodes, easiest first.
        how: Optimizer, epochs, curriculum.

    Yields:
        Its parameters, float32 [P], before the first epoch and after every `how.every`.

    Raises:
        UserError: The training diverges.
    """
    network.train()
    optimizer: Any = torch.optim.SGD(network.parameters(), how.lr, how.momentum, weight_decay=how.weight_decay)
    if how.optimizer == "adam":
        optimizer = torch.optim.Adam(network.parameters(), how.lr, weight_decay=how.weight_decay)
    yield flatten(network).cpu().numpy()
    for epoch in range(how.epochs):
        nodes = order[: max(1, int(share_of_nodes(how, epoch) * len(order)))]
        loss = cross_entropy(network(x, matrix)[nodes], label[nodes])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (epoch + 1) % how.every == 0:
            weights = flatten(network)
            if not torch.isfinite(weights).all():
                raise UserError(f"An expert diverged before epoch {epoch + 1}: lower experts.lr ({how.lr}).")
            yield weights.cpu().numpy()


class Trajectories(trajectories.Trajectories):
    """The experts of a fit, trained where they are missing.

    Args:
        graph: The training graph.
        x: Its features, which may be sparse.
        matrix: Its normalised adjacency.
        shape: `name`, `hidden`, `layers` of a `MatrixNetwork`.
        spec: The spec of the data.
        how: How experts are trained.
        device: Where.
    """

    def __init__(
        self,
        graph: Graph,
        x: Tensor,
        matrix: Tensor | None,
        shape: tuple[str, int, int],
        spec: dict[str, Any],
        how: Experts,
        device: torch.device,
    ) -> None:
        name, hidden, layers = shape
        identity = {
            "recipe": RECIPE_VERSION,
            "data": "" if sources.untrained() else fingerprint(graph),
            "network": [name, hidden, layers, spec["features"], spec["classes"]],
            **{key: value for key, value in asdict(how).items() if key != "count"},
        }
        label = graph["label"]
        known = (label >= 0).nonzero()[:, 0]
        order = known[difficulty(graph)[known].argsort(stable=True)] if how.easy < 1 else known

        def network(number: int) -> nn.Module:
            torch.manual_seed(int(hash32(how.seed, number)))
            return MatrixNetwork(name, spec["features"], spec["classes"], hidden, layers).to(device)

        def train(network: MatrixNetwork) -> Iterator[np.ndarray]:
            return trajectory(network, x, matrix, label, order, how)

        about = f"{name} on a graph of {len(label):,} nodes"
        super().__init__(identity, how.count, how.last + 1, network, train, about, device)


def fingerprint(graph: Graph) -> str:
    """Hash of the graph and labels that experts are trained on."""
    digest: Any = hashlib.sha256()
    for key in sorted(graph):
        digest.update(key.encode())
        digest.update(graph[key].cpu().contiguous().numpy())
    return digest.hexdigest()
