"""How a condensed graph is judged: networks that have never seen the whole graph are trained on the condensed one.

The protocol that the field compares under: a GCN of two layers, Adam, 600 epochs on all condensed nodes at once, the
rate times 0.1 after half of them with a new optimizer; then it classifies the test nodes in the whole graph. What
counts is the last state of each network: the authors of arXiv 2110.07580 take the best one on the validation nodes.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from kdzoo.datamodules.augment import hash32
from kdzoo.errors import UserError
from kdzoo.graph.matrix import MatrixNetwork, compact, matrix_of
from kdzoo.graph.reducers import Graph
from kdzoo.losses.logits import labelled_cross_entropy
from kdzoo.teachers import sources


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a condensed graph.

    Args:
        networks: How many fresh networks are trained; the scores are their mean and standard deviation.
        network: `gcn` or `sgc`.
        hidden, layers, dropout: Of the network.
        epochs: Steps on the condensed graph.
        lr, weight_decay: Of Adam.
        whole: Also train as many networks on the whole graph with its training labels, and report their accuracy.
        during_fit: Also train networks at each validation inside a fit.
    """

    networks: int = 5
    network: str = "gcn"
    hidden: int = 256
    layers: int = 2
    dropout: float = 0.5
    epochs: int = 600
    lr: float = 0.01
    weight_decay: float = 5e-4
    whole: bool = False
    during_fit: bool = False

    def __post_init__(self) -> None:
        if min(self.networks, self.epochs) < 1 or self.lr <= 0:
            raise UserError("An evaluation needs a positive lr, and 1 or more networks and epochs.")

    def fresh(self, spec: dict[str, Any]) -> MatrixNetwork:
        """A new network for data of this spec, from torch's generator."""
        return MatrixNetwork(self.network, spec["features"], spec["classes"], self.hidden, self.layers, self.dropout)


def train(network: nn.Module, x: Tensor, matrix: Tensor | None, labels: Tensor, how: Evaluation) -> None:
    """Train a network by the protocol, in place; draws from torch's global generator.

    Args:
        network: Takes features and A_n.
        x: Features [n, F].
        matrix: A_n, [n, n].
        labels: int64 [n], -1 where there is none, or probabilities [n, C].
        how: Epochs and optimizer.
    """
    network.train()
    criterion = cross_entropy if labels.is_floating_point() else labelled_cross_entropy
    optimizer = _adam(network, how, how.lr)
    for epoch in range(how.epochs):
        if epoch == how.epochs // 2:
            optimizer = _adam(network, how, 0.1 * how.lr)
        loss = criterion(network(x, matrix), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()


class Judges:
    """Fresh networks trained on one graph, and how often each is right about another.

    Args:
        graph: What they are trained on.
        labels: Of its nodes, see `train`.
        spec: The spec of the data.
        how: How they are trained.
        seed: Of the weights and of the training.
    """

    def __init__(self, graph: Graph, labels: Tensor, spec: dict[str, Any], how: Evaluation, seed: int) -> None:
        device, began = graph["x"].device, time.perf_counter()
        self.networks: list[tuple[MatrixNetwork, MulticlassAccuracy]] = []
        with torch.inference_mode(False), torch.enable_grad():
            graph = {key: value.clone() for key, value in graph.items()}  # no inference tensors
            x, labels, matrix = compact(graph["x"]), labels.clone(), matrix_of(graph)
            for number in range(how.networks):
                with torch.random.fork_rng([device] if device.type == "cuda" else []):
                    torch.manual_seed(int(hash32(seed, number)))
                    network = how.fresh(spec).to(device).eval()
                    if not sources.untrained():
                        train(network, x, matrix, labels, how)
                score = MulticlassAccuracy(spec["classes"], average="micro", ignore_index=-1).to(device)
                self.networks.append((network, score))
        self.seconds = (time.perf_counter() - began) / how.networks  # that one takes

    def update(self, x: Tensor, matrix: Tensor | None, label: Tensor) -> None:
        """Let all networks classify the nodes of a graph whose label is known."""
        for network, accuracy in self.networks:
            accuracy.update(network(x, matrix), label)

    def percent(self) -> Tensor:
        """The accuracy of each network, over all ranks, in percent: [networks]."""
        return 100 * torch.stack([accuracy.compute() for _, accuracy in self.networks])


def _adam(network: nn.Module, how: Evaluation, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=lr, weight_decay=how.weight_decay)
